"""Train x test: the figures of several runs as one table, from their `config.json` and `metrics.json` alone."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipreid.backbones.colour import COLOUR
from clipreid.data import data_place, short_names
from clipreid.data.readers import READ_BY
from clipreid.disk import write_whole
from clipreid.errors import UserError
from clipreid.evaluation.results import CENTRED, evaluate_command
from clipreid.evaluation.side_by_side import COUNTED, parted, place, remark_of
from clipreid.evaluation.tables import format_table
from clipreid.hub import read_config
from clipreid.hub.files import METRICS, read_metrics

FIGURES = ("mAP", "mINP", "rank1", "rank5", "rank10")
ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Row:
    """One model: what it was trained on, and its figures by the name of what it was tested on.

    Data has one name: of `folder:own/` and `folder:own` the one that the first run used.
    """

    folder: Path  # of the run; for zero-shot the first run on that backbone
    model: str
    backbone: str
    trained: tuple[str, ...]  # --data; () for zero-shot
    figures: dict[str, dict[str, Any]]
    config: dict[str, Any]  # config.json of the run in `folder`

    def in_domain(self, test: str) -> bool:
        """Whether the model was trained on the training split of this data."""
        return parted(test)[0] in self.trained

    @property
    def flags(self) -> dict[str, Any]:
        """What the run was started with; empty for an imported one."""
        return self.config.get("run", {})


def read_rows(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """One row for the zero-shot of each backbone (the better, where runs prepared images differently) and for colour
    stripes, then the runs.

    With a line for each folder that is left out because it is no run, or has no figures yet.

    Raises:
        UserError: none is left, or the same one twice.
    """
    if not folders:
        raise UserError("name at least one run folder: clipreid matrix RUN RUN ...")
    before: dict[str, Row] = {}
    trained: list[Row] = []
    left_out: list[str] = []
    names: dict[str, str] = {}  # by place
    columns: dict[str, dict[str, dict[str, Any]]] = {}  # what is in each column, by run and model
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is named twice: give every run once")
        try:
            config, metrics = _read(folder)
        except UserError as error:
            left_out.append(str(error))
            continue
        record = config.get("backbone", {})
        backbone = record.get("name", "?")
        if "positions" in record:  # not in an imported run, whose backbone is unknown
            before.setdefault(backbone, Row(folder, ZERO_SHOT, backbone, (), {}, config))
        data = tuple(names.setdefault(data_place(spec), spec) for spec in config.get("run", {}).get("data", ()))
        for model in dict.fromkeys(model for models in metrics.values() for model in models):
            scored = {test: models[model] for test, models in metrics.items() if model in models}
            figures = {_column(test, entry, names, columns): entry for test, entry in scored.items()}
            for test, entry in figures.items():
                columns.setdefault(test, {})[f"{folder} {model}"] = entry
            if model.partition("+")[0] in (ZERO_SHOT, COLOUR):
                known = COLOUR if model.startswith(COLOUR) else backbone
                key = known if model == ZERO_SHOT else f"{known} {model}"
                row = before.setdefault(key, Row(folder, model, known, (), {}, config))
                for test, found in figures.items():
                    row.figures[test] = max(row.figures.get(test, found), found, key=lambda each: each["mAP"])
            else:
                trained.append(Row(folder, model, backbone, data, figures, config))
    if not (before or trained):
        raise UserError("no run with figures is left:\n  " + "\n  ".join(left_out))
    return [*before.values(), *trained], left_out


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Config and figures of a run; raises `UserError` where there are none."""
    config, metrics = read_config(folder), read_metrics(folder)
    if not metrics:
        evaluate = shlex.join(["clipreid", "evaluate", str(folder)])
        raise UserError(f"{folder} has no {METRICS} yet: finish its training, or run `{evaluate}`")
    return config, metrics


def _column(
    test: str, entry: dict[str, Any], names: dict[str, str], columns: Mapping[str, Mapping[str, dict[str, Any]]]
) -> str:
    """The column of a figure: the name of its test, as its data was first called; another one where what is in that
    column was scored on another test set."""
    spec, remark = parted(test)
    spec = names.setdefault(data_place(spec), spec)
    for column, there in columns.items():
        known = "fingerprint" in entry and parted(column)[0] == spec
        if known and _test_of(entry) in {_test_of(other) for other in there.values()}:
            return column
    return place(spec + remark, entry, columns)


def _test_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What figures must share to stand in one column."""
    return entry.get("protocol"), entry.get("fingerprint"), entry.get("copies")


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All that was tested on: in-domain data first, then the others, in order of appearance."""
    everything = list(dict.fromkeys(test for row in rows for test in row.figures))
    return sorted(everything, key=lambda test: not any(row.in_domain(test) for row in rows))


