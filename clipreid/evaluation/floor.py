"""Colour stripes: the floor that a ReID model must be above. B images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.data import ReIDData, pixel_cache
from clipreid.evaluation.metrics import evaluate

STRIPES, HUES, SATURATIONS, VALUES = 6, 8, 3, 3


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
        counts.append(torch.zeros(len(x), colours).scatter_add_(1, pixels, torch.ones(pixels.shape)))
    return F.normalize(torch.cat(counts, 1).sqrt(), dim=1)


def colour_floor(data: ReIDData, size: tuple[int, int], interpolation: str, skip_bad: bool = False) -> float:
    """mAP (0..1) of colour stripes on the query and gallery of `data`, under its own protocol.

    size, interpolation: of the crops, as a model wants them: then they are decoded already.
    Raises `UserError` as `clipreid.evaluation.score.score` does.
    """
    sides, tables = [], []
    for name in ("query", "gallery"):
        cache = pixel_cache(data.splits[name], size, interpolation=interpolation, skip_bad=skip_bad)
        crops = torch.as_tensor(cache.pixels)
        sides.append(torch.cat([colour_stripes(batch) for batch in crops.split(64)]))
        tables.append(data.splits[name].select(cache.kept).metadata())
    return evaluate(sides[0], sides[1], tables[0], tables[1], protocol=data.protocol).metrics["mAP"]
