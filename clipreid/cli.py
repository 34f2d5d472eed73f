"""The `clipreid` command.

One dataclass for each subcommand: its fields are the flags, its `run` does the work. torch and the rest of the toolkit
are imported there, so that `clipreid --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from clipreid.cli_compare import Compare
from clipreid.cli_data import Data
from clipreid.cli_export import Export
from clipreid.cli_publish import Publish
from clipreid.cli_report import PICTURE, draw_lists, report_section, write_page
from clipreid.cli_rerank import check_flags, score_reranked
from clipreid.cli_scoring import (
    Scoring,
    check_cameras,
    check_columns,
    check_report,
    on_device,
    read_tests,
    score_on,
    show_details,
    sides_of,
    untuned,
)
from clipreid.cli_search import Embed, Search
from clipreid.cli_strength import check_strengths, score_strengths
from clipreid.errors import UserError, told_plainly

if TYPE_CHECKING:
    from clipreid.evaluation.html import Section
    from clipreid.evaluation.score import Scored

SHOWN = ("torch", "transformers", "open_clip_torch", "peft", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Scoring):
    """Score a trained run: mAP, mINP and rank-1/5/10 on one or several data sets.

    The figures are added to RUN/metrics.json as "stage2"; of a run on the Hub they are only printed.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, such as runs/demo, or OWNER/NAME[@REVISION] on the Hub"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Write DIR/index.html, one page to look at: figures, ranked lists, where the model looked, who is confused. Also
    its figures as PNG, and ranked_lists.png: what zero-shot and this run put first for queries of the first data set"""
    queries: int = 3
    """Queries in ranked_lists.png"""
    zero_shot: bool = False
    """Also score the backbone as it was before training, on every data set"""
    rerank: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Also score re-ranked similarities, as "stage2+NAME": k-reciprocal, kwf or aqe; all look at the whole test set"""
    rerank_options: Annotated[str | None, arg(metavar="OPTION=VALUE,...", help_behavior_hint="")] = None
    """Settings of --rerank, such as k1=50,k2=15 (defaults: docs/evaluation.md)"""
    by: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN", help_behavior_hint="")] = ()
    """Also the figures for each value of a column of the queries (camera, view, clothes, identity), or for each
    camera-pair; repeatable"""
    open_set: bool = False
    """Also how well a threshold tells matches from mistakes: TPR at FPR 0.01 and 0.001, equal error rate"""
    strength: Annotated[str | None, arg(metavar="S,S,...", help_behavior_hint="")] = None
    """Score the run with this much of what training changed, such as 0,0.25,0.5,0.75,1 (0: zero-shot, 1: as trained),
    and draw precision at home against that abroad: RUN/strength.png, with --report DIR/strength.png and no page"""

    def __call__(self) -> None:
        evaluate(self)


@dataclass(frozen=True)
class Import:
    """Make a run folder of a checkpoint published for the original CLIP-ReID: a ViT, with or without SIE.

    Architecture, crop and stride are read off the weights; the flags are for what cannot be.
    """

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """The .pth file: a state dict of plain tensors"""
    output: Annotated[Path, arg(metavar="RUN")]
    """Run folder to make"""
    image_size: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH", help_behavior_hint="")] = None
    """Height and width of its crops in pixels (default: 256 128 or 256 256, whichever fits)"""
    stride: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Distance of its patches in pixels (default: the one that fits)"""
    sie: Annotated[Literal["camera", "view", "camera+view"] | None, arg(help_behavior_hint="")] = None
    """What its side information embedding is of (default: camera, where it has one)"""
    sie_coefficient: float = 1.0
    """That it was trained with"""
    views: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Number of views, for --sie camera+view"""

    def __call__(self) -> None:
        from clipreid.importer import describe, import_checkpoint

        print(describe(import_checkpoint(**vars(self)), self.output))


@dataclass(frozen=True)
class Matrix:
    """Several runs as one table: rows are what was trained on, columns what was tested on.

    Reads config.json and metrics.json of the runs, scores nothing, and says how to fill the cells that are missing.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")]
    """Run folders"""
    metric: Annotated[Literal["mAP", "mINP", "rank1", "rank5", "rank10"], arg(help_behavior_hint="(default: mAP)")] = (
        "mAP"
    )
    """What the cells show"""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write every figure into FILE, one line for each cell"""

    def __call__(self) -> None:
        from clipreid.training.matrix import commands, matrix_table, read_rows, write_csv

        rows, left_out = read_rows(self.runs)
        for line in left_out:
            print(f"left out: {line}")
        print("\n" * bool(left_out) + matrix_table(rows, self.metric))
        if missing := commands(rows):
            print("\nto fill the cells marked -:", *missing, sep="\n  ")
        if self.csv is not None:
            write_csv(rows, self.csv)
            print(f"\nwritten: {self.csv}")


