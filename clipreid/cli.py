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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from clipreid.cli_data import Data
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
    """What to test on: synthetic, synthetic:SET, market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:...; repeatable
    (default: what the run was trained and tested on)"""
    protocol: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """market1501, cross-camera, no-cameras, ...: see clipreid/evaluation/protocols.py (default: the data set's own)"""
    report: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Draw DIR/ranked_lists.png: what zero-shot and this run put first for some queries of the first data set"""
    queries: int = 3
    """Queries in that picture"""
    zero_shot: bool = False
    """Also score the backbone as it was before training, on every data set"""
    skip_bad: bool = False
    """Leave out pictures that cannot be decoded, and count them"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder: data: groups identity, camera, view (default: the run's own, for the data it was
    trained and tested on)"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For hub: data whose columns have other names: identity=pid,camera=camid (default: as --pattern)"""
    same_cameras: bool = False
    """The cameras and views of --data are those of training, with the same numbers: what --sie learned about them
    applies (otherwise only where the data set is the same, by its name)"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads (default: all cores)"""

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
    commands: Any = Evaluate | Matrix | Import | Data | Version
    command = tyro.cli(commands, prog="clipreid", description=about, args=args, config=(FlagCreatePairsOff,))
    with told_plainly():
        command()


def evaluate(flags: Evaluate) -> None:
    """`clipreid evaluate`.

    Raises:
        UserError: the run, the data, the protocol or the report folder cannot be used.
    """
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.score import ZERO_SHOT
    from clipreid.hub import load, read_config
    from clipreid.training.folder import add_metrics, read_metrics, results_table
    from clipreid.training.harness import set_threads

    set_threads(flags.threads)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    if flags.report is not None and flags.report.exists() and not flags.report.is_dir():
        raise UserError(f"--report {flags.report} is a file: give a folder")
    config = read_config(flags.run)
    has_backbone = "positions" in config.get("backbone", {})  # an imported run has none beside its own tower
    if flags.zero_shot and not has_backbone:
        raise UserError(f"--zero-shot: {flags.run} was imported, and holds no backbone from before its training")
    read_metrics(flags.run)  # nothing is scored that could not be kept
    tests = _tests(flags, config)
    _check_cameras(flags, config, tests)
    if flags.report is not None and get_protocol(flags.protocol or tests[0].protocol).captions:
        raise UserError(f"--report draws what pictures found, and the queries of {tests[0].name} are captions: "
                        "leave it out, or score pictures against pictures with --protocol market1501")  # fmt: skip
    model = _on_device(load(flags.run))
    print(f"{flags.run}: {config['backbone']['name']}, tuning {model.config.tuning}, {model.device}\n", flush=True)
    names: list[str] = []
    for data in tests:
        print(data.summary(), flush=True)
        sides = _sides(model, data, flags, config)
        found = _score(model, data, flags, sides)
        _explain(found)
        name = data.name + (f" ({flags.protocol})" if flags.protocol not in (None, data.protocol) else "")
        add_metrics(flags.run, "stage2", {name: found.entry()})
        draw = flags.report if not names else None
        before = _score(_untuned(model, config["backbone"]), data, flags) if has_backbone and (
            flags.zero_shot or draw) else None  # fmt: skip
        if before:
            add_metrics(flags.run, "zero-shot", {name: before.entry(before.best(ZERO_SHOT))})
        if draw:
            _draw(draw / PICTURE, before, found, flags.queries)
        names.append(name)
    print(f"{results_table(flags.run, names)}\n\nwritten: {flags.run / 'metrics.json'}", end="")
    print(f", {flags.report / PICTURE}" if flags.report is not None else "")


