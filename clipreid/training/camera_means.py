"""`--camera-means` of the recipes: the camera means of the training images, kept in the folder of a finished run."""

from __future__ import annotations

from clipreid.config import RunConfig
from clipreid.data import Mixture
from clipreid.errors import UserError
from clipreid.evaluation.centring import train_means
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel
from clipreid.search.means import save_means
from clipreid.training.run import Run


def check_camera_means(flags: RunConfig, read: Mixture, model: ReIDModel) -> None:
    """Refuses `--camera-means`, before anything is trained, where there is nothing that could be kept or used.

    Raises:
        UserError: several data sets; training images without cameras; a model with a metric of its own.
    """
    if not flags.camera_means:
        return
    if len(read.sets) > 1:
        raise UserError(
            f"--camera-means: the cameras of {' and '.join(flags.data)} share numbers: leave it out, or train on one"
        )
    if not (read.sets[0].splits["train"].cameras >= 0).any():
        raise UserError(f"--camera-means: the training images of {flags.data[0]} have no cameras: leave it out")
    needs_cosine(model.metric, "--camera-means")


def keep_camera_means(run: Run, model: ReIDModel) -> None:
    """Writes them for the finished model, on the main process alone, where they were asked for."""
    if not (run.flags.camera_means and run.main):
        return
    (data,) = run.data.read.sets
    (offsets,) = run.data.mixture.offsets.values()
    means = train_means(data.splits["train"], model, run.flags.skip_bad, offsets)
    file = save_means(run.folder, means, model, data.name)
    run.log.say(f"camera means  {len(means.cameras)} cameras, from {means.images:,} images: {file}")
