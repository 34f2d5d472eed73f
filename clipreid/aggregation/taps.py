"""The three taps of CLIP-ReID: one feature before the last block, one after it, one in the text space.

B images, N patches, C tower width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from clipreid.aggregation.base import Aggregator, HasTokens
from clipreid.errors import UserError

AGGREGATIONS = ("cls", "mean")


class Taps(Aggregator):
    """The features of CLIP-ReID (arXiv 2211.13977, section 3.3; `x11`, `x12` and `proj` of its code).

    `penultimate` [B, C]: after the block before the last, without final norm. `final` [B, C]: after the final norm.
    `projection` [B, E]: CLIP's projection or SigLIP's pooling head. The last two have necks and form the test feature.

    Args:
        kind: `cls` takes the CLS token; a tower without one (SigLIP) takes the mean of its patches instead.
            `mean` takes the mean of the patches for every tower.
        depth: blocks of the tower.
        width, embed_dim: C and E.

    Raises:
        UserError: unknown kind.
    """

    necks = ("final", "projection")
    test = ("final", "projection")

    def __init__(self, kind: str, depth: int, width: int, embed_dim: int) -> None:
        super().__init__()
        if kind not in AGGREGATIONS:
            raise UserError(f"no aggregation {kind!r}: choose one of {', '.join(AGGREGATIONS)}")
        self.kind, self.taps = kind, (depth - 1,)
        self.widths = {"penultimate": width, "final": width, "projection": embed_dim}

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens with the tap of the block before the last to {name: [B, C or E]}."""
        penultimate = tokens.taps[self.taps[0]]  # [B, (1+)N, C]
        if self.kind == "cls" and tokens.cls is not None:
            return {"penultimate": penultimate[:, 0], "final": tokens.cls, "projection": tokens.pooled}
        patches = penultimate[:, 1:] if tokens.cls is not None else penultimate  # [B, N, C]
        return {"penultimate": patches.mean(1), "final": tokens.patches.mean(1), "projection": tokens.pooled}


class Pooled(Aggregator):
    """The one feature of a tower that pools in its own way: `projection` [B, E] (wrapped image-only towers).

    neck: whether it has one.
    """

    test = ("projection",)

    def __init__(self, embed_dim: int, neck: bool = True) -> None:
        super().__init__()
        self.necks = ("projection",) * neck
        self.widths = {"projection": embed_dim}

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens to {"projection": [B, E]}."""
        return {"projection": tokens.pooled}
