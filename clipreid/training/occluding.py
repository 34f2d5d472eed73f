"""Occluders in front of training images: what a method's settings say of them, as a change of its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipreid.data.occluders import Library, Occluded, occlude, read_library, street_library
from clipreid.errors import UserError
from clipreid.training.batches import Change
from clipreid.training.stage import Batch


def training_library(config: Any) -> Library | None:
    """The occluders that training pastes: those of the folder, else those that `occluders` names; None: there are none.

    Raises:
        UserError: a folder that cannot be read, or severities in the wrong order.
    """
    if config.severity_least > config.severity_most:
        raise UserError(
            f"--severity-least {config.severity_least:g} is above --severity-most {config.severity_most:g}: "
            "exchange them"
        )
    if config.occluder_folder is not None:
        return read_library(config.occluder_folder, "train")
    return street_library("train") if config.occluders == "street" else None


def paste(
    images: Tensor, library: Library, config: Any, probability: float, generator: torch.Generator,
    share: tuple[int, int] = (0, 1),
) -> Occluded:  # fmt: skip
    """uint8 [B, 3, H, W] with an occluder of the library in front of each, with this probability; how much it hides is
    drawn between the config's severity_least and severity_most. share: as in `augment`."""
    rank, world = share
    count = len(images)
    draws = torch.rand(2, count * world, generator=generator)[:, rank * count : (rank + 1) * count]
    severity = config.severity_least + (config.severity_most - config.severity_least) * draws[1]
    severity = severity * (draws[0] < probability)  # 0 leaves an image as it is
    return occlude(images, library, severity.to(images.device), generator, share=share)


def occluding(config: Any) -> Change | None:
    """For `image_batches(change=...)`: occluders in every view, as the settings say; None without."""
    library = training_library(config)
    if library is None:
        return None
    found = library

    def change(view: int, images: Tensor, generator: torch.Generator, share: tuple[int, int]) -> tuple[Tensor, Batch]:
        pasted = paste(images, found, config, config.occlude_probability, generator, share)
        return pasted.pixels, {}

    return change
