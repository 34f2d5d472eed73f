"""`clipreid data check` and `convert`: the flags; the work is in `clipreid.data`. `data_*.py` are the others."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, UseAppendAction, arg

from clipreid.cli.data_caption import Caption
from clipreid.cli.data_occlude import Occlude
from clipreid.cli.data_split import Split
from clipreid.cli.scoring import check_numbers
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.data.findings import CheckReport, Finding


@dataclass(frozen=True)
class Check:
    """Find everything that is wrong with a data set; exit status 0 only when it is fit for its protocol.

    Status 1: faults; missing test images (query and gallery) count as one, for then no protocol could be
    checked. Status 2: a mistake in what was typed.

    Undecodable files, wrong names, copies within and across splits, people in train and test, queries without a
    match, counts other than the official ones, odd formats. Every image is decoded once.
    """

    data: Annotated[Positional[str], arg(metavar="NAME[:ROOT]")]
    """market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:OWNER/NAME, hub:FOLDER, synthetic, ..."""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names, such as identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Draw some individuals of every split, one in each row, one image for each camera"""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write everything into FILE, every file name included"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Threads that decode (default: all cores)"""

    def __call__(self) -> None:
        sys.exit(0 if check(self) else 1)


@dataclass(frozen=True)
class Convert:
    """Write a data set as parquet shards, which hub:DIR and datasets.load_dataset can read."""

    data: Annotated[Positional[str], arg(metavar="NAME[:ROOT]")]
    """market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:OWNER/NAME, hub:FOLDER, synthetic, ..."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to make"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names, such as identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""
    noun: Annotated[str | None, arg(metavar="WORD", help_behavior_hint="")] = None
    """What the individuals are (default: from the data)"""
    overwrite: bool = False
    """Replace the converted set in DIR"""

    def __call__(self) -> None:
        from clipreid.data import load_data
        from clipreid.data.convert import check_output, convert

        check_output(self.output, self.overwrite)
        data = load_data(self.data, pattern=self.pattern, columns=self.columns, noun=self.noun, unknown=self.unknown)
        print(data.summary(), flush=True)
        convert(data, self.output, overwrite=self.overwrite)
        print(f"\nwritten: {self.output}; read it with --data hub:{self.output}")


@dataclass(frozen=True)
class Data:
    """Check a data set, convert it to parquet, share it out into train and test, hide a part of its images, or caption
    them."""

    command: OmitSubcommandPrefixes[Check | Convert | Split | Occlude | Caption]

    def __call__(self) -> None:
        self.command()


def check(flags: Check) -> bool:
    """`clipreid data check`: prints the report; returns whether the data set is fit for its protocol.

    Raises:
        UserError: a name or a flag that means nothing, or files that cannot be written.
    """
    from clipreid.data.check import read_and_check
    from clipreid.data.sheet import check_sheet, draw_sheet
    from clipreid.disk import check_place, write_whole

    check_numbers(flags)
    for flag, file in (("--sheet", flags.sheet), ("--json", flags.json)):
        if file is not None:
            check_place(flag, file, "file")
    if flags.sheet is not None:
        check_sheet(flags.sheet)
    progress = _progress if sys.stderr.isatty() else None
    report, data = read_and_check(flags.data, flags.pattern, flags.columns, flags.unknown, flags.threads, progress)
    if data is not None:
        report = report.with_findings(_from_protocol(data, report))
    print(report)
    if flags.json is not None:
        write_whole(flags.json, json.dumps(report.to_dict(), indent=1) + "\n")
        print(f"written: {flags.json}")
    if flags.sheet is not None and data is not None:
        draw_sheet(data, flags.sheet)
        print(f"written: {flags.sheet}")
    return report.fit


def _from_protocol(data: ReIDData, report: CheckReport) -> list[Finding]:
    """Findings that need the protocol: queries without a match, and why. For official data sets only a note."""
    from clipreid.data.findings import Finding
    from clipreid.evaluation.gaps import caption_queries
    from clipreid.evaluation.protocols import get_protocol
    from clipreid.evaluation.unmatched import unmatched

    if not {"query", "gallery"} <= data.splits.keys():
        return []
    query, gallery = data.splits["query"], data.splits["gallery"]
    found: list[Finding] = []
    try:
        if get_protocol(data.protocol).captions:
            _, said = caption_queries(query.captions.tolist(), data.name)
            found = [Finding("note", "captions", "; ".join(said))] if said else []
        lost = unmatched(query, gallery, data.protocol)
    except UserError as error:
        return [Finding("fault", "cannot be scored", str(error))]
    items = tuple(f"{query.path(row).removeprefix(f'{report.root}/') or f'row {row}'}: {why}" for row, why in lost)
    why = f"{len(lost):,d} of {len(query):,d} queries, protocol {data.protocol}: they are not scored"
    severity: Literal["fault", "note"] = "note" if report.official else "fault"
    return [*found, Finding(severity, "query without a match", why, items)] if lost else found


def _progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"  # the finished line is wiped
    print(f"  {done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)
