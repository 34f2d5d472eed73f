"""`clipreid compare`: two models on the same queries, and the fusion of both."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from clipreid.cli.calibrate import known_calibration, told_at_threshold
from clipreid.cli.scoring import (
    Asked,
    Scoring,
    before_training,
    centre_on,
    check_extras,
    check_numbers,
    check_report,
    check_tests,
    floor_on,
    known_offsets,
    read_tests,
    score_on,
)
from clipreid.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from clipreid.data import ReIDData
    from clipreid.evaluation import Comparison, Report
    from clipreid.evaluation.score import Scored
    from clipreid.hub.calibrated import Known

ZERO = "zero-shot"
IMAGE, TABLE, FIGURES = "changed.png", "queries.csv", "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Compare(Scoring):
    """Compare two models on the same queries: difference, its interval, p-value, the queries that changed most.

    A model is a run folder or OWNER/NAME[@REVISION] on the Hub, several of them separated by commas (seeds: figures are
    their means); zero-shot: the backbone of the other one before training; or an untrained model by its name, such as
    tiny-clip, timm:..., colour. Nothing is written into the runs.
    """

    run_a: Annotated[Positional[str], arg(metavar="RUN_A")]
    """Run folder or OWNER/NAME on the Hub, runs/a0,runs/a1,..., zero-shot, or an untrained model by its name"""
    run_b: Annotated[Positional[str], arg(metavar="RUN_B")]
    """The same; differences are RUN_B minus RUN_A"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Write DIR/comparison.json, DIR/queries.csv (AP of every query) and, of the first data set, DIR/changed.png"""
    queries: int = 5
    """Queries in that image"""
    changed: int = 10
    """Queries in the printed table of those that changed most"""
    fuse: bool = False
    """Also score the weighted sum of both models' similarities, each standardised by its spread over the gallery; the
    weight is chosen on the data's val split"""
    weight: Annotated[float | None, arg(metavar="W", help_behavior_hint="")] = None
    """As --fuse, with this weight of RUN_A, 0..1, for data without a val split"""

    def __call__(self) -> None:
        compare_runs(self)


@dataclass(frozen=True)
class Model:
    """One of the two: a name for tables, its runs, and whether it is their backbone before training."""

    name: str
    runs: tuple[Asked, ...]
    zero: bool

    def score(self, data: ReIDData, flags: Compare) -> Found:
        """All its runs on a data set; the features of the first one are kept.

        Raises UserError where features are to be fused that are not compared by cosine.
        """
        from clipreid.evaluation.score import TEST
        from clipreid.metric import needs_cosine

        reports, kept, known = [], None, None
        for run in self.runs:
            model = run.load()
            if not self.zero and (flags.fuse or flags.weight is not None):
                needs_cosine(model.metric, "--fuse")
            offsets = None
            if self.zero:
                model = before_training(model, run.config["backbone"])
                scored = score_on(model, data, flags).as_zero_shot()
            else:
                offsets = known_offsets(model, data, flags, run.config)
                scored = run.score(model, data, flags, offsets)
                alone = len(self.runs) == 1 and flags.centre_cameras is None and scored.feature == TEST
                known = known_calibration(run.folder, model) if alone and run.folder is not None else None
            scored = centre_on(scored, model, data, flags, offsets)
            reports.append(scored.reports[scored.feature])
            kept = kept or scored
        assert kept is not None  # a model has a run
        return Found(reports, kept, kept.feature, known)


@dataclass(frozen=True)
class Found:
    """A model on a data set: a report for each run; of the first run the features, and which of them counts."""

    reports: list[Report]
    first: Scored
    feature: str
    known: Known | None  # the calibration of a single run

    def features(self) -> tuple[Tensor, Tensor]:
        """Of queries [Q, D] and gallery [G, D], compared by cosine."""
        return self.first.query_features[self.feature], self.first.gallery_features[self.feature]


