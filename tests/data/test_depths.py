"""One rule for what the values of an image mean, whatever its mode and depth."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_check import deep_png

from clipreid.data import read_image
from clipreid.data.scan import inspect_image
from clipreid.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (24, 16)).astype(np.uint8)
GREY[0, :2] = 0, 255


def encode(values: np.ndarray, format: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def pgm(values: np.ndarray, white: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.astype(">u2").tobytes()


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    flat = values.reshape(-1).astype(int)
    packed = b"".join(struct.pack(">I", a << 12 | b)[1:] for a, b in zip(flat[::2], flat[1::2], strict=True))
    height, width = values.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(packed))]
    body = b"".join(struct.pack("<HHIHH", tag, kind, 1, *divmod(value, 65536)[::-1]) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 0) + packed


def shown(data: bytes | Image.Image) -> np.ndarray:
    image = np.asarray(read_image(data))
    assert (image == image[..., :1]).all()
    return image[..., 0]


@pytest.mark.parametrize(
    "data",
    [
        encode(GREY.astype(np.uint16) * 257, "PNG"),
        encode(GREY.astype(np.uint16) * 257),
        pgm(GREY.astype(int) * 4095 // 255, 4095),
        tiff_of_12_bits(GREY.astype(int) * 4095 // 255),
        encode(GREY.astype(np.int32) * 257),
        encode(GREY.astype(np.int32)),
        encode(GREY.astype(np.float32) / 255),
        encode(GREY.astype(np.float32)),
        encode(GREY.astype(np.float32) * 0.999),
        encode(GREY.astype(np.float32) * 257),
    ],
    ids=["png16", "tiff16", "pgm12", "tiff12", "int16", "int8", "float 0..1", "float 0..255", "filtered", "float 16"],
)
def test_every_depth_shows_the_same_image(data: bytes) -> None:
    assert abs(shown(data).astype(int) - GREY).max() <= 1


def test_an_image_in_memory_follows_the_same_rule() -> None:
    assert (shown(Image.fromarray(GREY.astype(np.float32) / 255)) == GREY).all()
    assert (shown(Image.fromarray(GREY.astype(np.int32))) == GREY).all()
    assert (shown(Image.fromarray(GREY.astype(np.uint16) * 257)) == GREY).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (7400 + GREY.astype(np.uint16) * 2, "its values, 7400 to 7910, fill 0.8 % of 0 to 65535, so that all would"),
        (GREY.astype(np.uint16) * 16, "its values, 0 to 4080, fill 6.2 % of 0 to 65535"),
        (GREY.astype(np.uint16), "its values, 0 to 255, fill 0.4 % of 0 to 65535"),
        (GREY.astype(np.int32) * 4, "its values, 0 to 1020, fill 1.6 % of 0 to 65535"),
        (GREY.astype(np.int32) - 5, "its values go from -5 to 250, neither 0 to 1, nor 8 or 16 bits"),
        (GREY.astype(np.int32) * 300, "its values go from 0 to 76500, neither 0 to 1, nor 8 or 16 bits"),
        (290 + GREY.astype(np.float32) / 25.5, "its values go from 290 to 300, neither 0 to 1 nor 0 to 255"),
        (18 + GREY.astype(np.float32) / 14, "its values go from 18 to 36.2143, neither 0 to 1 nor 0 to 255"),
        (GREY.astype(np.float32) / 250 - 0.01, "its values go from -0.01 to 1.01, neither 0 to 1, nor 8 or 16 bits"),
        (GREY.astype(np.float32) / 250, "its values go from 0 to 1.02, neither 0 to 1 nor 0 to 255"),
        (np.where(GREY == 7, np.nan, GREY).astype(np.float32), "its values are not all numbers"),
        (np.where(GREY == 7, np.inf, GREY).astype(np.float32), "its values are not all numbers"),
    ],
)
def test_values_that_no_rule_fits_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_image(encode(values))
    assert str(refused.value).startswith(message)
    assert str(refused.value).endswith("to 8 bits (docs/data.md, 'Values')")
    seen = inspect_image({"path": "a.tiff", "bytes": encode(values)})
    assert (seen.kind, seen.reason) == ("unknown range of values", str(refused.value))


def test_colours_of_16_bits_that_hold_fewer_are_refused() -> None:
    assert np.ptp(np.asarray(read_image(deep_png(1)))) > 100
    with pytest.raises(UserError, match=r"its values, \d+ to \d+, fill [1-5].\d % of 0 to 65535"):
        read_image(deep_png(1, 16))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 1000))
def test_two_images_of_16_bits_agree_or_are_refused(low: int, high: int, seed: int) -> None:
    """The same value is shown as the same brightness, whatever else is in the image."""
    low, high = sorted((low, high))
    values = np.random.default_rng(seed).integers(low, high + 1, (12, 12)).astype(np.uint16)
    try:
        found = shown(encode(values, "PNG"))
    except UserError:
        assert 0 < int(np.ptp(values)) < 4096
    else:
        assert (found == values >> 8).all()


def test_docs_show_the_remedy(tmp_path: Path) -> None:
    """Values of 14 bits in 16, scaled once as docs/data.md says, are read."""
    low, high = 7000, 8200
    values = (7400 + GREY.astype(np.uint16) * 2).astype(float)
    scaled = (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(scaled).save(tmp_path / "a.png")
    assert np.ptp(shown((tmp_path / "a.png").read_bytes())) > 100
