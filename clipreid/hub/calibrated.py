"""`calibration.json` of a run: what `clipreid calibrate` found, bound to the features that it was found with.

It holds two fitted maps, a threshold and figures; nothing in it belongs to one identity. It is published with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipreid.backbones.record import weights_print
from clipreid.disk import read_json
from clipreid.errors import UserError
from clipreid.evaluation.calibration import KINDS, Calibration
from clipreid.evaluation.protocols import PROTOCOLS
from clipreid.hub.files import CALIBRATION, check_file, write_json
from clipreid.hub.shapes import check_table, shown
from clipreid.model import ReIDModel

RECORD: dict[str, Any] = {
    "clipreid": str,
    "model": str,
    "strength": float,
    "image_size": tuple[int, int],
    "data": str,
    "protocol": str,
    "shown": str,
    "prior": float,
    "threshold": float,
    "logistic": dict[str, float],
    "isotonic": dict[str, tuple[float, ...]],
    "fitted": dict[str, float],
    "measured": dict[str, float],
}
MEASURED = ("identities", "false_match", "missed", "strangers", "gallery")  # of "measured": what is read


@dataclass(frozen=True)
class Known:
    """The calibration of a run, and the record it comes from."""

    calibration: Calibration
    record: Mapping[str, Any]

    @property
    def false_match(self) -> float:
        """The measured false match rate at the threshold, 0..1."""
        return float(self.record["measured"]["false_match"])


def feature_print(model: ReIDModel) -> str:
    """A hash of what the test feature depends on: weights, crop, strength; that of a published copy is the same."""
    pixels = [list(model.image_size), list(model.mean), list(model.std), model.interpolation]
    about = [model.method, dict(model.widths), pixels, model.strength]
    return weights_print(((n, x) for n, x in model.named_parameters() if not n.startswith("necks.")), about)


def save_calibration(folder: Path, found: Mapping[str, Any], model: ReIDModel, data: str, protocol: str) -> Path:
    """Writes what `Calibrated.to_dict` gave, with the model that it holds for; returns the file.

    Raises:
        CannotWrite: the folder cannot be written.
    """
    import clipreid

    about = {"clipreid": clipreid.__version__, "model": feature_print(model), "strength": model.strength}
    about |= {"image_size": list(model.image_size), "data": data, "protocol": protocol}
    write_json(folder / CALIBRATION, about | dict(found))
    return folder / CALIBRATION


def read_calibration(folder: Path) -> Known | None:
    """The calibration of a run folder, whatever model it holds for; None where there is none.

    Raises:
        UserError: it is not what clipreid writes.
    """
    file = folder / CALIBRATION
    if not file.exists():
        return None
    check_file(file, folder)
    try:
        record = read_json(file)
        check_table(record, RECORD, "it", RECORD)
        check_table(record["measured"], {}, "measured", MEASURED)
        check_table(record["logistic"], {}, "logistic", ("slope", "intercept"))
        check_table(record["isotonic"], {}, "isotonic", ("similarity", "probability"))
        starts, heights = (record["isotonic"][name] for name in ("similarity", "probability"))
        if not (len(starts) == len(heights) > 0 and starts == sorted(starts) and heights == sorted(heights)):
            raise ValueError("isotonic is no rising curve")
        if not all(0 < p < 1 for p in (record["prior"], *heights)) or record["shown"] not in KINDS:
            raise ValueError(f"prior {record['prior']}, shown {shown(record['shown'])}")
        if record["protocol"] not in PROTOCOLS:
            raise ValueError(f"protocol {shown(record['protocol'])}")
    except ValueError as error:
        raise UserError(
            f"{file} is damaged, or was not written by clipreid ({error}): remove it, then calibrate again"
        ) from error
    curve = record["logistic"]["slope"], record["logistic"]["intercept"], tuple(zip(starts, heights, strict=True))
    return Known(Calibration(*curve, record["prior"], record["threshold"], record["shown"]), record)


def calibration_of(folder: Path, model: ReIDModel) -> tuple[Known | None, str]:
    """The calibration of a run, if it holds for this model; else None and, where there is one, why it does not.

    Raises:
        UserError: as `read_calibration`.
    """
    known = read_calibration(folder)
    if known is None or known.record["model"] == feature_print(model):
        return known, ""
    ours = {"strength": model.strength, "image size": list(model.image_size)}
    theirs = {"strength": known.record["strength"], "image size": known.record["image_size"]}
    differ = [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name]]
    why = f"{folder / CALIBRATION} is not used: it was made at {'; '.join(differ) or 'other weights'}"
    again = f"clipreid calibrate {folder}" + (f" --strength {model.strength:g}" if model.strength != 1 else "")
    return None, f"{why}. No probabilities are shown; `{again}` makes one for this model"


def describe_calibration(record: Mapping[str, Any]) -> str:
    """Some sentences for the model card: what the threshold does, and what the probabilities mean."""
    told = record["measured"]
    strength = f" at strength {record['strength']:g}" if record["strength"] != 1 else ""
    return (
        f"Calibrated on {record['data']}{strength} (`calibration.json`): two images with a similarity of at least "
        f"{record['threshold']:.4f} count as the same individual. On {told['identities']:.0f} identities that the "
        f"threshold was not fitted to, {100 * told['false_match']:.3g} % of pairs of different identities reach it, "
        f"and {100 * told['missed']:.1f} % of matching pairs do not; among {told['gallery']:.0f} images "
        f"{100 * told['strangers']:.1f} % of strangers are taken for somebody. `clipreid search` shows probabilities; "
        f"they hold where, as there, {100 * record['prior']:.2g} % of pairs match."
    )


def public_calibration(known: Known, data: str) -> dict[str, Any]:
    """The record as others get it; data: the public name of what it was calibrated on."""
    numbers = {name: _numbers(known.record[name]) for name in ("logistic", "isotonic", "fitted", "measured")}
    kept = {name: known.record[name] for name in RECORD if name not in numbers}
    return {**kept, "data": data, **numbers}


def _numbers(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without texts: `read_calibration` has seen that all values are numbers, and names are words of clipreid's."""
    return {name: value for name, value in table.items() if name.replace("_", "").isalpha() and len(name) < 40}
