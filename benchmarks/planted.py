"""What benchmarks/metrics.py and benchmarks/reranking.py share: features with planted identities, and timed processes.

An identity is a point in a space of 48 dimensions, near those of its look-alikes; an image adds its camera's shift and
noise; a random map to D dimensions and a little noise there follow. So neighbours overlap as those of trained models
do, and some images are hard.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {  # queries, gallery, identities, cameras, gallery images of nobody: as in the data sets of these names
    "market": (3_368, 15_913, 750, 6, 2_798),
    "msmt17": (11_659, 82_161, 3_060, 15, 0),
    "small": (300, 1_500, 75, 6, 250),
}
LATENT, NOISE, SHIFT, ALIKE = 48, 1.0, 0.5, 5


def plant(size: str, dim: int, folder: Path, seed: int = 0) -> None:
    """Writes unit features float32 and columns int64 of queries and gallery into `folder`."""
    queries, gallery, identities, cameras, strangers = SIZES[size]
    rng = np.random.default_rng(seed)
    people = identities + strangers
    groups = rng.standard_normal((people // ALIKE + 1, LATENT), dtype=np.float32)
    centres = 0.8 * groups[np.arange(people) // ALIKE] + rng.standard_normal((people, LATENT), dtype=np.float32)
    shifts = SHIFT * rng.standard_normal((cameras, LATENT), dtype=np.float32)
    spread = rng.standard_normal((LATENT, dim), dtype=np.float32) / dim**0.5
    for side, n in (("query", queries), ("gallery", gallery)):
        identity = np.arange(n) % identities
        if side == "gallery":
            identity[:strangers] = identities + np.arange(strangers)
        rng.shuffle(identity)
        camera = rng.integers(0, cameras, n)
        x = centres[identity] + shifts[camera] + NOISE * rng.standard_normal((n, LATENT), dtype=np.float32)
        x = x @ spread + 0.3 * LATENT**0.5 / dim**0.5 * rng.standard_normal((n, dim), dtype=np.float32)
        np.save(folder / f"{side}.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
        np.save(folder / f"{side}_identity.npy", identity)
        np.save(folder / f"{side}_camera.npy", camera)


def planted(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Query and gallery features, query and gallery columns."""
    columns = [
        {name: np.load(folder / f"{side}_{name}.npy") for name in ("identity", "camera")}
        for side in ("query", "gallery")
    ]
    return np.load(folder / "query.npy"), np.load(folder / "gallery.npy"), columns[0], columns[1]


def peak_mb() -> float:
    """The most memory this process has held, in MB of 2^20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's memory too, where a process was forked from it
        return float(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(work: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of each repeat, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        result = None  # frees the one before
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return seconds, result


def run_step(
    script: str, step: str, folder: Path, threads: int, repeats: int = 1, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `python script --step step` with `more` flags as a process of its own: the JSON that it prints last."""
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, script, "--step", step, "--folder", str(folder), "--repeats", str(repeats), *more]
    done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{step} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def with_planted(size: str, dim: int, parent: Path | None, work: Callable[[Path], list[dict[str, Any]]]) -> list[dict]:
    """Plants features in a temporary folder, calls work(folder), and removes it."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="planted-") as folder:
        call = (
            f"import sys; from pathlib import Path; from planted import plant; plant({size!r}, {dim}, Path({folder!r}))"
        )
        subprocess.run([sys.executable, "-c", call], check=True, cwd=Path(__file__).parent)
        return work(Path(folder))


def report(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Prints the rows as a table, and writes them as CSV; numbers with four digits."""
    shown = [{key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in shown for name in row))
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in shown:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")
    with open(file, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=names, restval="")
        writer.writeheader()
        writer.writerows(shown)
    print(f"\nwritten: {file}")
