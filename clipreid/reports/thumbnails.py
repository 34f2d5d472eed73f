"""Small images for a page, each embedded as a data address, and attention maps laid over crops."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

BOX = (176, 132)  # CSS pixels: width and height of a crop on the page, at most
AREA = 70 * 132  # square CSS pixels: tall, wide and square crops are about equally large
SIDE = 192  # pixels of the longer side, at most: sharp at half of it on fine screens


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """A JPEG of at most `side` pixels, never enlarged, as a data address."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_address(small)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height on the page, in the image's own shape: within `BOX`, and not above `AREA`."""
    area = (AREA / (image.width * image.height)) ** 0.5
    scale = min(BOX[0] / image.width, BOX[1] / image.height, area)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def overlay_attention(image: Image.Image, share: np.ndarray, side: int = SIDE) -> Image.Image:
    """The image, dim where the map `share` [h, w] (of the whole image, any scale) is low, glowing where it is high.

    The highest of the map is the brightest, whatever its value: images cannot be compared in brightness.
    """
    from matplotlib import colormaps

    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    large = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    crop = np.asarray(large, dtype=np.float32) / 255  # [H, W, 3]
    heat = np.asarray(Image.fromarray((share / share.max()).astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    heat = heat.clip(0, 1)[..., None]  # [H, W, 1]
    grey = crop.mean(-1, keepdims=True)
    glow = colormaps["inferno"](heat[..., 0])[..., :3]  # [H, W, 3]
    mixed = (0.55 * crop + 0.45 * grey) * (0.35 + 0.25 * heat) + 0.55 * heat * glow
    return Image.fromarray((255 * mixed.clip(0, 1)).astype(np.uint8))


def data_address(image: Image.Image) -> str:
    """data:image/jpeg;base64,..."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=84, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