def _tests(flags: Evaluate, config: dict[str, Any]) -> list[ReIDData]:
    """The data sets to score, read but not decoded."""
    from clipreid.data import load_data, place, reader_flags

    trained = config.get("flags", {})
    own = [*trained.get("data", []), *trained.get("test", [])]
    specs = list(dict.fromkeys(flags.data or own))
    if not specs:
        raise UserError(f"{flags.run} does not say what it was trained on: name what to test on with --data")
    of_run = reader_flags(own, trained.get("pattern"), trained.get("columns"))
    kept = {place(spec): asked for spec, asked in of_run.items()}
    noun = config.get("stage1", {}).get("noun")  # nothing depends on it here, but readers guess one aloud
    noun = None if noun and "," in noun else noun  # trained on several kinds of individuals
    found = []
    for spec, asked in reader_flags(specs, flags.pattern, flags.columns).items():
        data = load_data(spec, noun=noun, **{k: v or kept.get(place(spec), {}).get(k) for k, v in asked.items()})
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
    plain = replace(model.config, tuning="head", sie="none")  # a fresh map is the identity
    return _on_device(ReIDModel(backbone, plain))


def _check_cameras(flags: Evaluate, config: dict[str, Any], tests: Sequence[ReIDData]) -> None:
    """Refuses --same-cameras where the training sets of the run have different cameras and none is the data's own."""
    from clipreid.side import known_as

    sets = config.get("flags", {}).get("data", [])
    if not flags.same_cameras or len(sets) < 2 or config.get("model", {}).get("sie", "none") == "none":
        return
    for data in tests:
        if known_as(data.name, sets) is None:
            raise UserError(
                f"--same-cameras: {flags.run} was trained on several data sets ({', '.join(sets)}), and nothing says "
                f"which of them has the cameras of {data.name}: leave the flag out, or name one of them with --data"
            )


def _sides(model: ReIDModel, data: ReIDData, flags: Evaluate, config: dict[str, Any]) -> tuple[int, int] | None:
    """What to raise the data's cameras and views by for a model that has learned them (None: unknown); says so."""
    from clipreid.side import known_as

    if model.side is None:
        return None
    trained = known_as(data.name, config.get("flags", {}).get("data", []))
    known = flags.same_cameras or trained is not None
    which = "those of training" if known else "unknown, each gets the mean embedding (--same-cameras: they are known)"
    print(f"  side information ({model.config.sie}): the data set's are {which}", flush=True)
    camera, view = config.get("offsets", {}).get(trained, (0, 0))  # of several training sets
    return (camera, view) if known else None


def _score(model: ReIDModel, data: ReIDData, flags: Evaluate, sides: tuple[int, int] | None = None) -> Scored:
    from clipreid.evaluation.score import score

    return score(data, model.embed_parts, model.image_size, model.config.interpolation, skip_bad=flags.skip_bad,
                 protocol=flags.protocol, sides=sides, embed_text=model.embed_text,
                 progress=_progress if sys.stderr.isatty() else None)  # fmt: skip


def _progress(split: str, done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"  # the finished line is wiped
    print(f"  {split}: {done:,} of {total:,} pictures", end=end, file=sys.stderr, flush=True)


def _explain(found: Scored) -> None:
    """Prints the figures of each feature, then counts, protocol and notes of the test feature."""
    from clipreid.evaluation import format_table

    print(f"\n{format_table({'feature': part, **report.metrics} for part, report in found.reports.items())}\n")
    print(found.reports[found.feature].explain())
    if found.bad:
        print(f"note      {found.bad} pictures could not be decoded and were left out (--skip-bad)")
    print(flush=True)


def _draw(file: Path, before: Scored | None, after: Scored, queries: int) -> None:
    """Draws the ranked lists, those of zero-shot first where there is one."""
    from clipreid.evaluation import ranked_lists
    from clipreid.evaluation.score import ZERO_SHOT

    similarities = {"zero-shot": before.similarity(before.best(ZERO_SHOT))} if before else {}
    similarities["stage 2"] = after.similarity()
    rules = after.reports[after.feature].protocol
    ranked_lists(file, after.query, after.gallery, similarities, rules, n_queries=queries)


if __name__ == "__main__":
    main()
