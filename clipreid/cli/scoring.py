"""What `clipreid evaluate` and `clipreid compare` share: the flags that say what is scored, and the scoring."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.evaluation.centring import CameraMeans
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel


PAIRS, MOST = "camera-pair", 40  # a value of --by; rows of its tables


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored, and how."""

    data: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME[:ROOT]", help_behavior_hint="")] = ()
    """What to test on: synthetic, synthetic:SET, market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:...; repeatable
    (default: what the run was trained and tested on)"""
    protocol: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """market1501, cross-camera, no-cameras, ...: see docs/evaluation.md (default: the data set's own)"""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and count them"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder: data: groups identity, camera, view (default: the run's own, for the data it was
    trained and tested on)"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names: identity=name,camera=place (default: as
    --pattern)"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas
    (default: as --pattern)"""
    count_copies: bool = False
    """Let queries find their own copies in the gallery; they are left out as junk otherwise"""
    same_cameras: bool = False
    """The cameras and views of --data are those of training, with the same numbers: what a model learned about them
    applies (otherwise only where the data set is the same, by its name)"""
    centre_cameras: Annotated[Literal["train", "gallery"] | None, arg(help_behavior_hint="")] = None
    """Subtract each camera's mean feature; train: the means of the train split of --data (inductive), gallery: those of
    gallery and queries (transductive)"""
    floor: bool = False
    """Also score stripes of colour, which know nothing of individuals: the floor that a model must be above"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads (default: all cores)"""


def check_numbers(flags: Any, **ranges: tuple[float, float]) -> None:
    """Raises UserError for numbers out of their range; ranges: {field: (least, most)}. None is no number."""
    ranges = {"threads": (1, max(64, 4 * (os.cpu_count() or 1))), **ranges}
    for name, (least, most) in ranges.items():
        value = getattr(flags, name, None)
        if value is not None and not least <= value <= most:
            end = "" if most == math.inf else f" and at most {most:g}"
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least:g}{end}")


@dataclass(frozen=True)
class Asked:
    """What RUN stands for: a run, or an untrained model.

    name: as it was typed. folder: of the run; None of an untrained model. config: its config.json; {} of such a model.
    """

    name: str
    folder: Path | None
    config: dict[str, Any]

    @classmethod
    def find(cls, run: str) -> Asked:
        """Raises UserError where it stands for nothing, or for a run that cannot be loaded."""
        from clipreid.hub import check_run, find_model

        found = find_model(run)
        return cls(found, None, {}) if isinstance(found, str) else cls(run, found, check_run(found).record)

    @property
    def stage(self) -> str:
        """What tables and `metrics.json` call the model."""
        from clipreid.backbones.colour import COLOUR
        from clipreid.evaluation.score import ZERO_SHOT
        from clipreid.hub.files import last_stage

        if self.folder is not None:
            return last_stage(self.config)
        return COLOUR if self.name == COLOUR else ZERO_SHOT

    def load(self) -> ReIDModel:
        """The model in eval mode, on the GPU where there is one."""
        from clipreid.hub import load, load_untrained

        return to_device(load_untrained(self.name) if self.folder is None else load(self.folder))

    def score(self, model: ReIDModel, data: ReIDData, flags: Scoring, offsets: tuple[int, int] | None) -> Scored:
        """`score_on`; of an untrained model the better of its features counts, as for zero-shot."""
        found = score_on(model, data, flags, offsets)
        return found if self.folder is not None else found.as_zero_shot()


def read_tests(flags: Scoring, run: str | Path, config: dict[str, Any]) -> list[ReIDData]:
    """The data sets to score, read but not decoded."""
    from clipreid.data import data_place, load_data, reader_flags

    trained = config.get("run", {})
    own = [*trained.get("data", []), *trained.get("test", [])]
    specs = list(dict.fromkeys(flags.data or own))
    if not specs and not config:
        raise UserError(f"{run} is untrained, so there is no data of its own: name what to test on with --data")
    if not specs:
        raise UserError(f"{run} does not say what it was trained on: name what to test on with --data")
    of_run = reader_flags(own, trained.get("pattern"), trained.get("columns"), trained.get("unknown"))
    kept = {data_place(spec): asked for spec, asked in of_run.items()}
    noun = config.get("data", {}).get("noun")  # nothing depends on it here, but readers guess one aloud
    noun = None if noun and "," in noun else noun  # trained on several kinds of individuals
    found = []
    for spec, asked in reader_flags(specs, flags.pattern, flags.columns, flags.unknown).items():
        data = load_data(spec, noun=noun, **{k: v or kept.get(data_place(spec), {}).get(k) for k, v in asked.items()})
        # a set without test images is scored only where --data names it
        if flags.data or {"query", "gallery"} <= data.splits.keys():
            found.append(data)
    if not found:
        raise UserError(f"{run} was trained on data without a test split: name what to test on with --data")
    return found