def compare_runs(flags: Compare) -> None:
    """`clipreid compare`.

    Raises:
        UserError: runs, data, protocol, weight or the report folder cannot be used; the models cannot be compared.
    """
    from clipreid.disk import Unwritten, check_place, write_whole
    from clipreid.evaluation import compare, format_table, get_protocol
    from clipreid.hub.files import write_json
    from clipreid.training.harness import set_threads

    check_numbers(flags, queries=(1, 1000), changed=(0, 100_000), weight=(0, 1))
    if flags.report is not None:
        check_place("--report", flags.report)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    set_threads(flags.threads)
    a, b = _models(flags)
    sides = (b, a) if a.zero or a.runs[0].folder is None else (a, b)  # an untrained model says no data
    run = sides[0].runs[0]
    tests = read_tests(flags, run.name, run.config)
    for each in (*a.runs, *b.runs):
        check_tests(flags, each.name, each.config, tests)
    check_extras(flags, tests)
    if flags.fuse and flags.weight is None:  # a weight chosen on a val split serves the data sets that have none
        tests.sort(key=lambda data: "val" not in data.splits)
    check_report(flags.report, flags.protocol or tests[0].protocol, tests[0].name)
    _check_fusion(flags, a, b, tests)
    everything: dict[str, Any] = {}
    unwritten, lines = Unwritten(), Lines()
    for data in tests:
        print(data.summary(), flush=True)
        found = a.score(data, flags), b.score(data, flags)
        result = compare(found[0].reports, found[1].reports, (a.name, b.name))
        print(f"\n{result}\n")
        notes = dict.fromkeys(note for side in found for note in side.reports[0].notes)
        print("".join(f"note      {note}\n" for note in notes))
        for model, side in zip((a, b), found, strict=True):
            if len(side.reports) > 1:
                runs = zip(model.runs, side.reports, strict=True)
                print(format_table({"run": _short(run), **report.metrics} for run, report in runs), "\n")
        for model, side in zip((a, b), found, strict=True):
            if side.known is not None:
                protocol = flags.protocol or data.protocol
                print(told_at_threshold(model.name, side.known, side.first, protocol), end="\n\n")
        table = result.changed_table(flags.changed)
        print(f"the queries that changed most\n\n{table}\n" if table else "no query changed\n", flush=True)
        entry = result.to_dict()
        if flags.floor:
            name, floor = list(floor_on(data, flags).items())[-1]
            entry["floor"] = floor.entry()
            print(f"{format_table([{'floor': name, **floor.reports[floor.feature].metrics}])}\n", flush=True)
        if flags.fuse or flags.weight is not None:
            chosen = next(((name, each["fusion"]["weight"]) for name, each in everything.items()), None)
            entry["fusion"] = _fuse(flags, data, (a, b), found, chosen)
        if flags.report is not None and not everything:
            with unwritten.going_on():
                _draw(flags.report, result, found, flags.queries)
        everything[data.name] = entry
        if flags.report is not None:
            lines.add(data.name, result)
            with unwritten.going_on():
                write_whole(flags.report / TABLE, lines.text())
                write_json(flags.report / FIGURES, everything)
    unwritten.check()
    if flags.report is not None:
        print(f"written: {flags.report}/")


def _models(flags: Compare) -> tuple[Model, Model]:
    """Both models, their run folders checked; says what they are."""
    runs = [_runs(flags.run_a), _runs(flags.run_b)]
    zero = [side is None for side in runs]
    if all(zero):
        raise UserError(f"{ZERO} against {ZERO}: name a run folder on one side, its backbone is the other")
    labels = [ZERO if side is None else ", ".join(map(_short, side)) for side in runs]
    if labels[0] == labels[1] or max(map(len, labels)) > 24:
        labels = ["A", "B"]
    models = []
    for label, own, other, is_zero in zip(labels, runs, runs[::-1], zero, strict=True):
        folders = own or (other or ())[:1]
        for run in folders:
            if is_zero and run.folder is None:
                raise UserError(f"{ZERO} against {run.name}: it is untrained itself; name two different models")
            if is_zero and "positions" not in run.config.get("backbone", {}):
                raise UserError(f"{ZERO}: {run.name} was imported, and holds no backbone from before its training")
            about = f"{run.name}, {run.config.get('backbone', {}).get('name')}, {_about(run.config)}"
            about = f"{run.name}, untrained" if run.folder is None else about
            print(f"{label}: {'before training, ' if is_zero else ''}{about}")
        models.append(Model(label, folders, is_zero))
    print(flush=True)
    return models[0], models[1]


def _short(run: Asked) -> str:
    """What tables call a run: the name of its folder, OWNER/NAME, or that of an untrained model."""
    from clipreid.hub import run_name

    return run.name if run.folder is None else run_name(run.folder)


def _about(config: dict[str, Any]) -> str:
    """The method of a run, and what of the image tower it trains."""
    tuning = config.get("config", {}).get("tuning")
    return f"method {config.get('method')}" + (f", tuning {tuning}" if tuning else "")


