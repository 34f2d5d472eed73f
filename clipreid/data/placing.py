"""Where an occluder stands in a crop, and how it is drawn there: tensors of a whole batch. B images of H x W pixels.

A texture [4, S, S] fills a box of the crop. Boxes are moved and enlarged until the wanted share is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALES = tuple(1.3**step for step in range(8))  # an occluder that hides too little comes nearer
ROUNDS = 9  # of bisection
LOOK = (32, 96)  # rows and columns, at most, at which the hidden share is looked up
TALL = 1.5  # height over width: what is so slender is as tall as a person
TALL_SIZE, LOW_SIZE, SIDE_SIZE = (0.95, 1.2), (0.4, 0.65), (0.4, 0.7)  # heights over the crop's, before coming nearer
MIDDLE = (0.3, 0.7)  # where, over the crop's width, the middle of a standing occluder may get to
SUNK = 0.12  # of the height of a standing occluder at most, below the crop
MARGIN = 3.0  # feathers (standard deviations) that an edge on a border of the crop lies beyond it
FEATHER = 0.6  # standard deviation of the blur of edges, pixels of a crop of 128 rows
MATCHED = 0.5  # how far light and contrast go from the occluder's to the crop's


@dataclass(frozen=True)
class Placing:
    """How occluders are to be placed; everything is drawn, [B].

    aspect: width over height. stands: bool. right: from the right border. size, middle, sunk: uniform in [0, 1).
    """

    aspect: Tensor
    stands: Tensor
    right: Tensor
    size: Tensor
    middle: Tensor
    sunk: Tensor

    def boxes(self, scale: Tensor, way: Tensor, height: int, width: int) -> Tensor:
        """(top, bottom, left, right) in pixels, [4, ...], for scale and way of shape [..., B].

        way: 0 = still outside of the crop, 1 = as far inside as it goes. A standing occluder reaches the lower border at
        every way, one from a side that side.
        """
        margin = MARGIN * feather(height)
        slender = self.aspect * TALL <= 1
        low, high = (torch.where(slender, TALL_SIZE[i], LOW_SIZE[i]) for i in (0, 1))
        low, high = (torch.where(self.stands, x, SIDE_SIZE[i]) for i, x in enumerate((low, high)))
        tall = height * (low + self.size * (high - low)) * scale
        wide = tall * self.aspect
        bottom = height + margin + tall * SUNK * self.sunk
        floating = self.middle * (height - tall) + tall
        bottom = torch.where(self.stands, bottom, floating)
        middle = width * (MIDDLE[0] + self.middle * (MIDDLE[1] - MIDDLE[0]))
        inside = torch.where(self.stands, middle - wide / 2, torch.full_like(wide, -margin))
        inside = torch.maximum(inside, -wide)
        left = -wide + way * (inside + wide)
        left = torch.where(self.right, width - left - wide, left)
        return torch.stack([bottom - tall, bottom, left, left + wide])


def feather(height: int) -> float:
    """Standard deviation of the blur of an occluder's edges, in pixels."""
    return FEATHER * max(1.0, height / 128)


def find_boxes(placing: Placing, alpha: Tensor, wanted: Tensor, silhouettes: Tensor) -> Tensor:
    """The boxes [4, B] that hide the wanted share [B] of the silhouettes, or what comes nearest to it.

    alpha: [B, S, S], of the textures. silhouettes: bool [B, H, W]. The smallest of SCALES that hides enough is taken,
    and moved out of the crop until no more than enough is hidden.
    """
    height, width = silhouettes.shape[1:]
    look = _Look.at(silhouettes)
    solid = alpha > 0.5
    scales = torch.tensor(SCALES, device=alpha.device)
    most = torch.stack([look.share(solid, placing.boxes(s, torch.ones_like(wanted), height, width)) for s in scales])
    enough = most >= wanted  # [scales, B]
    scale = scales[torch.where(enough.any(0), enough.float().argmax(0), most.argmax(0))]
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(ROUNDS):
        way = (low + high) / 2
        over = look.share(solid, placing.boxes(scale, way, height, width)) >= wanted
        low, high = torch.where(over, low, way), torch.where(over, way, high)
    return placing.boxes(scale, torch.where(enough.any(0), (low + high) / 2, high), height, width)


