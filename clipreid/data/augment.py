"""Augmentation of whole batches, on the device where the batch is."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.02, 1 / 3)  # erased part of the image
ASPECT = (0.3, 1 / 0.3)  # height / width of the erased box
TRIES = 10  # boxes drawn until one fits


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, H, W], (x / 255 - mean) / std per channel; for evaluation."""
    _check(batch)
    centre, scale = (torch.tensor(values, device=batch.device).view(1, 3, 1, 1) for values in (mean, std))
    return batch.float().div_(255).sub_(centre).div_(scale)


def augment(
    batch: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    flip: float = 0.5,
    pad: int = 10,
    erase: float = 0.5,
    tint: float = 0.0,
    tint_share: float = 1.0,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """Flip, pad and crop, tint, normalise, erase: uint8 [B, 3, H, W] -> float32 [B, 3, H, W] on the batch's device.

    Source: CLIP-ReID (arXiv 2211.13977), released training transforms. Each image is mirrored with
    probability `flip`, padded with `pad` black pixels on every side and cropped back at random, normalised,
    and with probability `erase` one box of it becomes standard normal noise per value (random erasing, arXiv
    1708.04896; timm's "pixel" mode: area 2 % to a third, aspect 0.3 to 3.3 log-uniform, up to ten tries for a
    box that fits).

    tint (not in CLIP-ReID): the three channels of an image are multiplied by gains of their own, exp of a normal number
    with this standard deviation: other light and another colour balance, as of another camera. tint_share: probability
    that this is done to an image.

    pad: pixels of the batch; CLIP-ReID's 10 belong to 256x128. generator: all draws come from it, on its
    device; on the CPU the result is the same for batches on any device. share: (rank, world) when the batch
    is one of `world` equal parts of a global batch; with the same generator state in every process, the parts
    are augmented exactly as the whole batch would be by one process. Raises `ValueError` unless the batch is
    uint8 [B, 3, H, W].
    """
    _check(batch)
    rank, world = share
    total, part = len(batch) * world, slice(rank * len(batch), (rank + 1) * len(batch))
    height, width = batch.shape[-2:]
    draws = _draws(total, generator)
    boxes, noise = _erasing(draws[3:], erase, height, width, part, generator)
    mirrored, down, right = draws[:3, part].to(batch.device)
    moved = _crop(_mirror(batch, mirrored < flip), _whole(down, 2 * pad + 1), _whole(right, 2 * pad + 1), pad)
    if tint:
        gains = (torch.randn(3, total, generator=generator, device=generator.device) * tint).exp()
        if tint_share < 1:
            tinted = torch.rand(total, generator=generator, device=generator.device) < tint_share
            gains = gains.where(tinted, 1.0)
        moved = _tint(moved, gains[:, part].to(batch.device))
    pixels = normalise(moved, mean, std)
    return _erase(pixels, boxes.to(batch.device), noise.to(batch.device))


def mirrored_rows(count: int, flip: float, generator: torch.Generator, share: tuple[int, int] = (0, 1)) -> Tensor:
    """Which images `augment` mirrors, given a generator in the same state: bool [count] of this process's batch, on the
    generator's device. flip, share: as there."""
    rank, world = share
    return _draws(count * world, generator)[0, rank * count : (rank + 1) * count] < flip


def _draws(total: int, generator: torch.Generator) -> Tensor:
    """Uniform [5, total]: mirrored, down, right, and the place of the erased box."""
    return torch.rand(5, total, generator=generator, device=generator.device)


def _mirror(batch: Tensor, mirrored: Tensor) -> Tensor:
    """[B, 3, H, W], mirrored [B] bool."""
    return torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)


def _crop(batch: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """[B, 3, H, W] padded with black and cut out at (top, left), each [B] in 0..2*pad."""
    height, width = batch.shape[-2:]
    padded = F.pad(batch, (pad, pad, pad, pad))  # [B, 3, H + 2 pad, W + 2 pad]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, 3, 2 pad + 1, 2 pad + 1, H, W], a view
    return windows[torch.arange(len(batch), device=batch.device), :, top, left]


def _tint(batch: Tensor, gains: Tensor) -> Tensor:
    """uint8 [B, 3, H, W], each channel multiplied by its gain [3, B]; what is too bright is white."""
    return (batch * gains.T[:, :, None, None]).round_().clamp_(0, 255).to(torch.uint8)


def _erasing(
    draws: Tensor, erase: float, height: int, width: int, part: slice, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (top, bottom, left, right) [4, B] of this part, empty where nothing is erased, and the noise.

    draws: uniform [2, total] for the place. The noise is as long as all boxes of this part together, times 3.
    """
    total = draws.shape[1]
    area, aspect, wanted = torch.rand(3, TRIES, total, generator=generator, device=generator.device)
    area = (AREA[0] + area * (AREA[1] - AREA[0])) * height * width
    aspect = (math.log(ASPECT[0]) + aspect * (math.log(ASPECT[1]) - math.log(ASPECT[0]))).exp()
    tall, wide = (
        (area * aspect).sqrt().round().long(),
        (area / aspect).sqrt().round().long(),
    )  # [TRIES, total]
    fits = (tall < height) & (wide < width)
    first = fits.float().argmax(0, keepdim=True)  # [1, total] the first box that fits
    erased = fits.any(0) & (wanted[0] < erase)
    tall, wide = tall.gather(0, first)[0] * erased, wide.gather(0, first)[0] * erased  # [total]
    top, left = _whole(draws[0], height - tall + 1), _whole(draws[1], width - wide + 1)
    ends = (3 * tall * wide).cumsum(0).tolist()  # where each image's noise ends
    noise = torch.randn(ends[-1], generator=generator, device=generator.device)
    begin = ends[part.start - 1] if part.start else 0
    boxes = torch.stack([top, top + tall, left, left + wide])
    return boxes[:, part], noise[begin : ends[part.stop - 1]]


def _erase(pixels: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Writes the noise into the boxes of [B, 3, H, W], in the order of the images."""
    top, bottom, left, right = boxes.view(4, -1, 1, 1, 1)
    row = torch.arange(pixels.shape[2], device=pixels.device).view(-1, 1)
    column = torch.arange(pixels.shape[3], device=pixels.device)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # [B, 1, H, W]
    return pixels.masked_scatter_(inside, noise)


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Uniform in [0, 1) -> whole numbers in 0..count-1."""
    last = torch.as_tensor(count, device=uniform.device) - 1
    return (uniform * count).long().minimum(last)


def _check(batch: Tensor) -> None:
    if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != 3:
        raise ValueError(f"expected uint8 [B, 3, H, W], got {batch.dtype} {list(batch.shape)}")
