"""What each idea is worth: tunings x prompts x seeds, run through the recipe, as one table.

    python benchmarks/tunings.py                                   # synthetic, tested in-domain and on new cameras
    python benchmarks/tunings.py --data folder:/my/crops --csv mine.csv

Writes one row a run and data set to the CSV, and prints the means over seeds as Markdown. Every variant gets the
preset of its kind (how far that was tuned: `clipreid/methods/clip_reid.py`). Finished runs in --runs are not run again.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from clipreid.hub import read_config

RECIPE = Path(__file__).parents[1] / "recipes" / "clipreid_stage2.py"
CSV = Path(__file__).with_suffix(".csv")
METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10")


@dataclass(frozen=True)
class Config:
    data: str = "synthetic"
    backbone: str = "tiny-clip"
    variants: tuple[str, ...] = ("lora-identity", "lora-none", "full-identity", "full-none")  # TUNING-PROMPTS
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: tuple[str, ...] = ()  # further flags of the recipe, as one string each: "--epochs 3"
    runs: Path = Path("runs/tunings")
    csv: Path = CSV
    name: str | None = None  # what the data is called in the CSV, instead of its path
    jobs: int = 1  # runs at a time
    threads: int = os.cpu_count() or 1  # of each run


def finished(folder: Path) -> bool:
    """Whether it holds a finished run."""
    return (folder / "config.json").is_file() and bool(read_config(folder)["finished"])


def run(config: Config, variant: str, seed: int) -> list[dict[str, object]]:
    """One launch of the recipe; a row for each data set and model."""
    tuning, prompts = variant.split("-")
    folder = config.runs / f"{variant}-{seed}"
    if not finished(folder):
        flags = [f"--data={config.data}", f"--backbone={config.backbone}", f"--tuning={tuning}", f"--prompts={prompts}"]
        flags += [f"--seed={seed}", f"--threads={config.threads}", f"--output={folder}"]
        flags += " ".join(config.flags).split()
        command = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPE), *flags, "--overwrite"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    metrics = json.loads((folder / "metrics.json").read_text())
    rows: list[dict[str, object]] = []
    for data, models in metrics.items():
        for model, found in models.items():
            name = config.name or data
            label = model if model == "zero-shot" else variant
            row = {"backbone": config.backbone, "data": name, "variant": label, "seed": seed}
            rows.append(row | {k: round(found[k], 5) for k in METRICS})
    print(
        f"{variant} seed {seed}: " + ", ".join(f"{r['data']} {r['variant']} {r['mAP']:.3f}" for r in rows), flush=True
    )
    return rows


def table(rows: list[dict[str, object]], metric: str = "mAP") -> str:
    """Means over seeds, in percent, with the range: variants x data sets."""
    sets, variants = (list(dict.fromkeys(str(r[k]) for r in rows)) for k in ("data", "variant"))
    lines = [f"| {metric} | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for variant in variants:
        cells = []
        for data in sets:
            found = [100 * float(str(r[metric])) for r in rows if r["variant"] == variant and r["data"] == data]
            spread = f" ({min(found):.1f} to {max(found):.1f})" if max(found) - min(found) > 0.05 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(config: Config) -> None:
    todo = [(v, s) for s in config.seeds for v in config.variants]
    with ThreadPoolExecutor(config.jobs) as pool:
        rows = [row for found in pool.map(lambda job: run(config, *job), todo) for row in found]
    rows.sort(key=lambda r: (str(r["variant"]) != "zero-shot", str(r["variant"]), str(r["data"]), int(str(r["seed"]))))
    with open(config.csv, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{table(rows)}\n\n{table(rows, 'rank1')}\n\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