@dataclass(frozen=True)
class _Look:
    """Points [rows], [columns] of the crop in pixels, and how much each counts, [B, rows, columns], sum 1."""

    rows: Tensor
    columns: Tensor
    weights: Tensor

    @classmethod
    def at(cls, silhouettes: Tensor) -> _Look:
        rows, columns = (
            _spread(size, most, silhouettes.device) for size, most in zip(silhouettes.shape[1:], LOOK, strict=True)
        )
        seen = silhouettes[:, rows.long()][:, :, columns.long()].float()
        seen = torch.where(seen.sum((1, 2), keepdim=True) > 0, seen, 1.0)
        return cls(rows, columns, seen / seen.sum((1, 2), keepdim=True))

    def share(self, solid: Tensor, boxes: Tensor) -> Tensor:
        """How much of the weight is hidden, [B], by textures that are solid [B, S, S] in boxes [4, B]."""
        side = solid.shape[1]
        top, bottom, left, right = boxes[..., None]  # [B, 1]
        y = ((self.rows - top) / (bottom - top) * side).floor().long()  # [B, rows]
        x = ((self.columns - left) / (right - left) * side).floor().long()  # [B, columns]
        inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None]
        index = y.clamp(0, side - 1)[:, :, None] * side + x.clamp(0, side - 1)[:, None]
        hidden = solid.flatten(1).gather(1, index.flatten(1)).view_as(inside) & inside
        return (hidden * self.weights).sum((1, 2))


def _spread(size: int, most: int, device: torch.device) -> Tensor:
    """Middles of at most so many stretches of equal length, in pixels."""
    count = min(size, most)
    return (torch.arange(count, device=device) + 0.5) * (size / count)


def draw(textures: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Premultiplied textures [B, 4, S, S] in their boxes [4, B], seen at H x W: [B, 4, H, W] with soft edges.

    Each texel is a rectangle blurred by a Gaussian (`feather`; wider where texels are larger than pixels), so that
    nothing is aliased, whatever the size.
    """
    top, bottom, left, right = boxes
    side = textures.shape[-1]
    columns = _weights(left, right, width, side, feather(height))  # [B, W, S]
    rows = _weights(top, bottom, height, side, feather(height))  # [B, H, S]
    narrow = textures @ columns.mT[:, None]  # [B, 4, S, W]
    return rows[:, None] @ narrow


def _weights(begin: Tensor, end: Tensor, size: int, side: int, sigma: float) -> Tensor:
    """How much of each of `side` texels between begin and end [B] is seen by each of `size` pixels: [B, size, side]."""
    step = (end - begin) / side
    edges = begin[:, None] + step[:, None] * torch.arange(side + 1, device=begin.device)  # [B, side + 1]
    pixels = torch.arange(size, device=begin.device) + 0.5
    blur = (sigma**2 + (0.5 * step) ** 2).sqrt()[:, None, None] * 2**0.5
    return torch.erf((edges[:, None] - pixels[:, None]) / blur).diff(dim=-1) / 2


def light(layer: Tensor, images: Tensor) -> Tensor:
    """Premultiplied layer [B, 4, H, W] as it would look in the light of the images, float [B, 3, H, W] in 0..1.

    Each channel is multiplied so that its mean gets MATCHED of the way (in ratios) from the occluder's brightness to the
    crop's, the contrast as far to the crop's.
    """
    colour, alpha = layer[:, :3], layer[:, 3:]
    weight = alpha.sum((2, 3), keepdim=True).clamp_min(1e-6)
    mean = colour.sum((2, 3), keepdim=True) / weight  # [B, 3, 1, 1]
    spread = ((colour - mean * alpha) ** 2).sum((2, 3), keepdim=True) / weight
    theirs = images.mean((2, 3), keepdim=True)
    deviation = images.std((2, 3), keepdim=True).mean(1, keepdim=True)
    grey = mean.mean(1, keepdim=True)
    gain = ((theirs + 0.05) / (grey + 0.05)).pow(MATCHED).clamp(0.4, 2.0)
    contrast = ((deviation + 0.02) / (spread.mean(1, keepdim=True).sqrt() + 0.02)).pow(MATCHED).clamp(0.5, 1.2)
    centre = mean * gain
    lit = colour * gain * contrast + centre * (1 - contrast) * alpha
    return torch.minimum(lit.clamp_min(0), alpha)
