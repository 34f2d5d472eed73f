"""In-domain against cross-domain precision over the strength, for variants and seeds.

    python benchmarks/tunings.py                    # trains runs/tunings/VARIANT-SEED
    python benchmarks/strength.py runs/tunings/*    # scores them at every strength

Strengths that a run's metrics.json has already are not scored again. Writes one row a run, data set and strength to the
CSV, and prints the mean mAP over seeds as Markdown.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from clipreid.cli.evaluate_strength import model_name
from clipreid.hub import read_config
from clipreid.hub.files import last_stage, read_metrics
from clipreid.strength import parse_strengths

CSV = Path(__file__).with_suffix(".csv")
METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10")


@dataclass(frozen=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders VARIANT-SEED
    data: tuple[str, ...] = ("synthetic", "synthetic:new-cameras")
    strengths: str = "0,0.25,0.5,0.75,1"
    csv: Path = CSV


def score(config: Config, run: Path) -> list[dict[str, Any]]:
    """A row for each data set and strength of one run."""
    stage = last_stage(read_config(run))
    models = {strength: model_name(stage, strength) for strength in parse_strengths(config.strengths)}
    if any(name not in read_metrics(run).get(data, {}) for data in config.data for name in models.values()):
        named = [word for data in config.data for word in ("--data", data)]
        command = [sys.executable, "-m", "clipreid", "evaluate", str(run), *named, "--strength", config.strengths]
        subprocess.run(command, check=True)
    variant, _, seed = run.name.rpartition("-")
    found = read_metrics(run)
    return [
        {
            "variant": variant,
            "seed": seed,
            "data": data,
            "strength": strength,
            **{metric: round(found[data][name][metric], 4) for metric in METRICS},
        }
        for data in config.data
        for strength, name in models.items()
    ]


def main(config: Config) -> None:
    rows = [row for run in config.runs for row in score(config, run)]
    with config.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    strengths = list(dict.fromkeys(row["strength"] for row in rows))
    print("| variant | data | seeds |", " | ".join(f"{s:g}" for s in strengths), "|")
    print("|---|---|---|" + "---|" * len(strengths))
    for variant, data in dict.fromkeys((row["variant"], row["data"]) for row in rows):
        mine = [row for row in rows if (row["variant"], row["data"]) == (variant, data)]
        cells = [f"{100 * mean(row['mAP'] for row in mine if row['strength'] == s):.1f}" for s in strengths]
        print(f"| {variant} | {data} | {len({row['seed'] for row in mine})} |", " | ".join(cells), "|")
    print(f"\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
