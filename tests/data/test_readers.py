"""Data names and folders: what is read, and every error a user can run into."""

import os
from pathlib import Path

import pytest
from PIL import Image

from clipreid.data import Split, load_data
from clipreid.data.trees import read_folder
from clipreid.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "vehicles-2cam"


def draw(*paths: Path, size: tuple[int, int] = (16, 32)) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (hash(path.name) % 255, 100, 50)).save(path)


def fails(spec: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, **options)
    return str(caught.value)


def rows(split: Split) -> list[tuple[str, int]]:
    return list(zip(split.identities.tolist(), split.cameras.tolist(), strict=True))


# ---- folder: -----------------------------------------------------------------------------------------------


def test_folder_class_cam_is_query_and_gallery_across_cameras(tmp_path: Path) -> None:
    draw(*(tmp_path / "train" / f"car_000{n}_cam{c}.jpg" for n in (1, 3) for c in (1, 2)))
    draw(*(tmp_path / "test" / f"big-truck_0002_cam{c}.jpg" for c in (1, 2)))
    data = load_data(f"folder:{tmp_path}")
    assert list(data.splits) == ["train", "query", "gallery"]
    assert rows(data.splits["train"]) == [("car_0001", 1), ("car_0001", 2), ("car_0003", 1), ("car_0003", 2)]
    assert rows(data.splits["query"]) == rows(data.splits["gallery"]) == [("big-truck_0002", 1), ("big-truck_0002", 2)]
    assert (data.protocol, data.noun) == ("cross-camera", "vehicle")
    notes = " ".join(data.notes)
    assert "read by the pattern 'class-cam':\n    train/car_0001_cam1.jpg is identity 'car_0001', camera 1\n" in notes
    assert "\n    test/big-truck_0002_cam2.jpg is identity 'big-truck_0002', camera 2" in notes
    assert "prompts say 'vehicle' (guessed from the identities" in notes
    assert "every test image is query and gallery" in notes
    assert data.splits["query"].path(0) == str(tmp_path / "test" / "big-truck_0002_cam1.jpg")
    assert data.splits["query"].table[0]["split"] == "query"


def test_folder_market_names_drop_junk_and_0000_is_an_individual(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "0007_c3s2_000001_01.jpg")
    for name in ("0002_c1s1_000451_03", "0002_c6s1_000001_00", "-1_c1s1_000401_03", "0000_c2s1_000001_00"):
        draw(tmp_path / "test" / f"{name}.jpg")
    data = load_data(f"folder:{tmp_path}")
    assert rows(data.splits["gallery"]) == rows(data.splits["query"]) == [("0000", 2), ("0002", 1), ("0002", 6)]
    assert "gallery: 1 images left out (the identity is '-1', which means unknown)" in data.notes
    assert "0000 is an individual like any other here (market1501: takes it for distractors)" in data.notes
    assert data.noun == "person"
    assert data.splits["gallery"].sessions.tolist() == ["1", "1", "1"]  # c6s1 is the first sequence of camera 6


@pytest.mark.parametrize(
    ("name", "pattern", "identity", "camera"),
    [
        ("anna/0001.jpg", "identity/", "anna", -1),
        ("anna/deep/x_1.jpg", None, None, None),
        ("anna/cam3/0001.png", "identity/camera/", "anna", 3),
        ("anna/Camera_12/0001.png", "identity/camera/", "anna", 12),
        ("anna/4/0001.jpeg", None, None, None),  # a camera, a day, a tracklet?
        ("cam2/anna/0001.jpeg", "camera/identity/", "anna", 2),
        ("anna/x_cam2.jpg", "identity/cam", "anna", 2),
        ("anna/C5s2_000_x.JPG", "identity/cam", "anna", 5),
        ("0002/0002_c1s1_000451_03.jpg", "market1501", "0002", 1),
        ("0001_c002_00016450_0.jpg", "market1501", "0001", 2),
        ("truck/truck_0001_cam2_0033.jpg", "class-cam", "truck_0001", 2),
        ("0031_cam2.jpg", "class-cam", "0031", 2),
        ("0002_17.jpg", None, None, None),  # an image, or a camera?
        ("photo.jpg", None, None, None),
    ],
)
def test_built_in_patterns(
    tmp_path: Path, name: str, pattern: str | None, identity: str | None, camera: int | None
) -> None:
    draw(tmp_path / "train" / name)
    if pattern is None:
        assert "it is not clear how the paths of 1 images name identities" in fails(f"folder:{tmp_path}")
        return
    data = load_data(f"folder:{tmp_path}")
    assert rows(data.splits["train"]) == [(identity, camera)]
    assert f"pattern {pattern!r}" in data.notes[0]


