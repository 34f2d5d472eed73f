"""CMC and mAP: time against the torchreid algorithm, memory and share of the matrix product at MSMT17's size.

    python benchmarks/metrics.py --threads 2                      # Market-1501's size, ours and the peer
    python benchmarks/metrics.py --sizes market msmt17            # MSMT17's as well, without the peer
    python benchmarks/metrics.py --sizes small --csv small.csv    # to see that it works

The peer is what torchreid's Python path does, written out here: a matrix of cosine distances from torch, one argsort
for all queries, and a loop over these whose precision at each rank is a Python list. `vectorised` is the same with that
list as one numpy division. All get the same planted features (`planted.py`), each in a process of its own; the time is
from features to figures. The run fails where torchreid's mAP and ours differ by more than 1e-6.
`besides_mb` is the peak of the process less the features; `before_mb` of it was there before the first product.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import tyro
from planted import SIZES, peak_mb, planted, report, run_step, timed, with_planted

CSV = Path(__file__).with_suffix(".csv")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::mkldnn_linear", "mkldnn::_linear_pointwise")


@dataclass(frozen=True)
class Config:
    sizes: tuple[Literal["market", "msmt17", "small"], ...] = ("market",)
    dims: tuple[int, ...] = (1280,)
    threads: int = os.cpu_count() or 1
    repeats: int = 3  # of each; the median counts
    parent: Path | None = None  # where features lie for the while; default: the system's temporary folder
    csv: Path = CSV
    step: Literal["ours", "torchreid", "vectorised"] | None = None  # for the processes this starts
    folder: Path | None = None  # for the same


def torchreid_way(
    query: np.ndarray, gallery: np.ndarray, q: dict, g: dict, vectorised: bool = False, top: int = 50
) -> dict[str, float]:
    """mAP and rank-1: argsort of every row, then query by query."""
    import torch

    a, b = (torch.nn.functional.normalize(torch.from_numpy(x), dim=1) for x in (query, gallery))
    distance = (1 - torch.mm(a, b.t())).numpy()
    order = np.argsort(distance, axis=1)
    matches = (g["identity"][order] == q["identity"][:, None]).astype(np.int32)
    curves, precisions = [], []
    for i in range(len(query)):
        ranked = order[i]
        kept = (g["identity"][ranked] != q["identity"][i]) | (g["camera"][ranked] != q["camera"][i])
        hits = matches[i][kept]
        if not hits.any():
            continue
        found = hits.cumsum()
        curves.append(np.minimum(found, 1)[:top])
        if vectorised:
            precision = found / np.arange(1, len(hits) + 1)
        else:
            precision = np.asarray([count / (rank + 1.0) for rank, count in enumerate(found)])
        precisions.append((precision * hits).sum() / hits.sum())
    return {"mAP": float(np.mean(precisions)), "rank1": float(np.mean(curves, axis=0)[0])}


def step(config: Config) -> dict[str, Any]:
    """One of the two in this process."""
    import torch

    from clipreid.evaluation import evaluate

    assert config.folder is not None
    torch.set_num_threads(config.threads)
    query, gallery, q, g = planted(config.folder)
    features, before = (query.nbytes + gallery.nbytes) / 2**20, peak_mb()
    ways = {
        "torchreid": torchreid_way,
        "vectorised": lambda *given: torchreid_way(*given, vectorised=True),
        "ours": lambda *given: evaluate(*given).metrics,
    }
    way = ways[config.step or "ours"]
    seconds, metrics = timed(lambda: way(query, gallery, q, g), config.repeats)
    found = {
        "seconds": median(seconds),
        "besides": peak_mb() - features,
        "before": before - features,
        "mAP": metrics["mAP"],
        "rank1": metrics["rank1"],
    }
    if config.step == "ours":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            (whole,), _ = timed(lambda: way(query, gallery, q, g), 1)
        products = sum(e.self_cpu_time_total for e in profile.key_averages() if e.key in PRODUCTS) / 1e6
        found["product_share"] = products / whole
    return found


def measure(config: Config, size: str, dim: int, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in ("ours",) if size == "msmt17" else ("torchreid", "vectorised", "ours"):
        found = run_step(__file__, name, folder, config.threads, config.repeats)
        rows.append(
            {
                "size": size,
                "queries": SIZES[size][0],
                "gallery": SIZES[size][1],
                "dim": dim,
                "method": name,
                "seconds": found["seconds"],
                "besides_mb": round(found["besides"]),
                "before_mb": round(found["before"]),
            }
        )
        if name == "ours":
            rows[-1] |= {"product_share": found["product_share"]}
        rows[-1] |= {"mAP": f"{found['mAP']:.8f}", "rank1": found["rank1"], "threads": config.threads}
        if len(rows) == 3:
            gap = abs(float(rows[0]["mAP"]) - float(rows[2]["mAP"]))
            rows[-1] |= {f"than_{rows[i]['method']}": rows[i]["seconds"] / rows[2]["seconds"] for i in (0, 1)}
            rows[-1] |= {"mAP_gap": gap}
            if gap > 1e-6:
                raise SystemExit(f"the two mAP differ by {gap}")
        print(rows[-1], flush=True)
    return rows


def main(config: Config) -> None:
    if config.step is not None:
        print(json.dumps(step(config)))
        return
    rows = []
    for size in config.sizes:
        for dim in config.dims:
            rows += with_planted(
                size, dim, config.parent, lambda folder, size=size, dim=dim: measure(config, size, dim, folder)
            )
    report(rows, config.csv)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
