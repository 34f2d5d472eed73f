"""What is odd about the images of a run is said before it trains, and refused where it is too much."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.data import Mixture, load_data
from clipreid.errors import UserError
from clipreid.training.sets import check_opened


def paint(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize((32, 64)).save(file)


def notes(root: Path, leaks: int) -> list[str]:
    """24 training images and 24 test images, of which some are training images as well."""
    for n in range(24):
        paint(root / "train" / f"a{n // 4}" / f"cam{n % 2 + 1}_{n}.png", n)
        paint(root / "test" / f"b{n // 4}" / f"cam{n % 2 + 1}_{n}.png", n if n < leaks else 100 + n)
    data = load_data(f"folder:{root}")
    return check_opened(Mixture((data,)), [data], (32, 16), ("bicubic", "bilinear"), False)


def test_nothing_is_said_of_clean_images(tmp_path: Path) -> None:
    assert notes(tmp_path, 0) == []


def test_test_images_that_are_trained_on(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, 1)
    pair = f"({tmp_path}/test/b0/cam1_0.png = {tmp_path}/train/a0/cam1_0.png)"
    assert f"2 of 48 test images are training images as well {pair}: they are learned, then tested on" in note
    with pytest.raises(UserError, match="With more than 5 % of such images the data are not fit for use"):
        notes(tmp_path, 3)
