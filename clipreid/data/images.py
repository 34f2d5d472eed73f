"""One image: whatever the file holds becomes RGB, and the whole crop is resized.

The cache, `Split.image` and `model.embed` all come here, so that an image has the same pixels everywhere.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clipreid.data.depths import DEEP, check_filled, full_scale, to_eight_bits
from clipreid.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MIN_SIDE = 8  # pixels; anything smaller shows no individual
THUMB = (16, 8)  # height, width: of a thumbnail
CONTRAST = 8  # a thumbnail with less between the darkest and brightest value of each colour shows nothing
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}

Source = str | Path | bytes | Image.Image
Images = Sequence[Image.Image | str | Path] | Tensor | np.ndarray  # the last two uint8 [N, 3, H, W]


class Crop(NamedTuple):
    """One image as the cache keeps it. digest: as `pixel_digest`; blank: as `is_blank`."""

    pixels: np.ndarray  # uint8 [3, H, W]
    digest: int
    blank: bool


def read_image(source: Source) -> Image.Image:
    """A file, encoded bytes or an open image as 8-bit RGB, turned upright by its EXIF orientation.

    Palette, grey and CMYK images are converted, deeper and float ones by one rule (`clipreid.data.depths`);
    transparency is laid on black, of an animation the first frame counts. Raises `UserError` for values that the rule
    does not fit, and Pillow's own exception for what Pillow cannot decode.
    """
    if isinstance(source, Image.Image):
        return _rgb(source)
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return _rgb(image)


def to_pixels(source: Source, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """The whole crop (not its centre; aspect ratio not kept) as uint8 [3, H, W], resized with antialiasing.

    size: (H, W) in pixels. Raises `UserError` for an unknown interpolation and for an image with a side
    under `MIN_SIDE` pixels, and whatever Pillow raises for an image it cannot decode.
    """
    return _resized(read_image(source), size, interpolation)


def to_crop(source: Source, size: tuple[int, int], interpolation: str = "bicubic") -> Crop:
    """As `to_pixels`, with what tells copies and blank images before they are resized."""
    image = read_image(source)
    return Crop(_resized(image, size, interpolation), pixel_digest(image), is_blank(image))


def pixel_digest(image: Image.Image) -> int:
    """63 bits of a hash of size and pixels of an RGB image: equal for copies, however they are encoded or named."""
    pixels = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=8)
    return int.from_bytes(pixels.digest(), "little") >> 1  # never negative as int64


def thumbnail(image: Image.Image) -> Image.Image:
    """An RGB image as 16 x 8 pixels, each a mean."""
    return image.resize(THUMB[::-1], Image.Resampling.BOX)


def is_blank(image: Image.Image) -> bool:
    """Whether an RGB image is of one flat colour, so that no individual is in it."""
    return int(np.ptp(np.asarray(thumbnail(image)).reshape(-1, 3), axis=0).max()) < CONTRAST


def _resized(image: Image.Image, size: tuple[int, int], interpolation: str) -> np.ndarray:
    resample = check_interpolation(interpolation)
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{image.width}x{image.height} pixels, too small (each side needs {MIN_SIDE})")
    height, width = size
    resized = np.asarray(image.resize((width, height), resample))  # [H, W, 3]
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def check_interpolation(interpolation: str) -> Image.Resampling:
    """Pillow's filter of that name; raises `UserError` with the valid names."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"unknown interpolation {interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}")
    return INTERPOLATIONS[interpolation]


def _rgb(image: Image.Image) -> Image.Image:
    white = full_scale(image)
    image.load()
    if image.getexif().get(0x0112, 1) != 1:  # the EXIF orientation tag
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # grey of 12, 16 or 32 bits, or of floats
        return Image.fromarray(to_eight_bits(np.asarray(image), white)).convert("RGB")
    if white:  # colours of 16 bits, of which Pillow keeps the upper eight
        values = np.asarray(image.convert("RGB")).astype(np.int64) << 8
        check_filled(int(values.min()), int(values.max()), DEEP)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def check_images(files: Sequence[Path]) -> None:
    """Raises `UserError` naming the first of these files that is no image that can be used."""
    for file in files:
        try:
            to_pixels(file, (MIN_SIDE, MIN_SIDE), "nearest")
        except Exception as error:  # on a broken or enormous file Pillow's plugins raise nearly everything
            raise UserError(f"the image {file} cannot be used: {error}") from error


def stack_images(images: Images, size: tuple[int, int], interpolation: str) -> Tensor:
    """PIL images, paths, or one uint8 tensor or array [N, 3, h, w] (RGB) to uint8 [N, 3, H, W], resized as a whole.

    Raises:
        UserError: an image cannot be read.
        ValueError: a tensor or array of another kind; something else than images.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        if images.shape[2:] == size:
            return images
        images = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
    if isinstance(images, str | Path | Image.Image):
        raise ValueError("embed takes a list of images: write model.embed([image])")
    images = list(images)
    crops = torch.empty(len(images), 3, *size, dtype=torch.uint8)
    for i, source in enumerate(images):
        if not isinstance(source, str | Path | Image.Image):
            raise ValueError(
                f"image {i} is of type {type(source).__name__}: give paths, PIL images (Image.fromarray makes one of "
                "an RGB array [H, W, 3]), or one uint8 tensor or array [N, 3, H, W] (torch.stack makes one of a list)"
            )
        try:
            crops[i] = torch.from_numpy(to_pixels(source, size, interpolation))
        except Exception as error:  # on a broken or enormous file Pillow's plugins raise nearly everything
            raise UserError(f"image {i} ({source}) cannot be used: {error}") from error
    return crops
