"""The three taps of CLIP-ReID: one feature before the last block, one after it, one in the text space.

B pictures, N patches, C tower width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

AGGREGATIONS = ("cls", "mean")
NAMES = ("penultimate", "final", "projection")  # only the last two have necks and form the test feature


class HasTokens(Protocol):
    """What is read of `clipreid.backbones.Tokens`."""

    cls: Tensor | None
    patches: Tensor
    taps: dict[int, Tensor]
    pooled: Tensor


def identity_features(tokens: HasTokens, kind: str) -> Mapping[str, Tensor]:
    """The features of CLIP-ReID (arXiv 2211.13977, section 3.3; `x11`, `x12` and `proj` of its code).

    Args:
        tokens: with exactly one tap, the output of the block before the last.
        kind: `cls` takes the CLS token; a tower without one (SigLIP) takes the mean of its patches instead.
            `mean` takes the mean of the patches for every tower.

    Returns:
        `penultimate` [B, C], after the block before the last, without final norm; `final` [B, C], after the final
        norm; `projection` [B, E], CLIP's projection or SigLIP's pooling head.

    Raises:
        ValueError: unknown kind, or not exactly one tap.
    """
    if kind not in AGGREGATIONS:
        raise ValueError(f"no aggregation {kind!r}: choose one of {', '.join(AGGREGATIONS)}")
    if len(tokens.taps) != 1:
        raise ValueError(f"expected one tap (the block before the last), got {sorted(tokens.taps)}")
    (penultimate,) = tokens.taps.values()  # [B, (1+)N, C]
    if kind == "cls" and tokens.cls is not None:
        return {"penultimate": penultimate[:, 0], "final": tokens.cls, "projection": tokens.pooled}
    patches = penultimate[:, 1:] if tokens.cls is not None else penultimate  # [B, N, C]
    return {
        "penultimate": patches.mean(1),
        "final": tokens.patches.mean(1),
        "projection": tokens.pooled,
    }
