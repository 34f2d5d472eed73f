"""What trackers get besides the lines of the log: the first training crops of a stage, as it is trained on them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.training.run import Run
from clipreid.training.stage import Batch, Stage

SHOWN = 16  # crops


def check_tracker(name: str) -> None:
    """Refuses, with `UserError`, a tracker that is not installed: accelerate would leave it out without a word."""
    if name != "none" and find_spec(name) is None:
        raise UserError(f"--track {name}: {name} is not installed (pip install {name}); log.jsonl is always written")


def show_crops(stage: Stage, run: Run, batch: Batch) -> None:
    """Sends the first crops of a batch to the tracker, augmented; where there is one, and the batch has pixels."""
    if not run.accelerator.trackers or "pixels" not in batch:
        return
    images = as_images(batch["pixels"][:SHOWN], run.backbone.mean, run.backbone.std).numpy()
    name = f"{run.log.prefix}{stage.name}/crops"

    def send() -> None:
        for tracker in run.accelerator.trackers:
            _send(tracker, name, list(images))

    run.log.track(send)


def as_images(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    """Normalised pixels [B, 3, H, W] to uint8 [B, H, W, 3] on the CPU."""
    mean, std = (torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (mean, std))
    levels = (pixels.detach().float().cpu() * std + mean) * 255
    return levels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _send(tracker: Any, name: str, images: list[Any]) -> None:
    """images: uint8 [H, W, 3] each; every tracker wants them in another way."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: torch.stack([torch.from_numpy(x) for x in images])}, step=0, dataformats="NHWC")
    elif tracker.name == "trackio":
        import trackio

        tracker.log({f"{name}/{nth}": trackio.Image(image) for nth, image in enumerate(images)})
    else:
        tracker.log_images({name: images})
