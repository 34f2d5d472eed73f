"""`clipreid calibrate`: from similarities to probabilities, and a threshold; and how other commands show them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.scoring import (
    Scoring,
    check_numbers,
    check_tests,
    known_offsets,
    read_tests,
    score_on,
    to_device,
)
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.evaluation.calibrated import Calibrated
    from clipreid.evaluation.score import Scored
    from clipreid.hub.calibrated import Known
    from clipreid.model import ReIDModel
    from clipreid.search import Gallery, Hit

STRANGERS = 0.1  # unless --strangers says another share
FIGURE, DETAILS = "reliability.png", "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Calibrate(Scoring):
    """Turn similarities into the probability that two images show the same individual, and find a threshold.

    Half of the identities fit two curves (logistic, isotonic) and the threshold, the other half measures them. What was
    found is kept in RUN/calibration.json, is published with the run, and is shown by clipreid search and compare.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, such as runs/demo, or OWNER/NAME[@REVISION] on the Hub"""
    output: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Also write DIR/reliability.png, and DIR/calibration.json with the rates by pair of cameras and by --by"""
    validate: bool = False
    """Calibrate on the val split of the data instead of its test split"""
    strength: float = 1.0
    """How much of the training takes part: a calibration holds for one strength"""
    strangers: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint=f"(default: {STRANGERS})")] = None
    """The threshold: the least similarity at which at most this share of the queries would be taken for somebody if the
    gallery had no image of them"""
    false_match: Annotated[float | None, arg(metavar="RATE", help_behavior_hint="")] = None
    """Instead: the least similarity that at most this share of pairs of different identities reach"""
    curve: Literal["logistic", "isotonic"] = "logistic"
    """Which of the two curves gives the probabilities that are shown"""
    by: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN", help_behavior_hint="")] = ()
    """Also the false match rate for each value of a column of the queries (view, clothes, ...); repeatable"""
    seed: int = 0
    """Decides which identities fit and which measure"""

    def __call__(self) -> None:
        calibrate_run(self)


def calibrate_run(flags: Calibrate) -> None:
    """`clipreid calibrate`.

    Raises:
        UserError: the run, the data or the output cannot be used; too few identities or pairs.
    """
    from clipreid.disk import check_place
    from clipreid.evaluation import format_table, get_protocol
    from clipreid.evaluation.columns import read_table
    from clipreid.evaluation.groups import find_groups
    from clipreid.evaluation.trials import calibrate
    from clipreid.hub import check_run, find_run, load, snapshot_of
    from clipreid.hub.calibrated import save_calibration
    from clipreid.reports.reliability import draw_reliability
    from clipreid.training.harness import set_threads

    if flags.strangers is not None and flags.false_match is not None:
        raise UserError("--strangers and --false-match both set the threshold: give one of them")
    if flags.centre_cameras is not None or flags.floor:
        name = "--floor" if flags.centre_cameras is None else "--centre-cameras"
        raise UserError(
            f"{name}: a calibration is of the plain features of one model, as search compares them: leave it out"
        )
    check_numbers(flags, seed=(0, 2**63 - 1), strength=(0, 1))
    for name in ("strangers", "false_match"):
        if (share := getattr(flags, name)) is not None and not 0 < share < 1:
            raise UserError(f"--{name.replace('_', '-')} {share:g}: a share lies between 0 and 1, for example 0.1")
    if flags.output is not None:
        check_place("--output", flags.output)
    if flags.protocol is not None:
        get_protocol(flags.protocol)
    set_threads(flags.threads)
    folder = find_run(flags.run)
    if snapshot_of(folder) is not None and flags.output is None:
        raise UserError(f"{flags.run} is on the Hub, and nothing is written there: give a folder with --output")
    config = check_run(folder).record
    data = _one_set(flags, config)
    check_tests(flags, flags.run, config, [data])
    query, gallery = (read_table(data.splits[name], name) for name in ("query", "gallery"))
    find_groups(query, gallery, flags.by)  # raises before the model is loaded
    model = to_device(load(folder, strength=flags.strength))
    print(data.summary(), flush=True)
    scored = score_on(model, data, flags, known_offsets(model, data, flags, config))
    protocol = flags.protocol or data.protocol
    compared = {"query": scored.query.metadata(), "gallery": scored.gallery.metadata(), **scored.compared()}
    how: dict[str, Any] = {"false_match": flags.false_match, "kind": flags.curve, "by": flags.by, "seed": flags.seed}
    how["strangers"] = STRANGERS if flags.strangers is None else flags.strangers
    found = calibrate(**compared, protocol=protocol, **how)
    print(f"\n{found}\n")
    for rows in found.groups.values():
        print(format_table(rows), end="\n\n")
    files = []
    if snapshot_of(folder) is None:
        files.append(save_calibration(folder, found.to_dict(), model, data.name, protocol))
    if flags.output is not None:
        draw_reliability(found, flags.output / FIGURE)
        files += [_write_details(found, flags.output / DETAILS, data.name, protocol), flags.output / FIGURE]
    print(f"written: {', '.join(map(str, files))}")


