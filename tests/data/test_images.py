"""Any image becomes upright 8-bit RGB, resized whole."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.data import read_image, to_pixels
from clipreid.errors import UserError


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_path_bytes_and_open_image_are_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    wanted = np.asarray(image.resize((16, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image):
        pixels = to_pixels(source, (32, 16))
        assert pixels.dtype == np.uint8
        assert pixels.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(pixels, wanted)


def test_the_whole_crop_is_kept() -> None:
    tall = Image.new("RGB", (20, 100), "black")
    tall.paste("white", (0, 0, 20, 10))  # a head at the very top
    pixels = to_pixels(tall, (64, 32))
    assert pixels[:, 0].min() > 200
    assert pixels[:, -1].max() < 50


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGB", (16, 16), (200, 40, 40)).quantize(), "PNG"),
        encode(Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK"), "JPEG", quality=100),
        encode(Image.new("RGBA", (16, 16), (200, 40, 40, 255)), "PNG"),
        encode(Image.new("RGB", (16, 16), (200, 40, 40)), "GIF"),
        encode(Image.new("RGB", (16, 16), (200, 40, 40)), "WEBP", lossless=True),
    ],
    ids=["palette", "cmyk", "rgba", "gif", "webp"],
)
def test_modes_become_rgb(data: bytes) -> None:
    image = read_image(data)
    assert image.mode == "RGB"
    np.testing.assert_allclose(image.getpixel((8, 8)), (200, 40, 40), atol=6)


@pytest.mark.parametrize("value", [0, 255, 25600, 65535])
def test_sixteen_bit_grey_keeps_its_brightness(value: int) -> None:
    data = encode(Image.fromarray(np.full((16, 16), value, np.uint16)), "PNG")
    assert read_image(data).getpixel((3, 3)) == (value >> 8,) * 3


def test_transparency_is_laid_on_black() -> None:
    data = encode(Image.new("RGBA", (16, 16), (255, 255, 255, 0)), "PNG")
    assert read_image(data).getpixel((3, 3)) == (0, 0, 0)
    half = encode(Image.new("LA", (16, 16), (200, 128)), "PNG")
    np.testing.assert_allclose(read_image(half).getpixel((3, 3)), (100, 100, 100), atol=1)


def test_exif_orientation_turns_the_image_upright() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 10, 20))  # left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: the left edge comes to the top
    upright = read_image(encode(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 2)) == (255, 255, 255)
    assert upright.getpixel((10, 30)) == (0, 0, 0)


def test_degenerate_and_unknown() -> None:
    with pytest.raises(UserError, match=r"1x1 pixels, too small \(each side needs 8\)"):
        to_pixels(Image.new("RGB", (1, 1)), (32, 16))
    with pytest.raises(UserError, match="100x7 pixels"):
        to_pixels(Image.new("RGB", (100, 7)), (32, 16))
    with pytest.raises(UserError, match="unknown interpolation 'cubic'; choose one of bicubic, bilinear"):
        to_pixels(Image.new("RGB", (16, 16)), (32, 16), "cubic")
