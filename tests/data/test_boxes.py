"""Boxes in larger images: each crop has the pixels of its box, once, whatever table named it."""

import io
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipreid.data import boxes as module
from clipreid.data import load_data
from clipreid.data.boxes import upright_size
from clipreid.data.check import read_and_check
from clipreid.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def frame(seed: int = 0) -> np.ndarray:
    """[120, 160, 3]."""
    return np.random.default_rng(seed).integers(0, 255, (120, 160, 3), dtype=np.uint8)


def table(folder: Path, text: str) -> str:
    for number in range(2):
        Image.fromarray(frame(number)).save(folder / f"f{number}.png")
    (folder / "data.csv").write_text(text)
    return f"csv:{folder / 'data.csv'}"


def fails(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, **options)
    return str(caught.value)


ROWS = [("f0.png", "a", 3, 5, 20, 40), ("f0.png", "b", 100, 60, 30, 50), ("f1.png", "a", 0, 0, 160, 120)]


def written(header: str, rows: list[tuple[Any, ...]]) -> str:
    return "\n".join([f"image,identity,{header}", *(",".join(map(str, row)) for row in rows)])


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("x,y,w,h", ROWS),
        ("left,top,width,height", ROWS),
        ("bbox_x,bbox_y,bbox_w,bbox_h", ROWS),
        ("x,y,w,h", [(*row[:2], *(float(side) + 0.2 for side in row[2:4]), *row[4:]) for row in ROWS]),
        ("x1,y1,x2,y2", [(f, who, x, y, x + w, y + h) for f, who, x, y, w, h in ROWS]),
        ("xmin,ymin,xmax,ymax", [(f, who, x, y, x + w, y + h) for f, who, x, y, w, h in ROWS]),
        ("bbox", [(f, who, f'"[{x}, {y}, {w}, {h}]"') for f, who, x, y, w, h in ROWS]),
        ("bbox", [(f, who, f"{x} {y} {w}.0 {h}") for f, who, x, y, w, h in ROWS]),
    ],
)
def test_crops_have_the_pixels_of_their_boxes(tmp_path: Path, header: str, rows: list[tuple[Any, ...]]) -> None:
    split = load_data(table(tmp_path, written(header, rows))).splits["train"]
    for row, (name, who, x, y, w, h) in enumerate(ROWS):
        expected = frame(int(name[1]))[y : y + h, x : x + w]
        assert np.array_equal(np.asarray(split.image(row)), expected)
        assert split.identities[row] == who
        assert os.path.basename(split.path(row)) == f"{name[:2]}_{x}_{y}_{w}_{h}.png"
    assert len(set(split.paths.tolist())) == 3


def test_crops_are_cut_once_and_again_when_the_image_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = table(tmp_path, written("x,y,w,h", ROWS))
    data = load_data(spec)
    assert "3 crops are cut out of 2 images" in data.notes
    before = data.splits["train"].paths.tolist()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_cut", lambda *_: pytest.fail("cut again"))
        assert load_data(spec).splits["train"].paths.tolist() == before
    Image.fromarray(frame(7)).save(tmp_path / "f0.png")
    os.utime(tmp_path / "f0.png", (1, 1))
    after = load_data(spec).splits["train"]
    assert np.array_equal(np.asarray(after.image(0)), frame(7)[5:45, 3:23])
    assert (after.path(0) == before[0], after.path(2) == before[2]) == (False, True)
    assert [os.path.basename(path) for path in after.paths] == [os.path.basename(path) for path in before]
    assert len(list((tmp_path / "cache" / "crops").iterdir())) == 2  # the stale ones are gone
    assert not list((tmp_path / "cache").rglob(".*"))


def test_boxes_that_reach_outside_and_empty_ones_are_counted(tmp_path: Path) -> None:
    boxes = [(-5, 5, 30, 30), (150, 100, 40, 40), (3, 3, 0, 20), (5, 5, -3, 20), (5, 5, 7, 20), (9, 9, 8, 8)]
    rows = [("f0.png", "a", *box) for box in [*boxes, ("", "", "", "")]]
    data = load_data(table(tmp_path, written("x,y,w,h", rows)))
    assert [image.size for image in map(data.splits["train"].image, range(3))] == [(25, 30), (10, 20), (8, 8)]
    assert "2 boxes reach outside of their image and were clipped" in data.notes
    assert (
        "7 rows read, 3 used; left out: 1 without a box; 3 with a box that is empty or under 8 pixels in its image"
        in data.notes
    )


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("x,y,w,h", ["0.1", "0.2", "0.3", "0.5"], "all boxes lie between 0 and 1. Boxes of a table are in pixels"),
        ("x,y,w,h", ["1", "two", "30", "40"], "line 2: the box '1, two, 30, 40' is not four numbers (x, y, w, h)"),
        ("x,y,w,h", ["1", "", "30", "40"], "line 2: the box '1, , 30, 40' is not four numbers"),
        ("bbox", ["1 2 3"], "line 2: the box '1 2 3' is not four numbers (bbox)"),
        ("x,y,w,h", ["812", "300", "40", "80"], "3 of 3 boxes lie outside of their images for the most part"),
        ("x,y,w,h", ["812", "300", "40", "80"], "If the images are crops already: --columns bbox=none"),
    ],
)
def test_boxes_that_cannot_be(tmp_path: Path, header: str, cells: list[str], message: str) -> None:
    rows = [("f0.png", "a", *cells), ("f1.png", "a", *cells), ("f1.png", "b", *(f"{cell}" for cell in cells))]
    rows[2] = ("f1.png", "a", *cells)
    assert message in fails(table(tmp_path, written(header, rows)))


