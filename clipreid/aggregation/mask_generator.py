"""Masks over the dimensions of a feature, from the patches of several layers (DPM), and the aggregator that adds them.

B images, N = h x w patches, C tower width, L layers, D width of the masked feature, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipreid.aggregation.base import Aggregator, HasTokens, patch_tokens
from clipreid.aggregation.taps import Taps

Masked = Literal["final", "both"]
PUBLISHED_LAYERS, PUBLISHED_DEPTH = (2, 4, 10, 12), 12


def mask_layers(depth: int) -> tuple[int, ...]:
    """The layers whose patches make the mask: 2, 4, 10 and the last of 12 in DPM's code, the same shares of other
    depths (assumed); fewer layers where two of them are the same."""
    layers = [max(1, round(depth * layer / PUBLISHED_DEPTH)) for layer in PUBLISHED_LAYERS]
    return tuple(dict.fromkeys(layers))


class PublishedMask(nn.Module):
    """DPM's hierarchical mask generator (Tan et al., ACM MM 2022), built from a description of its code.

    The maps of L layers side by side, [B, L C, h, w] -> three 3x3 convolutions to L C / 2, C and C channels, each with
    batch norm and ReLU, a 2x2 max pooling behind the first two -> global max pooling -> linear map -> sigmoid. The
    linear map starts at zero, so that every mask starts as 0.5 and masks nothing. 59 million parameters for ViT-B.

    Assumed: its bias starts at zero too; odd rows and columns are pooled as well, so that one patch is enough.

    Args:
        layers: L. width: C. out: D.
    """

    def __init__(self, layers: int, width: int, out: int) -> None:
        super().__init__()
        middle = max(1, layers * width // 2)
        self.first, self.second = _convolution(layers * width, middle), _convolution(middle, width)
        self.third, self.linear = _convolution(width, width), _zero_linear(width, out)

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """L maps [B, N, C] and their (h, w) to masks [B, D] in (0, 1)."""
        x = rearrange(torch.cat(list(maps), dim=2), "b (h w) c -> b c h w", h=grid[0])
        for stage in (self.first, self.second):
            x = F.max_pool2d(stage(x), 2, ceil_mode=True)
        return self.linear(self.third(x).amax((2, 3))).sigmoid()


class LowRankMask(nn.Module):
    """The same in few parameters, of our own design: what every patch says is summed over layers in r dimensions.

    Each layer's patches, normalised, are mapped to r dimensions and summed over the layers; GELU; their mean and their
    maximum over the patches are mapped to D dimensions, by a linear map that starts at zero; sigmoid. L C r + 2 r D
    weights: 0.15 million for ViT-B at r = 32. There is no batch norm, so a mask depends on its own image alone.

    Args:
        layers: L. width: C. out: D. rank: r.
    """

    def __init__(self, layers: int, width: int, out: int, rank: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=nth == 0) for nth in range(layers))
        self.linear = _zero_linear(2 * rank, out)

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """L maps [B, N, C] and their (h, w) to masks [B, D] in (0, 1)."""
        said = [down(norm(x)) for norm, down, x in zip(self.norms, self.down, maps, strict=True)]  # [B, N, r] each
        x = F.gelu(torch.stack(said).sum(0))
        return self.linear(torch.cat([x.mean(1), x.amax(1)], dim=1)).sigmoid()


class MaskAggregator(Aggregator):
    """CLIP-ReID's three taps, and a mask over one feature: the test feature is [feature | mask] (`MaskedCosine`).

    Features: those of `beside`; `both` [B, C+E], `final` and `projection` of unit length side by side, where that is
    masked; `mask` [B, D] in (0, 1), unless there is no generator. Only the masked feature has a neck.

    Args:
        beside: gives `final` and `projection`.
        generator: `PublishedMask` or `LowRankMask`; None: no mask, and the test feature is the feature alone.
        layers: whose patches it is given.
        masked: `final` [B, C], as published for DPM, or `both`.
        depth: of the tower; what goes into its last block is kept for the head-enrich loss.

    Raises:
        ValueError: an unknown kind of feature.
    """

    def __init__(
        self, beside: Taps, generator: nn.Module | None, layers: Sequence[int], masked: Masked, depth: int
    ) -> None:
        super().__init__()
        if masked not in get_args(Masked):
            raise ValueError(f"no feature {masked!r} to mask: choose one of {', '.join(get_args(Masked))}")
        self.beside, self.generator, self.layers, self.masked = beside, generator, tuple(layers), masked
        self.before_last = max(1, depth - 1)
        self.taps = tuple(dict.fromkeys((*beside.taps, self.before_last, *self.layers)))
        width, self.reads = beside.widths["final"], beside.reads
        self.widths = dict(beside.widths)
        if masked == "both":
            width += beside.widths["projection"]
            self.widths["both"] = width
        self.necks = self.test = (masked,)
        if generator is not None:
            self.widths["mask"] = width
            self.test = (masked, "mask")
        self.scored = ("final", "projection")
        self.last_input: Tensor | None = None  # of the last batch in training, for the head-enrich loss

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of B images to features by name."""
        found = self.beside(tokens, about)
        if self.masked == "both":
            found["both"] = torch.cat([F.normalize(found[name].float(), dim=1) for name in self.scored], dim=1)
        if self.generator is not None:
            maps = [patch_tokens(tokens, layer) for layer in self.layers]
            found["mask"] = self.generator(maps, tokens.grid)
        self.last_input = None
        if self.training:  # CLS asks the patches in the last block, SigLIP's probe behind the final norm
            self.last_input = tokens.patches if tokens.cls is None else tokens.taps[self.before_last]
        return found


def _convolution(given: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


def _zero_linear(given: int, out: int) -> nn.Linear:
    linear = nn.Linear(given, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
