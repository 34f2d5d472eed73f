"""Features of every image, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.data.mixing import ConcatPixels
from clipreid.errors import UserError

Features = Tensor | dict[str, Tensor]
Pixels = np.ndarray | Tensor | ConcatPixels


@torch.no_grad()
def extract(
    embed_batch: Callable[..., Features],
    pixels: Pixels,
    *,
    about: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    accelerator: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run `embed_batch` over all images, without gradients: [N, D], or a dict of such, on `device`.

    embed_batch: uint8 [B, 3, H, W] on `device` -> [B, D], or a dict of such tensors. Put the model in eval
    mode first.
    pixels: uint8 [N, 3, H, W]; a memory-mapped array is read batch by batch, `ConcatPixels` stay where they are.
    about: what is known of each image, by name, [N] each (cameras, views); passed on: embed_batch(pixels, about).
    batch_size: images at once in each process; default 128, on a CPU 32 (larger ones leave its caches).
    device: default the accelerator's, else the CPU.
    accelerator: an `accelerate.Accelerator`; every process calls this function and gets all features. Each
    takes every num_processes-th image; features travel with their image's index (equal shares, padded),
    so neither the order nor the length depends on how a loader cuts the last batch.
    progress: called as progress(images done, N) after each batch.

    Raises UserError for pixels that are not uint8 [N, 3, H, W] or an embed_batch that returns other than B
    rows, RuntimeError if an image was not embedded exactly once.
    """
    device = torch.device(device or (accelerator.device if accelerator is not None else "cpu"))
    batch_size = (32 if device.type == "cpu" else 128) if batch_size is None else batch_size
    _check_pixels(pixels, batch_size)
    n = len(pixels)
    world = accelerator.num_processes if accelerator is not None else 1
    rank = accelerator.process_index if accelerator is not None else 0
    found: dict[str, Tensor] = {}
    filled = torch.zeros(n, dtype=torch.int64, device=device)
    plain = False
    for index in _shares(n, world, rank, batch_size):  # [B], -1 = padding
        known = {name: values[index.clamp_min(0)].to(device) for name, values in (about or {}).items()}
        output = embed_batch(_read(pixels, index).to(device), *([known] if known else []))
        plain = isinstance(output, Tensor)
        features = {"": output} if isinstance(output, Tensor) else output
        index = _gather(accelerator, index.to(device))  # [world * B]
        real = index >= 0
        filled += torch.bincount(index[real], minlength=n)
        if found and found.keys() != features.keys():
            raise UserError(f"embed_batch returned {list(features)}, for earlier images {list(found)}.")
        for name, values in features.items():
            _check_rows(name, values, len(index) // world)
            values = _gather(accelerator, values.to(device).float().contiguous())[real]  # [b, D]
            found.setdefault(name, values.new_zeros(n, values.shape[1]))[index[real]] = values
        if progress is not None:
            progress(int((filled > 0).sum()), n)
    if not bool((filled == 1).all()):
        rows = (filled != 1).nonzero()[:5, 0].tolist()
        raise RuntimeError(f"images {rows} (and maybe more) were not embedded exactly once; this is a defect.")
    return found[""] if plain else found


def _shares(n: int, world: int, rank: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of the images rank, rank + world, ...; every process gets the same shapes, padded with -1."""
    mine = torch.arange(-(-n // world)) * world + rank
    yield from torch.where(mine < n, mine, -1).split(batch_size)


def _read(pixels: Pixels, index: Tensor) -> Tensor:
    index = index.clamp_min(0)  # padding embeds image 0 again, and is dropped after the gather
    if isinstance(pixels, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(pixels[index.numpy()]))
    return pixels.index_select(0, index.to(pixels.device))


def _gather(accelerator: Any, values: Tensor) -> Tensor:
    return values if accelerator is None or accelerator.num_processes == 1 else accelerator.gather(values)


def _check_pixels(pixels: Pixels, batch_size: int) -> None:
    kind = str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8" or pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise UserError(f"pixels are {kind} {list(pixels.shape)}; extract needs uint8 [N, 3, H, W] with N > 0.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")


def _check_rows(name: str, values: Tensor, rows: int) -> None:
    if values.ndim != 2 or len(values) != rows:
        what = f"feature {name!r} of embed_batch" if name else "embed_batch"
        raise UserError(f"{what} has shape {list(values.shape)} for a batch of {rows} images; [{rows}, D] is needed.")
