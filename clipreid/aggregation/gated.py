"""A second network beside the tower: a small CNN as gate and partner of one feature (WGFF), or concatenated with it.

B images, C width of the tower's feature, d width of the partner's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from clipreid.aggregation.base import Aggregator, HasTokens

Fusion = Literal["gated", "concat"]


class GatedFusion(Aggregator):
    """One feature of another aggregator, fused with what a CNN makes of the same pixels (DPL-ReID, arXiv 2605.19527).

    With l = partner(pixels) [B, d] and f [B, C], the first test feature of `beside` (`final` for CLIP and SigLIP):

        gated (WGFF)   f' = w (gate * f) + (1 - w) W_p l,   gate = sigmoid(W_g l + b_g) [B, C],   w = sigmoid(v)
        concat         f' = [f; W_p l], the control: the same CNN without gate and weight

    f' takes the place of f, with its neck and its place in the test feature. The paper's text was not at hand: assumed
    are that f is the tower's CLS token after the final norm, that w is one number, and that the feature in the text
    space is not fused.

    Args:
        beside: gives f and all other features, which stay as they are.
        partner: normalised pixels [B, 3, H, W] to [B, d].
        width: d.
        kind: `gated` or `concat`.
        start: w before training (assumed 0.5).

    Raises:
        ValueError: unknown kind; a start that is not between 0 and 1.
    """

    pixels = True

    def __init__(
        self, beside: Aggregator, partner: nn.Module, width: int, kind: Fusion = "gated", start: float = 0.5
    ) -> None:
        super().__init__()
        if kind not in get_args(Fusion):
            raise ValueError(f"no fusion {kind!r}: choose one of {', '.join(get_args(Fusion))}")
        if not 0 < start < 1:
            raise ValueError(f"start={start}: the weight of the tower's feature lies between 0 and 1")
        self.beside, self.partner, self.kind, self.fused = beside, partner, kind, beside.test[0]
        self.taps, self.necks, self.test = beside.taps, beside.necks, beside.test
        self.reads, self.weights = beside.reads, beside.weights
        C = beside.widths[self.fused]
        self.widths = {**beside.widths, self.fused: C if kind == "gated" else 2 * C}
        self.map = nn.Linear(width, C, bias=False)  # W_p
        if kind == "gated":
            self.gate = nn.Linear(width, C)  # W_g
            self.weight = nn.Parameter(torch.tensor([math.log(start / (1 - start))]))  # v

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of B images, and their normalised pixels in `about`, to the features of `beside`, one of them fused.

        Raises:
            ValueError: there are no pixels in `about`.
        """
        if "pixels" not in about:
            raise ValueError('GatedFusion needs about["pixels"] [B, 3, H, W], as `ReIDModel.features` gives it')
        found = self.beside(tokens, about)
        return found | {self.fused: self.fuse(found[self.fused], self.partner(about["pixels"]))}

    def fuse(self, feature: Tensor, partner: Tensor) -> Tensor:
        """f [B, C] and l [B, d] to f' [B, C], or [B, 2C] for `concat`."""
        mapped = self.map(partner)  # [B, C]
        if self.kind == "concat":
            return torch.cat([feature, mapped], dim=1)
        share = self.weight.sigmoid()
        return share * self.gate(partner).sigmoid() * feature + (1 - share) * mapped

    def bake(self) -> None:
        """That of `beside`; partner and gate stay, as parts of an exported graph."""
        self.beside.bake()

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, fused={self.fused!r}"