def test_a_column_that_looks_like_corners(tmp_path: Path) -> None:
    boxes = [(n, n, 60 + n, 70 + n) for n in range(24)]
    rows = [("f0.png", "a", f'"{list(box)}"') for box in boxes]
    message = fails(table(tmp_path, written("bbox", rows)))
    assert "the column 'bbox' means x, y, width, height, but its numbers look like corners" in message
    data = load_data(table(tmp_path, written("bbox_xywh", rows)))
    assert data.splits["train"].image(1).size == (61, 71)
    data = load_data(
        table(tmp_path, written("x1,y1,x2,y2", [(*row[:2], *box) for row, box in zip(rows, boxes, strict=False)]))
    )
    assert data.splits["train"].image(1).size == (60, 70)


def test_columns_say_where_boxes_are_or_that_there_are_none(tmp_path: Path) -> None:
    spec = table(tmp_path, written("a,b,c,d", ROWS))
    assert load_data(spec, columns="x=a,y=b,w=c,h=d").splits["train"].image(0).size == (20, 40)
    assert "--columns says where x, y of the boxes is, but not w, h" in fails(spec, columns="x=a,y=b")
    spec = table(tmp_path, written("x,y,w,h", [ROWS[0], ROWS[2]]))
    whole = load_data(spec, columns="bbox=none")
    assert whole.splits["train"].image(0).size == (160, 120)
    assert "columns not read: x, y, w, h" in whole.notes
    spec = table(tmp_path, written("x,y", [row[:4] for row in ROWS[1:]]))  # a place, no box
    assert load_data(spec).splits["train"].image(0).size == (160, 120)


def test_images_are_cut_as_they_are_shown_and_nothing_is_lost(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65535, (40, 30), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    clear = Image.fromarray(frame()).convert("RGBA")
    clear.putalpha(Image.fromarray(frame()[..., 0]))
    clear.save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(frame()).save(tmp_path / "turned.png", exif=exif)
    assert upright_size(str(tmp_path / "turned.png")) == (120, 160)
    rows = [(name, "a", 2, 3, 20, 30) for name in ("deep.png", "float.tif", "clear.png", "turned.png")]
    paths = load_data(table(tmp_path, written("x,y,w,h", rows))).splits["train"].paths.tolist()
    crops = [Image.open(path) for path in paths]
    assert np.array_equal(np.asarray(crops[0]), deep[3:33, 2:22])
    assert np.array_equal(np.asarray(crops[1]), deep.astype(np.float32)[3:33, 2:22])
    assert np.array_equal(np.asarray(crops[2]), np.asarray(clear)[3:33, 2:22])
    assert np.array_equal(np.asarray(crops[3]), np.rot90(frame(), -1)[3:33, 2:22])
    assert crops[3].getexif().get(0x0112, 1) == 1


def test_images_within_tables(tmp_path: Path) -> None:
    encoded = []
    for number in range(2):
        buffer = io.BytesIO()
        Image.fromarray(frame(number)).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": "same.png"})
    boxes = [[3, 5, 20, 40], [3, 5, 20, 40]]
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"image": encoded, "identity": ["a", "b"], "bbox": boxes}), tmp_path / "hub" / "x.parquet")
    split = load_data(f"hub:{tmp_path / 'hub'}").splits["train"]
    for number in range(2):
        assert np.array_equal(np.asarray(split.image(number)), frame(number)[5:45, 3:23])


def test_one_box_under_two_identities_is_refused(tmp_path: Path) -> None:
    rows = [ROWS[0], ("f0.png", "b", *ROWS[0][2:])]
    assert "is of identity 'b' here and of 'a' in" in fails(table(tmp_path, written("x,y,w,h", rows)))
    data = load_data(table(tmp_path, written("x,y,w,h", [ROWS[0], ROWS[1], ROWS[0]])))
    assert "3 rows read, 2 used; left out: 1 the same row as one before" in data.notes


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    spec = table(tmp_path, written("x,y,w,h", ROWS))
    whole = (tmp_path / "f1.png").read_bytes()
    (tmp_path / "f1.png").write_bytes(whole[: len(whole) // 2])
    assert "line 4: its image f1 cannot be decoded" in fails(spec)
    (tmp_path / "f0.png").write_bytes(b"no")
    assert "line 2: " in fails(spec)
    report, _ = read_and_check(spec)
    assert [f.explanation for f in report.findings if f.kind == "cannot be read"]
    (tmp_path / "f1.png").write_bytes(whole)
    report, data = read_and_check(spec)
    assert data is not None
    (finding,) = (f for f in report.findings if f.kind == "unusable line")
    assert [item.partition(": ")[0][-6:] for item in finding.items] == ["line 2", "line 3"]
    assert data.splits["train"].identities.tolist() == ["a"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "file"))
    message = fails(table(tmp_path, written("x,y,w,h", ROWS)))
    assert "the crops of boxes cannot be written" in message
    assert "set CLIPREID_CACHE" in message
