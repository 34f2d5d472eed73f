"""The pictures of a gallery are found again: those of data sets too, from any working folder."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipreid.model import ReIDModel
from clipreid.search import Gallery, embed, find_pictures
from clipreid.search.page import Album
from clipreid.search.pictures import located

COLUMNS = "identity=pid,camera=camid"


def colour(n: int) -> tuple[int, int, int]:
    return (40 * n, 10, 200 - 40 * n)


def picture(n: int) -> Image.Image:
    return Image.new("RGB", (10, 20), colour(n))


def found(gallery: Path, n: int) -> bool:
    """Whether every picture is there, and the right one."""
    opened = Gallery.open(gallery)
    assert len(opened) == n
    album = Album(opened)
    pictures = [album.picture(row["path"]) for row in opened.rows(range(n))]
    return all(p is not None and np.abs(np.asarray(p)[0, 0].astype(int) - colour(i)).max() < 9
               for i, p in enumerate(pictures))  # fmt: skip


def test_pictures_within_tables(model: ReIDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other columns, named relative to a folder that is left, where files of the same names are other pictures."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "hubd" / "data").mkdir(parents=True)
    there.mkdir()
    for split in ("train", "query", "gallery"):
        images = []
        for n in range(3):
            data = io.BytesIO()
            picture(n).save(data, "PNG")
            images.append({"path": f"{split}{n}.png", "bytes": data.getvalue()})
            Image.new("RGB", (10, 20), (0, 255, 0)).save(there / f"{split}{n}.png")
        table = pa.table({"image": images, "pid": ["a", "b", "c"], "camid": [1, 2, 1]})
        pq.write_table(table, here / "hubd" / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(here)
    embed(model, find_pictures(["hub:hubd"], columns=COLUMNS), tmp_path / "g.parquet", sources=["hub:hubd"],
          columns=COLUMNS)  # fmt: skip
    names = [row["path"] for row in Gallery.open(tmp_path / "g.parquet").rows(range(3))]
    assert names == ["gallery0.png", "gallery1.png", "gallery2.png"]
    monkeypatch.chdir(there)
    assert found(tmp_path / "g.parquet", 3)


def test_sources_mean_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    own = f"{tmp_path}/own"
    named = {"own": own, "own/**/*.jpg": f"{own}/**/*.jpg", "folder:own": f"folder:{own}",
             "synthetic": "synthetic", "synthetic:own": "synthetic:own", "hub:some/name": "hub:some/name"}  # fmt: skip
    assert {entry: located(entry) for entry in named} == named
