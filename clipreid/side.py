"""Side information embedding (SIE): where a picture was taken, told to the image tower at its CLS token.

B pictures, T tokens (CLS first), C tower width, S = cameras, views, or cameras x views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from clipreid.errors import UserError

Side = Literal["none", "camera", "view", "camera+view"]
Numbers = Sequence[int] | np.ndarray | Tensor


class SideEmbedding(nn.Module):
    """One learned vector per camera, per view, or per pair of both (TransReID, arXiv 2102.04378, section 3.3).

    As in CLIP-ReID (arXiv 2211.13977, section 4.2) it is multiplied by a coefficient and added to the CLS token
    alone, before the first norm; drawn from a normal distribution of std 0.02 cut off at two. A camera or view
    that is unknown (-1) or was never trained on takes part with the mean over all of them.

    Args:
        cameras, views: the numbers they have in the training set; () where that side is not embedded. The row of
            a pair is `index of camera * number of views + index of view`.
        width: C.
        coefficient: on the embedding.

    Raises:
        UserError: neither cameras nor views.
    """

    def __init__(self, cameras: Sequence[int], views: Sequence[int], width: int, coefficient: float = 1.0) -> None:
        super().__init__()
        if not (len(cameras) or len(views)):
            raise UserError("a side information embedding needs the numbers of the cameras or views it embeds")
        self.coefficient = coefficient
        self.table = nn.Parameter(torch.empty(max(len(cameras), 1) * max(len(views), 1), width))  # [S, C]
        nn.init.trunc_normal_(self.table, std=0.02)
        self.cameras: Tensor
        self.views: Tensor
        self.register_buffer("cameras", torch.tensor(cameras, dtype=torch.long), persistent=False)
        self.register_buffer("views", torch.tensor(views, dtype=torch.long), persistent=False)

    def forward(self, cameras: Tensor | None, views: Tensor | None, count: int) -> Tensor:
        """Camera and view numbers [B] (None: all unknown) of B = count pictures to their embeddings [B, C]."""
        by_camera, by_view = _shares(self.cameras, cameras, count), _shares(self.views, views, count)
        shares = (by_camera[:, :, None] * by_view[:, None]).flatten(1)  # [B, S], each row sums to 1
        return self.coefficient * shares @ self.table

    def hook(self, cameras: Tensor | None, views: Tensor | None) -> Callable[[Tensor], Tensor]:
        """For hook 0 of `VisionTower`: adds the embeddings to the first token of [B, T, C]."""

        def add(x: Tensor) -> Tensor:
            side = self(cameras, views, len(x)).to(x.dtype)
            return torch.cat([x[:, :1] + side[:, None], x[:, 1:]], dim=1)

        return add


def _shares(known: Tensor, given: Tensor | None, count: int) -> Tensor:
    """What each known number [n] contributes, [B, n]: all of the one that is given, or equal parts of every one."""
    if not len(known):
        return torch.ones(count, 1, device=known.device)
    if given is None:
        given = torch.full((count,), -1)
    found = given.to(known.device)[:, None] == known  # [B, n]
    return torch.where(found.any(1, keepdim=True), found.float(), 1 / len(known))


def check_cls(kind: str, family: str, backbone: str) -> None:
    """Raises `UserError` for a backbone without a CLS token (SigLIP, image-only towers)."""
    if family != "clip":
        raise UserError(
            f"--sie {kind}: {backbone} has no CLS token of ours, which side information is added to: "
            "use --sie none, or a CLIP backbone"
        )


def known_numbers(kind: str, cameras: Numbers, views: Numbers) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cameras and views of the training pictures that `--sie` embeds, sorted, without the unknown ones (-1).

    Raises:
        UserError: `kind` asks for a side that no training picture knows.
    """
    found = []
    for side, numbers in (("camera", cameras), ("view", views)):
        wanted = side in kind.split("+")
        chosen = tuple(number for number in np.unique(np.asarray(numbers)).tolist() if wanted and number >= 0)
        if wanted and not chosen:
            raise UserError(f"--sie {kind}: no training picture has a known {side}: choose --sie none or another kind")
        found.append(chosen)
    return found[0], found[1]


def known_as(spec: str, trained: Sequence[str]) -> str | None:
    """Which of the data sets `trained` on has the cameras of `spec`, by their numbers; None = none of them.

    The same name, or the same public data set at another place; camera 3 of one set is not camera 3 of another.
    """
    from clipreid.data.readers import LAYOUTS

    if spec in trained:
        return spec
    kind = spec.partition(":")[0]
    return next((name for name in trained if kind in LAYOUTS and name.partition(":")[0] == kind), None)