def test_a_number_pattern_is_there_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "0002_17.jpg", tmp_path / "train" / "0003_17.jpg")
    assert rows(load_data(f"folder:{tmp_path}", pattern="number_").splits["train"]) == [("0002", -1), ("0003", -1)]


def test_folder_without_cameras(tmp_path: Path) -> None:
    draw(
        tmp_path / "train" / "anna" / "1.jpg",
        tmp_path / "test" / "ben" / "1.jpg",
        tmp_path / "test" / "ben" / "2.jpg",
    )
    data = load_data(f"folder:{tmp_path}")
    assert data.protocol == "no-cameras"
    assert "no camera is known: the junk rule (same identity, same camera) is off" in data.notes
    asked = "prompts say 'person', for nothing says what the individuals are: say it, such as --noun antelope"
    assert asked in data.notes


def test_folder_with_one_test_camera_cannot_use_the_junk_rule(tmp_path: Path) -> None:
    draw(*(tmp_path / "test" / f"{who}/{n}-cam1.jpg" for who in ("anna", "ben") for n in (1, 2)))
    draw(*(tmp_path / "train" / f"{who}/{n}-cam1.jpg" for who in ("cora", "dan") for n in (1, 2)))
    data = load_data(f"folder:{tmp_path}")
    assert data.protocol == "no-cameras"
    assert any("all test images come from camera 1" in note for note in data.notes)


@pytest.mark.parametrize("home", ["", "test/"])
def test_folder_query_and_gallery(tmp_path: Path, home: str) -> None:
    draw(tmp_path / "val" / "vic" / "cam1" / "1.jpg")
    draw(
        tmp_path / f"{home}query" / "anna" / "cam1" / "1.jpg",
        tmp_path / f"{home}gallery" / "anna" / "cam2" / "1.jpg",
    )
    draw(tmp_path / "extra" / "x.jpg")
    data = load_data(f"folder:{tmp_path}")
    assert data.protocol == "market1501"
    assert {name: rows(split) for name, split in data.splits.items()} == {
        "val": [("vic", 1)],
        "query": [("anna", 1)],
        "gallery": [("anna", 2)],
    }
    assert "not read: extra/" in data.notes


def test_val_with_query_and_gallery_is_one_split(tmp_path: Path) -> None:
    draw(tmp_path / "validation" / "query" / "vic" / "cam1" / "1.jpg")
    draw(tmp_path / "validation" / "gallery" / "vic" / "cam2" / "1.jpg", tmp_path / "validation" / "old" / "1.jpg")
    draw(*(tmp_path / "train" / who / f"cam{c}" / "1.jpg" for who in ("anna", "ben") for c in (1, 2)))
    data = load_data(f"folder:{tmp_path}")
    assert {name: rows(split) for name, split in data.splits.items()} == {
        "train": [("anna", 1), ("anna", 2), ("ben", 1), ("ben", 2)],
        "val": [("vic", 1), ("vic", 2)],
    }
    assert "validation/query and gallery are one split, val: each of its images is searched in all" in data.notes
    assert "not read: validation/old/" in data.notes
    (tmp_path / "validation" / "gallery").rename(tmp_path / "elsewhere")
    assert "has validation/query/ alone" in fails(f"folder:{tmp_path}")
    (tmp_path / "val").mkdir()
    assert "has val/ and validation/, both for val: keep one of them" in fails(f"folder:{tmp_path}")
    (tmp_path / "val").rename(tmp_path / "Train")
    assert "keep one of them" in fails(f"folder:{tmp_path}")


