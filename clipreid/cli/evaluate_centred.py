"""`clipreid evaluate --centre-cameras`; the work is in `clipreid.evaluation.centring`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipreid.cli.scoring import Scoring, centred_name, explain, means_on
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.disk import Unwritten
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel


def check_keeping(flags: Scoring, keep: bool, folder: Path | None, tests: list[ReIDData]) -> None:
    """Raises UserError for a --keep-means that cannot be; folder: of the run, None where nothing can be written."""
    if not keep:
        return
    if flags.centre_cameras != "train":
        raise UserError("--keep-means keeps the means of --centre-cameras train: give that flag too")
    if folder is None:
        raise UserError("--keep-means: this model has no run folder to keep them in: leave the flag out")
    if len(tests) != 1:
        names = " and ".join(data.name for data in tests)
        raise UserError(f"--keep-means: the cameras of {names} share numbers: name the one data set with --data")


def score_centred(
    found: Scored,
    stage: str,
    model: ReIDModel,
    data: ReIDData,
    flags: Scoring,
    offsets: tuple[int, int] | None,
    keep: Path | None,
    unwritten: Unwritten,
) -> tuple[Scored, str]:
    """Scores the centred features, prints their figures and what centring changed; returns them and the model's name.

    found: the features as they are, and `stage`, their name in metrics.json. keep: the run folder that gets the
    means; unwritten: keeps the error where it cannot be written.
    """
    from clipreid.evaluation import compare
    from clipreid.evaluation.centring import centre
    from clipreid.search.means import save_means

    assert flags.centre_cameras is not None
    means, name = means_on(found, model, data, flags, offsets), centred_name(stage, flags)
    centred = centre(found, flags.centre_cameras, means)
    print(name, flush=True)
    explain(centred)
    before, after = (each.reports[each.feature] for each in (found, centred))
    if before.intervals and not before.std:
        gain = compare(before, after, (stage, name))
        low, high = gain.difference_interval["mAP"]
        change = f"mAP {100 * gain.difference['mAP']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"centring  {change}, p {gain.p_value['mAP']:.2g}\n", flush=True)
    if keep is not None:
        with unwritten.going_on():
            print(f"kept      {save_means(keep, means, model, data.name)}\n", flush=True)
    return centred, name
