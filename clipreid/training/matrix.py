"""Train x test: the figures of several runs as one table, from their `config.json` and `metrics.json` alone."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipreid.data import short_names
from clipreid.errors import UserError
from clipreid.evaluation import PROTOCOLS, format_table
from clipreid.hub import read_config
from clipreid.training.folder import METRICS, read_metrics
from clipreid.training.sets import VAL

FIGURES = ("mAP", "mINP", "rank1", "rank5", "rank10")
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Row:
    """One model: what it was trained on, and its figures by the name of what it was tested on."""

    folder: Path  # of the run; for zero-shot the first run on that backbone
    model: str
    backbone: str
    trained: tuple[str, ...]  # --data as typed; () for zero-shot
    figures: dict[str, dict[str, Any]]

    def home(self, test: str) -> bool:
        """Whether the model was trained on the training split of this data."""
        return _plain(test)[0] in self.trained


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """One row for the zero-shot of each backbone (the better, where runs prepared pictures differently), then the runs.

    Raises:
        UserError: no run folder, no figures in it, or the same one twice.
    """
    if not folders:
        raise UserError("name at least one run folder: clipreid matrix RUN RUN ...")
    before: dict[str, Row] = {}
    trained: list[Row] = []
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is named twice: give every run once")
        config, metrics = read_config(folder), read_metrics(folder)
        if not metrics:
            raise UserError(f"{folder} has no {METRICS} yet: finish its training, or run `clipreid evaluate {folder}`")
        record = config.get("backbone", {})
        backbone = record.get("name", "?")
        if "positions" in record:  # not so in an imported run, whose backbone is not at hand
            before.setdefault(backbone, Row(folder, ZERO_SHOT, backbone, (), {}))
        data = tuple(config.get("flags", {}).get("data", ()))
        for model in dict.fromkeys(model for models in metrics.values() for model in models):
            figures = {test: models[model] for test, models in metrics.items() if model in models}
            if model == ZERO_SHOT:
                row = before[backbone]
                for test, found in figures.items():
                    row.figures[test] = max(row.figures.get(test, found), found, key=lambda each: each["mAP"])
            else:
                trained.append(Row(folder, model, backbone, data, figures))
    return [*before.values(), *trained]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All that was tested on: home data first, then the others, in order of appearance."""
    everything = list(dict.fromkeys(test for row in rows for test in row.figures))
    return sorted(everything, key=lambda test: not any(row.home(test) for row in rows))


def matrix_table(rows: Sequence[Row], metric: str = "mAP") -> str:
    """The table in percent: a row for each model, a column for each test; "*" marks home, "-" what was not scored."""
    tests = columns_of(rows)
    sets = list(dict.fromkeys(spec for row in rows for spec in row.trained))
    plain = list(dict.fromkeys([*(_plain(test)[0] for test in tests), *sets]))
    short = dict(zip([*plain, *tests], short_names([*plain, *tests]), strict=True))
    lines = []
    for row, run in zip(rows, _shortest([row.folder for row in rows]), strict=True):
        names = " + ".join(short[spec] for spec in row.trained) or "?"
        about = {"trained on": f"nothing ({row.backbone})" if row.model == ZERO_SHOT else names,
                 "model": row.model, "run": "" if row.model == ZERO_SHOT else run}  # fmt: skip
        lines.append(about | {short[test]: _cell(row, test, metric) for test in tests})
    marks = ["* = at home: trained on this data's training split"] if any(row.trained for row in rows) else []
    longer = [f"{short[name]} = {name}" for name in plain if short[name] != name]
    return "\n".join([f"{metric} in percent, rows trained on, columns tested on", "", format_table(lines), "",
                      *marks, *longer])  # fmt: skip


def commands(rows: Sequence[Row]) -> list[str]:
    """What to type to fill the cells that are missing; one command for each run and protocol."""
    wanted: dict[tuple[Path, str], list[str]] = {}
    zero: set[tuple[Path, str]] = set()
    for row in rows:
        for test in columns_of(rows):
            spec, remark = _plain(test)
            if test in row.figures or f" ({remark})" == VAL:  # val is scored by training with --validate alone
                continue
            wanted.setdefault((row.folder, remark), []).append(spec)
            if row.model == ZERO_SHOT:
                zero.add((row.folder, remark))
    lines = []
    for (folder, remark), specs in wanted.items():
        words = ["clipreid", "evaluate", str(folder)]
        for spec in dict.fromkeys(specs):
            words += ["--data", spec]
        words += ["--protocol", remark] if remark else []
        words += ["--zero-shot"] if (folder, remark) in zero else []
        lines.append(shlex.join(words))
    return lines


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """One line for each cell that has figures: run, model, backbone, trained_on, tested_on, home, figures 0..1."""
    try:
        with open(file, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["run", "model", "backbone", "trained_on", "tested_on", "home", *FIGURES])
            writer.writerows(_lines(rows))
    except OSError as error:
        raise UserError(f"--csv {file} cannot be written ({error.strerror}): give another file") from error


def _lines(rows: Sequence[Row]) -> Iterator[list[Any]]:
    for row in rows:
        for test, found in row.figures.items():
            about = [row.folder, row.model, row.backbone, " + ".join(row.trained), test]
            yield [*about, "yes" if row.home(test) else "no", *(found[name] for name in FIGURES)]


def _cell(row: Row, test: str, metric: str) -> str:
    if test not in row.figures:
        return "    -"
    return f"{100 * row.figures[test][metric]:5.1f}{'*' if row.home(test) else ''}"


def _plain(test: str) -> tuple[str, str]:
    """ "data (protocol)" or "data (val)" as its data and the remark; the remark is "" where there is none."""
    spec, mark, remark = test.removesuffix(")").rpartition(" (")
    known = test.endswith(")") and mark and (remark in PROTOCOLS or f" ({remark})" == VAL)
    return (spec, remark) if known else (test, "")


def _shortest(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else their paths."""
    names = {folder.name for folder in folders}
    return [folder.name if len(names) == len(set(folders)) else str(folder) for folder in folders]
