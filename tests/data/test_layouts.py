"""The official layouts, built with tiny images under the official names and read back."""

import io
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipreid.data import ReIDData, Split, load_data
from clipreid.data.folders import Layout, count, differences
from clipreid.data.layouts import AERIAL, GROUND, LAYOUTS, WEARABLE, plain_names, same_people, variants
from clipreid.errors import UserError
from clipreid.evaluation import evaluate, get_protocol
from clipreid.evaluation.protocols import VIEWS

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
Row = tuple[Any, ...]


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 100, 50)).save(buffer, format)
    return buffer.getvalue()


IMAGES = {".jpg": encoded("JPEG"), ".png": encoded("PNG"), ".tif": encoded("TIFF")}


def build(root: Path, *images: str, **files: Any) -> None:
    """Images under these names, and files given as name=text or name=JSON (dots and slashes as __ and ___)."""
    for name in images:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[path.suffix])
    for name, content in files.items():
        path = root / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def rows(data: ReIDData, *columns: str) -> dict[str, list[Row]]:
    """split -> (identity, camera, and the columns asked for) of each image."""
    table = {name: split.metadata() | {"caption": split.captions} for name, split in data.splits.items()}
    chosen = ("identity", "camera", *columns)
    return {
        name: list(zip(*(values[column].tolist() for column in chosen), strict=True)) for name, values in table.items()
    }


def fails(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec)
    return str(caught.value)


# ---- declarations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plain_names())
def test_declarations_are_sound(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.name == name
    assert re.search(layout.pattern.regex, layout.pattern.example), "the example must fit its own pattern"
    assert set(layout.official) <= set(layout.folders)
    assert get_protocol(layout.protocol).name == layout.protocol


def test_views_are_numbered_as_the_protocols_number_them() -> None:
    assert VIEWS == {"aerial": AERIAL, "ground": GROUND, "wearable": WEARABLE}


def test_numbered_variants() -> None:
    assert variants("vehicleid") == [f"vehicleid-{size}" for size in (1600, 2400, 3200, 6000, 13164)]
    assert len(variants("cuhk03-classic-labeled")) == len(variants("cuhk03-classic-detected")) == 19
    assert variants("msmt17") == []  # msmt17-v2 is another data set
    assert "vehicleid-1600" not in plain_names()
    message = fails("vehicleid-1500:/x")
    assert "did you mean 'vehicleid-1600:ROOT'?" in message
    assert "vehicleid[-1600|-2400|-3200|-6000|-13164], prcc" in message
    assert "cuhk03-classic-labeled[-2|...|-20]" in message


def test_differences_name_only_what_is_published() -> None:
    split = Split.from_columns("train", [{"path": "a"}] * 3, ["1", "1", "2"], [1, -1, 4])
    assert count(split) == (3, 2, 2)
    layout = LAYOUTS["market1501"]
    for official, wrong in (((3, 2, 2), False), ((3, None, None), False), ((None, 2, 3), True), ((4, 2, None), True)):
        declared = Layout("x", layout.folders, layout.pattern, "market1501", official={"train": official})
        assert bool(differences(declared, {"train": split})) == wrong
    assert differences(declared, {"train": split}) == [
        "x: train has 3 images, 2 identities, 2 cameras; officially 4 images, 2 identities: "
        "figures will not compare with published ones"
    ]


# ---- sets whose folders say it all -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("dukemtmc", ""),
        ("occluded-duke", ""),
        ("cuhk03-np-labeled", "labeled/"),
        ("cuhk03-np-detected", "detected/"),
    ],
)
def test_market_like(tmp_path: Path, name: str, folder: str) -> None:
    suffix = ".png" if folder else ".jpg"
    build(
        tmp_path,
        *(f"{folder}bounding_box_train/{stem}{suffix}" for stem in ("0001_c2_f0046182", "0005_c8_f0046985")),
        f"{folder}query/0002_c1_f0044158{suffix}",
        *(f"{folder}bounding_box_test/{stem}{suffix}" for stem in ("0000_c1_1", "0002_c2_2")),
    )
    data = load_data(f"{name}:{tmp_path}")
    assert rows(data) == {
        "train": [("0001", 2), ("0005", 8)],
        "query": [("0002", 1)],
        "gallery": [("0000", 1), ("0002", 2)],
    }
    assert not any("left out" in note for note in data.notes)  # neither junk nor distractors by number
    assert data.protocol == ("cuhk03-np" if folder else "market1501")
    official = LAYOUTS[name].official["gallery"][0]
    assert any(f"gallery has 2 images, 2 identities, 2 cameras; officially {official:,d}" in n for n in data.notes)
    if folder:  # the inner folder will do as well
        inner = load_data(f"{name}:{tmp_path}/{folder}")
        assert rows(inner) == rows(data)
        assert f"read from {tmp_path}, above {tmp_path}/{folder.rstrip('/')}" in inner.notes


