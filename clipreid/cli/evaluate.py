"""`clipreid evaluate`; --strength, --rerank and --report are in evaluate_*.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.evaluate_centred import check_keeping, score_centred
from clipreid.cli.evaluate_report import RANKED_LISTS, about_model, draw_lists, report_section, write_page
from clipreid.cli.evaluate_rerank import check_flags, score_reranked
from clipreid.cli.evaluate_strength import check_strengths, score_strengths
from clipreid.cli.scoring import (
    Asked,
    Scoring,
    before_training,
    centre_on,
    centred_name,
    check_columns,
    check_extras,
    check_numbers,
    check_report,
    check_tests,
    data_label,
    explain,
    floor_on,
    known_offsets,
    read_tests,
    score_on,
    show_details,
)
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.disk import Unwritten
    from clipreid.evaluation.results import Figures
    from clipreid.model import ReIDModel
    from clipreid.reports.html import Section


@dataclass(frozen=True, kw_only=True)
class Evaluate(Scoring):
    """Score a model: mAP, mINP and rank-1/5/10 on one or several data sets.

    The figures are added to RUN/metrics.json under the name of the run's last stage ("stage2", ...); of a run on the
    Hub and of an untrained model they are only printed.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, such as runs/demo, OWNER/NAME[@REVISION] on the Hub, or an untrained model: tiny-clip,
    open_clip:MODEL/TAG, hf:..., timm:..., osnet:x1_0/FILE, or colour (stripes of colour)"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Write DIR/index.html, one page with figures, ranked lists, attention maps and confused identities. Also its
    figures as PNG, and ranked_lists.png: the first results of zero-shot and of this run, on the first data set"""
    queries: int = 3
    """Queries in ranked_lists.png"""
    zero_shot: bool = False
    """Also score the backbone as it was before training, on every data set"""
    keep_means: bool = False
    """With --centre-cameras train: keep the means in the run folder, for `clipreid search`; they are never published"""
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
    from clipreid.disk import Unwritten, check_place
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.results import Figures
    from clipreid.hub import snapshot_of
    from clipreid.training.harness import set_threads

    check_numbers(flags, queries=(1, 1000))
    if flags.report is not None:
        check_place("--report", flags.report)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    set_threads(flags.threads)
    asked = Asked.find(flags.run)
    unwritten = Unwritten()
    local = asked.folder is not None and snapshot_of(asked.folder) is None  # nothing is written into the Hub's cache
    _evaluate(flags, asked, Figures(asked.folder if local else None, unwritten), unwritten)
    unwritten.check()


def _evaluate(flags: Evaluate, asked: Asked, figures: Figures, unwritten: Unwritten) -> None:
    """Scores the model, and keeps its figures."""
    from clipreid.evaluation.rerank import check_metric
    from clipreid.evaluation.results import results_table
    from clipreid.hub.files import METRICS
    from clipreid.metric import needs_cosine

    config = asked.config
    if flags.zero_shot and asked.folder is None:
        raise UserError(f"--zero-shot: {flags.run} is untrained itself: leave the flag out")
    if flags.zero_shot and not _has_backbone(config):
        raise UserError(f"--zero-shot: {flags.run} was imported, and holds no backbone from before its training")
    strengths = _strengths(flags, config)
    tests = read_tests(flags, flags.run, config)
    check_tests(flags, flags.run, config, tests)
    rerank_options = check_flags(
        flags.rerank, flags.rerank_options, [flags.protocol or data.protocol for data in tests]
    )
    check_report(flags.report, flags.protocol or tests[0].protocol, tests[0].name)
    check_columns(flags.by, tests, flags.protocol)
    check_extras(flags, tests)
    check_keeping(flags, flags.keep_means, figures.folder, tests)
    model = asked.load()
    if flags.rerank is not None:
        check_metric(model.metric, flags.rerank, f"--rerank {flags.rerank}")
    if flags.centre_cameras is not None:
        needs_cosine(model.metric, f"--centre-cameras {flags.centre_cameras}")
    print(f"{flags.run}: {about_model(model)}, {model.device}\n", flush=True)
    if strengths:
        files = score_strengths(flags, config, model, tests, strengths, figures, unwritten)
        print(_written(asked, files, unwritten))
        return
    sections: list[Section] = []
    for data in tests:
        section = _score_data(flags, asked, model, data, figures, unwritten, rerank_options, data is tests[0])
        sections += [section] if section else []
    files = [] if figures.folder is None else [figures.folder / METRICS]
    names = [data_label(data, flags.protocol) for data in tests]
    print(f"{results_table(figures.metrics, names)}\n", flush=True)
    if sections and flags.report is not None:
        with unwritten.going_on():
            write_page(flags.report, sections, asked, model)
        files.append(flags.report / "index.html")
    print(_written(asked, files, unwritten))


def _score_data(
    flags: Evaluate,
    asked: Asked,
    model: ReIDModel,
    data: ReIDData,
    figures: Figures,
    unwritten: Unwritten,
    rerank_options: dict[str, Any],
    first: bool,
) -> Section | None:
    """Scores one data set, prints and keeps its figures; returns its part of the report's page, where there is one.

    first: it is the first data set, the only one whose ranked lists are drawn as an image file.
    """
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.score import ZERO_SHOT

    print(data.summary(), flush=True)
    offsets, stage = known_offsets(model, data, flags, asked.config), asked.stage
    name, protocol = data_label(data, flags.protocol), flags.protocol or data.protocol
    if flags.floor:
        for row, floor in floor_on(data, flags).items():
            figures.add(row, {name: floor.entry()})
    found = asked.score(model, data, flags, offsets)
    explain(found)
    if flags.centre_cameras is not None:
        figures.add(stage, {name: found.entry()})
        keep = figures.folder if flags.keep_means else None
        found, stage = score_centred(found, stage, model, data, flags, offsets, keep, unwritten)
    details = show_details(found, protocol, flags.by, flags.open_set)
    figures.add(stage, {name: found.entry() | details})
    if flags.rerank is not None:
        figures.add(*score_reranked(found, stage, name, flags.rerank, rerank_options))
    before = None
    if _has_backbone(asked.config) and (flags.zero_shot or (flags.report and first)):
        untrained = before_training(model, asked.config["backbone"])
        before = score_on(untrained, data, flags)
        figures.add(ZERO_SHOT, {name: before.entry(before.best())})
        before = centre_on(before.as_zero_shot(), untrained, data, flags)
        if flags.centre_cameras is not None:
            figures.add(centred_name(ZERO_SHOT, flags), {name: before.entry()})
    if flags.report is None:
        return None
    if first:
        with unwritten.going_on():
            draw_lists(flags.report / RANKED_LISTS, before, found, flags.queries, stage)
    with unwritten.going_on():  # the images may be gone by now
        return report_section(name, get_protocol(protocol), model, found, before, offsets, stage)
    return None


def _has_backbone(config: dict[str, Any]) -> bool:
    """Whether the backbone from before training is known: an imported run has none beside its own tower."""
    return "positions" in config.get("backbone", {})


def _strengths(flags: Evaluate, config: dict[str, Any]) -> tuple[float, ...]:
    """The strengths of --strength, () without it. Raises UserError before anything is loaded or scored."""
    if flags.strength is None:
        return ()
    if not config:
        raise UserError(f"--strength: {flags.run} is untrained, there is no training to weaken: leave the flag out")
    others = {"--zero-shot": flags.zero_shot, "--rerank": flags.rerank, "--by": flags.by, "--open-set": flags.open_set}
    others |= {"--centre-cameras": flags.centre_cameras, "--floor": flags.floor}
    return check_strengths(flags.strength, [name for name, given in others.items() if given], flags.run, config)


def _written(asked: Asked, files: Sequence[Path], unwritten: Unwritten) -> str:
    """The last line: which files were written."""
    if unwritten.errors:
        return "not everything could be written:"
    if files:
        return f"written: {', '.join(map(str, files))}"
    return f"nothing is written: {asked.name} is {'untrained' if asked.folder is None else 'on the Hub'}"
