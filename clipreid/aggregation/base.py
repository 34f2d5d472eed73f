"""What turns the tokens of an image tower into features, and what it says of them. B images, D feature width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class HasTokens(Protocol):
    """What is read of `clipreid.backbones.Tokens`."""

    cls: Tensor | None  # [B, C]
    patches: Tensor  # [B, N, C]
    grid: tuple[int, int]  # (h, w)
    taps: dict[int, Tensor]  # [B, (1+)N, C] each
    pooled: Tensor  # [B, E]


class Aggregator(nn.Module):
    """Tokens and what is known of the images -> features by name. A subclass sets these and overrides `forward`.

    Attributes:
        taps: 1-based layers whose tokens it reads in `Tokens.taps`.
        widths: the width D of every feature that it returns.
        necks: the features that get a BNNeck and a classifier in training.
        test: the features that form the test feature, in this order.
        scored: further features that are scored beside the test feature and its parts, by their cosine. Texts are
            compared with `projection`.
        reads: what users are to give at test, of "cameras", "views" and "attributes"; other names are refused by
            `ReIDModel`. Keys of a training batch arrive in `about` without being named.
        pixels: whether it looks at the images themselves: `about["pixels"]` [B, 3, H, W], normalised, in training and
            at test.
        weights: of the test features; each is L2-normalised and multiplied by the root of its weight, so that a dot
            product is the weighted sum of their cosines. None: side by side, as `ReIDModel.test_feature` says.
    """

    taps: tuple[int, ...] = ()
    widths: Mapping[str, int]
    necks: tuple[str, ...]
    test: tuple[str, ...]
    scored: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    pixels: bool = False
    weights: tuple[float, ...] | None = None

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of B images to {name: [B, D]}, for every name in `widths`."""
        raise NotImplementedError

    def bake(self) -> None:
        """Replaces what is computed by other towers (anchors) by its values, in place, for exports."""


def patch_tokens(tokens: HasTokens, layer: int) -> Tensor:
    """The output of a tapped layer without its CLS token, [B, N, C], no final norm."""
    return tokens.taps[layer][:, 1:] if tokens.cls is not None else tokens.taps[layer]
