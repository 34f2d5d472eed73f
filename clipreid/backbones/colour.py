"""Colour stripes: what a ReID model must be better than. No weights, nothing is learned. B images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.backbones.imageonly import ImageBackbone, ImageTower
from clipreid.backbones.vision import Tokens

COLOUR = "colour"
STRIPES, HUES, SATURATIONS, VALUES = 6, 8, 3, 3
SIZE = (128, 64)  # one size everywhere, so that the figures of two tables can be compared


class ColourTower(ImageTower):
    """`colour_stripes` in the place of an image tower: its one feature, [B, 432]."""

    image_size, stride, pooling = SIZE, 1, "colour stripes"
    embed_dim = STRIPES * HUES * SATURATIONS * VALUES

    def tokens(self, pixels: Tensor) -> Tokens:  # [B, 3, H, W], 0..1
        stripes = colour_stripes(pixels.mul(255).round().to(torch.uint8))  # [B, 432]
        return Tokens(None, stripes.unflatten(1, (STRIPES, -1)), (STRIPES, 1), {}, stripes)


def colour_backbone() -> ImageBackbone:
    """A backbone whose image feature is `colour_stripes` of crops of 128x64 pixels."""
    return ImageBackbone(ColourTower(), name=COLOUR, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic")


def colour_stripes(crops: Tensor) -> Tensor:
    """Histograms of hue, saturation and value in six horizontal stripes, as one unit vector.

    The simplest descriptor of the field before features were learned (for example Gray and Tao, ECCV 2008). Roots of
    the counts are taken, so that a cosine compares them by the Hellinger kernel.

    Args:
        crops: uint8 [B, 3, H, W], H at least 6.

    Returns:
        float32 [B, 6 x 8 x 3 x 3].
    """
    x = crops.float() / 255
    value, low = x.amax(1), x.amin(1)  # [B, H, W]
    chroma = value - low
    red, green, blue = x.unbind(1)
    step = chroma.clamp_min(1e-6)
    sector = torch.where(value == red, ((green - blue) / step) % 6, (blue - red) / step + 2)
    sector = torch.where((value == blue) & (value != red) & (value != green), (red - green) / step + 4, sector)
    hue, saturation = sector / 6, chroma / value.clamp_min(1e-6)
    bins = [
        (part * count).long().clamp(0, count - 1)
        for part, count in ((hue, HUES), (saturation, SATURATIONS), (value, VALUES))
    ]
    code = (bins[0] * SATURATIONS + bins[1]) * VALUES + bins[2]  # [B, H, W]
    colours = HUES * SATURATIONS * VALUES
    counts = []
    for part in code.tensor_split(STRIPES, dim=1):
        pixels = part.flatten(1)  # [B, n]
        ones = torch.ones(pixels.shape, device=x.device)
        counts.append(torch.zeros(len(x), colours, device=x.device).scatter_add_(1, pixels, ones))
    return F.normalize(torch.cat(counts, 1).sqrt(), dim=1)