def matrix_table(rows: Sequence[Row], metric: str = "mAP") -> str:
    """The table in percent: a row for each model, a column for each test; "*" is in-domain, "-" is not scored."""
    tests = columns_of(rows)
    sets = list(dict.fromkeys(spec for row in rows for spec in row.trained))
    plain = list(dict.fromkeys([*(parted(test)[0] for test in tests), *sets]))
    short = dict(zip([*plain, *tests], short_names([*plain, *tests]), strict=True))
    lines = []
    for row, run in zip(rows, _shortest([row.folder for row in rows]), strict=True):
        names = " + ".join(short[spec] for spec in row.trained) or "?"
        zero = row.model.partition("+")[0] in (ZERO_SHOT, COLOUR)
        trained_on = f"nothing ({row.backbone})" if zero else names
        about = {"trained on": trained_on, "model": row.model, "run": "" if zero else run}
        lines.append(about | {short[test]: _cell(row, test, metric) for test in tests})
    marks = ["* = in-domain: trained on this data's training split"] if any(row.trained for row in rows) else []
    longer = [f"{short[name]} = {name}" for name in plain if short[name] != name]
    title = f"{metric} in percent, rows trained on, columns tested on"
    return "\n".join([title, "", format_table(lines), "", *marks, *longer])


def commands(rows: Sequence[Row]) -> list[str]:
    """The command lines that fill the missing cells; one command for each run, protocol and way to read the data."""
    wanted: dict[tuple[Path, str, tuple[str, ...]], list[str]] = {}
    extras: dict[tuple[Path, str, tuple[str, ...]], list[str]] = {}
    for row in rows:
        for test in columns_of(rows):
            spec, remark = parted(test)[0], remark_of(test)
            if test in row.figures or remark == "val":  # val is scored by training with --validate alone
                continue
            reading = _reading(row, spec, rows, _pattern(test, rows))
            key = row.folder, remark, (*reading, *(["--count-copies"] if COUNTED in parted(test)[1] else []))
            wanted.setdefault(key, []).append(spec)
            extras.setdefault(key, []).extend(_flags_of(row.model))
    sided = {row.folder for row in rows if "imported" in row.config and _knows_cameras(row.config)}
    lines = []
    for (folder, remark, reading), specs in wanted.items():
        more = [*(["--protocol", remark] if remark else []), *reading]
        more += dict.fromkeys(extras[folder, remark, reading])
        comment = "  # and --same-cameras, if it was trained on this data" if folder in sided else ""
        lines.append(evaluate_command(folder, list(dict.fromkeys(specs)), *more) + comment)
    return lines


def _flags_of(model: str) -> list[str]:
    """What `clipreid evaluate` needs to fill the row of this model."""
    name, *more = model.split("+")
    flags = {ZERO_SHOT: ["--zero-shot"], COLOUR: ["--floor"]}.get(name, [])
    return flags + [f"--centre-cameras={part.removeprefix(CENTRED)}" for part in more if part.startswith(CENTRED)]


def _pattern(test: str, rows: Sequence[Row]) -> str:
    """The pattern that read the images of a column, where it needs one to be told from others of its data; else ""."""
    told = {parted(other)[0] for other in columns_of(rows) if other != test}
    found = (row.figures[test].get("pattern", "") for row in rows if test in row.figures)
    return next(found, "") if parted(test)[0] in told else ""


def _reading(row: Row, spec: str, rows: Sequence[Row], pattern: str) -> tuple[str, ...]:
    """The flags that `clipreid evaluate` needs to read this data: `pattern`, else those of the run that read it."""
    if pattern:
        return ("--pattern", pattern)
    owners = [row, *rows]  # for its own data a run needs no flags
    owner = next((each for each in owners if data_place(spec) in map(data_place, _read_by(each))), None)
    if owner is None:
        return ()
    flags, kind = owner.flags, spec.partition(":")[0]
    words = ["--skip-bad"] if flags.get("skip_bad") else []
    for flag, readers in READ_BY.items():
        values = flags.get(flag) or ()
        if kind in readers and owner is not row:
            for value in [values] if isinstance(values, str) else values:
                words += [f"--{flag}", value]
    return tuple(words)


def _read_by(row: Row) -> list[str]:
    """All data that a run was started with."""
    return [*row.flags.get("data", ()), *row.flags.get("test", ())]


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """One line for each cell that has figures: run, model, backbone, trained_on, tested_on, in_domain, figures 0..1."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "model", "backbone", "trained_on", "tested_on", "in_domain", *FIGURES])
    writer.writerows(_lines(rows))
    write_whole(file, text.getvalue())


def _lines(rows: Sequence[Row]) -> Iterator[list[Any]]:
    for row in rows:
        for test, found in row.figures.items():
            about = [row.folder, row.model, row.backbone, " + ".join(row.trained), test]
            yield [*about, "yes" if row.in_domain(test) else "no", *(found[name] for name in FIGURES)]


def _cell(row: Row, test: str, metric: str) -> str:
    if test not in row.figures:
        return "    -"
    return f"{100 * row.figures[test][metric]:5.1f}{'*' if row.in_domain(test) else ''}"


def _shortest(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else their paths."""
    names = {folder.name for folder in folders}
    return [folder.name if len(names) == len(set(folders)) else str(folder) for folder in folders]


def _knows_cameras(config: Mapping[str, Any]) -> bool:
    """Whether the model of a run has learned something about single cameras or views."""
    return any(config.get("config", {}).get(name) for name in ("cameras", "views"))
