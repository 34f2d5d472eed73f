"""`clipreid evaluate`; --strength, --rerank and --report are in evaluate_*.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.evaluate_report import RANKED_LISTS, draw_lists, report_section, write_page
from clipreid.cli.evaluate_rerank import check_flags, score_reranked
from clipreid.cli.evaluate_strength import check_strengths, score_strengths
from clipreid.cli.scoring import (
    Scoring,
    before_training,
    check_cameras,
    check_columns,
    check_report,
    data_label,
    known_offsets,
    read_tests,
    score_on,
    show_details,
    to_device,
)
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel
    from clipreid.reports.html import Section


@dataclass(frozen=True, kw_only=True)
class Evaluate(Scoring):
    """Score a trained run: mAP, mINP and rank-1/5/10 on one or several data sets.

    The figures are added to RUN/metrics.json under the name of the run's last stage ("stage2", ...); of a run on the
    Hub they are only printed.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, such as runs/demo, or OWNER/NAME[@REVISION] on the Hub"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Write DIR/index.html, one page with figures, ranked lists, attention maps and confused identities. Also its
    figures as PNG, and ranked_lists.png: the first results of zero-shot and of this run, on the first data set"""
    queries: int = 3
    """Queries in ranked_lists.png"""
    zero_shot: bool = False
    """Also score the backbone as it was before training, on every data set"""
    rerank: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Also score re-ranked similarities, as "STAGE+NAME": k-reciprocal, kwf or aqe; all look at the whole test set"""
    rerank_options: Annotated[str | None, arg(metavar="OPTION=VALUE,...", help_behavior_hint="")] = None
    """Settings of --rerank, such as k1=50,k2=15 (defaults: docs/evaluation.md)"""
    by: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN", help_behavior_hint="")] = ()
    """Also the figures for each value of a column of the queries (camera, view, clothes, identity), or for each
    camera-pair; repeatable"""
    open_set: bool = False
    """Also how well a threshold tells matches from mistakes: TPR at FPR 0.01 and 0.001, equal error rate"""
    strength: Annotated[str | None, arg(metavar="S,S,...", help_behavior_hint="")] = None
    """Score the run with this much of what training changed, such as 0,0.25,0.5,0.75,1 (0: zero-shot, 1: as trained),
    and draw in-domain against cross-domain precision: RUN/strength.png (with --report: DIR/strength.png, no page)"""

    def __call__(self) -> None:
        evaluate(self)


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
    with TemporaryDirectory() as scratch:  # nothing is written into the cache of the Hub
        _evaluate(flags, folder, Path(scratch))


def _evaluate(flags: Evaluate, folder: Path, record: Path) -> None:
    """Scores the run in `folder`; its figures go to metrics.json in `record`."""
    from clipreid.evaluation.results import results_table
    from clipreid.hub import load, read_config
    from clipreid.hub.files import METRICS, read_metrics
    from clipreid.metric import needs_cosine

    config = read_config(folder)
    if flags.zero_shot and not _has_backbone(config):
        raise UserError(f"--zero-shot: {flags.run} was imported, and holds no backbone from before its training")
    strengths = _strengths(flags, config)
    read_metrics(record)  # raises now where figures could not be saved later
    tests = read_tests(flags, flags.run, config)
    check_cameras(flags, flags.run, config, tests)
    rerank_options = check_flags(
        flags.rerank, flags.rerank_options, [flags.protocol or data.protocol for data in tests]
    )
    check_report(flags.report, flags.protocol or tests[0].protocol, tests[0].name)
    check_columns(flags.by, tests, flags.protocol)
    model = to_device(load(folder))
    if flags.rerank is not None:
        needs_cosine(model.metric, f"--rerank {flags.rerank}")
    about = f"{config['backbone']['name']}, method {model.method}, tuning {model.tuning}, {model.device}"
    print(f"{flags.run}: {about}\n", flush=True)
    if strengths:
        keep = record if record == folder else None
        files = score_strengths(flags, config, model, tests, strengths, keep, flags.report)
        print(_written(flags, files))
        return
    sections: list[Section] = []
    for data in tests:
        section = _score_data(flags, config, model, data, record, rerank_options, first=data is tests[0])
        sections += [section] if section else []
    files = [record / METRICS] if record == folder else []
    if flags.report is not None:
        write_page(flags.report, sections, flags.run, model)
        files.append(flags.report / "index.html")
    names = [data_label(data, flags.protocol) for data in tests]
    print(f"{results_table(record, names)}\n\n{_written(flags, files)}")


def _score_data(
    flags: Evaluate,
    config: dict[str, Any],
    model: ReIDModel,
    data: ReIDData,
    record: Path,
    rerank_options: dict[str, Any],
    first: bool,
) -> Section | None:
    """Scores one data set, prints and keeps its figures; returns its part of the report's page, where there is one.

    first: it is the first data set, the only one whose ranked lists are drawn as an image file.
    """
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.results import add_metrics
    from clipreid.evaluation.score import ZERO_SHOT
    from clipreid.hub.files import last_stage

    print(data.summary(), flush=True)
    offsets, stage = known_offsets(model, data, flags, config), last_stage(config)
    found = score_on(model, data, flags, offsets)
    _explain(found)
    name, protocol = data_label(data, flags.protocol), flags.protocol or data.protocol
    details = show_details(found, protocol, flags.by, flags.open_set)
    add_metrics(record, stage, {name: found.entry() | details})
    if flags.rerank is not None:
        add_metrics(record, *score_reranked(found, stage, name, flags.rerank, rerank_options))
    before = None
    if _has_backbone(config) and (flags.zero_shot or (flags.report and first)):
        before = score_on(before_training(model, config["backbone"]), data, flags)
        add_metrics(record, ZERO_SHOT, {name: before.entry(before.best())})
    if flags.report is None:
        return None
    if first:
        draw_lists(flags.report / RANKED_LISTS, before, found, flags.queries, stage)
    return report_section(name, get_protocol(protocol), model, found, before, offsets, stage)


def _has_backbone(config: dict[str, Any]) -> bool:
    """Whether the backbone from before training is known: an imported run has none beside its own tower."""
    return "positions" in config.get("backbone", {})


def _strengths(flags: Evaluate, config: dict[str, Any]) -> tuple[float, ...]:
    """The strengths of --strength, () without it. Raises UserError before anything is loaded or scored."""
    if flags.strength is None:
        return ()
    others = {"--zero-shot": flags.zero_shot, "--rerank": flags.rerank, "--by": flags.by, "--open-set": flags.open_set}
    return check_strengths(flags.strength, [name for name, given in others.items() if given], flags.run, config)


def _written(flags: Evaluate, files: Sequence[Path]) -> str:
    """The last line: which files were written."""
    return f"written: {', '.join(map(str, files))}" if files else f"nothing is written: {flags.run} is on the Hub"


def _explain(found: Scored) -> None:
    """Prints the figures of each feature, then counts, protocol and notes of the test feature."""
    from clipreid.evaluation import format_table

    print(f"\n{format_table({'feature': part, **report.metrics} for part, report in found.reports.items())}\n")
    print(found.reports[found.feature].explain())
    if (state := found.health()) is not None:
        print("\n".join(f"{name:8s}  {text}" for name, text in state.facts()))
    if found.bad:
        print(f"note      {found.bad} images could not be decoded and were left out (--skip-bad)")
    print(flush=True)