@dataclass(frozen=True)
class Version:
    """Print the versions of clipreid and of what it stands on."""

    def __call__(self) -> None:
        import clipreid

        print(f"clipreid {clipreid.__version__}, Python {sys.version.split()[0]}")
        print(", ".join(f"{name} {version(name)}" for name in SHOWN))


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of the `clipreid` command; `args` stand in for the command line in tests."""
    about = "Recognise the same individual again: evaluate what the recipes trained."
    commands: Any = Evaluate | Compare | Matrix | Embed | Search | Publish | Export | Import | Data | Version
    command = tyro.cli(commands, prog="clipreid", description=about, args=args, config=(FlagCreatePairsOff,))
    with told_plainly():
        command()


def evaluate(flags: Evaluate) -> None:
    """`clipreid evaluate`.

    Raises:
        UserError: the run, the data, the protocol or the report folder cannot be used.
    """
    from clipreid.evaluation import get_protocol
    from clipreid.hub import find_run, snapshot_of
    from clipreid.training.harness import set_threads

    set_threads(flags.threads)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    folder = find_run(flags.run)
    if snapshot_of(folder) is None:
        return _evaluate(flags, folder, folder)
    with TemporaryDirectory() as scratch:  # the Hub's cache is not ours to write into
        _evaluate(flags, folder, Path(scratch))


def _evaluate(flags: Evaluate, folder: Path, record: Path) -> None:
    """Scores the run in `folder`; its figures go to metrics.json in `record`."""
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.score import ZERO_SHOT
    from clipreid.hub import load, read_config
    from clipreid.hub.files import METRICS, read_metrics
    from clipreid.training.folder import add_metrics, results_table

    config = read_config(folder)
    has_backbone = "positions" in config.get("backbone", {})  # an imported run has none beside its own tower
    if flags.zero_shot and not has_backbone:
        raise UserError(f"--zero-shot: {flags.run} was imported, and holds no backbone from before its training")
    strengths = check_strengths(flags, config)
    read_metrics(record)  # nothing is scored that could not be kept
    tests = read_tests(flags, flags.run, config)
    check_cameras(flags, flags.run, config, tests)
    again = check_flags(flags.rerank, flags.rerank_options, [flags.protocol or data.protocol for data in tests])
    check_report(flags.report, flags.protocol or tests[0].protocol, tests[0].name)
    check_columns(flags.by, tests, flags.protocol)
    model = on_device(load(folder))
    print(f"{flags.run}: {config['backbone']['name']}, tuning {model.config.tuning}, {model.device}\n", flush=True)
    if strengths:
        return score_strengths(flags, config, model, tests, strengths, record if record == folder else None)
    names: list[str] = []
    sections: list[Section] = []
    for data in tests:
        print(data.summary(), flush=True)
        sides = sides_of(model, data, flags, config)
        found = score_on(model, data, flags, sides)
        _explain(found)
        name = data.name + (f" ({flags.protocol})" if flags.protocol not in (None, data.protocol) else "")
        details = show_details(found, flags.protocol or data.protocol, flags.by, flags.open_set)
        add_metrics(record, "stage2", {name: found.entry() | details})
        if flags.rerank is not None:
            add_metrics(record, *score_reranked(found, name, flags.rerank, again))
        draw = flags.report if not names else None
        before = score_on(untuned(model, config["backbone"]), data, flags) if has_backbone and (
            flags.zero_shot or draw) else None  # fmt: skip
        if before:
            add_metrics(record, "zero-shot", {name: before.entry(before.best(ZERO_SHOT))})
        if draw:
            draw_lists(draw / PICTURE, before, found, flags.queries)
        if flags.report is not None:
            rules = get_protocol(flags.protocol or data.protocol)
            sections.append(report_section(name, rules, model, found, before, sides))
        names.append(name)
    written = [record / METRICS] if record == folder else []
    if flags.report is not None:
        write_page(flags.report, sections, flags.run, model)
        written.append(flags.report / "index.html")
    said = f"written: {', '.join(map(str, written))}" if written else f"nothing is written: {flags.run} is on the Hub"
    print(f"{results_table(record, names)}\n\n{said}")


def _explain(found: Scored) -> None:
    """Prints the figures of each feature, then counts, protocol and notes of the test feature."""
    from clipreid.evaluation import format_table

    print(f"\n{format_table({'feature': part, **report.metrics} for part, report in found.reports.items())}\n")
    print(found.reports[found.feature].explain())
    if found.bad:
        print(f"note      {found.bad} pictures could not be decoded and were left out (--skip-bad)")
    print(flush=True)


if __name__ == "__main__":
    main()
