"""The images of a gallery are found again: those of data sets too, from any working folder."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipreid.errors import UserError
from clipreid.model import ReIDModel
from clipreid.reports.thumbnails import shown_size
from clipreid.search import Gallery, embed, find_images
from clipreid.search.find import absolute_entry
from clipreid.search.gallery import Hit, mark_itself
from clipreid.search.page import Album, write_page

COLUMNS = "identity=pid,camera=camid"


def colour(n: int) -> tuple[int, int, int]:
    return (40 * n, 10, 200 - 40 * n)


def image(n: int) -> Image.Image:
    return Image.new("RGB", (10, 20), colour(n))


def found(gallery: Path, n: int) -> bool:
    """Whether every image is there, and the right one."""
    opened = Gallery.open(gallery)
    assert len(opened) == n
    album = Album(opened)
    images = [album.image(row["path"]) for row in opened.rows(range(n))]
    return all(
        p is not None and np.abs(np.asarray(p)[0, 0].astype(int) - colour(i)).max() < 9 for i, p in enumerate(images)
    )


def test_images_within_tables(model: ReIDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other columns, named relative to a folder that is left, where files of the same names are other images."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "hubd" / "data").mkdir(parents=True)
    there.mkdir()
    for split in ("train", "query", "gallery"):
        images = []
        for n in range(3):
            data = io.BytesIO()
            image(n).save(data, "PNG")
            images.append({"path": f"{split}{n}.png", "bytes": data.getvalue()})
            Image.new("RGB", (10, 20), (0, 255, 0)).save(there / f"{split}{n}.png")
        people = ["d", "e", "f"] if split == "train" else ["a", "b", "c"]
        table = pa.table({"image": images, "pid": people, "camid": [1, 2, 1]})
        pq.write_table(table, here / "hubd" / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(here)
    embed(
        model,
        find_images(["hub:hubd"], columns=COLUMNS),
        tmp_path / "g.parquet",
        sources=["hub:hubd"],
        columns=COLUMNS,
    )
    names = [row["path"] for row in Gallery.open(tmp_path / "g.parquet").rows(range(3))]
    assert names == ["gallery0.png", "gallery1.png", "gallery2.png"]
    monkeypatch.chdir(there)
    assert found(tmp_path / "g.parquet", 3)


def test_data_sets_that_call_their_images_the_same_are_not_mixed(tmp_path: Path) -> None:
    for name in "abc":
        data = io.BytesIO()
        image(0).save(data, "PNG")
        (tmp_path / name).mkdir()
        for split in ("query", "gallery"):
            entry = {"path": f"{split} {'other' if name == 'c' else 'same'}.png", "bytes": data.getvalue()}
            table = pa.table({"image": [entry], "identity": [name], "camera": [1]})
            pq.write_table(table, tmp_path / name / f"{split}.parquet")
    a, b, c = (f"hub:{tmp_path / name}" for name in "abc")
    assert len(find_images([a, c, a])) == 2
    with pytest.raises(UserError, match=rf"{a} and {b} both have an image 'gallery same.png' .*: embed them into two"):
        find_images([a, b])


def test_globs_name_folders_too_as_in_a_shell(tmp_path: Path) -> None:
    for name in ("anna/1.png", "bert/2.png", "3.png", "[x]/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(1).save(tmp_path / name)
    (tmp_path / "anna" / "notes.txt").write_text("no image")

    def named(*globs: str) -> list[str]:
        return sorted(Path(path).name for path in find_images([str(tmp_path / each) for each in globs]).paths)

    assert named("*") == named("**/*.png") == ["1.png", "2.png", "3.png", "4.png"]
    assert named("[ab]*") == ["1.png", "2.png"]
    assert named("[[]x]/*.png") == ["4.png"]
    with pytest.raises(
        UserError, match=r"the glob finds nothing \(a bracket that is part of a name is written \[\[\]\)"
    ):
        named("[x]/*.png")


def test_an_image_too_large_to_open(model: ReIDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missing on the page, and refused as a query."""
    file = tmp_path / "a.png"
    image(0).save(file)
    embed(model, find_images([str(file)]), tmp_path / "g.parquet")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert Album(Gallery.open(tmp_path / "g.parquet")).image(str(file)) is None
    with pytest.raises(UserError, match=r"image 0 .*a.png\) cannot be used: .*decompression bomb"):
        model.embed([file])


def test_a_query_whose_name_is_not_utf8_has_a_page(model: ReIDModel, tmp_path: Path) -> None:
    file, odd = tmp_path / "a.png", tmp_path / "odd-\udcff.png"  # as Python names the byte FF
    for each in (file, odd):
        image(0).save(each)
    embed(model, find_images([str(file)]), tmp_path / "g.parquet")
    gallery = Gallery.open(tmp_path / "g.parquet")
    page = write_page(tmp_path / "found", gallery, [odd], gallery.search(model.embed([odd])))
    assert "odd-?.png" in page.read_text()


def test_the_query_itself_is_a_file_and_no_name_within_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hits = [Hit(1, 0.9, "0351.png", None, None, 0), Hit(2, 0.8, str(tmp_path / "0351.png"), None, None, 1)]
    assert [hit.itself for hit in mark_itself(hits, "0351.png")] == [False, True]


def test_sources_mean_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    own = f"{tmp_path}/own"
    named = {
        "own": own,
        "own/**/*.jpg": f"{own}/**/*.jpg",
        "folder:own": f"folder:{own}",
        "synthetic": "synthetic",
        "synthetic:own": "synthetic:own",
        "hub:some/name": "hub:some/name",
    }
    assert {entry: absolute_entry(entry) for entry in named} == named


def test_a_page_keeps_the_folders_that_tell_files_apart(model: ReIDModel, tmp_path: Path) -> None:
    """Individuals are folders, and their files are numbered alike."""
    names = [f"okavango_reserve_north_herd_individual_{n:04d}" for n in range(2)]
    for n, name in enumerate(names):
        (tmp_path / "herd" / name).mkdir(parents=True)
        image(n).resize((60, 20)).save(tmp_path / "herd" / name / "0001.png")
    images = find_images([str(tmp_path / "herd")], pattern="identity/")
    embed(model, images, tmp_path / "galleries" / "herd.parquet")
    gallery = Gallery.open(tmp_path / "galleries" / "herd.parquet")
    queries = sorted((tmp_path / "herd").rglob("*.png"))
    page = write_page(tmp_path / "found", gallery, queries, gallery.search(model.embed(queries))).read_text()
    assert "<h1>Found in galleries/herd.parquet</h1>" in page
    for name in names:
        assert f"<h4>{name}/0001.png</h4>" in page
        assert f"{name[-10:]}/0001.png</span>" in page
        assert f"identity {name}" in page
    width, height = shown_size(Image.new("RGB", (60, 20)))
    assert width == pytest.approx(3 * height, abs=2)
    assert f'width="{width}" height="{height}"' in page
