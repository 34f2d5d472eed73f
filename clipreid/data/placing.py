"""Where an occluder stands in a crop, and how it is drawn there: tensors of a whole batch. B images of H x W pixels.

A texture [4, S, S] fills a box of the crop. Boxes are moved and enlarged until the wanted share is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALES = tuple(1.3**step for step in range(8))  # an occluder that hides too little comes nearer
ROUNDS = 8  # of bisection
COARSE, FINE = (16, 32), (96, 96)  # rows and columns, at most, at which the hidden share is looked up
TALL = 1.5  # height over width: what is so slender is as tall as a person
TALL_SIZE, LOW_SIZE, SIDE_SIZE = (0.95, 1.2), (0.4, 0.65), (0.4, 0.7)  # heights over the crop's, before coming nearer
MIDDLE = (0.3, 0.7)  # where, over the crop's width, the middle of a standing occluder may get to
SINKING = 0.7  # of what a slender occluder grows by coming nearer: so much of it is below the crop
DOUBT = 0.03  # of the share that the coarse look finds
SUNK = 0.12  # of the height of a standing occluder at most, below the crop
MARGIN = 3.0  # feathers (standard deviations) that an edge on a border of the crop lies beyond it
FEATHER = 0.6  # standard deviation of the blur of edges, pixels of a crop of 128 rows
MATCHED = 0.5  # how far light and contrast go from the occluder's to the crop's
GAIN, CONTRAST = (0.4, 2.0), (0.5, 1.2)  # at most
STRIDE = 2  # pixels, of those that light is measured on


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

        way: 0 = still outside of the crop, 1 = as far inside as it goes. A standing occluder reaches the lower border
        at every way, one from a side reaches that side.
        """
        margin = MARGIN * feather(height)
        slender = self.aspect * TALL <= 1
        low, high = (torch.where(slender, TALL_SIZE[i], LOW_SIZE[i]) for i in (0, 1))
        low, high = (torch.where(self.stands, x, SIDE_SIZE[i]) for i, x in enumerate((low, high)))
        size = height * (low + self.size * (high - low))
        tall = size * scale
        wide = tall * self.aspect
        bottom = height + margin + tall * SUNK * self.sunk + torch.where(slender, SINKING, 0.0) * (tall - size)
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


def find_boxes(
    placing: Placing, solid: Tensor, mirrored: Tensor, wanted: Tensor, size: tuple[int, int], silhouettes: Tensor | None
) -> Tensor:
    """The boxes [4, B] that hide the wanted share [B], or what comes nearest to it.

    solid: bool [B, S, S], where the textures hide what is behind them; mirrored: bool [B]. size: (H, W). silhouettes:
    bool [B, H, W], what is to be hidden, none of them empty; None = the whole crop. The smallest of SCALES that hides
    enough is taken, and moved out of the crop until no more than enough is hidden.
    """
    coarse, fine = (_Look.at(size, most, silhouettes, mirrored) for most in (COARSE, FINE))
    scales = torch.tensor(SCALES, device=solid.device)
    whole = torch.ones_like(wanted)
    inside = [placing.boxes(scale, whole, *size) for scale in scales]
    most = torch.stack([coarse.share(coarse.lines(solid, boxes), boxes) for boxes in inside])
    enough = most >= wanted + DOUBT  # [scales, B]
    scale = scales[torch.where(enough.any(0), enough.float().argmax(0), most.argmax(0))]
    lines = fine.lines(solid, placing.boxes(scale, whole, *size))  # they move sideways only
    low, high = torch.zeros_like(wanted), whole
    for _ in range(ROUNDS):
        way = (low + high) / 2
        over = fine.share(lines, placing.boxes(scale, way, *size)) >= wanted
        low, high = torch.where(over, low, way), torch.where(over, way, high)
    less, more = (placing.boxes(scale, way, *size) for way in (low, high))
    return torch.where(wanted - fine.share(lines, less) < fine.share(lines, more) - wanted, less, more)