@pytest.mark.parametrize("name", ["dukemtmc", "occluded-duke", "p-dukemtmc"])
def test_withdrawn_data_comes_with_a_notice(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    build(tmp_path, *(f"{folder}/0001_2_3.jpg" for folder in layout.folders.values() if name == "p-dukemtmc"))
    build(tmp_path, *(f"{folder}/0001_c2_3.jpg" for folder in layout.folders.values()))
    data = load_data(f"{name}:{tmp_path}")
    assert data.notes[0].startswith(f"{name}: DukeMTMC was withdrawn by its authors in 2019")
    assert "do not pass it on" in data.notes[0]


def test_p_dukemtmc(tmp_path: Path) -> None:
    build(
        tmp_path,
        "train/occluded_body_images/0001/0001_2_0046182.jpg",
        "train/whole_body_images/0001/0001_5_0046302.jpg",
        "test/occluded_body_images/0019/0019_1_0051230.jpg",
        "test/whole_body_images/0019/0019_1_0051350.jpg",
    )
    data = load_data(f"p-dukemtmc:{tmp_path}")
    assert rows(data) == {"train": [("0001", 2), ("0001", 5)], "query": [("0019", 1)], "gallery": [("0019", 1)]}
    assert data.protocol == "no-cameras"


def test_occluded_reid_has_no_train(tmp_path: Path) -> None:
    build(
        tmp_path, "occluded_body_images/001/001_01.tif", "whole_body_images/001/01.tif", "whole_body_images/002_7.tif"
    )
    data = load_data(f"occluded-reid:{tmp_path}")
    assert rows(data) == {"query": [("001", -1)], "gallery": [("001", -1), ("002", -1)]}
    assert data.protocol == "no-cameras"
    assert data.splits["query"].image(0).size == (16, 8)
    assert any("officially 1,000 images, 200 identities: " in note for note in data.notes)


def test_veri(tmp_path: Path) -> None:
    build(
        tmp_path / "VeRi",
        "image_train/0001_c001_00016450_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c020_00030600_1.jpg",
    )
    data = load_data(f"veri:{tmp_path}")
    assert rows(data) == {"train": [("0001", 1)], "query": [("0002", 2)], "gallery": [("0002", 20)]}
    assert (data.protocol, data.noun) == ("veri", "vehicle")


def keypoints(*views: tuple[str, object]) -> str:
    """A keypoint file: path, 20 pairs of coordinates, view."""
    return "".join(f"{path} {' '.join(['-1'] * 40)} {view}\n" for path, view in views)


@pytest.mark.parametrize("above", [False, True])
def test_veri_reads_views_from_the_keypoint_files(tmp_path: Path, above: bool) -> None:
    root = tmp_path / "VeRi"
    train = [f"image_train/000{n}_c00{n}_00016450_0.jpg" for n in (1, 2, 3)]
    build(root, *train, "image_query/0004_c002_00030600_0.jpg", "image_test/0004_c020_00030600_1.jpg")
    home = tmp_path if above else root
    (home / "keypoint_train.txt").write_text(keypoints((f"VeRi/{train[0]}", 7), (train[1].replace("/", "\\"), 0)))
    (home / "keypoint_test.txt").write_text(
        "\n" + keypoints(("0004_c002_00030600_0.jpg", 3), ("x/0004_c020_00030600_1.jpg", 5), ("x/other.jpg", 1))
    )
    data = load_data(f"veri:{root}")
    expected = {"train": [("0001", 1, 7), ("0002", 2, 0), ("0003", 3, -1)]}
    assert rows(data, "view") == expected | {"query": [("0004", 2, 3)], "gallery": [("0004", 20, 5)]}
    (note,) = [note for note in data.notes if "views from" in note]
    assert note.endswith("; not named there, view unknown: 1 of train")
    assert str(home / "keypoint_train.txt") in note


def test_veri_without_keypoint_files_says_so(tmp_path: Path) -> None:
    build(tmp_path, *(f"{folder}/0001_c001_0_0.jpg" for folder in ("image_train", "image_query", "image_test")))
    data = load_data(f"veri:{tmp_path}")
    assert rows(data, "view")["train"] == [("0001", 1, -1)]
    assert any(note.startswith("no views: none of keypoint_train.txt, keypoint_test.txt lies") for note in data.notes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (keypoints(("a/1.jpg", "front")), r"keypoint_train.txt, line 1 ends with 'front', which is no view: a line is"),
        ("a/1.jpg\n", r"line 1 ends with 'a/1.jpg', which is no view"),
        (keypoints(("a/1.jpg", 1), ("b/1.jpg", 2)), r"line 2: 1.jpg has view 2, and 1 above: keep one line"),
    ],
)
def test_wrong_keypoint_files_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    build(tmp_path, *(f"{folder}/0001_c001_0_0.jpg" for folder in ("image_train", "image_query", "image_test")))
    (tmp_path / "keypoint_train.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        load_data(f"veri:{tmp_path}")


def test_prcc_reads_cameras_and_clothes(tmp_path: Path) -> None:
    build(
        tmp_path / "prcc",
        *(f"rgb/train/001/{camera}_cropped_rgb001.jpg" for camera in "ABC"),
        "rgb/val/001/A_cropped_rgb017.jpg",
        *(f"rgb/test/{camera}/005/cropped_rgb001.jpg" for camera in "ABC"),
    )
    changing = load_data(f"prcc:{tmp_path}")
    assert rows(changing, "clothes") == {
        "train": [("001", 1, "001_1"), ("001", 2, "001_1"), ("001", 3, "001_2")],
        "query": [("005", 3, "005_2")],
        "gallery": [("005", 1, "005_1")],
    }
    assert changing.protocol == "cloth-changing"
    same = load_data(f"prcc-same:{tmp_path}/prcc/rgb")
    assert rows(same, "clothes")["query"] == [("005", 2, "005_1")]
    assert same.protocol == "same-clothes"


def test_ltcc(tmp_path: Path) -> None:
    build(tmp_path, "train/001_1_c10_015833.png", "query/013_3_c1_000001.png", "test/013_2_c4_000102.png")
    data = load_data(f"ltcc:{tmp_path}")
    assert rows(data, "clothes") == {
        "train": [("001", 10, "001_1")],
        "query": [("013", 1, "013_3")],
        "gallery": [("013", 4, "013_2")],
    }
    assert data.protocol == "cloth-changing"


def test_aerial_ground_views(tmp_path: Path) -> None:
    build(
        tmp_path / "cargo",
        "train/Cam1/Cam1_day_2519_320.jpg",
        "query/Cam5/Cam5_night_3_1.jpg",
        "gallery/Cam13/Cam13_day_3_2.jpg",
        "gallery/Cam6/Cam6_day_3_3.jpg",
    )
    cargo = load_data(f"cargo:{tmp_path}/cargo")
    assert rows(cargo, "view") == {
        "train": [("2519", 1, 0)],
        "query": [("3", 5, 0)],
        "gallery": [("3", 13, 1), ("3", 6, 1)],
    }
    build(
        tmp_path / "ag",
        "train_all/P0001T04041A0/P0001T04041A0C0F31.jpg",
        "query/P0000T02140A0/P0000T02140A0C3F91.jpg",
        "gallery/P0000T02140A0/P0000T02140A0C2F91.jpg",
    )
    agreid = load_data(f"ag-reid-v2:{tmp_path}/ag")
    assert rows(agreid, "view") == {
        "train": [("P0001T04041A0", 0, 0)],
        "query": [("P0000T02140A0", 3, 1)],
        "gallery": [("P0000T02140A0", 2, 2)],
    }
    assert cargo.protocol == agreid.protocol == "aerial-ground"


# ---- sets with lists of images ---------------------------------------------------------------------------


def msmt17(root: Path, train: str = "train", test: str = "test") -> None:
    first, second = "0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_001_15_0303noon_0016_1.jpg"
    build(
        root,
        *(f"{train}/{name}" for name in (first, second)),
        *(f"{test}/{name}" for name in (first, second)),
        f"{test}/0001/0001_000_03_0303evening_0001_0.jpg",  # in no list: not read
        list_train__txt=f"{first} 0\n",
        list_val__txt=f"{second} 0\n\n",
        list_query__txt=f"{first} 0\n",
        list_gallery__txt=f"{second} 0\n",
    )


@pytest.mark.parametrize(("name", "folders"), [("msmt17", ()), ("msmt17-v2", ("mask_train_v2", "mask_test_v2"))])
def test_msmt17(tmp_path: Path, name: str, folders: tuple[str, ...]) -> None:
    msmt17(tmp_path / "MSMT17", *folders)
    data = load_data(f"{name}:{tmp_path}")
    assert rows(data) == {
        "train": [("train-0", 1), ("train-0", 15)],  # list_train and list_val; 0 of test is another person
        "query": [("0", 1)],
        "gallery": [("0", 15)],
    }
    assert data.protocol == "market1501"
    assert any("officially 32,621 images, 1,041 identities, 15 cameras" in note for note in data.notes)
    assert any("blurred faces" in note for note in data.notes) == (name == "msmt17-v2")
    assert data.splits["train"].path(0).endswith("/0000/0000_000_01_0303morning_0015_0.jpg")
    other = "msmt17-v2" if name == "msmt17" else "msmt17"
    message = fails(f"{other}:{tmp_path}/MSMT17")
    assert f"lacks {'mask_train_v2/' if name == 'msmt17' else 'train/'}" in message
    assert message.endswith(f"It fits {name}:{tmp_path}/MSMT17")


@pytest.mark.parametrize(("name", "size"), [("vehicleid", 800), ("vehicleid-1600", 1600)])
def test_vehicleid(tmp_path: Path, name: str, size: int) -> None:
    build(
        tmp_path,
        *(f"image/000000{n}.jpg" for n in range(1, 6)),
        train_test_split___train_list__txt="0000001 10\n0000002 11\n",
    )
    build(tmp_path, **{f"train_test_split___test_list_{size}__txt": "0000003 20\n0000004 20\n0000005 21"})
    data = load_data(f"{name}:{tmp_path}")
    test = [("20", -1), ("20", -1), ("21", -1)]  # the protocol draws the gallery from the queries
    assert rows(data) == {"train": [("10", -1), ("11", -1)], "query": test, "gallery": test}
    assert (data.protocol, data.noun) == ("vehicleid", "vehicle")
    official = {800: "6,493", 1600: "13,377"}[size]
    assert any(f"officially {official} images, {size:,d} identities:" in note for note in data.notes)
    assert "lacks train_test_split/test_list_2400.txt" in fails(f"vehicleid-2400:{tmp_path}")


def test_lists_that_do_not_agree_with_the_folder(tmp_path: Path) -> None:
    msmt17(tmp_path)
    spec = f"msmt17:{tmp_path}"
    gone = tmp_path / "test" / "0000" / "0000_001_15_0303noon_0016_1.jpg"
    gone.unlink()
    message = fails(spec)
    assert f"1 of 1 images that {tmp_path}/list_gallery.txt names are not there" in message
    assert f"list_gallery.txt, line 1: no image {gone}" in message

    (tmp_path / "list_gallery.txt").write_text("\n".join(f"0000/x{n}.jpg 0" for n in range(12)))
    assert "... and 2 more" in fails(spec)
    (tmp_path / "list_gallery.txt").write_text("\n \n")
    assert f"{tmp_path}/list_gallery.txt names no images" in fails(spec)
    (tmp_path / "list_gallery.txt").write_bytes(b"\xff\xfe0")
    assert f"{tmp_path}/list_gallery.txt is not UTF-8 text" in fails(spec)
    (tmp_path / "list_gallery.txt").unlink()
    message = fails(spec)
    assert f"{tmp_path} lacks list_gallery.txt. Expected below it: train/, test/, list_train.txt" in message
    assert "Found: list_query.txt, list_train.txt, list_val.txt, test/, train/" in message


def test_a_line_that_does_not_fit_is_named(tmp_path: Path) -> None:
    msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_text("0000/0000_000_01_0303morning_0015_0.jpg\n")
    message = fails(f"msmt17:{tmp_path}")
    assert "1 of 1 images do not fit the pattern 'msmt17'" in message
    assert "list_query.txt, line 1: 0000/0000_000_01_0303morning_0015_0.jpg" in message


def cuhk03(root: Path) -> list[Mapping[str, list[list[Any]]]]:
    test = ["1_003_1_02.png", "1_003_2_08.png", "5_001_2_06.png"]
    build(root, *(f"images_labeled/{name}" for name in ["1_001_1_01.png", *test]))
    split = {"train": [["/home/other/1_001_1_01.png", 0, 0]], "query": [[f"D:\\cuhk\\{name}", 0, 0] for name in test]}
    return [{**split, "gallery": split["query"]}, {**split, "gallery": split["query"][:1]}]


def test_cuhk03_classic(tmp_path: Path) -> None:
    splits = cuhk03(tmp_path)
    build(tmp_path, splits_classic_labeled__json=splits)
    data = load_data(f"cuhk03-classic-labeled:{tmp_path}")
    test = [("1_003", 1), ("1_003", 2), ("5_001", 2)]
    assert rows(data) == {"train": [("1_001", 1)], "query": test, "gallery": test}
    assert data.protocol == "cuhk03-classic"
    assert rows(load_data(f"cuhk03-classic-labeled-2:{tmp_path}"))["gallery"] == test[:1]
    assert "holds 2 splits: there is no number 20" in fails(f"cuhk03-classic-labeled-20:{tmp_path}")
    assert "lacks images_detected/, splits_classic_detected.json" in fails(f"cuhk03-classic-detected:{tmp_path}")
    build(tmp_path, splits_classic_labeled__json=[{"train": splits[0]["train"], "query": [[]], "gallery": []}])
    assert "split 1 has no list of images 'query'" in fails(f"cuhk03-classic-labeled:{tmp_path}")


# ---- sets with captions ------------------------------------------------------------------------------------


def record(split: str, identity: int, path: str, *captions: str, key: str = "file_path") -> dict[str, Any]:
    return {"split": split, "id": identity, key: path, "captions": list(captions), "processed_tokens": []}


def test_cuhk_pedes(tmp_path: Path) -> None:
    records = [
        record("train", 1, "cam_a/004_45.png", "A man in\nblue.", " A man. "),
        record("val", 11004, "CUHK01/0363004.png", "A girl."),
        record("test", 12004, "test_query/p1_s1.jpg", "Tall.", "Short."),
        record("test", 12005, "test_query/p2_s2.jpg", "A boy.", "A lad."),
    ]
    build(tmp_path, *(f"imgs/{entry['file_path']}" for entry in records), reid_raw__json=records)
    data = load_data(f"cuhk-pedes:{tmp_path}")
    assert rows(data, "caption") == {
        "train": [("1", -1, "A man in blue.\nA man.")],
        "val": [("11004", -1, "A girl.")],
        "query": [("12004", -1, "Tall."), ("12004", -1, "Short."), ("12005", -1, "A boy."), ("12005", -1, "A lad.")],
        "gallery": [("12004", -1, "Tall.\nShort."), ("12005", -1, "A boy.\nA lad.")],
    }
    assert data.protocol == "text-to-image"
    assert data.splits["query"].path(1) == data.splits["gallery"].path(0) == f"{tmp_path}/imgs/test_query/p1_s1.jpg"


@pytest.mark.parametrize("file", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_icfg_pedes(tmp_path: Path, file: str) -> None:
    train, test = "train/0000/0000_000_01_0303morning_0015_0.jpg", "test/0000/0000_001_15_0303noon_0016_1.jpg"
    records = [record("train", 0, train, "A man."), record("test", 0, test, "A girl.")]
    build(tmp_path, f"imgs/{train}", f"imgs/{test}", **{file.replace(".", "__"): records})
    data = load_data(f"icfg-pedes:{tmp_path}")
    assert rows(data, "caption") == {
        "train": [("train-0", 1, "A man.")],
        "query": [("0", 15, "A girl.")],
        "gallery": [("0", 15, "A girl.")],
    }


def test_rstpreid(tmp_path: Path) -> None:
    records = [
        record(split, number, f"{number:04d}_c{number + 1}_0001.jpg", "One.", "Two.", key="img_path")
        for number, split in enumerate(("train", "val", "test"))
    ]
    build(tmp_path, *(f"imgs/{entry['img_path']}" for entry in records), data_captions__json=records)
    data = load_data(f"rstpreid:{tmp_path}")
    assert rows(data) == {"train": [("0", 1)], "val": [("1", 2)], "query": [("2", 3)] * 2, "gallery": [("2", 3)]}
    assert data.splits["query"].captions.tolist() == ["One.", "Two."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"split": "train",\n "id"', "reid_raw.json, line 2 is not JSON"),
        ({"train": []}, "holds a JSON dict; a list is needed"),
        ([record("train", 1, "a.jpg", "x"), {"id": 3}], "record 2 lacks split, file_path, captions; needed: split,"),
        ([record("train", 1, "a.jpg")], "record 1: captions must be a list of sentences, not []"),
        ([record("train", 1, "a.jpg", "x", " ")], "record 1: captions must be a list of sentences"),
        ([record("train", 1, "b.jpg", "x")], "reid_raw.json, record 1: no image "),
        ([record("train", 1, "a.jpg", "x")], "no record has the split 'val'; found: 'train'"),
        ([], "no record has the split 'train'; found: no records"),
    ],
)
def test_wrong_caption_files(tmp_path: Path, content: Any, message: str) -> None:
    build(tmp_path, "imgs/a.jpg", reid_raw__json=content)
    assert message in fails(f"cuhk-pedes:{tmp_path}")


# ---- what the protocols make of them -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "valid", "others"),
    [
        ("market1501", "0002_c1s1_1_00.jpg", [], ["-1_c2s1_1_00.jpg", "0000_c2s1_1_00.jpg", "0002_c1s1_2_00.jpg"]),
        ("market1501", "0002_c1s1_1_00.jpg", ["0002_c3s1_2_00.jpg"], ["0000_c2s1_1_00.jpg", "0002_c1s1_2_00.jpg"]),
        ("veri", "0002_c001_1_0.jpg", ["0002_c002_3_0.jpg"], ["0002_c001_2_0.jpg", "0003_c002_3_0.jpg"]),
        ("occluded-reid", "001/001_01.tif", ["001/001_02.tif"], ["002/002_01.tif"]),
        ("p-dukemtmc", "0001/0001_2_1.jpg", ["0001/0001_2_2.jpg"], ["0002/0002_2_2.jpg"]),
        ("ltcc", "001_1_c1_01.png", ["001_2_c2_04.png"], ["001_1_c2_02.png", "001_2_c1_03.png", "002_1_c2_05.png"]),
        ("prcc", "005/cropped_rgb001.jpg", ["005/cropped_rgb002.jpg"], ["006/cropped_rgb001.jpg"]),
        ("prcc-same", "005/cropped_rgb001.jpg", ["005/cropped_rgb002.jpg"], ["006/cropped_rgb001.jpg"]),
        ("cargo", "Cam1_day_7_1.jpg", ["Cam6_day_7_3.jpg"], ["Cam2_day_7_2.jpg", "Cam6_day_8_4.jpg"]),
        ("cuhk03-np-labeled", "0003_c1_1.png", ["0003_c2_6.png"], ["0003_c1_2.png", "0004_c2_6.png"]),
    ],
)
def test_junk_and_distractors(tmp_path: Path, name: str, query: str, valid: list[str], others: list[str]) -> None:
    """Junk, ranked last here, must not count; strangers and distractors are ranked behind the valid matches."""
    folders = LAYOUTS[name].folders
    if "train" in folders:
        build(tmp_path, f"{folders['train']}/{query}")
    build(tmp_path, f"{folders['query']}/{query}", *(f"{folders['gallery']}/{path}" for path in [*valid, *others]))
    data = load_data(f"{name}:{tmp_path}")
    ours, theirs = data.splits["query"], data.splits["gallery"]
    assert len(theirs) == len(valid) + sum(not path.startswith("-1") for path in others)
    ranked = [1.0 if path.endswith(tuple(valid)) else 0.5 for path in theirs.paths] if valid else [0.5] * len(theirs)
    same = ours.identities[0] == theirs.identities
    similarity = torch.tensor([[x if x == 1 or not s else 0.0 for x, s in zip(ranked, same, strict=True)]])
    if valid:
        assert evaluate(query=ours, gallery=theirs, protocol=data.protocol, similarity=similarity).metrics["mAP"] == 1
    else:
        with pytest.raises(UserError, match="every match is junk"):
            evaluate(query=ours, gallery=theirs, protocol=data.protocol, similarity=similarity)