def check_tests(flags: Scoring, run: str | Path, config: dict[str, Any], tests: Sequence[ReIDData]) -> None:
    """Raises UserError for data without query or gallery; for --same-cameras where it is unclear which of several
    training sets has the data's cameras."""
    from clipreid.data import trained_name
    from clipreid.evaluation.score import check_test

    for data in tests:
        check_test(data)
    sets = config.get("run", {}).get("data", [])
    if (
        not flags.same_cameras
        or len(sets) < 2
        or not any(config.get("config", {}).get(name) for name in ("cameras", "views"))
    ):
        return
    for data in tests:
        if trained_name(data.name, sets) is None:
            raise UserError(
                f"--same-cameras: {run} was trained on several data sets ({', '.join(sets)}), and nothing says "
                f"which of them has the cameras of {data.name}: leave the flag out, or name one of them with --data"
            )


def to_device(model: ReIDModel) -> ReIDModel:
    """The model in eval mode, on the GPU where there is one."""
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def before_training(model: ReIDModel, record: dict[str, Any]) -> ReIDModel:
    """The same backbone (its `record`) before any training, its images prepared in the same way."""
    from clipreid.backbones.record import load_recorded
    from clipreid.model import untrained_model

    return to_device(untrained_model(load_recorded(record), getattr(model.config, "aggregation", "cls")))


def known_offsets(model: ReIDModel, data: ReIDData, flags: Scoring, config: dict[str, Any]) -> tuple[int, int] | None:
    """What to raise the data's cameras and views by for a model that has learned them (None: unknown); says so."""
    from clipreid.data import trained_name

    if not model.sides:
        return None
    trained = trained_name(data.name, config.get("run", {}).get("data", []))
    known = flags.same_cameras or trained is not None
    which = "those of training" if known else "unknown, each gets the mean embedding (--same-cameras: they are known)"
    print(f"  side information ({' and '.join(model.sides)}): the data set's are {which}", flush=True)
    camera, view = config.get("offsets", {}).get(trained, (0, 0))  # of several training sets
    return (camera, view) if known else None


def data_label(data: ReIDData, protocol: str | None) -> str:
    """The key of a data set in metrics.json: its name, and in brackets a protocol other than its own."""
    return data.name + (f" ({protocol})" if protocol not in (None, data.protocol) else "")


def score_on(model: ReIDModel, data: ReIDData, flags: Scoring, offsets: tuple[int, int] | None = None) -> Scored:
    """Scores a model on a data set, as the flags say; `offsets` as for `evaluation.score.score`."""
    from clipreid.evaluation.score import score

    progress = _progress if sys.stderr.isatty() else None
    return score(
        data,
        model,
        skip_bad=flags.skip_bad,
        protocol=flags.protocol,
        offsets=offsets,
        count_copies=flags.count_copies,
        progress=progress,
    )


def check_extras(flags: Scoring, tests: Sequence[ReIDData]) -> None:
    """Raises UserError, before anything is scored, where --centre-cameras or --floor cannot work."""
    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.centring import check_centring

    for data in tests:
        if flags.centre_cameras is not None:
            check_centring(flags.centre_cameras, data, flags.protocol)
        if flags.floor and get_protocol(flags.protocol or data.protocol).captions:
            raise UserError(
                f"--floor: the queries of {data.name} are captions, which stripes of colour cannot answer: leave it out"
            )


