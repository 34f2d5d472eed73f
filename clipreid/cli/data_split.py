"""`clipreid data split`: the flags and what is printed; the work is in `clipreid.data.split`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.scoring import check_numbers
from clipreid.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from clipreid.data import ReIDData
    from clipreid.data.split import Pool
    from clipreid.evaluation import Report

TEST = 0.3  # the share that is tested on, unless --test says another
HOW = (
    "measured on stripes of colour by bootstrap over the identities, and scaled to a figure of 50 %, where intervals "
    "are widest; four times the identities halve them"
)


@dataclass(frozen=True)
class Split:
    """Share out the identities into train, val and test, as a table that csv: reads; image files stay where they are.

    An identity is in one part only. Those with one image, and those seen by one camera where cameras are known, cannot
    be found again: in the test set they are distractors of the gallery. The same data, seed and shares give the same
    table.
    """

    data: Annotated[Positional[str], arg(metavar="NAME[:ROOT]")]
    """folder:ROOT, csv:FILE.csv, hub:OWNER/NAME, hub:FOLDER, synthetic, ..."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Where split.csv, or fold1.csv, fold2.csv, ... are written"""
    by: Literal["identity"] = "identity"
    """What is never split: an identity"""
    test: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint=f"(default: {TEST})")] = None
    """Share of the identities to test on, 0..1"""
    val: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of the identities for the val split, on which settings are chosen (of folds: of those not tested on)"""
    cross_validate: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Instead of --test: N tables, in which each identity is tested on once"""
    seed: int = 0
    """Decides, with the names of the identities, who is where"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names, such as identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""
    overwrite: bool = False
    """Replace tables that are there"""

    def __call__(self) -> None:
        split(self)


def split(flags: Split) -> None:
    """`clipreid data split`.

    Raises:
        UserError: data, shares or the output cannot be used.
    """
    from clipreid.data import load_data
    from clipreid.data.problems import pooled
    from clipreid.data.split import (
        check_shares,
        find_queries,
        image_files,
        pool_images,
        split_folds,
        split_once,
        write_table,
    )
    from clipreid.disk import check_place

    if flags.cross_validate is not None and flags.test is not None:
        raise UserError("--cross-validate N tests on one of N parts at a time: leave out --test")
    check_numbers(flags, cross_validate=(2, 1000))
    check_place("--output", flags.output)
    folds, test = flags.cross_validate, TEST if flags.test is None else flags.test
    check_shares(test if folds is None else None, flags.val)
    names = ["split.csv"] if folds is None else [f"fold{n}.csv" for n in range(1, folds + 1)]
    tables = [flags.output / name for name in names]
    if (there := [table for table in tables if table.exists()]) and not flags.overwrite:
        raise UserError(f"{there[0]} is there already: give another --output, or --overwrite to replace it")
    with pooled():
        data = load_data(flags.data, pattern=flags.pattern, columns=flags.columns, unknown=flags.unknown)
    print(f"{data.summary()}\n", flush=True)
    pool = pool_images(data)
    if folds is None:
        parts = [split_once(pool, test, flags.val, flags.seed)]
    else:
        parts = split_folds(pool, folds, flags.val, flags.seed)
    queries = [find_queries(pool, each) for each in parts]
    files = image_files(pool.images, flags.output)
    for table, each, asked in zip(tables, parts, queries, strict=True):
        write_table(pool, each, asked, files, table)
    read = [_read_back(table, pool, each, asked) for table, each, asked in zip(tables, parts, queries, strict=True)]
    print(_counts(tables, read))
    notes = [f"note      {note}" for note in [*pool.notes, *_distractors(pool, parts)]]
    print("\n".join([*notes, _matches(read)]), flush=True)
    print(_expected(pool, parts, queries, read))
    more = ", ..." if len(tables) > 1 else ""
    print(f"\nwritten: {', '.join(map(str, tables))}; read with --data csv:{tables[0]}{more}")


def _read_back(table: Path, pool: Pool, parts: np.ndarray, queries: np.ndarray) -> ReIDData:
    """The table as every command will read it. Raises UserError where that is not what was meant."""
    from clipreid.data import load_data

    read, names = load_data(f"csv:{table}"), pool.images.identities
    for part, chosen in (("train", parts == "train"), ("val", parts == "val"), ("query", queries)):
        wanted = names[chosen].tolist()
        found = read.splits[part].identities.tolist() if part in read.splits else []
        if found != wanted:
            odd = next(iter(set(wanted) ^ set(found)), f"{len(found)} instead of {len(wanted)} images")
            raise UserError(
                f"{table}, {part}: a table does not give back what was written ({odd!r}). Names that begin or end with "
                "a space, or mean something (-1: junk), cannot be used: rename them"
            )
    return read


def _counts(tables: Sequence[Path], read: Sequence[ReIDData]) -> str:
    """A line for each split of each table: images, identities, cameras."""
    from clipreid.evaluation import format_table

    rows: list[dict[str, object]] = []
    for table, data in zip(tables, read, strict=True):
        for name, part in data.splits.items():
            cameras = len(set(part.cameras[part.cameras >= 0].tolist()))
            counts = {"images": len(part), "identities": len(set(part.identities.tolist())), "cameras": cameras}
            rows.append(({"table": table.name} if len(tables) > 1 else {}) | {"split": name, **counts})
    return format_table(rows) + "\n"


def _distractors(pool: Pool, parts: Sequence[np.ndarray]) -> list[str]:
    kinds, where = pool.kinds, "every gallery" if len(parts) > 1 else "the gallery"
    notes = []
    if kinds["single"]:
        notes.append(f"{len(kinds['single']):,d} identities with one image are distractors of {where}")
    if kinds["one camera"]:
        notes.append(
            f"{len(kinds['one camera']):,d} identities seen by one camera are trained on, or distractors where tested"
        )
    unknown = int((pool.images.cameras < 0).sum())
    if not pool.by_camera:
        notes.append("cameras say nothing here: any other image of an identity is a match")
    elif unknown:
        notes.append(f"{unknown:,d} images have no camera: where one is tested on, cameras play no part")
    return notes


def _matches(read: Sequence[ReIDData]) -> str:
    """How many queries have a match, by the rules of the protocol."""
    from clipreid.evaluation.unmatched import unmatched

    lines = []
    for protocol in dict.fromkeys(data.protocol for data in read):
        tested = [data.splits for data in read if data.protocol == protocol]
        lost = sum(len(unmatched(splits["query"], splits["gallery"], protocol)) for splits in tested)
        asked = sum(len(splits["query"]) for splits in tested)
        lines.append(f"queries   {asked - lost:,d} of {asked:,d} have a match under protocol {protocol}")
    if len(lines) > 1:
        lines.append("note      the tables differ in their protocol: give one to every command, such as --protocol")
    return "\n".join(lines)


def _expected(pool: Pool, parts: Sequence[np.ndarray], queries: Sequence[np.ndarray], read: Sequence[ReIDData]) -> str:
    """The intervals to expect."""
    from clipreid.evaluation.expected import Colours, joined

    try:
        colours = Colours.of(pool.images)
        tests = zip(queries, parts, read, strict=True)
        reports = [colours.score(asked, each == "test", data.protocol) for asked, each, data in tests]
    except UserError as error:
        return f"note      the interval to expect was not measured: {error}"
    lines = [_width(report, f"fold {n}, " if len(reports) > 1 else "") for n, report in enumerate(reports, 1)]
    if len(reports) > 1:
        lines.append(_width(joined(reports), "all folds, "))
    if bad := int(colours.bad.sum()):
        lines.append(f"note      {bad:,d} images cannot be decoded: see clipreid data check")
    return "\n".join([*lines, f"          ({HOW})"])


def _width(report: Report, what: str) -> str:
    from clipreid.evaluation.expected import expected_width

    who = len(set(report.per_query["identity"][report.per_query["n_positives"] > 0].tolist()))
    wide, rank1 = (100 * expected_width(report, name) for name in ("mAP", "rank1"))
    floor = f"colour reaches {100 * report.metrics['mAP']:.1f} and {100 * report.metrics['rank1']:.1f} %"
    return (
        f"expect    {what}{who:,d} identities asked for: 95 % intervals about {wide:.1f} points wide for mAP, "
        f"{rank1:.1f} for rank-1 ({floor})"
    )
