"""What threads that sleep while they wait (OMP_WAIT_POLICY=PASSIVE, as `import clipreid` sets it) cost, and save.

    python benchmarks/waiting.py

A training step of tiny-clip's image tower on all cores, in fresh processes: on idle cores, and beside processes that
keep one core or all of them busy, as other jobs on a shared machine do. `spinning` is what GCC's OpenMP, torch's on
Linux, does by itself: it looks 300,000 times before it sleeps. The repeats are interleaved. Writes a row for each
number of busy processes.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

CSV = Path(__file__).with_suffix(".csv")
CORES = os.cpu_count() or 1
WAYS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "sleeping": {}}  # a count goes before the policy
STEPS = """
import statistics, sys, time
import clipreid, torch

backbone = clipreid.load_backbone("tiny-clip")
tower, pixels = backbone.image.train(), torch.randn(64, 3, *backbone.image_size)
times = []
for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    tower(pixels).pooled.square().sum().backward()
    times.append(time.perf_counter() - begun)
print(statistics.median(times[1:]))
"""


@dataclass(frozen=True)
class Config:
    repeats: int = 5
    steps: int = 8  # in each process; the first one is not counted
    busy: tuple[int, ...] = tuple(sorted({0, 1, CORES}))  # processes beside
    csv: Path = CSV


def seconds(config: Config, way: dict[str, str]) -> float:
    """The median step of a fresh process."""
    command = [sys.executable, "-c", STEPS, str(config.steps)]
    done = subprocess.run(command, env=os.environ | way, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def measure(config: Config, busy: int) -> dict[str, object]:
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        found = [{name: seconds(config, way) for name, way in WAYS.items()} for _ in range(config.repeats)]
    finally:
        for process in beside:
            process.kill()
            process.wait()
    ratios = [each["spinning"] / each["sleeping"] for each in found]
    row: dict[str, object] = {"busy": busy, "cores": CORES}
    row |= {f"{name}_s": round(statistics.median(each[name] for each in found), 3) for name in WAYS}
    row |= {"ratio": round(statistics.median(ratios), 2), "ratio_min": round(min(ratios), 2)}
    return row | {"ratio_max": round(max(ratios), 2), "repeats": config.repeats}


def main(config: Config) -> None:
    rows = []
    for busy in config.busy:
        rows.append(measure(config, busy))
        print(rows[-1], flush=True)
    with config.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