def test_cameras_of_which_each_sees_other_individuals_give_no_junk_rule(tmp_path: Path) -> None:
    """Tracks of sequences: each identity is seen by one camera."""
    draw(
        *(tmp_path / "test" / f"MOT17-0{c}" / f"000{who}" / f"{n}.jpg" for c in (2, 4) for who in (1, 2) for n in "12")
    )
    data = load_data(f"folder:{tmp_path}")
    assert data.protocol == "no-cameras"
    assert any("no identity is seen by two cameras" in note for note in data.notes)
    assert "cameras are numbered: 'MOT17-02' is 0, 'MOT17-04' is 1" in data.notes
    assert sorted(set(data.splits["query"].identities.tolist()))[0] == "MOT17-02/0001"


def test_folder_query_and_gallery_without_cameras_has_no_junk_rule(tmp_path: Path) -> None:
    draw(tmp_path / "query" / "anna" / "1.jpg", tmp_path / "gallery" / "anna" / "2.jpg")
    data = load_data(f"folder:{tmp_path}")
    assert data.protocol == "no-cameras"
    assert any("junk rule" in note and "is off" in note for note in data.notes)


def test_folder_with_nothing_to_test_on(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "anna" / "1.jpg")
    note = "no test images: there is nothing to evaluate on (`clipreid data split` makes a test of some identities)"
    assert note in load_data(f"folder:{tmp_path}").notes
    draw(tmp_path / "val" / "ben" / "1.jpg")
    data = load_data(f"folder:{tmp_path}")
    assert list(data.splits) == ["train", "val"]
    assert note in data.notes
    draw(*(tmp_path / "train" / f"{who}" / "1.jpg" for who in "abcdefghi"), tmp_path / "val" / "anna" / "2.jpg")
    assert "1 identities are in train and in val (such as 'anna'): --validate flatters" in "\n".join(
        load_data(f"folder:{tmp_path}").notes
    )


def test_identities_in_train_and_test_are_refused(tmp_path: Path) -> None:
    draw(*(tmp_path / part / f"{who}_c{c}s1_0_0.jpg" for part in ("train", "test") for who in (0, 1) for c in (1, 2)))
    message = fails(f"folder:{tmp_path}")
    assert "2 identities are in train and in the test set (such as '0'), so figures would flatter" in message
    assert "`clipreid data split` sets some aside" in message
    assert "one name means two individuals: --pattern apart:market1501 keeps them apart" in message
    data = load_data(f"folder:{tmp_path}", pattern="apart:market1501")
    assert rows(data.splits["train"]) == [("train-0", 1), ("train-0", 2), ("train-1", 1), ("train-1", 2)]
    assert set(data.splits["query"].identities.tolist()) == {"0", "1"}
    assert data.splits["train"].sessions.tolist() == ["1"] * 4
    assert "Did you mean 'market1501'?" in fails(f"folder:{tmp_path}", pattern="apart:market")


def test_unknown_individuals_are_left_out_and_counted(tmp_path: Path) -> None:
    draw(
        *(tmp_path / part / who / f"{n}.jpg" for part in ("train", "test") for who in ("-1", "Unknown") for n in (1, 2))
    )
    draw(*(tmp_path / "train" / who / f"{n}.jpg" for who in ("anna", "ben", "nobody") for n in (1, 2)))
    draw(*(tmp_path / "test" / who / f"{n}.jpg" for who in ("cora", "dan") for n in (1, 2)))
    data = load_data(f"folder:{tmp_path}")
    assert sorted(set(data.splits["train"].identities.tolist())) == ["anna", "ben", "nobody"]
    assert "train: 4 images left out (the identity is '-1', 'Unknown', which means unknown)" in data.notes
    fewer = read_folder(tmp_path, f"folder:{tmp_path}", unknown=("nobody",))
    assert sorted(set(fewer.splits["train"].identities.tolist())) == ["anna", "ben"]


