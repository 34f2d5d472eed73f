"""Side information embedding (SIE): the camera or view of an image, added to the CLS token of the image tower.

B images, T tokens (CLS first), C tower width, S = cameras, views, or pairs of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from clipreid.errors import UserError
from clipreid.hooks.base import TokenHook

Side = Literal["none", "camera", "view", "camera+view"]
Numbers = Sequence[int] | np.ndarray | Tensor


class SideEmbedding(TokenHook):
    """One learned vector per camera, per view, or per pair of both (TransReID, arXiv 2102.04378, section 3.3).

    As in CLIP-ReID (arXiv 2211.13977, section 4.2) it is multiplied by a coefficient and added to the CLS token
    alone, before the first norm; drawn from a normal distribution of std 0.02 cut off at two. A camera or view
    that is unknown (-1) or was never trained on takes part with the mean over all of them. A pair that was never
    trained on gets the mean of the rows that have its camera or its view.

    The table is zero until `reset_parameters`, which `ReIDModel` calls, draws it.

    Args:
        cameras, views: the camera and the view that each row [S] stands for, as numbered in the training set; () where
            that side is not embedded.
        width: C.
        coefficient: on the embedding.

    Raises:
        UserError: neither cameras nor views; not as many of one as of the other.
    """

    def __init__(self, cameras: Sequence[int], views: Sequence[int], width: int, coefficient: float = 1.0) -> None:
        super().__init__()
        if not (len(cameras) or len(views)):
            raise UserError("a side information embedding needs the numbers of the cameras or views it embeds")
        if len(cameras) and len(views) and len(cameras) != len(views):
            raise UserError(
                f"a side information embedding of pairs got {len(cameras)} cameras and {len(views)} views: "
                "name the camera and the view of each pair that was trained on"
            )
        self.reads = ("cameras",) * bool(len(cameras)) + ("views",) * bool(len(views))
        self.coefficient = coefficient
        self.table = nn.Parameter(torch.zeros(max(len(cameras), len(views)), width))  # [S, C]
        self.cameras: Tensor
        self.views: Tensor
        self.register_buffer("cameras", torch.tensor(cameras, dtype=torch.long), persistent=False)
        self.register_buffer("views", torch.tensor(views, dtype=torch.long), persistent=False)

    def reset_parameters(self) -> None:
        """Draws the table: normal of std 0.02, cut off at two."""
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, cameras: Tensor | None, views: Tensor | None, count: int) -> Tensor:
        """Camera and view numbers [B] (None: all unknown) of B = count images to their embeddings [B, C]."""
        fits = [_fits(*side, count) for side in ((self.cameras, cameras), (self.views, views)) if len(side[0])]
        both = torch.stack(fits).all(0)  # [B, S]: the row of the camera, of the view, or of the pair
        either = torch.stack(fits).any(0)
        rows = torch.where(both.any(1, keepdim=True), both, either)
        rows = torch.where(rows.any(1, keepdim=True), rows, True).float()
        return self.strength * self.coefficient * (rows / rows.sum(1, keepdim=True)) @ self.table

    def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Adds the embeddings to the first token of the embedded tokens [B, T, C]."""
        if layer != 0:
            return x
        side = self(about.get("cameras"), about.get("views"), len(x)).to(x.dtype)
        return torch.cat([x[:, :1] + side[:, None], x[:, 1:]], dim=1)

    @torch.no_grad()
    def bake(self, tower: nn.Module) -> None:
        """Adds the mean embedding, which unknown cameras and views get, to the tower's CLS token."""
        tower.embeddings.class_embedding += self(None, None, 1)[0]  # type: ignore[union-attr]


def _fits(known: Tensor, given: Tensor | None, count: int) -> Tensor:
    """Which rows [S] stand for the number that is given, bool [B, S]; none for an unknown one."""
    if given is None:
        given = torch.full((count,), -1)
    return given.to(known.device)[:, None] == known


def check_cls(kind: str, family: str, backbone: str) -> None:
    """Raises `UserError` for a backbone without a CLS token (SigLIP, image-only towers)."""
    if family != "clip":
        raise UserError(
            f"--sie {kind}: {backbone} has no CLS token of ours, which side information is added to: "
            "use --sie none, or a CLIP backbone"
        )


def known_numbers(kind: str, cameras: Numbers, views: Numbers) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cameras and views of the training images that `--sie` embeds, as `SideEmbedding` takes them, sorted.

    Both as long as the other for "camera+view": the pairs that occur, of images with both known. Unknown ones (-1)
    are left out.

    Raises:
        UserError: `kind` asks for a side that no training image knows, or for both where none knows both.
    """
    sides = {"camera": np.asarray(cameras), "view": np.asarray(views)}
    wanted = [side for side in sides if side in kind.split("+")]
    for side in wanted:
        if not (sides[side] >= 0).any():
            raise UserError(f"--sie {kind}: no training image has a known {side}: choose --sie none or another kind")
    if not wanted:
        return (), ()
    numbers = np.stack([sides[side] for side in wanted], axis=1)  # [N, 1 or 2]
    rows = np.unique(numbers[(numbers >= 0).all(1)], axis=0)  # [S, 1 or 2]
    if not len(rows):
        raise UserError(
            f"--sie {kind}: no training image has both a known camera and a known view: choose --sie camera or view"
        )
    found = {side: tuple(rows[:, nth].tolist()) for nth, side in enumerate(wanted)}
    return found.get("camera", ()), found.get("view", ())
