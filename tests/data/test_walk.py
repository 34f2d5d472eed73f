"""Which files of a folder are images, by their endings or contents, and what is said about the others."""

import io
from pathlib import Path

import pytest
from PIL import Image

from clipreid.data import load_data
from clipreid.data.walk import find_files, is_image, not_read


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 32), (200, 100, 50)).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("ending", ["", ".jfif", ".dat"])
def test_images_of_other_endings_are_known_by_their_contents(tmp_path: Path, format: str, ending: str) -> None:
    file = tmp_path / f"image{ending}"
    file.write_bytes(encoded(format))
    assert is_image(str(file))


def test_avif_is_an_image_where_pillow_reads_it(tmp_path: Path) -> None:
    Image.init()
    (tmp_path / "one.avif").write_bytes(b"\0\0\0 ftypavif" + b"\0" * 8)
    (tmp_path / "two.heic").write_bytes(b"\0\0\0 ftypheic" + b"\0" * 8)
    assert is_image(str(tmp_path / "one.avif")) == ("AVIF" in Image.OPEN)
    assert not is_image(str(tmp_path / "two.heic"))


def test_what_is_no_image_is_not_opened_or_not_taken(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(encoded("PNG"))  # an ending of something else: not looked at
    (tmp_path / "list").write_text("BN a text")
    (tmp_path / "empty").write_text("")
    (tmp_path / "broken.jpg").write_text("")  # an image by its ending: a damaged one, which is said when it is decoded
    assert find_files(tmp_path) == (["broken.jpg"], ["data.json", "empty", "list"])


def test_files_that_are_not_read_are_counted() -> None:
    assert not_read([], 5) == []
    others = ["a.txt"] * 30 + ["b/c.MP4"] * 6
    assert not_read(others, 36) == ["36 of 72 files were not read: 30 .txt, 6 .mp4"]
    many = [f"x.{letter}" for letter in "abcdefgh"] + ["none"] * 2
    assert not_read(many, 1) == [
        "10 of 11 files were not read: 2 without an ending, 1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 3 of other kinds"
    ]


def test_a_folder_says_what_it_does_not_read(tmp_path: Path) -> None:
    files = {"train/anna/1.jfif": "JPEG", "train/ben/1": "PNG", "test/cora/1.jpg": "JPEG", "test/dan/1.webp": "WEBP"}
    for name, format in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(encoded(format))
    (tmp_path / "test/dan/clip.mp4").write_bytes(b"")
    (tmp_path / "cover.jpg").write_bytes(b"")
    data = load_data(f"folder:{tmp_path}")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "query": 2, "gallery": 2}
    assert data.splits["train"].image(0).size == (16, 32)
    assert "1 of 5 files were not read: 1 .mp4" in data.notes
    assert "not read: 1 images in ROOT/" in data.notes