def test_noun(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "car_01" / "1.jpg", tmp_path / "train" / "carla" / "1.jpg")
    assert load_data(f"folder:{tmp_path}").noun == "person"  # one of two: no majority, and carla is no car
    data = load_data(f"folder:{tmp_path}", noun="tiger")
    assert data.noun == "tiger"
    assert not any("prompts say" in note for note in data.notes)
    assert "the noun is empty" in fails(f"folder:{tmp_path}", noun=" ")


def test_what_is_no_number_is_numbered_as_everywhere(tmp_path: Path) -> None:
    """Such as a time that a pattern takes for a camera: it is said."""
    draw(tmp_path / "train" / "anna" / "20260101120000.jpg", tmp_path / "train" / "anna" / "gate.jpg")
    data = load_data(f"folder:{tmp_path}", pattern=r"(?P<identity>[a-z]+)/(?P<camera>\w+)")
    assert rows(data.splits["train"]) == [("anna", 0), ("anna", 1)]
    assert "cameras are numbered: '20260101120000' is 0, 'gate' is 1" in data.notes


def test_user_pattern(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "shop" / "anna-2-front9.jpg", tmp_path / "train" / "shop" / "ben--front1.jpg")
    spec = f"folder:{tmp_path}"
    data = load_data(spec, pattern=r"(?P<identity>[a-z]+)-(?P<camera>\d*)-[a-z]+(?P<view>\d)\.jpg")
    assert rows(data.splits["train"]) == [("anna", 2), ("ben", -1)]
    assert data.splits["train"].views.tolist() == [9, 1]
    assert load_data(spec, pattern="identity/").splits["train"].identities.tolist() == ["shop", "shop"]

    lettered = load_data(spec, pattern=r"(?P<identity>(?P<camera>[ab])[a-z]+)-.*-(?P<clothes>[a-z]+)").splits["train"]
    assert rows(lettered) == [("anna", 1), ("ben", 2)]
    assert lettered.clothes.tolist() == ["front", "front"]

    misfit = fails(spec, pattern=r"(?P<identity>ann)")
    assert "1 of 2 images do not fit" in misfit
    assert "train/shop/ben--front1.jpg" in misfit
    assert "anna-2" not in misfit
    tracks = load_data(spec, pattern=r"(?P<identity>[a-z]+)-(?P<session>\d*)-(?P<tracklet>[a-z]+)").splits["train"]
    assert tracks.sessions.tolist() == ["2", ""]
    assert tracks.tracklets.tolist() == ["anna/-1/front", "ben/-1/front"]  # one of one individual
    assert "is not a regular expression" in fails(spec, pattern="(?P<identity>")
    assert "Did you mean 'market1501'?" in fails(spec, pattern="market")
    assert "has no group (?P<identity>...)" in fails(spec, pattern=r"\d+")
    assert "known groups are identity, camera, view, clothes, tracklet, session" in fails(
        spec, pattern=r"(?P<identity>\w)(?P<cam>\d)"
    )
    assert "reads an empty identity from train/shop" in fails(spec, pattern=r"(?P<identity>\d*)")
    assert "works with folder:ROOT only" in fails("synthetic", pattern="identity/")


def test_pattern_must_fit_every_image(tmp_path: Path) -> None:
    draw(*(tmp_path / "train" / f"car_{n:04d}_cam1.jpg" for n in range(20)))
    draw(*(tmp_path / "test" / f"stray{n:02d}.jpg" for n in range(12)))
    message = fails(f"folder:{tmp_path}")
    assert "12 of them are not named as the others are:\n  test/stray00.jpg" in message
    assert "... and 2 more" in message
    assert "Rename or move the files, or give --pattern" in message


