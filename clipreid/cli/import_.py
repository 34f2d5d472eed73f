"""`clipreid import`: the flags; the work is in `clipreid.hub.import_checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from clipreid.cli.scoring import check_numbers
from clipreid.errors import UserError


@dataclass(frozen=True)
class Import:
    """Make a run folder from a checkpoint published for the original CLIP-ReID: a ViT, with or without SIE.

    Architecture, crop and stride are read from the weights; the flags are for what the weights do not show.
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
    """What its side information embeds; needed where it has any, for the weights do not say"""
    sie_coefficient: float = 1.0
    """Coefficient of the side information in its training"""
    views: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Number of views, for --sie camera+view"""

    def __call__(self) -> None:
        from clipreid.hub.import_checkpoint import describe, import_checkpoint

        check_numbers(self, stride=(1, 256), views=(1, 10_000), sie_coefficient=(-1e3, 1e3))
        if self.image_size is not None and not all(8 <= side <= 4096 for side in self.image_size):
            raise UserError(f"--image-size {' '.join(map(str, self.image_size))}: each side has 8 to 4096 pixels")
        print(describe(import_checkpoint(**vars(self)), self.output))
