"""How runs stand occlusion: the same queries with more and more hidden, in three conditions, the gallery untouched.

    python recipes/occlusion_study.py --run runs/demo --output studies/demo
    python recipes/occlusion_study.py --run runs/cls-0 runs/cls-1 runs/saga-0 runs/saga-1 --data synthetic:large \\
        --output studies/saga                    # arms cls and saga, two seeds each; the first arm is the baseline

What comes out: `occlusion.csv` (arm, aggregation, condition, severity, draw, seed, mAP, rank1, ...), `occlusion.md`
(the table with paired intervals), `occlusion.png` (curves), `queries-ARM.png` (crops, masks, pooling weights, anchors).

An arm is the name of a run's folder without its seed at the end (`saga-0`, seed 0: `saga`). `aggregation` is the
feature: `concat` is the test feature, for SAGA the fusion; `saga`, `final` (CLS) and `projection` are its parts.
`reached` is the share that was hidden. `inside` is the share of SAGA's pooling weight on hidden patches, `covered` the
share of the patches that are hidden: a pooling that ignores the occluder has less inside than is covered. This protocol
is our own (`clipreid/evaluation/occlusion.py`); figures of papers cannot be set beside it. On the street they check
mechanisms.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import clipreid
from clipreid.config import none_is
from clipreid.data import ReIDData, load_data
from clipreid.data.occluders import read_library
from clipreid.disk import check_place, whole_file, write_whole, writing_to
from clipreid.errors import UserError, print_user_errors
from clipreid.evaluation.occlusion import (
    CONDITIONS,
    Cell,
    Condition,
    Occluders,
    Place,
    alignment,
    over_draws,
    places,
    shown,
    study,
)
from clipreid.flags import parse_flags
from clipreid.hub import read_config
from clipreid.hub.download import find_run
from clipreid.hub.files import run_name
from clipreid.reports.occlusion import Reports, draw_occluded, occlusion_table, plot_occlusion
from clipreid.training.harness import set_threads
from clipreid.training.sets import val_as_test


@dataclass(frozen=True)
class OcclusionStudy:
    run: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
    """Run folders or names on the Hub, one or more; the first arm is what the others are compared with"""
    output: Path
    """A new folder for the table, curves and pictures"""
    data: str = "synthetic:new-cameras"
    """Whose queries are occluded"""
    validate: bool = False
    """Take the identity-disjoint val split, to choose settings by; never the test split for that"""
    fusions: Annotated[tuple[str, ...], none_is("the run's own")] = ()
    """Further weights of SAGA's parts saga, final and projection, such as 2,0.2,0.05 (its recipe's --fuse-saga, ...)"""
    severities: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    """Shares of the query that are hidden"""
    conditions: tuple[Condition, ...] = CONDITIONS
    """mask (mean colour), object, person (another individual)"""
    draws: int = 3
    """How often each query is occluded anew at each severity"""
    occluders: Annotated[Path | None, none_is("the street's test objects")] = None
    """Folder of cut-outs (RGBA images, sorted by class) for the condition object; its test part"""
    queries: int = 4
    """Queries shown in the pictures"""
    threads: Annotated[int | None, none_is("all cores")] = None
    """CPU threads"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def arm_of(run: str, seed: int) -> str:
    return run_name(Path(run)).removesuffix(f"-{seed}")


def read_weights(given: str) -> tuple[float, ...]:
    """ "2,0.2,0.05" to numbers."""
    try:
        return tuple(float(weight) for weight in given.split(","))
    except ValueError as error:
        raise UserError(f"--fusions {given}: numbers with commas between them, such as 2,0.2,0.05") from error


def rows_of(arm: str, seed: int, cell: Cell) -> list[dict[str, Any]]:
    """The lines of the CSV."""
    place, inside = cell.place, "" if cell.inside is None else round(cell.inside, 5)
    about = {"condition": place.condition, "severity": place.severity, "draw": place.draw, "seed": seed}
    reach = {"reached": round(cell.reached, 5), "inside": inside, "covered": round(cell.covered, 5)}
    return [
        {"arm": arm, "aggregation": name, **about}
        | {metric: round(report.metrics[metric], 5) for metric in ("mAP", "rank1")}
        | reach
        for name, report in cell.reports.items()
    ]