def test_names_and_folders_that_disagree_are_refused(tmp_path: Path) -> None:
    draw(
        tmp_path / "one" / "train" / "anna" / "0001_c1_5.jpg",
        tmp_path / "one" / "train" / "ben" / "0001_c1_7.jpg",
    )
    message = fails(f"folder:{tmp_path}/one")
    assert "the identity may be '0001' (by the file name, pattern 'market1501') or 'anna' (by the folder" in message
    assert "\n  --pattern identity/cam\n" in message
    by_folder = load_data(f"folder:{tmp_path}/one", pattern="identity/")
    assert by_folder.splits["train"].identities.tolist() == ["anna", "ben"]
    draw(*(tmp_path / "two" / "train" / "anna" / f"{frame}_cam1.jpg" for frame in (1, 2)))
    assert "or 'anna', the folder" in fails(f"folder:{tmp_path}/two")


def test_names_and_folders_that_agree_are_fine(tmp_path: Path) -> None:
    draw(*(tmp_path / "one" / "train" / f"{who}" / f"000{who}_c{c}s1_1_1.jpg" for who in (1, 2) for c in (1, 2)))
    draw(*(tmp_path / "two" / "train" / "car" / f"car_{who}_cam{c}.jpg" for who in (1, 2) for c in (1, 2)))
    for part, names in (("one", ["0001", "0002"]), ("two", ["car_1", "car_2"])):
        assert sorted(set(load_data(f"folder:{tmp_path}/{part}").splits["train"].identities)) == names


def test_folder_of_loose_images_explains_the_layout(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("x")
    message = fails(f"folder:{tmp_path}")
    assert f"{tmp_path} holds no train/, test/, or query/ and gallery/" in message
    assert "Found: notes.txt, 2 images, such as a.jpg" in message
    assert "train/car_0001_cam2.jpg" in message
    assert "(pattern 'identity/camera/')" in message


def test_folder_errors(tmp_path: Path) -> None:
    draw(tmp_path / "one" / "query" / "anna" / "1.jpg")
    assert "has query/ but no gallery/" in fails(f"folder:{tmp_path}/one")
    draw(tmp_path / "one" / "test" / "anna" / "1.jpg")
    assert "has test/ beside query/ or gallery/" in fails(f"folder:{tmp_path}/one")
    (tmp_path / "two" / "train" / "anna").mkdir(parents=True)
    assert "no images below" in fails(f"folder:{tmp_path}/two")
    (tmp_path / "two" / "train" / "list.txt").write_text("")
    (tmp_path / "two" / "train" / ".hidden.jpg").write_text("")
    assert "other files there: list.txt" in fails(f"folder:{tmp_path}/two")
    (tmp_path / "three" / "bounding_box_train").mkdir(parents=True)
    assert f"read it with market1501:{tmp_path}/three" in fails(f"folder:{tmp_path}/three")
    draw(tmp_path / "four" / "train" / "-1_c1s1_000401_03.jpg")
    assert "holds only images that the pattern 'market1501' leaves out" in fails(f"folder:{tmp_path}/four")
    draw(tmp_path / "five" / "inside" / "train" / "anna" / "1.jpg")
    assert f"Do you mean folder:{tmp_path}/five/inside?" in fails(f"folder:{tmp_path}/five")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "1.jpg", tmp_path / "data" / "train" / "ben" / "1.jpg")
    (tmp_path / "data" / "train" / "anna").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert load_data(f"folder:{tmp_path}/data").splits["train"].identities.tolist() == ["anna", "ben"]


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "train" / "anna" / "1.jpg")
    plain = os.scandir

    def scandir(path: Path) -> object:
        if str(path).endswith("anna"):
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr("clipreid.data.walk.os.scandir", scandir)
    assert f"the folder {tmp_path}/train/anna cannot be read (Permission denied)" in fails(f"folder:{tmp_path}")


# ---- market1501: and names ---------------------------------------------------------------------------------