def means_on(
    found: Scored, model: ReIDModel, data: ReIDData, flags: Scoring, offsets: tuple[int, int] | None = None
) -> CameraMeans:
    """The camera means that --centre-cameras asks for; `found` is what `score_on` returned."""
    from clipreid.evaluation.centring import camera_means

    assert flags.centre_cameras is not None
    progress = _progress if sys.stderr.isatty() else None
    more: dict[str, Any] = {"skip_bad": flags.skip_bad, "offsets": offsets, "progress": progress}
    return camera_means(flags.centre_cameras, found, data, model, **more)


def centre_on(
    found: Scored, model: ReIDModel, data: ReIDData, flags: Scoring, offsets: tuple[int, int] | None = None
) -> Scored:
    """What `score_on` found, with features centred by camera where --centre-cameras says so."""
    from clipreid.evaluation.centring import centre

    if flags.centre_cameras is None:
        return found
    return centre(found, flags.centre_cameras, means_on(found, model, data, flags, offsets))


def centred_name(stage: str, flags: Scoring) -> str:
    """What tables and `metrics.json` call a model with --centre-cameras."""
    from clipreid.evaluation.results import CENTRED

    return stage if flags.centre_cameras is None else f"{stage}+{CENTRED}{flags.centre_cameras}"


def floor_on(data: ReIDData, flags: Scoring) -> dict[str, Scored]:
    """Stripes of colour on the same queries and gallery; with --centre-cameras also centred, as the model."""
    from clipreid.backbones.colour import COLOUR

    asked = Asked(COLOUR, None, {})
    model = asked.load()
    found = asked.score(model, data, flags, None)
    return {COLOUR: found, centred_name(COLOUR, flags): centre_on(found, model, data, flags)}


def _progress(split: str, done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"  # the finished line is wiped
    print(f"  {split}: {done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)


def check_report(folder: Path | None, protocol: str, data: str) -> None:
    """Raises UserError for a --report that cannot be drawn."""
    from clipreid.evaluation import get_protocol

    if folder is not None and get_protocol(protocol).captions:
        raise UserError(
            f"--report draws ranked lists of query images, and the queries of {data} are captions: "
            "leave it out, or score images against images with --protocol market1501"
        )


def check_columns(names: Sequence[str], tests: Sequence[ReIDData], protocol: str | None) -> None:
    """Raises UserError for a --by that is no column of the queries, or for camera pairs where there are none."""
    from clipreid.evaluation import get_protocol

    for name in names:
        for data in tests:
            if name == PAIRS:
                if get_protocol(protocol or data.protocol).draws:
                    raise UserError(f"--by {PAIRS}: {protocol or data.protocol} draws random galleries")
                continue
            have = [column for column in data.splits["query"].metadata() if column != "path"]
            if name not in have:
                raise UserError(f"--by {name}: the queries of {data.name} have {', '.join(have)}; or give {PAIRS}")


def explain(found: Scored) -> None:
    """Prints the figures of each feature, then counts, protocol and notes of the test feature."""
    from clipreid.evaluation import format_table

    print(f"\n{format_table({'feature': part, **report.metrics} for part, report in found.reports.items())}\n")
    print(found.reports[found.feature].explain())
    if (state := found.health()) is not None:
        print("\n".join(f"{name:8s}  {text}" for name, text in state.facts()))
    if found.bad:
        print(f"note      {found.bad} images could not be decoded and were left out (--skip-bad)")
    print(flush=True)


def show_details(found: Scored, protocol: str, by: Sequence[str], open_set: bool) -> dict[str, Any]:
    """Prints the tables of --by and --open-set for the test feature; returns what metrics.json keeps."""
    from clipreid import evaluation
    from clipreid.evaluation import by_column, camera_pairs, format_table

    tables = found.query.metadata(), found.gallery.metadata()
    compared = {"query": tables[0], "gallery": tables[1], "protocol": protocol, **found.compared()}
    for name in by:
        if name == PAIRS:
            print(camera_pairs(**compared), end="\n\n", flush=True)
            continue
        rows = by_column(found.reports[found.feature], tables[0][name], name)
        if len(rows) > MOST:
            print(f"the {MOST} of {len(rows)} values with the lowest mAP\n")
            rows = sorted(rows, key=lambda row: float(str(row["mAP"])))[:MOST]
        print(format_table(rows), end="\n\n", flush=True)
    if not open_set:
        return {}
    figures = evaluation.open_set(**compared)
    print(f"open set  {figures}\n", flush=True)
    return {"open_set": figures.to_dict()}