def _runs(text: str) -> tuple[Asked, ...] | None:
    """The models that a word of the command line names; None for zero-shot."""
    if text == ZERO:
        return None
    if Path(text).exists():
        return (Asked.find(text),)
    names = [part.strip() for part in text.split(",") if part.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        what = f"names {twice[0]} twice: give every run once" if twice else "names no run folder"
        raise UserError(f"{text!r} {what}")
    return tuple(map(Asked.find, names))


def _check_fusion(flags: Compare, a: Model, b: Model, tests: list[ReIDData]) -> None:
    """Raises UserError, before anything is scored, for what cannot be fused."""
    if not flags.fuse and flags.weight is None:
        return
    if len(a.runs) > 1 or len(b.runs) > 1:
        raise UserError("--fuse takes one run on each side: fuse the seeds one by one")
    if flags.weight is None and not any("val" in data.splits for data in tests):
        names = " and ".join(data.name for data in tests)
        raise UserError(
            f"--fuse: {names} has no val split to choose the weight on (never on test): name other --data "
            "as well, or give the weight, such as --weight 0.5"
        )


def _fuse(
    flags: Compare,
    data: ReIDData,
    models: tuple[Model, Model],
    found: tuple[Found, Found],
    chosen: tuple[str, float] | None,
) -> dict[str, Any]:
    """Scores both together and prints it; returns what comparison.json keeps.

    chosen: the first data set and its weight, for one without a val split.
    """
    from clipreid.evaluation import compare, cosine_spread, evaluate, format_table, fuse_features, raw_weight
    from clipreid.evaluation.fusion import at_edge

    weight, how = _fusion_weight(flags, data, models, found, chosen)
    (query_a, gallery_a), (query_b, gallery_b) = (f.features() for f in found)
    first, protocol = found[0].first, flags.protocol or data.protocol
    spreads = cosine_spread(gallery_a), cosine_spread(gallery_b)
    plain = raw_weight(weight, spreads)
    fused = fuse_features(query_a, query_b, plain), fuse_features(gallery_a, gallery_b, plain)
    report = evaluate(*fused, first.query, first.gallery, protocol)
    alone = [f.reports[0] for f in found]
    rows = [{"model": m.name, **r.metrics} for m, r in zip(models, alone, strict=True)]
    title = f"fused, {weight:g} x {models[0].name} + {1 - weight:g} x {models[1].name}"
    print(f"{format_table([*rows, {'model': title, **report.metrics}])}\n\nweight {weight:g} ({how})")
    deviations = ", ".join(f"{model.name} {spread:.2g}" for model, spread in zip(models, spreads, strict=True))
    print(f"of cosines divided by their standard deviation over the gallery ({deviations})")
    if flags.weight is None and at_edge(weight):
        alone_best = models[0 if weight > 0.5 else 1].name
        print(f"note: the weight is at the edge of its grid (0 to 1): on val {alone_best} alone is as good, or nearly")
    gains = {}
    for model, other in zip(models, alone, strict=True):
        gain = compare(other, report, (model.name, "fused"))
        (low, high), apart = gain.difference_interval["mAP"], gain.difference["mAP"]
        gains[model.name] = gain.to_dict()
        interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
        print(f"fused minus {model.name}: mAP {100 * apart:+.1f} ({interval}), p {gain.p_value['mAP']:.2g}")
    print(flush=True)
    about = {"weight": weight, "how": how, "spread": list(spreads)}
    return {**about, **report.to_dict(), "against": gains}


def _fusion_weight(
    flags: Compare,
    data: ReIDData,
    models: tuple[Model, Model],
    found: tuple[Found, Found],
    chosen: tuple[str, float] | None,
) -> tuple[float, str]:
    """The weight of the first model, 0..1, and where it comes from; arguments as for `_fuse`."""
    from clipreid.evaluation import choose_weight
    from clipreid.training.sets import val_as_test

    if flags.weight is not None:
        return flags.weight, "given"
    if "val" not in data.splits:
        assert chosen is not None  # data sets with a val split come first
        return chosen[1], f"that of {chosen[0]}"
    val = val_as_test(data)
    val = replace(val, splits={**data.splits, **val.splits})  # with its train split, for --centre-cameras train
    tried = [replace(model.score(val, flags), feature=f.feature) for model, f in zip(models, found, strict=True)]
    asked, protocol = tried[0].first, flags.protocol or data.protocol
    weight, grid = choose_weight(tried[0].features(), tried[1].features(), asked.query, asked.gallery, protocol)
    return weight, f"chosen on val, mAP {100 * max(grid):.1f}% there"


def _draw(folder: Path, result: Comparison, found: tuple[Found, Found], queries: int) -> None:
    """The ranked lists of the queries that changed most, of the first run on each side."""
    from clipreid.reports import ranked_lists

    if not result.changed():
        return
    first = found[0].first
    similarities = {name: f.first.similarity(f.feature) for name, f in zip(result.names, found, strict=True)}
    rules = found[0].reports[0].protocol
    names = zip(result.names, found, strict=True)
    chances = {name: f.known.calibration.probability for name, f in names if f.known is not None}
    ranked_lists(folder / IMAGE, first.query, first.gallery, similarities, rules, queries, chances=chances)


class Lines:
    """queries.csv: the AP of every query of every data set so far."""

    def __init__(self) -> None:
        self.handle = io.StringIO()
        self.writer = csv.writer(self.handle)

    def add(self, data: str, result: Comparison) -> None:
        if not self.handle.tell():
            self.writer.writerow(["data", "row", "path", "identity", f"ap {result.names[0]}", f"ap {result.names[1]}"])
        paths = [""] * len(result.identity) if result.path is None else result.path
        for row, (path, identity, a, b) in enumerate(zip(paths, result.identity, *result.ap, strict=True)):
            self.writer.writerow([data, row, path, identity, a, b])

    def text(self) -> bytes:
        return self.handle.getvalue().encode(errors="surrogateescape")  # a file's name need not be UTF-8
