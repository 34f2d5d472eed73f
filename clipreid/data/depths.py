"""What the values of an image mean: one rule for every mode and depth, to 8 bits.

The rule looks at the mode and at what the file declares, never at the brightest value of the single image where that
could make two images of one camera differ. What an image holds can only lead to a refusal. docs/data.md has the table.
"""

import numpy as np
from PIL import Image

from clipreid.errors import UserError

DEEP = 65535  # full scale of 16 bits
LEAST = 1 / 16  # of its range an image of more than 8 bits must fill, or nothing would be left of it in 8 bits
ADVICE = "scale all images of the camera alike, once, to 8 bits (docs/data.md, 'Values')"


def full_scale(image: Image.Image) -> int:
    """The value of white that an open file declares; 0 where it declares none, or no more than 8 bits.

    To be asked before the image is loaded. 65535 for 16 bits, also in colour, and for PGM, which Pillow scales to that;
    4095 for a TIFF of 12 bits.
    """
    raw = [str(part) for tile in getattr(image, "tile", ()) for part in np.ravel(np.array(tile[3], dtype=object))]
    if "I;12" in raw:
        return 4095
    deep = any("16" in part for part in raw) and "I;16S" not in raw
    return DEEP if deep or image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM") else 0


def to_eight_bits(values: np.ndarray, white: int = 0) -> np.ndarray:
    """Grey values [H, W] of any kind as uint8 [H, W].

    white: the full scale that the file declares (`full_scale`); 0: 32-bit integers and floats, which declare none. Then
    0 to 1 is a float image, whole numbers up to 255 are 8 bits, up to 65535 16 bits; floats up to 255 must reach 128.

    Raises:
        UserError: values that no rule fits (NaN, infinite, negative, too large, other floats), or that fill so little
            of 16 bits that nothing would be left of them.
    """
    if not values.size:
        return values.astype(np.uint8)
    low, high = values.min().item(), values.max().item()
    if not np.isfinite(values).all():
        raise UserError(f"its values are not all numbers (NaN or infinite): {ADVICE}")
    if low < 0 or high > DEEP:
        raise UserError(f"its values go from {low:g} to {high:g}, neither 0 to 1, nor 8 or 16 bits: {ADVICE}")
    if values.dtype.kind == "f":
        if high <= 1:
            return (values * 255 + 0.5).astype(np.uint8)
        if (values != np.round(values)).any():
            if not 128 <= high <= 255:
                raise UserError(f"its values go from {low:g} to {high:g}, neither 0 to 1 nor 0 to 255: {ADVICE}")
            return (values + 0.5).clip(0, 255).astype(np.uint8)
        values = values.astype(np.int64)
    if not white and high <= 255:
        return values.astype(np.uint8)
    check_filled(low, high, white or DEEP)
    return (values.astype(np.int64) * 256 // ((white or DEEP) + 1)).astype(np.uint8)


def check_filled(low: float, high: float, white: int) -> None:
    """Raises `UserError` for an image of more than 8 bits whose values, low to high, fill next to nothing of them."""
    if 0 < high - low < LEAST * (white + 1):
        raise UserError(
            f"its values, {low:g} to {high:g}, fill {100 * (high - low) / white:.1f} % of 0 to {white}, so "
            f"that all would become nearly the same: {ADVICE}"
        )
