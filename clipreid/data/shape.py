"""The shape of a data set's images, and crops that keep it."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from clipreid.data.crops import Split

MOST = 500  # images of a split that are looked at
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
FAR = 1.5  # times narrower or wider than the crop: from here on it is said


def median_shape(splits: Iterable[Split]) -> float | None:
    """The median of height / width over the images, from their headers; None where no image can be opened.

    Of more than `MOST` images of a split as many are looked at, evenly drawn.
    """
    found: list[float] = []
    for split in splits:
        rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST)).astype(int))
        for batch in split.select(rows).encoded_batches(64):
            found += [shape for image in batch if (shape := _shape(image["path"], image["bytes"])) is not None]
    return float(np.median(found)) if found else None


def _shape(path: str | None, data: bytes | None) -> float | None:
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:  # type: ignore[arg-type]
            width, height = image.size[::-1] if image.getexif().get(0x0112, 1) in TURNED else image.size
    except Exception:  # what cannot be opened is refused, or left out and counted, where it is decoded
        return None
    return height / width if width and height else None


def fitting_crop(shape: float, crop: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) in whole patches, about as many pixels as `crop` (height, width), in this shape (height / width).

    Example:
        >>> fitting_crop(0.85, (256, 128), 16)
        (160, 192)
    """
    area = crop[0] * crop[1]
    height, width = (area * shape) ** 0.5, (area / shape) ** 0.5
    return max(1, round(height / patch)) * patch, max(1, round(width / patch)) * patch


def shape_note(shape: float, crop: tuple[int, int], patch: int) -> str | None:
    """A sentence where images of this shape (height / width) do not fit crops (height, width) well; else None."""
    own = crop[0] / crop[1]
    if max(shape / own, own / shape) < FAR:
        return None
    height, width = fitting_crop(shape, crop, patch)
    return (
        f"the images are mostly {shape:.2f} times as high as wide, and are squeezed into crops {own:.2f} times as high "
        f"({crop[0]}x{crop[1]}): --image-size {height} {width} keeps their shape with about as many pixels (or "
        "--crop-shape data)"
    )
