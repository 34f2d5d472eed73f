"""Exact search in a large gallery: `clipreid.search.Gallery` against faiss's IndexFlatIP, on the same features.

    pip install faiss-cpu                                         # only for this
    python benchmarks/search.py --threads 2                       # 1,000,000 x 512
    python benchmarks/search.py --images 50000 --csv small.csv  # to see that it works

Each search runs in a process of its own, the two in turn, `rounds` times; in a process each number of queries is asked
`repeats` times in turn, and the median over everything counts. `open_s`: until the first search can begin: a gallery is
opened (and some of it checked), faiss reads all features into memory. `first_s` is the first search of a process, which
in a mapped file meets pages that it has not touched yet; the file itself was written just before, and lies in the
system's cache as far as that has room. `peak_mb` is the most that the process held, `import_mb` before anything was
opened. The run fails where the two find different similarities (by more than 1e-5); `same` is the share of places with
the same image, in which faiss's float32 sums may part what float64 orders otherwise.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import tyro
from planted import peak_mb, report, run_step

CSV = Path(__file__).with_suffix(".csv")
QUERIES, TOP, GROUP, PEOPLE = (1, 10, 100), 10, 8192, 20
METHODS = ("clipreid", "faiss")


@dataclass(frozen=True)
class Config:
    images: int = 1_000_000
    dim: int = 512
    threads: int = os.cpu_count() or 1
    rounds: int = 2  # processes of each method
    repeats: int = 5  # searches with each number of queries in a process
    parent: Path | None = None  # where features lie for the while, twice; default: the system's temporary folder
    csv: Path = CSV
    step: Literal["plant", "clipreid", "faiss"] | None = None  # for the processes this starts
    folder: Path | None = None  # for the same


def plant(config: Config, folder: Path) -> None:
    """Unit features of people with PEOPLE images each, as a gallery and as a plain array, and queries of them."""
    import pyarrow as pa

    from clipreid.search.format import schema_of, writer

    about = {
        "gallery": 1,
        "run": "",
        "backbone": "",
        "model": "",
        "strength": 1.0,
        "sources": [],
        "split": "",
        "image_size": [],
        "dimension": config.dim,
        "parts": {"final": config.dim},
    }
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((config.images // PEOPLE + 1, config.dim), dtype=np.float32)

    def near(rows: np.ndarray) -> np.ndarray:
        x = centres[rows % len(centres)] + rng.standard_normal((len(rows), config.dim), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    np.save(folder / "query.npy", near(rng.integers(0, len(centres), max(QUERIES))))
    with open(folder / "gallery.f32", "wb") as raw, writer(folder / "gallery.parquet", about) as out:
        for start in range(0, config.images, GROUP):
            rows = np.arange(start, min(start + GROUP, config.images))
            features = near(rows)
            features.tofile(raw)
            columns = [
                pa.array([f"/crops/{row:08d}.jpg" for row in rows]),
                pa.array([f"{row % len(centres)}" for row in rows]),
                pa.array(rows % 15, pa.int32()),
                pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), config.dim),
            ]
            out.write_table(pa.table(columns, ["path", "identity", "camera", "feature"]).cast(schema_of(about)))


Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # queries -> similarities, rows


def open_clipreid(config: Config, folder: Path) -> Search:
    from clipreid.search import Gallery

    gallery = Gallery.open(folder / "gallery.parquet")
    return lambda queries: gallery.nearest(queries, TOP)


def open_faiss(config: Config, folder: Path) -> Search:
    import faiss

    faiss.omp_set_num_threads(config.threads)
    index = faiss.IndexFlatIP(config.dim)
    features = np.memmap(folder / "gallery.f32", np.float32, "r").reshape(-1, config.dim)
    for start in range(0, len(features), GROUP):
        index.add(np.array(features[start : start + GROUP]))
    return lambda queries: index.search(queries, TOP)


def step(config: Config, folder: Path) -> dict[str, Any]:
    """One method in this process."""
    if config.step == "plant":
        plant(config, folder)
        return {}
    if config.step == "clipreid":
        import torch

        import clipreid.search  # noqa: F401  imports count for neither

        torch.set_num_threads(config.threads)
    else:
        import faiss  # noqa: F401
    queries, imports = np.load(folder / "query.npy"), peak_mb()
    begun = time.perf_counter()
    search = (open_clipreid if config.step == "clipreid" else open_faiss)(config, folder)
    found: dict[str, Any] = {
        "open": time.perf_counter() - begun,
        "import": imports,
        "seconds": {n: [] for n in QUERIES},
    }
    for repeat in range(config.repeats + 1):
        for n in QUERIES:
            begun = time.perf_counter()
            similarity, rows = search(queries[:n])
            seconds = time.perf_counter() - begun
            if repeat:
                found["seconds"][n].append(seconds)
            elif n == QUERIES[0]:
                found["first"] = seconds
    return found | {"peak": peak_mb(), "similarity": similarity.tolist(), "rows": rows.tolist()}


def measure(config: Config, folder: Path) -> list[dict[str, Any]]:
    def start(name: str) -> dict[str, Any]:
        more = ("--images", str(config.images), "--dim", str(config.dim), "--threads", str(config.threads))
        return run_step(__file__, name, folder, config.threads, config.repeats, more)

    start("plant")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for _ in range(config.rounds):
        for name in METHODS:
            runs[name].append(start(name))
            print(name, {n: [round(s, 3) for s in t] for n, t in runs[name][-1]["seconds"].items()}, flush=True)
    ours, theirs = (runs[name][-1] for name in METHODS)
    gap = float(np.abs(np.array(ours["similarity"]) - np.array(theirs["similarity"])).max())
    if gap > 1e-5:
        raise SystemExit(f"the two find similarities that differ by {gap}")
    same = float((np.array(ours["rows"]) == np.array(theirs["rows"])).mean())
    return [
        {
            "images": config.images,
            "dim": config.dim,
            "threads": config.threads,
            "method": name,
            "queries": n,
            "seconds": median([s for run in each for s in run["seconds"][str(n)]]),
            **{f"{what}_s": median([run[what] for run in each]) for what in ("open", "first")},
            **{f"{what}_mb": round(max(run[what] for run in each)) for what in ("import", "peak")},
            "same": same,
        }
        for n in QUERIES
        for name, each in runs.items()
    ]


def main(config: Config) -> None:
    if config.step is not None:
        assert config.folder is not None
        print(json.dumps(step(config, config.folder)))
        return
    with tempfile.TemporaryDirectory(dir=config.parent, prefix="search-") as folder:
        report(measure(config, Path(folder)), config.csv)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
