"""The folds of one cross-validation as one result, from the `config.json` and `metrics.json` of their runs alone.

Each identity is tested on in one fold, so the mean over the queries of all folds is a mean over all identities: figures
are weighted by the scored queries of their folds. The test identities of two folds are different ones, so the variances
of their means add up, and so do the squared halves of their 95 % intervals, each times its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipreid.errors import UserError
from clipreid.evaluation.tables import TITLES, format_table
from clipreid.hub import read_config
from clipreid.hub.files import read_metrics

Entries = dict[str, dict[str, Any]]  # model -> its entry of metrics.json


def folds_table(runs: Sequence[Path]) -> str:
    """A line for each model: figures of all folds together, their 95 % interval, the spread over the folds.

    Raises:
        UserError: fewer than two runs, a run without figures on its own data, folds that are the same data, were scored
            under different protocols, or lack a model that another one has.
    """
    if len(runs) < 2:
        raise UserError("--folds: name the runs of all folds, such as runs/fold1 runs/fold2 runs/fold3")
    found = [_own_figures(run) for run in runs]
    data = [name for name, _ in found]
    if twice := [name for name in data if data.count(name) > 1]:
        raise UserError(f"--folds: {twice[0]} was tested on by several runs: every fold is another table")
    entries = [each for _, each in found]
    protocols = {str(entry.get("protocol")) for each in entries for entry in each.values()}
    if len(protocols) > 1:
        raise UserError(
            f"--folds: scored under different protocols ({', '.join(sorted(protocols))}): evaluate with one"
        )
    for run, each in zip(runs, entries, strict=True):
        if lacking := entries[0].keys() ^ each.keys():
            raise UserError(f"--folds: {runs[0]} and {run} do not both have figures of {', '.join(sorted(lacking))}")
    rows = [row for model in entries[0] for row in _rows(model, [each[model] for each in entries])]
    queries = sum(_queries(each[next(iter(each))]) for each in entries)
    title = f"{len(runs)} folds, {queries:,d} queries in all, protocol {protocols.pop()}"
    return f"{title}\n\n{format_table(rows)}"


def _own_figures(run: Path) -> tuple[str, Entries]:
    """The data that a run was trained on, and the figures of its test split."""
    trained, metrics = read_config(run).get("run", {}).get("data", []), read_metrics(run)
    own = [name for name in metrics if any(name == spec or name.startswith(f"{spec} (") for spec in trained)]
    if len(trained) != 1 or not own:
        what = "several data sets" if len(trained) > 1 else "no figures on what it was trained on"
        raise UserError(f"--folds: {run} has {what}: train each fold on its own table, --data csv:splits/fold1.csv")
    if len(own) > 1:
        raise UserError(f"--folds: {run} was scored in several ways ({', '.join(own)}): which is meant is not clear")
    return trained[0], metrics[own[0]]


def _rows(model: str, entries: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """What is shown of one model: the figures, and below them intervals and spread."""
    weights = np.array([_queries(entry) for entry in entries], float)
    weights /= weights.sum()
    figures = {name: np.array([entry[name] for entry in entries]) for name in TITLES}
    mean = {name: float(weights @ values) for name, values in figures.items()}
    spread = {name: f"{100 * values.std(ddof=1):.1f}" for name, values in figures.items()}
    rows: list[dict[str, object]] = [{"model": model, **mean}]
    if all(entry.get("intervals", {}).keys() >= TITLES.keys() for entry in entries):
        ends = {name: np.array([entry["intervals"][name] for entry in entries]) for name in TITLES}  # [folds, 2]
        half = {name: np.sqrt((weights**2) @ ((both[:, 1] - both[:, 0]) / 2) ** 2) for name, both in ends.items()}
        rows.append({"model": "  95 %", **{name: f"± {100 * half[name]:.1f}" for name in TITLES}})
    return [*rows, {"model": "  standard deviation of the folds", **spread}]


def _queries(entry: dict[str, Any]) -> int:
    return int(entry.get("counts", {}).get("valid_queries", 1))
