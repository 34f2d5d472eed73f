"""What detectors and trackers write, COCO files and YOLO label folders: crops, identities, and every refusal."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from clipreid.data import check_trainable, load_data
from clipreid.data.check import read_and_check
from clipreid.data.convert import convert
from clipreid.data.fingerprint import fingerprint
from clipreid.errors import UserError
from clipreid.search import find_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def frame(seed: int) -> np.ndarray:
    """[100, 200, 3]."""
    return np.random.default_rng(seed).integers(0, 255, (100, 200, 3), dtype=np.uint8)


def fails(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, **options)
    return str(caught.value)


# ---- COCO ------------------------------------------------------------------------------------------------


BOXES = [[0, 0, 20, 40], [20, 10, 30, 50], [50, 5, 20.4, 60], [100, 0, 40, 100]]


def coco(root: Path, keys: list[dict[str, Any]], folder: str = "", file: str = "boxes.json", **more: Any) -> str:
    """Two images with two boxes each; keys: further keys of each annotation."""
    images = []
    for number in range(2):
        name = f"{folder}{number}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(number)).save(root / name)
        name = name.removeprefix("images/")
        images.append({"id": 10 + number, "file_name": name, "width": 200, "height": 100, **more})
    annotations = [
        {"id": n, "image_id": 10 + n // 2, "category_id": 1, "bbox": BOXES[n], "area": 9, "iscrowd": 0, **keys[n]}
        for n in range(len(keys))
    ]
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "zebra"}]}
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(record))
    return f"coco:{root / file}"


@pytest.mark.parametrize(
    ("folder", "file"),
    [("", "boxes.json"), ("images/", "boxes.json"), ("images/", "annotations/boxes.json"), ("", "annotations/x.json")],
)
def test_coco(tmp_path: Path, folder: str, file: str) -> None:
    keys = [{"individual_id": who, "attributes": {"camera": c}} for who, c in zip("abab", (1, 1, 2, 2), strict=True)]
    data = load_data(coco(tmp_path, keys, folder, file))
    split = data.splits["train"]
    assert split.identities.tolist() == list("abab")
    assert split.cameras.tolist() == [1, 1, 2, 2]
    for row, (x, y, w, h) in enumerate(BOXES):
        assert np.array_equal(np.asarray(split.image(row)), frame(row // 2)[y : y + h, x : x + int(w)])
    assert "columns: identity is 'individual_id'" in data.notes
    assert "categories: zebra (4); all are read" in data.notes
    assert "4 crops are cut out of 2 images" in data.notes


def test_coco_with_a_folder_and_splits(tmp_path: Path) -> None:
    keys = [{"who": who, "split": "test"} for who in "abab"]
    spec = coco(tmp_path, keys, "far/away/x")
    record = json.loads((tmp_path / "boxes.json").read_text())
    for image in record["images"]:
        image["file_name"] = Path(image["file_name"]).name
    (tmp_path / "boxes.json").write_text(json.dumps(record))
    assert f"give their folder as coco:{tmp_path / 'boxes.json'}:FOLDER" in fails(spec, columns="identity=who")
    data = load_data(f"{spec}:{tmp_path / 'far' / 'away'}", columns="identity=who")
    assert list(data.splits) == ["query", "gallery"]
    named = load_data(coco(tmp_path, [{"identity": who} for who in "abab"], file="instances_val.json"))
    assert list(named.splits) == ["val"]


def test_coco_identities_are_tracks(tmp_path: Path) -> None:
    keys = [{"track_id": n % 2} for n in range(4)]
    data = load_data(coco(tmp_path, keys))
    assert data.splits["train"].identities.tolist() == ["0", "1", "0", "1"]
    assert "identities are tracks: track_id (of one sequence; several need folders)" in data.notes
    assert "columns not read: category" in data.notes
    assert load_data(coco(tmp_path, keys), columns="tracklet=track_id").splits["train"].tracklets[0] == "0"
    lost = load_data(coco(tmp_path, [*keys[:3], {"track_id": -1}]))  # of no track
    assert lost.splits["train"].identities.tolist() == ["0", "1", "0"]
    data = load_data(coco(tmp_path, [{**each, "video_id": n // 2} for n, each in enumerate(keys)]))
    assert data.splits["train"].identities.tolist() == ["0/0", "0/1", "1/0", "1/1"]
    assert data.splits["train"].tracklets.tolist() == ["0/0", "0/1", "1/0", "1/1"]
    note = "identities are tracks: video_id/track_id (if track_id is the same individual in all of them: --columns "
    assert f"{note}identity=track_id)" in data.notes
    spec = coco(tmp_path, [{**each, "video_id": n // 2} for n, each in enumerate(keys)])
    assert load_data(spec, columns="identity=track_id").splits["train"].identities.tolist() == ["0", "1", "0", "1"]


def test_without_identities_boxes_are_a_gallery_to_search(tmp_path: Path) -> None:
    spec = coco(tmp_path, [{}] * 4)
    data = load_data(spec)
    assert list(data.splits) == ["gallery"]
    assert "no identities: the crops can be embedded and searched" in data.notes[-1]
    assert len(find_images([spec])) == 4
    with pytest.raises(UserError, match="has no train split"):
        check_trainable(data, 1, 2)


def test_coco_counts_what_it_leaves_out(tmp_path: Path) -> None:
    keys: list[dict[str, Any]] = [{"identity": "a"}, {"identity": "b", "iscrowd": 1}, {"identity": None}]
    keys[2]["image_id"] = 10
    data = load_data(coco(tmp_path, keys))
    assert "1 boxes of crowds are left out" in data.notes
    assert "1 images have no boxes" in data.notes
    assert "2 rows read, 1 used; left out: 1 of an unknown identity: empty (1)" in data.notes


def test_coco_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    assert "is not a COCO file" in fails(f"coco:{tmp_path / 'x.json'}")
    (tmp_path / "x.json").write_text("{")
    assert "an object with images (id, file_name) and annotations (image_id, bbox)" in fails(
        f"coco:{tmp_path / 'x.json'}"
    )
    keys = [{"identity": "a"}] * 4
    assert "there is no image of id 99" in fails(coco(tmp_path, [{**keys[0], "image_id": 99}]))
    assert "annotation 0: bbox [1, 2, 3] is not x, y, width, height" in fails(
        coco(tmp_path, [{**keys[0], "bbox": [1, 2, 3]}])
    )
    assert "has 200x100 pixels (as it is shown), its annotations are for 400x200" in fails(
        coco(tmp_path, keys, width=400, height=200)
    )
    assert "has no annotations: no boxes" in fails(coco(tmp_path, []))


def test_crops_are_checked_and_converted_like_any_other_image(tmp_path: Path) -> None:
    spec = coco(tmp_path, [{"identity": who, "camera": c} for who, c in zip("abab", (1, 1, 2, 2), strict=True)])
    report, data = read_and_check(spec)
    assert data is not None
    assert {finding.kind for finding in report.findings if finding.severity == "fault"} == {"nothing to test on"}
    convert(data, tmp_path / "out", progress=False)
    back = load_data(f"hub:{tmp_path / 'out'}")
    assert fingerprint(back.splits["train"]) == fingerprint(data.splits["train"])
    for row in range(4):
        assert np.array_equal(np.asarray(back.splits["train"].image(row)), np.asarray(data.splits["train"].image(row)))


# ---- YOLO ------------------------------------------------------------------------------------------------


def yolo(root: Path, labels: dict[str, list[str]]) -> str:
    """labels: the path of each image below images/, and the lines of its label file."""
    for number, (name, lines) in enumerate(labels.items()):
        image, text = root / "images" / f"{name}.jpg", root / "labels" / f"{name}.txt"
        for file in (image, text):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(number)).save(image)
        if lines:
            text.write_text("\n".join(lines) + "\n")
    return f"yolo:{root}"


LINES = ["0 0.25 0.5 0.1 0.6", "2 0.75 0.5 0.2 1"]


def test_yolo_without_tracks(tmp_path: Path) -> None:
    spec = yolo(tmp_path, {"a": LINES, "b": [f"{line} 0.93" for line in LINES][:0], "sub/c": LINES})
    data = load_data(spec)
    gallery = data.splits["gallery"]
    assert list(data.splits) == ["gallery"]
    assert [gallery.image(row).size for row in range(4)] == [(20, 60), (40, 100)] * 2
    with Image.open(tmp_path / "images" / "a.jpg") as whole:
        assert np.array_equal(np.asarray(gallery.image(0)), np.asarray(whole)[20:80, 40:60])
    assert "classes: 0 (2), 2 (2); all are read" in data.notes
    assert "1 images have no boxes" in data.notes
    assert data.notes[-1].startswith("no identities: ")


def test_yolo_tracks_are_identities(tmp_path: Path) -> None:
    """As trackers write them: 6 numbers with a track, 7 with a confidence before it."""
    lines = [f"{line} {track}" for line, track in zip(LINES, (3, 7), strict=True)]
    train = load_data(yolo(tmp_path / "a", {"x": lines, "y": lines})).splits["train"]
    assert train.identities.tolist() == ["3", "7", "3", "7"]
    lines = [f"{line} 0.9 {track}" for line, track in zip(LINES, (3, 7), strict=True)]
    data = load_data(yolo(tmp_path / "b", {"train/s1/x": lines, "train/s2/y": lines, "test/s3/z": lines}))
    assert data.splits["train"].identities.tolist() == ["train/s1/3", "train/s1/7", "train/s2/3", "train/s2/7"]
    assert data.splits["query"].identities.tolist() == ["test/s3/3", "test/s3/7"]
    assert data.splits["train"].tracklets.tolist() == data.splits["train"].identities.tolist()
    assert "identities are tracks: folder/track" in data.notes


def test_yolo_with_splits_above(tmp_path: Path) -> None:
    lines = [f"{line} 0.9 {track}" for line, track in zip(LINES, (3, 7), strict=True)]
    yolo(tmp_path / "train", {"x": lines})
    yolo(tmp_path / "valid", {"y": [line[:-1] + "8" for line in lines[:1]]})
    data = load_data(f"yolo:{tmp_path}", unknown="7")
    assert {name: split.identities.tolist() for name, split in data.splits.items()} == {"train": ["3"], "val": ["8"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0 0.1 0.2 0.3"], "x.txt, line 1 has 4 numbers: boxes have 5 to 7"),
        (["0 0.1 0.2 0.3 0.1 0.2 0.3 0.1 0.2"], "polygons, rotated boxes and poses are not read"),
        (["0 0.1 0.2 0.3 high"], "x.txt, line 1 is not numbers"),
        (["0 50 20 30 40"], "the box 50 20 30 40 is no fraction of the image (0 to 1), as YOLO has it"),
        ([LINES[0], f"{LINES[1]} 4"], "line 1 has 5 numbers, "),
        ([f"{LINES[0]} 1", f"{LINES[1]} 1"], "the sixth number of all lines is 0 or 1, which may be a confidence or a"),
        ([], "the label files have no lines: no boxes"),
    ],
)
def test_yolo_that_cannot_be_read(tmp_path: Path, lines: list[str], message: str) -> None:
    spec = yolo(tmp_path, {"x": lines})
    (tmp_path / "labels").mkdir(exist_ok=True)
    assert message in fails(spec)


def test_yolo_folders_that_are_not_there(tmp_path: Path) -> None:
    spec = yolo(tmp_path, {"x": LINES})
    (tmp_path / "labels" / "y.txt").write_text(LINES[0])
    assert f"1 label files have no image, such as {tmp_path / 'labels' / 'y.txt'}" in fails(spec)
    (tmp_path / "labels").rename(tmp_path / "boxes")
    assert "holds no images/ beside labels/. Found: boxes/, images/" in fails(spec)