# ---- round trips -------------------------------------------------------------------------------------------

NAMES = {  # (identity, camera, nth image) -> path below the split's folder, as the official names are
    "market1501": lambda i, c, n: f"{i:04d}_c{c}s1_{n:06d}_00.jpg",
    "veri": lambda i, c, n: f"{i:04d}_c{c:03d}_{n:08d}_0.jpg",
    "p-dukemtmc": lambda i, c, n: f"{i:04d}/{i:04d}_{c}_{n:07d}.jpg",
    "ltcc": lambda i, c, n: f"{i:04d}_{n}_c{c}_{n:06d}.jpg",
    "cargo": lambda i, c, n: f"Cam{c}/Cam{c}_night_{i:04d}_{n}.jpg",
    "ag-reid-v2": lambda i, c, n: f"P{i:04d}T04041A0/P{i:04d}T04041A0C{c}F{n}.jpg",
}
PEOPLE = st.lists(st.tuples(st.integers(1, 9999), st.integers(1, 20)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(train=PEOPLE, query=PEOPLE, gallery=PEOPLE)
def test_any_identities_and_cameras_come_back(name: str, **people: list[tuple[int, int]]) -> None:
    layout = LAYOUTS[name]
    with tempfile.TemporaryDirectory() as root:
        for split, pairs in people.items():
            for nth, (identity, camera) in enumerate(pairs):
                path = Path(root, layout.folders[split], NAMES[name](identity, camera, nth))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        data = load_data(f"{name}:{root}")
        for split, pairs in people.items():
            assert sorted(_plain(rows(data)[split])) == sorted(pairs)


def _plain(found: Iterable[Row]) -> list[tuple[int, int]]:
    return [(int(re.sub(r"^P|T.*$", "", identity)), camera) for identity, camera in found]


# ---- docs/data.md ------------------------------------------------------------------------------------------


def test_the_table_says_what_the_readers_check() -> None:
    lines = DOCS.read_text().splitlines()
    for name in plain_names():
        row = next(line for line in lines if line.startswith(f"| `{name}`"))
        assert f"`{LAYOUTS[name].protocol}`" in row, row
        for split, counts in LAYOUTS[name].official.items():
            said = " / ".join("?" if number is None else f"{number:,d}" for number in counts)
            assert f"{split} {said}" in row, row


def test_the_example_of_a_new_reader_works(tmp_path: Path) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "Layout(" in block)
    assert len(code.strip().splitlines()) <= 20
    build(
        tmp_path,
        *(
            f"crops/{name}.jpg"
            for name in ("zebra07_cam2_side0_0001", "zebra07_cam1_side1_0002", "zebra09_cam1_side1_0001")
        ),
        lists___train__txt="zebra09_cam1_side1_0001.jpg\n",
        lists___query__txt="zebra07_cam2_side0_0001.jpg\n",
        lists___gallery__txt="zebra07_cam1_side1_0002.jpg\n",
    )
    namespace: dict[str, Any] = {}
    try:
        exec(compile(code.replace("/data/zebras", str(tmp_path)), str(DOCS), "exec"), namespace)
    finally:
        LAYOUTS.pop("zebras", None)
    assert rows(namespace["data"], "view") == {
        "train": [("zebra09", 1, 1)],
        "query": [("zebra07", 2, 0)],
        "gallery": [("zebra07", 1, 1)],
    }
    assert namespace["data"].noun == "zebra"
    assert any("officially 2,240 images, 131 identities" in note for note in namespace["data"].notes)


FAMILIES = [
    ("cuhk03-np-labeled:/a", "cuhk03-np-detected:/b", "cuhk03"),
    ("cuhk03-classic-detected-7:/a", "cuhk03-np-labeled:/b", "cuhk03"),
    ("icfg-pedes:/a", "msmt17:/b", "msmt17"),
    ("rstpreid:/a", "msmt17-v2:/b", "msmt17"),
    ("p-dukemtmc:/a", "occluded-duke:/b", "dukemtmc"),
    ("dukemtmc:/a", "occluded-duke:/b", "dukemtmc"),
    ("vehicleid:/a", "vehicleid-2400:/a", "vehicleid"),
    ("prcc", "prcc-same", "prcc"),
    ("market1501:/a", "market1501:/b", "market1501"),
    ("market1501:/a", "dukemtmc:/a", None),
    ("occluded-reid:/a", "p-dukemtmc:/a", None),
    ("folder:/a", "folder:/a", None),
    ("market1501:/a", "folder:/a", None),
    ("synthetic", "synthetic:new-cameras", None),
]


@pytest.mark.parametrize(("one", "two", "family"), FAMILIES)
def test_sets_that_show_the_same_people(one: str, two: str, family: str | None) -> None:
    assert same_people(one, two) == same_people(two, one) == family
