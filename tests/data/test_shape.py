"""The shape of a data set's images, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipreid.data import Split
from clipreid.data.nouns import guess_noun, noun_note
from clipreid.data.shape import FAR, fitting_crop, median_shape, shape_note


def split_of(folder: Path, *sizes: tuple[int, int], turned: bool = False) -> Split:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    files = []
    for n, size in enumerate(sizes):
        files.append(folder / f"{n}.jpg")
        Image.new("RGB", size).save(files[-1], exif=exif)
    return Split.from_columns("train", [{"path": str(file)} for file in files], ["a"] * len(files))


def test_the_shape_is_the_median_of_what_can_be_opened(tmp_path: Path) -> None:
    split = split_of(tmp_path, (40, 20), (40, 10), (40, 30), (40, 30))
    (tmp_path / "3.jpg").write_bytes(b"not an image")
    assert median_shape([split]) == 0.5
    data = [{"path": "x", "bytes": (tmp_path / "1.jpg").read_bytes()}]
    assert median_shape([Split.from_columns("train", data, ["a"])]) == 0.25
    assert median_shape([]) is None


def test_images_that_are_turned_upright_count_as_such(tmp_path: Path) -> None:
    assert median_shape([split_of(tmp_path, (40, 20), turned=True)]) == 2


@given(
    st.floats(0.25, 4),
    st.sampled_from([(256, 128), (128, 64), (224, 224)]),
    st.sampled_from([8, 14, 16, 32]),
)
def test_a_fitting_crop_has_whole_patches_the_shape_and_about_the_pixels(
    shape: float, crop: tuple[int, int], patch: int
) -> None:
    height, width = fitting_crop(shape, crop, patch)
    assert height % patch == width % patch == 0
    ideal = (crop[0] * crop[1] * shape) ** 0.5, (crop[0] * crop[1] / shape) ** 0.5
    assert all(
        abs(side - best) <= patch / 2 or side == patch for side, best in zip((height, width), ideal, strict=True)
    )


def test_a_far_shape_is_said_with_the_flag_that_mends_it() -> None:
    said = shape_note(0.85, (256, 128), 16)
    assert said is not None
    assert "0.85 times as high as wide" in said
    assert "--image-size 160 192" in said
    assert "--crop-shape data" in said
    assert shape_note(2 * FAR * 0.99, (256, 128), 16) is None
    assert shape_note(2.0, (256, 128), 16) is None


@pytest.mark.parametrize(
    ("identities", "spec", "expected"),
    [
        (["truck_0001", "car_0002", "x"], "folder:/data/lions", ("vehicle", "the identities")),
        (["Lion-1", "lion 2"], "csv:/crops.csv", ("lion", "the identities")),
        (["0001", "0002"], "folder:/data/antelopes/crops", ("antelope", "the folder 'antelopes'")),
        (["0001"], "folder:/home/wolf/data/crops", None),  # only the last two folders: others are of people and disks
        (["0001"], "folder:/cats-and-dogs", None),
        (["0001"], "hub:owner/WhaleID-zebras", ("zebra", "the folder 'WhaleID-zebras'")),
        (["anna", "bert"], "folder:/crops", None),
    ],
)
def test_the_noun_is_guessed_from_names(identities: list[str], spec: str, expected: tuple[str, str] | None) -> None:
    assert guess_noun(identities, spec) == expected


def test_a_guess_is_said_and_asked_for() -> None:
    assert noun_note("lion", "the folder 'lions'").endswith(
        "(guessed from the folder 'lions'; change it with --noun WORD)"
    )
    assert "say it, such as --noun antelope" in noun_note("person", None)