def test_market1501(tmp_path: Path) -> None:
    root = tmp_path / "Market-1501-v15.09.15"
    draw(root / "bounding_box_train" / "0002_c1s1_000451_03.jpg", root / "query" / "0001_c1s1_001051_00.jpg")
    draw(*(root / "bounding_box_test" / f"{name}_c2s1_000001_00.jpg" for name in ("-1", "0000", "0001")))
    (root / "bounding_box_test" / "Thumbs.db").write_text("")
    for spec in (f"market1501:{root}", f"market1501:{tmp_path}"):
        data = load_data(spec)
        assert {name: rows(split) for name, split in data.splits.items()} == {
            "train": [("0002", 1)],
            "query": [("0001", 1)],
            "gallery": [("0000", 2), ("0001", 2)],
        }
        assert (data.protocol, data.noun, data.name) == ("market1501", "person", spec)
        differing = [note for note in data.notes if "officially" in note]
        assert len(differing) == 3
        assert (
            "train has 1 images, 1 identities, 1 cameras; officially 12,936 images, 751 identities, 6" in differing[0]
        )
        assert "officially 15,913 images, 751 identities, 6 cameras" in differing[2]
    assert "read from Market-1501-v15.09.15/ below" in data.notes[0]
    assert load_data(f"market1501:{root}", noun="pedestrian").noun == "pedestrian"

    draw(root / "query" / "portrait.jpg")
    message = fails(f"market1501:{root}")
    assert "1 of 2 images do not fit the pattern 'market1501' (such as 0002_c1s1_000451_03.jpg)" in message
    assert "query/portrait.jpg" in message


def test_market1501_lacking_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "query" / "0001_c1s1_001051_00.jpg")
    message = fails(f"market1501:{tmp_path}")
    assert "lacks bounding_box_train/, bounding_box_test/" in message
    assert "Found: query/" in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fodler:/x", "unknown data 'fodler:/x'; did you mean 'folder:ROOT'?"),
        ("market:/x", "did you mean 'market1501:ROOT'?"),
        ("sinthetic", "did you mean 'synthetic'?"),
        ("qqqq", "valid names: synthetic, synthetic:SET, folder:ROOT, csv:FILE.csv"),
        ("qqqq", "NAME:ROOT with NAME one of market1501, msmt17, msmt17-v2, cuhk03-np-labeled"),
        ("folder", "lacks its folder: write folder:ROOT"),
        ("csv:", "lacks its file: write csv:FILE.csv"),
        ("folder:/no/such/place", "/no/such/place does not exist"),
        ("market1501:/no/such/place", "/no/such/place does not exist"),
        (f"folder:{__file__}", "is not a folder"),
        (f"csv:{Path(__file__).parent}", "is not a file"),
        ("coco:", "lacks its file: write coco:FILE.json"),
        ("coco:/no/such/file.json", "/no/such/file.json does not exist"),
        (f"coco:{__file__}:/no/such/place", "/no/such/place does not exist"),
        ("yolo:", "lacks its folder: write yolo:ROOT"),
        (str(Path(__file__).parent), "a folder needs its reader in front, folder:"),
    ],
)
def test_unusable_names(spec: str, message: str) -> None:
    assert message in fails(spec)


def test_csv_without_its_reader(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("")
    assert f"a table needs its reader in front, csv:{tmp_path}/data.csv" in fails(f"{tmp_path}/data.csv")


def test_root_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "mine" / "train" / "anna" / "1.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_data("folder:~/mine").splits["train"]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the 1,134 real photographs are not at {REAL}")
def test_real_photographs() -> None:
    data = load_data(f"folder:{REAL}")
    counts = {name: (len(split), len(set(split.identities))) for name, split in data.splits.items()}
    assert counts == {"train": (1014, 507), "query": (120, 60), "gallery": (120, 60)}
    assert (data.protocol, data.noun) == ("cross-camera", "vehicle")
    assert sorted(set(data.splits["query"].cameras.tolist())) == [1, 2]