@dataclass(frozen=True)
class _Look:
    """Points at which the hidden share is looked up: [R] rows and [C] columns of the crop, in pixels.

    weights: how much they count, [B, R, C], sum 1; [1, 1, C] where all rows count the same. mirrored: [B, 1].
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor
    mirrored: Tensor

    @classmethod
    def at(cls, size: tuple[int, int], most: tuple[int, int], silhouettes: Tensor | None, mirrored: Tensor) -> _Look:
        rows, columns = (_spread(side, count, mirrored.device) for side, count in zip(size, most, strict=True))
        if silhouettes is None:
            weights = torch.full((1, 1, len(columns)), 1 / len(columns), device=mirrored.device)
        else:
            seen = silhouettes[:, rows.long()][:, :, columns.long()].float()
            total = seen.sum((1, 2), keepdim=True)
            weights = torch.where(total > 0, seen, 1.0)  # a silhouette may lie between all points
            weights = weights / weights.sum((1, 2), keepdim=True)
        return cls(rows, columns, weights, mirrored[:, None])

    def lines(self, solid: Tensor, boxes: Tensor) -> Tensor:
        """What is solid [B, S, S] in the rows of the crop: float [B, R, S], or their mean [B, 1, S]."""
        side, (top, bottom) = solid.shape[1], boxes[:2, :, None]  # [B, 1]
        y = ((self.rows - top) / (bottom - top) * side).floor().long()  # [B, R]
        index = y.clamp(0, side - 1)[:, :, None].expand(-1, -1, side)
        lines = (solid.gather(1, index) & ((y >= 0) & (y < side))[:, :, None]).float()
        return lines.mean(1, keepdim=True) if self.weights.shape[1] == 1 else lines

    def share(self, lines: Tensor, boxes: Tensor) -> Tensor:
        """How much of the weight is hidden, [B], by such lines in boxes [4, B]."""
        side, (left, right) = lines.shape[2], boxes[2:, :, None]
        x = ((self.columns - left) / (right - left) * side).floor().long()  # [B, C]
        inside = (x >= 0) & (x < side)
        x = torch.where(self.mirrored, side - 1 - x, x).clamp(0, side - 1)
        hidden = lines.gather(2, x[:, None].expand(-1, lines.shape[1], -1)) * inside[:, None]
        return (hidden * self.weights).sum((1, 2))


def _spread(size: int, most: int, device: torch.device) -> Tensor:
    """Middles of at most so many stretches of equal length, in pixels."""
    count = min(size, most)
    return (torch.arange(count, device=device) + 0.5) * (size / count)


def draw(textures: Tensor, boxes: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """Premultiplied textures [B, S, 4, S] in their boxes [4, B], seen at H x W: [B, 4, H, W] with soft edges.

    Each texel is a rectangle blurred by a Gaussian (`feather`; wider where texels are larger than pixels), so that
    nothing is aliased, whatever the size. mirrored: bool [B], left and right of the texture are exchanged.
    """
    top, bottom, left, right = boxes
    count, side = len(textures), textures.shape[-1]
    columns = _weights(left, right, width, side, feather(height))  # [B, S, W]
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    rows = _weights(top, bottom, height, side, feather(height)).mT  # [B, H, S]
    narrow = textures.view(count, side * 4, side) @ columns  # [B, S * 4, W]
    return (rows @ narrow.view(count, side, 4 * width)).view(count, height, 4, width).transpose(1, 2)


def _weights(begin: Tensor, end: Tensor, size: int, side: int, sigma: float) -> Tensor:
    """How much of each of `side` texels between begin and end [B] is seen by each of `size` pixels: [B, side, size]."""
    step = (end - begin) / side
    edges = begin[:, None] + step[:, None] * torch.arange(side + 1, device=begin.device)  # [B, side + 1]
    pixels = torch.arange(size, device=begin.device) + 0.5
    blur = (sigma**2 + (0.5 * step) ** 2).sqrt()[:, None, None] * 2**0.5
    return torch.erf((edges[:, :, None] - pixels) / blur).diff(dim=1) / 2


def blend(layer: Tensor, images: Tensor) -> Tensor:
    """Premultiplied layer [B, 4, H, W] in front of uint8 images [B, 3, H, W], in their light: uint8 [B, 3, H, W].

    Each channel is multiplied so that its mean gets MATCHED of the way (in ratios) from the occluder's brightness to
    the crop's, the contrast as far to the crop's. Both are measured on every STRIDE-th pixel of rows and columns.
    """
    colour, alpha, before = layer[:, :3], layer[:, 3:], images.float()
    thin = layer[:, :, ::STRIDE, ::STRIDE].contiguous()
    weight = thin[:, 3:].sum((2, 3), keepdim=True).clamp_min(1e-6)
    mean = thin[:, :3].sum((2, 3), keepdim=True) / weight  # [B, 3, 1, 1]
    spread = ((thin[:, :3] - mean * thin[:, 3:]) ** 2).sum((2, 3), keepdim=True) / weight
    crop = before[:, :, ::STRIDE, ::STRIDE] / 255
    theirs = crop.mean((2, 3), keepdim=True)
    deviation = (crop.square().mean((2, 3), keepdim=True) - theirs**2).clamp_min(0).sqrt().mean(1, keepdim=True)
    grey = mean.mean(1, keepdim=True)
    gain = ((theirs + 0.05) / (grey + 0.05)).pow(MATCHED).clamp(*GAIN)
    contrast = ((deviation + 0.02) / (spread.mean(1, keepdim=True).sqrt() + 0.02)).pow(MATCHED).clamp(*CONTRAST)
    constant = 255 * mean * gain * (1 - contrast)  # lit = 255 gain contrast colour + constant alpha
    mixed = before.addcmul(constant - before, alpha).addcmul_(colour, 255 * gain * contrast)
    return mixed.round_().clamp_(0, 255).to(torch.uint8)
