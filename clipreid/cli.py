"""The `clipreid` command.

One dataclass for each subcommand: its fields are the flags, its `run` does the work. torch and the rest of the toolkit
are imported there, so that `clipreid --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from clipreid.errors import UserError, told_plainly

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel

PICTURE = "ranked_lists.png"
SHOWN = ("torch", "transformers", "open_clip_torch", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Evaluate:
    """Score a trained run: mAP, mINP and rank-1/5/10 on one or several data sets.

    The figures are added to RUN/metrics.json as "stage2".
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, such as runs/demo"""
    data: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME[:ROOT]", help_behavior_hint="")] = ()
    """What to test on: synthetic, synthetic:SET, market1501:ROOT, folder:ROOT, csv:FILE.csv; repeatable
    (default: what the run was trained and tested on)"""
    protocol: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """market1501, cross-camera or no-cameras (default: the data set's own)"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Draw DIR/ranked_lists.png: what zero-shot and this run put first for some queries of the first data set"""
    queries: int = 3
    """Queries in that picture"""
    skip_bad: bool = False
    """Leave out pictures that cannot be decoded, and count them"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view (default: the run's own, for its own data)"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads (default: all cores)"""

    def __call__(self) -> None:
        evaluate(self)


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
    command = tyro.cli(Evaluate | Version, prog="clipreid", description=about, args=args, config=(FlagCreatePairsOff,))
    with told_plainly():
        command()


def evaluate(flags: Evaluate) -> None:
    """`clipreid evaluate`.

    Raises:
        UserError: the run, the data, the protocol or the report folder cannot be used.
    """
    from clipreid.evaluation import get_protocol
    from clipreid.hub import load, read_config
    from clipreid.training.folder import add_metrics, read_metrics, results_table
    from clipreid.training.harness import set_threads

    set_threads(flags.threads)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    if flags.report is not None and flags.report.exists() and not flags.report.is_dir():
        raise UserError(f"--report {flags.report} is a file: give a folder")
    config = read_config(flags.run)
    read_metrics(flags.run)  # nothing is scored that could not be kept
    tests = _tests(flags, config)
    model = _on_device(load(flags.run))
    print(f"{flags.run}: {config['backbone']['name']}, tuning {model.config.tuning}, {model.device}\n", flush=True)
    names: list[str] = []
    for data in tests:
        print(data.summary(), flush=True)
        found = _score(model, data, flags)
        _explain(found)
        name = data.name + (f" ({flags.protocol})" if flags.protocol not in (None, data.protocol) else "")
        add_metrics(flags.run, "stage2", {name: found.entry()})
        if flags.report is not None and not names:
            before = _score(_untuned(model, config["backbone"]), data, flags)
            entry = _draw(flags.report / PICTURE, before, found, flags.queries)
            add_metrics(flags.run, "zero-shot", {name: entry})
        names.append(name)
    print(f"{results_table(flags.run, names)}\n\nwritten: {flags.run / 'metrics.json'}", end="")
    print(f", {flags.report / PICTURE}" if flags.report is not None else "")


def _tests(flags: Evaluate, config: dict[str, Any]) -> list[ReIDData]:
    """The data sets to score, read but not decoded."""
    from clipreid.data import load_data

    trained = config.get("flags", {})
    own = [*trained.get("data", []), *trained.get("test", [])]
    specs = list(dict.fromkeys(flags.data or own))
    if not specs:
        raise UserError(f"{flags.run} does not say what it was trained on: name what to test on with --data")
    folders = [spec for spec in specs if spec.startswith("folder:")]
    if flags.pattern is not None and not folders:
        load_data(specs[0], pattern=flags.pattern)  # says what a pattern is for
    found = []
    for spec in specs:
        pattern = flags.pattern or (trained.get("pattern") if spec in trained.get("data", []) else None)
        noun = config.get("stage1", {}).get("noun")  # nothing depends on it here, but readers guess one aloud
        data = load_data(spec, pattern=pattern if spec in folders else None, noun=noun)
        if flags.data or {"query", "gallery"} <= data.splits.keys():  # what was only trained on is not asked for
            found.append(data)
    if not found:
        raise UserError(f"{flags.run} was trained on data without a test split: name what to test on with --data")
    return found


def _on_device(model: ReIDModel) -> ReIDModel:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _untuned(model: ReIDModel, record: dict[str, Any]) -> ReIDModel:
    """The same backbone before any training, its features taken and its pictures prepared in the same way."""
    from clipreid.backbones import load_backbone
    from clipreid.model import ReIDModel

    backbone = load_backbone(record["name"], image_size=tuple(record["image_size"]), positions=record["positions"],
                             stride=record["stride"])  # fmt: skip
    return _on_device(ReIDModel(backbone, replace(model.config, tuning="head")))  # a fresh map is the identity


def _score(model: ReIDModel, data: ReIDData, flags: Evaluate) -> Scored:
    from clipreid.evaluation.score import score

    return score(data, model.embed_parts, model.image_size, model.config.interpolation, skip_bad=flags.skip_bad,
                 protocol=flags.protocol, progress=_progress if sys.stderr.isatty() else None)  # fmt: skip


def _progress(split: str, done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"  # the finished line is wiped
    print(f"  {split}: {done:,} of {total:,} pictures", end=end, file=sys.stderr, flush=True)


def _explain(found: Scored) -> None:
    """Prints the figures of each feature, then counts, protocol and notes of the test feature."""
    from clipreid.evaluation import format_table

    print(f"\n{format_table({'feature': part, **report.metrics} for part, report in found.reports.items())}\n")
    print(found.reports["concat"].explain())
    if found.bad:
        print(f"note      {found.bad} pictures could not be decoded and were left out (--skip-bad)")
    print(flush=True)


def _draw(file: Path, before: Scored, after: Scored, queries: int) -> dict[str, Any]:
    """Draws the ranked lists; returns the zero-shot figures for `metrics.json`."""
    from clipreid.evaluation import ranked_lists
    from clipreid.evaluation.score import ZERO_SHOT

    feature = before.best(ZERO_SHOT)
    similarities = {"zero-shot": before.similarity(feature), "stage 2": after.similarity()}
    rules = after.reports["concat"].protocol
    ranked_lists(file, after.query, after.gallery, similarities, rules, n_queries=queries)
    return before.entry(feature)


if __name__ == "__main__":
    main()
