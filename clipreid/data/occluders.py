"""Occlusion of whole batches: by cut-outs of things, by other people, by plain masks. B images of H x W pixels.

Source: real-world occlusion augmentation of DPL-ReID (arXiv 2605.19527; assumed: the paper's abstract says that real
occluders are pasted, not how). The severity is the share that is hidden, of the silhouette where one is given, else of
the crop. It is reached to within TOLERANCE in crops of 64x32 pixels and more, unless the drawn occluder cannot hide so
much, however near it comes (a bicycle has holes): then it hides what it can, and `Occluded.severity` says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipreid.data.cutouts import Bank, Cutout, Library, read_library, split_library, street_library
from clipreid.data.placing import Placing, blend, draw, find_boxes
from clipreid.errors import UserError

__all__ = [
    "MASKS",
    "TOLERANCE",
    "Bank",
    "Cutout",
    "Library",
    "Occluded",
    "distract",
    "mask_out",
    "occlude",
    "read_library",
    "split_library",
    "street_library",
]

TOLERANCE = 0.02
MASKS = ("rectangle", "left", "right", "bottom")  # the kinds of `mask_out`: a rectangle anywhere, bands at a border
STRETCH = 0.5  # how much taller or wider than the crop's shape a rectangle may be: side exponents 1 +- this
ROUNDS = 12  # of bisection
DRAWS = 7  # uniform numbers for each image
MIDDLE = (0.15, 0.85)  # the columns of another crop that are shown, over its width: the individual stands in the middle
CHUNK = 8  # images pasted into at a time: what is computed for so many fits into a cache
SIDES = (96, 256)  # of textures: for crops up to 160 rows, and for larger ones


@dataclass(frozen=True)
class Occluded:
    """Images of which something is hidden.

    pixels: uint8 [B, 3, H, W]. masks: bool [B, H, W], what is hidden (at a soft edge: from one half on). kinds: int64
    [B], which class hides it (`Library.kinds`, `MASKS`; 0 for a crop of a `Bank`), -1 where nothing is hidden.
    severity: float32 [B], the share that is hidden.
    """

    pixels: Tensor
    masks: Tensor
    kinds: Tensor
    severity: Tensor


def occlude(
    images: Tensor,
    library: Library,
    severity: float | Tensor,
    generator: torch.Generator,
    silhouettes: Tensor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Occluded:
    """Something of the library in front of each image; its class is drawn first, then the cut-out.

    What stands has its lower edge at or below the crop's lower border, and gets in from a side; what enters from a side
    touches that border. It is made larger only where it hides too little. Edges are feathered, light and contrast are
    moved half of the way towards those of the crop.

    Args:
        images: uint8 [B, 3, H, W].
        severity: the share to hide, 0..1, one for all or [B]. 0 leaves an image as it is, bit for bit.
        generator: all draws come from it, for the global batch.
        silhouettes: bool [B, H, W], where the individual is; an empty one counts as the whole crop.
        share: (rank, world), as in `augment`: equal parts of a global batch are occluded as the whole would be.

    Raises:
        ValueError: shapes, kinds or severities that are none.
        UserError: a library without cut-outs.
    """
    if not len(library):
        raise UserError("the library of occluders is empty: there is nothing to hide something with")
    wanted, seen = _checked(images, severity, silhouettes)
    draws = _uniform(DRAWS, len(images), generator, share, images.device)
    aspect, stands, kind = library.shapes.to(images.device)  # [N] each
    counts = kind.long().bincount()
    kinds = _whole(draws[0], torch.tensor(len(counts), device=images.device))
    chosen = (counts.cumsum(0) - counts)[kinds] + _whole(draws[1], counts[kinds])
    side = SIDES[images.shape[2] > 160]
    textures, solid = (every[chosen] for every in library.textures(side, images.device))  # [B, S, 4, S], [B, S, S]
    return _paste(images, textures, solid, aspect[chosen], stands[chosen] > 0, kinds, wanted, seen, draws)


def distract(
    images: Tensor,
    identities: Sequence[str] | Sequence[int] | np.ndarray,
    bank: Library | Bank,
    severity: float | Tensor,
    generator: torch.Generator,
    silhouettes: Tensor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Occluded:
    """Another individual in front of each image, as `occlude`.

    Args:
        identities: whom the images show [B].
        bank: cut-outs of people (`street_library("test", persons=True).only("person")`), or crops of others of the same
            kind: the middle of one of them, a rectangle, gets in from a side; never one of the image's own identity.

    Raises:
        ValueError: as `occlude`, and a bank that holds nobody else.
    """
    if len(identities) != len(images):
        raise ValueError(f"{len(images)} images and {len(identities)} identities: one for each image is needed")
    if isinstance(bank, Library):
        return occlude(images, bank, severity, generator, silhouettes, share)
    wanted, seen = _checked(images, severity, silhouettes)
    draws = _uniform(DRAWS, len(images), generator, share, images.device)
    who = np.asarray(identities).astype(str).tolist()
    rows = [bank.choose(own, uniform) for own, uniform in zip(who, draws[0].tolist(), strict=True)]
    left, right = (round(edge * bank.pixels.shape[3]) for edge in MIDDLE)
    crops = bank.pixels[rows].to(images.device)[..., left : max(right, left + 1)].float()
    side = SIDES[images.shape[2] > 160]
    crops = torch.nn.functional.interpolate(crops, (side, side), mode="bilinear", antialias=True)
    textures = torch.cat([crops.clamp_(0, 255), torch.full_like(crops[:, :1], 255)], 1).transpose(1, 2).contiguous()
    shape = (right - left) / bank.pixels.shape[2]  # width over height of what is shown
    aspect = torch.full_like(draws[0], shape)
    stands, solid = aspect > 0, textures[:, :, 3] > 0
    return _paste(images, textures, solid, aspect, stands, torch.zeros_like(draws[0]).long(), wanted, seen, draws)


def mask_out(
    images: Tensor,
    severity: float | Tensor,
    fill: Sequence[int],
    generator: torch.Generator,
    silhouettes: Tensor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Occluded:
    """One rectangle, or a band at the left, right or lower border (`MASKS`), filled with one colour.

    Nothing is feathered. Boxes of one draw lie in each other: more severity hides the same and more.

    Args:
        fill: three values 0..255, such as the mean that the backbone subtracts, times 255.
        the others: as `occlude`.

    Raises:
        ValueError: as `occlude`; a fill that is no colour.
    """
    wanted, seen = _checked(images, severity, silhouettes)
    if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
        raise ValueError(f"fill {tuple(fill)}: three values from 0 to 255 are needed")
    draws = _uniform(DRAWS, len(images), generator, share, images.device)
    kinds = _whole(draws[0], torch.tensor(len(MASKS), device=images.device))
    whole = torch.ones_like(images[:, 0], dtype=torch.bool)
    boxes = _growing(kinds, draws[1:4], wanted, whole if seen is None else seen)
    hidden = _inside(boxes, *images.shape[2:]) & (wanted > 0)[:, None, None]
    colour = torch.tensor([round(value) for value in fill], dtype=torch.uint8, device=images.device)
    pixels = torch.where(hidden[:, None], colour[:, None, None], images)
    return _result(pixels, hidden, kinds, seen)


def _paste(
    images: Tensor,
    textures: Tensor,
    solid: Tensor,
    aspect: Tensor,
    stands: Tensor,
    kinds: Tensor,
    wanted: Tensor,
    seen: Tensor | None,
    draws: Tensor,
) -> Occluded:
    """Textures [B, S, 4, S] in 0..255, where they are solid [B, S, S], into the images, as `draws` [DRAWS, B] say."""
    right = draws[2] < 0.5
    mirrored = torch.where(stands, draws[3] < 0.5, right)  # the end outside of the crop is the left one
    placing = Placing(aspect, stands, right, *draws[4:])
    boxes = find_boxes(placing, solid, mirrored, wanted, (images.shape[2], images.shape[3]), seen)
    asked = wanted > 0
    chunks = zip(*(each.split(CHUNK) for each in (images, textures, boxes.T, mirrored, asked)), strict=True)
    pasted = [_paste_chunk(image, texture, box.T, *more) for image, texture, box, *more in chunks]
    pixels, hidden = (torch.cat(parts) for parts in zip(*pasted, strict=True))
    return _result(pixels, hidden, kinds, seen)


def _paste_chunk(
    images: Tensor, textures: Tensor, boxes: Tensor, mirrored: Tensor, asked: Tensor
) -> tuple[Tensor, Tensor]:
    """uint8 [b, 3, H, W], the images with their textures where asked, and bool [b, H, W], what is hidden."""
    layer = draw(textures.float() / 255, boxes, mirrored, *images.shape[2:])  # [b, 4, H, W]
    pixels = torch.where(asked[:, None, None, None], blend(layer, images), images)
    return pixels, (layer[:, 3] > 0.5) & asked[:, None, None]


def _result(pixels: Tensor, hidden: Tensor, kinds: Tensor, seen: Tensor | None) -> Occluded:
    if seen is None:
        reached = hidden.float().mean((1, 2))
    else:
        reached = (hidden & seen).sum((1, 2)) / seen.sum((1, 2))
    return Occluded(pixels, hidden, torch.where(hidden.any(2).any(1), kinds, -1), reached)


def _growing(kinds: Tensor, draws: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """Boxes [4, B] in whole pixels that hide the wanted share: each grows from its anchor to the whole crop."""
    sums = torch.nn.functional.pad(seen.float(), (1, 0, 1, 0)).cumsum(1).cumsum(2)  # [B, H + 1, W + 1]
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(ROUNDS):
        size = (low + high) / 2
        over = _share(_box(kinds, draws, size, seen), sums) >= wanted
        low, high = torch.where(over, low, size), torch.where(over, size, high)
    less, more = (_box(kinds, draws, size, seen) for size in (low, high))
    nearer = (_share(less, sums) - wanted).abs() < (_share(more, sums) - wanted).abs()
    return torch.where(nearer, less, more)


def _box(kinds: Tensor, draws: Tensor, size: Tensor, seen: Tensor) -> Tensor:
    """(top, bottom, left, right) [4, B] of area `size`: bands keep one side of the crop, rectangles a drawn shape."""
    height, width = seen.shape[1:]
    stretch = STRETCH * (2 * draws[2] - 1)
    band, rectangle = (kinds == 1) | (kinds == 2), kinds == 0
    tall = torch.where(rectangle, size ** ((1 + stretch) / 2), torch.where(band, 1.0, size))
    wide = torch.where(rectangle, size ** ((1 - stretch) / 2), torch.where(band, size, 1.0))
    down = torch.where(rectangle, draws[0], 1.0)  # where the box is anchored: 0 = top, left
    right = torch.where(rectangle, draws[1], (kinds == 2).float())
    top, left = down * (1 - tall), right * (1 - wide)
    edges = torch.stack([top * height, (top + tall) * height, left * width, (left + wide) * width])
    return edges.round().long()


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """bool [B, H, W]."""
    top, bottom, left, right = boxes[:, :, None, None]
    row = torch.arange(height, device=boxes.device)[:, None]
    column = torch.arange(width, device=boxes.device)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _share(boxes: Tensor, sums: Tensor) -> Tensor:
    """How much of the silhouettes lies in the boxes, [B]; sums [B, H + 1, W + 1] of all pixels above and left."""
    top, bottom, left, right = boxes
    image = torch.arange(len(sums), device=sums.device)
    inside = sums[image, bottom, right] - sums[image, top, right] - sums[image, bottom, left] + sums[image, top, left]
    return inside / sums[:, -1, -1]


def _uniform(count: int, part: int, generator: torch.Generator, share: tuple[int, int], device: torch.device) -> Tensor:
    """`count` uniform numbers for each image of this part, [count, B], drawn for the global batch."""
    rank, world = share
    drawn = torch.rand(count, part * world, generator=generator, device=generator.device)
    return drawn[:, rank * part : (rank + 1) * part].to(device)


def _whole(uniform: Tensor, count: Tensor) -> Tensor:
    """Uniform in [0, 1) -> whole numbers in 0..count-1."""
    return (uniform * count).long().minimum(count - 1)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [B, 3, H, W], got {images.dtype} {list(images.shape)}")


def _checked(images: Tensor, severity: float | Tensor, silhouettes: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The severity of each image, float32 [B], and the silhouettes, none of them empty."""
    _check_images(images)
    count, (height, width) = len(images), images.shape[2:]
    wanted = torch.as_tensor(severity, dtype=torch.float32, device=images.device)
    if wanted.dim() and wanted.shape != (count,):
        raise ValueError(f"severity: one number, or one for each of {count} images, got {list(wanted.shape)}")
    if not bool(((wanted >= 0) & (wanted <= 1)).all()):
        raise ValueError(f"severity {severity}: a share from 0 to 1")
    if silhouettes is None:
        return wanted.expand(count), None
    if silhouettes.dtype != torch.bool or silhouettes.shape != (count, height, width):
        expected = f"bool {[count, height, width]}"
        raise ValueError(f"silhouettes: expected {expected}, got {silhouettes.dtype} {list(silhouettes.shape)}")
    seen = silhouettes.to(images.device)
    return wanted.expand(count), seen | ~seen.any(2).any(1)[:, None, None]
