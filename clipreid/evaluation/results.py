"""Names and commands around `metrics.json`, shared by what writes figures and what reads them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from clipreid.data import short_names
from clipreid.data.attributes import ORACLE
from clipreid.disk import Unwritten
from clipreid.evaluation.side_by_side import TAG, VAL, parted, place
from clipreid.evaluation.tables import format_table
from clipreid.hub.files import FIGURES, METRICS, read_metrics, write_json

__all__ = ["CENTRED", "VAL", "Figures", "add_metrics", "evaluate_command", "results_table"]

CENTRED = "centred-"  # and "train" or "gallery": follows the name of a model whose features are centred by camera


def add_metrics(folder: Path, model: str, entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Adds figures of `model` by data name to `metrics.json`; everything else in it stays.

    Figures scored in another way than what is kept below a name (another protocol, other images or labels) are kept
    below a name of their own. Returns {data name: the name in the file}.
    """
    return Figures(folder).add(model, entries)


class Figures:
    """The figures of a run, in memory and in its `metrics.json`; only in memory where there is no run folder.

    folder: of the run. unwritten: keeps the error where the file cannot be written; without it `add` raises it.
    metrics: as `read_metrics` gives them.
    """

    def __init__(self, folder: Path | None, unwritten: Unwritten | None = None) -> None:
        self.folder, self.unwritten = folder, unwritten
        self.metrics = {} if folder is None else read_metrics(folder)
        self.lost = False  # whether the file lacks some of them

    def add(self, model: str, entries: dict[str, dict[str, Any]]) -> dict[str, str]:
        """As `add_metrics`."""
        if self.folder is not None and not self.lost:  # another process may have added some
            self.metrics = read_metrics(self.folder)
        names = {}
        for data, entry in entries.items():
            names[data] = place(data, entry, self.metrics)
            self.metrics.setdefault(names[data], {})[model] = entry
        if self.folder is not None:
            self.lost = True
            with self.unwritten.going_on() if self.unwritten is not None else nullcontext():
                write_json(self.folder / METRICS, self.metrics)
                self.lost = False
        return names


def results_table(metrics: Path | Mapping[str, Mapping[str, Any]], data: Sequence[str] | None = None) -> str:
    """`metrics.json` (of a folder, or what is in it) as a table: one row for each test set (all, or those of these data
    names) and model.

    Below it the long names, and how each test set was read.
    """
    metrics, keys = read_metrics(metrics) if isinstance(metrics, Path) else metrics, FIGURES
    names = [name for name in metrics if data is None or name in data or parted(name)[0] in data]
    short = dict(zip(names, short_names(names), strict=True))
    table = format_table(
        {"data": short[name], "model": model, **_protocol(found), **{key: found[key] for key in keys}}
        for name in names
        for model, found in metrics[name].items()
    )
    lines = [f"{short[name]} = {name}" for name in names if short[name] != name]
    lines += [f"{short[name]}: {about}" for name in names if (about := _about(metrics[name]))]
    told = {model for name in names for model, found in metrics[name].items() if ORACLE in found.get("notes", ())}
    lines += [f"{model}: {ORACLE}" for model in sorted(told)]
    if len({parted(name)[0] for name in names}) < len(names):
        lines.append(
            "a remark in brackets: scored under another protocol, on other images or labels, or with copies of queries "
            "counted; not to be compared"
        )
    return "\n".join([table, "", *lines] if lines else [table])


def _protocol(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"protocol": entry["protocol"]} if "protocol" in entry else {}


def _about(models: Mapping[str, Mapping[str, Any]]) -> str:
    """How the test set of these entries was read: its size, the pattern of its file names, its fingerprint."""
    entry = next((entry for entry in models.values() if "fingerprint" in entry), None)
    if entry is None:
        return ""
    counts = entry["counts"]
    pattern = f", pattern {entry['pattern']!r}" if entry.get("pattern") else ""
    sizes = f"{counts['queries']:,} queries, {counts['gallery']:,} gallery images"
    return f"{sizes}{pattern}, fingerprint {entry['fingerprint'][:TAG]}"


def evaluate_command(folder: Path, data: Sequence[str], *more: str) -> str:
    """The command line that scores a run on these data sets; quoted where paths need it."""
    named = [word for spec in data for word in ("--data", spec)]
    return shlex.join(["clipreid", "evaluate", str(folder), *named, *more])
