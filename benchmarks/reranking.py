"""Re-ranking: time and peak memory, k-reciprocal against the published dense algorithm.

    python benchmarks/reranking.py --threads 2                      # Market-1501's size, both; a few minutes, 9 GB
    python benchmarks/reranking.py --sizes market msmt17            # MSMT17's as well, without the dense one
    python benchmarks/reranking.py --sizes small --csv small.csv    # to see that it works

The peer is the algorithm of the authors' code in numpy (Zhong et al., CVPR 2017; the same in torchreid and most
libraries), written out here: dense [N, N] distances, ranking and encoding, loops over images. It and ours get the
same planted features (`planted.py`), each in a process of its own; peak memory is the whole process, features and
libraries included. `differing` is the share of pairs whose two results are more than 1e-4 apart (a neighbour's place
can hang on the last bit of a product); the run fails where it is over 1 in 1,000.
At MSMT17's size the result [Q, G] itself has 3.8 GB; there, rows are scored as they come.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from planted import SIZES, peak_mb, planted, report, run_step, timed, with_planted

CSV = Path(__file__).with_suffix(".csv")
Steps = Literal["dense", "k-reciprocal", "kwf", "aqe"]


@dataclass(frozen=True)
class Config:
    sizes: tuple[Literal["market", "msmt17", "small"], ...] = ("market",)
    dim: int = 1280
    threads: int = os.cpu_count() or 1
    repeats: int = 1  # of each; the least time counts
    parent: Path | None = None  # where features lie for the while; default: the system's temporary folder
    csv: Path = CSV
    step: Steps | None = None  # for the processes this starts
    folder: Path | None = None  # for the same


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [m, n] of unit rows."""
    return np.sqrt(np.maximum(2 - 2 * (a @ b.T), 0))


def dense(
    q_g: np.ndarray, q_q: np.ndarray, g_g: np.ndarray, k1: int = 20, k2: int = 6, share: float = 0.3
) -> np.ndarray:
    """New distances [Q, G] from the three blocks of old ones; the steps, arrays and loops are the published ones."""
    n_query, n = len(q_q), len(q_q) + len(g_g)
    original = np.concatenate([np.concatenate([q_q, q_g], 1), np.concatenate([q_g.T, g_g], 1)], 0)
    original = np.power(original, 2).astype(np.float32)
    original = np.transpose(original / original.max(0))
    codes = np.zeros_like(original)
    ranking = np.argsort(original).astype(np.int32)
    for i in range(n):
        core = members = reciprocal(ranking, i, k1)
        for candidate in core:
            more = reciprocal(ranking, candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(more, core)) > 2 / 3 * len(more):
                members = np.append(members, more)
        members = np.unique(members)
        weight = np.exp(-original[i, members])
        codes[i, members] = weight / weight.sum()
    original = original[:n_query]
    if k2 != 1:
        mixed = np.zeros_like(codes)
        for i in range(n):
            mixed[i] = codes[ranking[i, :k2]].mean(0)
        codes = mixed
        del mixed
    del ranking
    sharing = [np.flatnonzero(codes[:, i]) for i in range(n)]
    jaccard = np.zeros_like(original)
    for i in range(n_query):
        shared = np.zeros(n, np.float32)
        for j in np.flatnonzero(codes[i]):
            shared[sharing[j]] += np.minimum(codes[i, j], codes[sharing[j], j])
        jaccard[i] = 1 - shared / (2 - shared)
    return (jaccard * (1 - share) + original * share)[:, n_query:]


def reciprocal(ranking: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = ranking[i, : k + 1]
    return forward[(ranking[forward, : k + 1] == i).any(1)]


def step(config: Config) -> dict[str, Any]:
    """One method in this process."""
    assert config.folder is not None
    query, gallery, q, g = planted(config.folder)
    if config.step == "dense":
        seconds, distance = timed(
            lambda: dense(distances(query, gallery), distances(query, query), distances(gallery, gallery)),
            config.repeats,
        )
        found = {"seconds": min(seconds), "peak": peak_mb()}
        np.save(config.folder / "dense.npy", distance)
        return found
    import torch

    from clipreid.evaluation import evaluate, rerank, reranked_rows

    torch.set_num_threads(config.threads)
    cameras = {"query_cameras": q["camera"], "gallery_cameras": g["camera"]}
    if len(query) * len(gallery) > 10**8:
        seconds, _ = timed(
            lambda: [None for _ in reranked_rows(query, gallery, config.step, **cameras)], config.repeats
        )
        found = {"seconds": min(seconds), "peak": peak_mb()}
        scored = reranked_rows(query, gallery, config.step, **cameras) if config.step != "k-reciprocal" else None
    else:
        seconds, scored = timed(lambda: rerank(query, gallery, config.step, **cameras), config.repeats)
        found = {"seconds": min(seconds), "peak": peak_mb()}
        if config.step == "k-reciprocal" and (config.folder / "dense.npy").exists():
            peer = np.load(config.folder / "dense.npy", mmap_mode="r")
            apart = [(abs(1 - row.numpy() - other) > 1e-4).mean() for row, other in zip(scored, peer, strict=True)]
            found["differing"] = float(np.mean(apart))
    if scored is not None:
        found["before"] = evaluate(query, gallery, q, g).metrics["mAP"]
        found["after"] = evaluate(query=q, gallery=g, similarity=scored).metrics["mAP"]
    return found


def measure(config: Config, size: str, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    steps: tuple[Steps, ...] = (
        ("k-reciprocal", "kwf", "aqe") if size == "msmt17" else ("dense", "k-reciprocal", "kwf", "aqe")
    )
    queries, gallery = SIZES[size][:2]
    for name in steps:
        found = run_step(__file__, name, folder, config.threads, config.repeats)
        rows.append(
            {
                "size": size,
                "queries": queries,
                "gallery": gallery,
                "dim": config.dim,
                "method": name,
                "seconds": found["seconds"],
                "peak_mb": round(found["peak"]),
            }
        )
        if name == "k-reciprocal" and rows[0]["method"] == "dense":
            rows[-1] |= {
                "times_faster": rows[0]["seconds"] / rows[-1]["seconds"],
                "share_of_memory": rows[-1]["peak_mb"] / rows[0]["peak_mb"],
                "differing": found["differing"],
            }
            if not found["differing"] < 1e-3:
                raise SystemExit(f"ours and the dense algorithm differ in {found['differing']:.2%} of the pairs")
        rows[-1] |= {f"mAP_{when}": found[when] for when in ("before", "after") if when in found}
        rows[-1] |= {"threads": config.threads}
        print(rows[-1], flush=True)
    return rows


def main(config: Config) -> None:
    if config.step is not None:
        print(json.dumps(step(config)))
        return
    rows = []
    for size in config.sizes:
        rows += with_planted(size, config.dim, config.parent, lambda folder, size=size: measure(config, size, folder))
    report(rows, config.csv)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