def add(found: dict[Any, Any], arm: str, seed: int, cell: Cell) -> None:
    """Keeps the reports of a cell, by arm and feature, place and seed."""
    for name, report in cell.reports.items():
        lines = found.setdefault((arm, name), {})
        seeds = lines.setdefault((cell.place.condition, cell.place.severity), {})
        seeds.setdefault(seed, []).append(replace(report, histogram=None))


def one_run(
    config: OcclusionStudy, run: str, data: ReIDData, cells: Sequence[Place], found: dict[Any, Any]
) -> list[dict[str, Any]]:
    """Scores a run at every place; its lines of the CSV, and the picture of a few queries."""
    model = clipreid.load(run).to(config.device)
    seed = int(read_config(find_run(run)).get("run", {}).get("seed", 0))
    arm, rows = arm_of(run, seed), []
    fusions = [read_weights(given) for given in config.fusions]
    objects = None if config.occluders is None else read_library(config.occluders, "test")
    occluders = Occluders.of(data, objects)
    for nth, cell in enumerate(study(data, model, cells, occluders, fusions), start=1):
        rows += rows_of(arm, seed, cell)
        add(found, arm, seed, cell)
        place, report = cell.place, cell.reports.get("concat") or next(iter(cell.reports.values()))
        print(
            f"{run}  {nth}/{len(cells)}  {place.condition} {place.severity:.0%} draw {place.draw}  "
            f"mAP {report.metrics['mAP']:.1%}",
            flush=True,
        )
    hidden = max(place.severity for place in cells)
    pictures = [shown(data, model, Place(name, hidden, 0), occluders, config.queries) for name in config.conditions]
    clean, pixels, masks = (torch.cat([each[i] for each in pictures]) for i in range(3))
    weights, anchors = alignment(model, pixels) or (None, None)
    figure = draw_occluded(clean, pixels, masks, weights, anchors, arm)
    with whole_file(config.output / f"queries-{arm}-{seed}.png") as scratch:
        figure.savefig(scratch, dpi=110)
    return rows


def main(config: OcclusionStudy) -> None:
    runs = [name for given in config.run for name in given]
    cells = places(config.conditions, config.severities, config.draws)
    check_place("--output", config.output)
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"--output {config.output} is there already and not empty: name a new folder")
    with writing_to(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
    set_threads(config.threads)
    data = load_data(config.data)
    if config.validate and "val" not in data.splits:
        raise UserError(f"--validate: {data.name} has no val split")
    data = val_as_test(data) if config.validate else data
    found: dict[Any, Any] = {}
    rows: list[dict[str, Any]] = []
    for run in runs:
        rows += one_run(config, run, data, cells, found)
        file = config.output / "occlusion.csv"
        with whole_file(file) as scratch, scratch.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    reports: Reports = {
        line: {place: [over_draws(draws) for draws in seeds.values()] for place, seeds in cells_of.items()}
        for line, cells_of in found.items()
    }
    at = min(config.severities, key=lambda severity: abs(severity - 0.4))
    table = occlusion_table(reports, at)
    words = f"{data.name}, mAP in %; with {at:.0%} hidden; in brackets the difference to the first line, 95 % interval"
    write_whole(config.output / "occlusion.md", f"{table}\n\n{words}\n")
    with whole_file(config.output / "occlusion.png") as scratch:
        plot_occlusion(reports).savefig(scratch, dpi=150)
    print(f"\n{table}\n\n{words}\n\n{config.output}: occlusion.csv, occlusion.md, occlusion.png, queries-*.png")


if __name__ == "__main__":
    with print_user_errors():
        main(parse_flags(OcclusionStudy, sys.argv[1:], description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
