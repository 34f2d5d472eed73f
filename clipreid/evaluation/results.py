"""Names and commands around `metrics.json`, shared by what writes figures and what reads them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipreid.data import short_names
from clipreid.evaluation.tables import format_table
from clipreid.hub.files import METRICS, read_metrics, write_json

VAL = " (val)"  # follows the name of a data set where the figures are those of its val split


def add_metrics(folder: Path, model: str, entries: dict[str, dict[str, Any]]) -> None:
    """Adds figures of `model` by data set to `metrics.json`; everything else in it stays."""
    metrics = read_metrics(folder)
    for data, entry in entries.items():
        metrics.setdefault(data, {})[model] = entry
    write_json(folder / METRICS, metrics)


def results_table(folder: Path, data: Sequence[str] | None = None) -> str:
    """`metrics.json` as a table: one row for each data set (all, or these) and model; long names below it."""
    metrics, keys = read_metrics(folder), ("mAP", "mINP", "rank1", "rank5", "rank10")
    names = list(data or metrics)
    short = dict(zip(names, short_names(names), strict=True))
    table = format_table(
        {"data": short[name], "model": model, **{key: found[key] for key in keys}}
        for name in names
        for model, found in metrics[name].items()
    )
    longer = [f"{short[name]} = {name}" for name in names if short[name] != name]
    return "\n".join([table, "", *longer] if longer else [table])


def evaluate_command(folder: Path, data: Sequence[str], *more: str) -> str:
    """The command line that scores a run on these data sets; quoted where paths need it."""
    named = [word for spec in data for word in ("--data", spec)]
    return shlex.join(["clipreid", "evaluate", str(folder), *named, *more])