def _one_set(flags: Calibrate, config: dict[str, Any]) -> ReIDData:
    """The data to calibrate on. Raises UserError for several sets, and for --validate without a val split."""
    from clipreid.training.sets import val_as_test

    if not flags.validate:
        sets = read_tests(flags, flags.run, config)
    else:
        named = flags.data or tuple(config.get("run", {}).get("data", ()))
        sets = read_tests(replace(flags, data=named), flags.run, config)
        if lacking := [data.name for data in sets if "val" not in data.splits]:
            raise UserError(f"--validate: {lacking[0]} has no val split")
    if len(sets) > 1:
        names = ", ".join(data.name for data in sets)
        raise UserError(f"calibrate takes one data set, and here are {names}: name one with --data")
    return val_as_test(sets[0]) if flags.validate else sets[0]


def _write_details(found: Calibrated, file: Path, data: str, protocol: str) -> Path:
    from clipreid.hub.files import write_json

    rows = {name: list(group) for name, group in found.groups.items()}
    write_json(file, {"data": data, "protocol": protocol, **found.to_dict(), "groups": rows})
    return file


# For other commands -----------------------------------------------------------------------------------------------


def known_calibration(run: str | Path, model: ReIDModel, revision: str | None = None) -> Known | None:
    """The calibration of a run, if it has one and that holds for this model; says aloud where it does not."""
    from clipreid.hub import find_model
    from clipreid.hub.calibrated import calibration_of

    folder = find_model(run, revision)
    if isinstance(folder, str):  # an untrained model
        return None
    known, why = calibration_of(folder, model)
    if why:
        print(f"note: {why}", file=sys.stderr, flush=True)
    return known


def with_probabilities(hits: Sequence[Hit], known: Known, prior: float | None) -> list[Hit]:
    """The same hits with their probability; the query itself has none."""
    found = known.calibration.probability([hit.similarity for hit in hits], prior)
    return [hit if hit.itself else replace(hit, probability=float(p)) for hit, p in zip(hits, found, strict=True)]


def is_nobody(hits: Sequence[Hit], known: Known) -> bool:
    """Whether no image reaches the threshold, the query itself aside."""
    return not any(hit.similarity >= known.calibration.threshold and not hit.itself for hit in hits)


def threshold_of(known: Known, prior: float | None) -> dict[str, float]:
    """What JSON says of a calibration."""
    share = known.calibration.prior if prior is None else prior
    return {"threshold": known.calibration.threshold, "false_match": known.false_match, "prior": share}


def told_at_threshold(name: str, known: Known, scored: Scored, protocol: str) -> str:
    """One line for `clipreid compare`: what the threshold of a model's calibration does on other data."""
    from clipreid.evaluation import rates_at

    compared = {"query": scored.query.metadata(), "gallery": scored.gallery.metadata(), **scored.compared()}
    false, missed = rates_at(known.calibration.threshold, protocol=protocol, **compared)
    return (
        f"{name}: at the threshold {known.calibration.threshold:.4f} of its calibration on {known.record['data']} "
        f"{100 * false:.3g} % of pairs of different identities match here (there {100 * known.false_match:.3g} %), and "
        f"{100 * missed:.1f} % of matching pairs are missed"
    )


def answer(hits: Sequence[Hit], known: Known, gallery: Gallery, prior: float | None) -> str:
    """One or two lines below the table: somebody or nobody, and what the figures rest on."""
    threshold, rate = known.calibration.threshold, known.false_match
    chance = f"false match rate {100 * rate:.3g} %, so about {rate * len(gallery):,.0f} of {len(gallery):,} by chance"
    first = "nobody: no image reaches" if is_nobody(hits, known) else "somebody: the first images reach"
    share = known.calibration.prior if prior is None else prior
    where = f"as on {known.record['data']}" if prior is None else "--prior"
    return (
        f"{first} the threshold {threshold:.4f} ({chance})\n"
        f"probabilities: for pairs of which {100 * share:.2g} % match ({where}; --prior sets another share)"
    )
