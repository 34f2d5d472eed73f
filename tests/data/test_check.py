"""`check` names every planted fault, and nothing where there is none."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.data import ReIDData, Split
from clipreid.data.check import check, read_and_check
from clipreid.data.duplicates import exact_groups, near_pairs
from clipreid.data.findings import CheckReport, Finding
from clipreid.data.parallel import in_blocks
from clipreid.data.scan import Seen, inspect_image, scan
from clipreid.data.sheet import draw_sheet
from clipreid.errors import UserError


def noise(seed: int, size: tuple[int, int] = (32, 64)) -> Image.Image:
    """An image like no other, smooth enough to survive compression."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, seed: int, size: tuple[int, int] = (32, 64), **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed, size).save(path, **options)
    return path


def street(root: Path) -> Path:
    """A clean set: three people to train on, two to test on, two cameras."""
    for part, people in (("train", (1, 2, 3)), ("query", (4, 5)), ("gallery", (4, 5))):
        for who in people:
            for camera in (1, 2):
                seed = 100 * who + 10 * camera + (part == "query")
                save(root / part / f"{who:04d}_c{camera}s1_{seed:06d}_00.jpg", seed)
    return root


def found(report: CheckReport) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def one(report: CheckReport, kind: str, severity: str) -> str:
    """The only item of a finding."""
    finding = found(report)[kind]
    assert finding.severity == severity
    (item,) = finding.items
    return item


def run(root: Path) -> CheckReport:
    return read_and_check(f"folder:{root}")[0]


def test_a_clean_set_is_fit(tmp_path: Path) -> None:
    report = run(street(tmp_path))
    assert report.fit
    assert {finding.kind for finding in report.findings} == {"note of the reader"}
    assert [(s["split"], s["pictures"], s["identities"], s["cameras"]) for s in report.splits] == [
        ("train", 6, 3, 2),
        ("query", 4, 2, 2),
        ("gallery", 4, 2, 2),
    ]
    assert report.splits[0]["sizes"] == "width 32/32/32, height 64/64/64 (min/median/max), height:width 2.00"
    assert str(report).endswith("fit for protocol market1501: 0 kinds of faults, 2 kinds of notes")


# ---- files -------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    root = street(tmp_path) / "train"
    whole = (root / "0001_c1s1_000110_00.jpg").read_bytes()
    (root / "0001_c1s1_000110_00.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    (root / "0001_c2s1_000120_00.jpg").write_bytes(b"")
    (root / "0002_c1s1_000210_00.jpg").write_text("this is no image")
    save(root / "0002_c2s1_000220_00.jpg", 1, (64, 5))
    os.symlink("nowhere", root / "0003_c9s1_000310_00.jpg")
    report = run(tmp_path)
    assert not report.fit
    truncated = one(report, "truncated or damaged image", "fault")
    assert truncated.startswith("train/0001_c1s1_000110_00.jpg: image file is truncated")
    assert one(report, "zero-byte file", "fault") == "train/0001_c2s1_000120_00.jpg: nothing in it"
    assert "0002_c1s1_000210_00.jpg: not an image, or of an unknown" in one(report, "not an image", "fault")
    assert one(report, "too small", "fault").endswith("64x5 pixels, each side needs 8")
    assert one(report, "unreadable file", "fault").endswith("0003_c9s1_000310_00.jpg: No such file or directory")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_every_truncation_is_noticed(tmp_path: Path, suffix: str) -> None:
    data = save(tmp_path / f"a.{suffix}", 1).read_bytes()
    for keep in (0.2, 0.5, 0.9, 0.97):
        seen = inspect_image({"path": f"a.{suffix}", "bytes": data[: int(len(data) * keep)]})
        assert seen.kind in ("truncated or damaged image", "not an image"), (keep, seen)
    assert inspect_image({"path": f"a.{suffix}", "bytes": data}).kind == ""


def test_images_that_are_other_than_they_look(tmp_path: Path) -> None:
    root = street(tmp_path) / "train"
    noise(1).save(root / "0001_c1s1_000001_00.jpg", "PNG")
    noise(2).convert("CMYK").save(root / "0001_c1s1_000002_00.jpg")
    noise(3).convert("P").save(root / "0001_c1s1_000003_00.png")
    grey16 = (np.asarray(noise(4).convert("L")).astype(np.uint16) << 8) + 7
    Image.fromarray(grey16).save(root / "0001_c1s1_000004_00.png")
    (root / "0001_c1s1_000005_00.png").write_bytes(deep_png(5))
    save(root / "0001_c1s1_000006_00.png", 6, (16, 24))
    Image.new("RGB", (32, 64), (9, 90, 200)).save(root / "0001_c1s1_000007_00.jpg")
    report = run(tmp_path)
    assert report.fit
    assert one(report, "PNG named .jpg", "note") == "train/0001_c1s1_000001_00.jpg"
    assert one(report, "CMYK image", "note") == "train/0001_c1s1_000002_00.jpg"
    assert one(report, "palette image", "note") == "train/0001_c1s1_000003_00.png"
    assert [item[-6:] for item in found(report)["16-bit image"].items] == ["00.png", "00.png"]
    assert one(report, "tiny image", "note") == "train/0001_c1s1_000006_00.png: 16x24"
    assert one(report, "blank image", "note") == "train/0001_c1s1_000007_00.jpg"


def test_fourteen_bits_in_sixteen_are_noticed(tmp_path: Path) -> None:
    root = street(tmp_path)
    for n in range(3):
        grey = np.asarray(noise(n).convert("L")).astype(np.uint16) * 64
        Image.fromarray(grey).save(root / "train" / f"0001_c1s1_{n:06d}_00.png")
    report = run(tmp_path)
    assert len(found(report)["dark 16-bit image"].items) == 3
    assert "hold 14 bits and are read dark" in found(report)["dark 16-bit image"].explanation
    (root / "train" / "0001_c1s1_000004_00.png").write_bytes(deep_png(5))
    assert "dark 16-bit image" not in found(run(tmp_path))


def deep_png(seed: int, factor: int = 257) -> bytes:
    """A PNG of 16 bits a colour, which Pillow can read but not write; factor: of values of 8 bits."""
    import struct
    import zlib

    values = (np.asarray(noise(seed)).astype(np.uint16) * factor).astype(">u2")
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_wrong_names_are_collected(tmp_path: Path) -> None:
    root = street(tmp_path)
    save(root / "train" / "portrait.jpg", 1)
    save(root / "gallery" / "IMG_7.jpg", 2)
    report = run(root)
    finding = found(report)["wrong file name"]
    assert finding.severity == "fault"
    assert sorted(finding.items) == ["gallery/IMG_7.jpg", "train/portrait.jpg"]
    assert report.splits[0]["pictures"] == 6  # the rest was read and checked


def test_unreadable_folders_and_symlink_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = street(tmp_path)
    (root / "train" / "locked").mkdir()
    os.symlink(root / "train", root / "train" / "again")
    plain = os.scandir

    def scandir(path: Path) -> object:  # permissions do not bind a test that runs as root
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr("clipreid.data.folders.os.scandir", scandir)
    report = run(root)
    assert one(report, "unreadable folder (Permission denied)", "fault") == str(root / "train" / "locked")
    assert one(report, "symlink loop", "note") == str(root / "train" / "again")
    assert not report.fit


def test_a_link_to_itself(tmp_path: Path) -> None:
    train = street(tmp_path) / "train"
    for name in ("round", "0009_c1s1_000000_00.jpg"):
        os.symlink(name, train / name)
    report = run(tmp_path)
    assert sorted(found(report)["symlink loop"].items) == [str(train / n) for n in ("0009_c1s1_000000_00.jpg", "round")]
    assert "Too many levels of symbolic links" in one(report, "unreadable file", "fault")


def test_a_whole_part_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "test" / "0001_c1s1_000001_00.jpg", 1)
    plain = Path.iterdir

    def iterdir(path: Path) -> object:
        if path.name == "test":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    report, data = read_and_check(f"folder:{tmp_path}")
    assert data is None
    assert (
        f"the folder {tmp_path / 'test'} cannot be read (Permission denied)"
        in found(report)["cannot be read"].explanation
    )


def test_images_that_a_list_names_and_nobody_has(tmp_path: Path) -> None:
    lists = tmp_path / "train_test_split"
    lists.mkdir()
    for part, numbers in (("train_list", (1, 2)), ("test_list_800", (3, 4, 5))):
        lines = [f"{n:07d} {n // 5 + 10 * (part == 'train_list')}" for n in numbers]
        (lists / f"{part}.txt").write_text("\n".join(lines))
    for n in (1, 3, 4):
        save(tmp_path / "image" / f"{n:07d}.jpg", n)
    report, data = read_and_check(f"vehicleid:{tmp_path}")
    finding = found(report)["listed, but not there"]
    assert finding.severity == "fault"
    assert finding.items == (
        "train_test_split/train_list.txt, line 2: 0000002 10",
        "train_test_split/test_list_800.txt, line 3: 0000005 1",
    )
    assert data is not None
    assert len(data.splits["gallery"]) == 2


def test_a_folder_without_permission(tmp_path: Path) -> None:
    locked = street(tmp_path) / "train" / "locked"
    locked.mkdir()
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        pytest.skip("this user may read everything, as root may")
    try:
        assert one(run(tmp_path), "unreadable folder (Permission denied)", "fault") == str(locked)
    finally:
        locked.chmod(0o700)


def test_identity_folders_that_are_not_split_yet_are_looked_at(tmp_path: Path) -> None:
    for n, who in enumerate(("anna", "bert", "carl")):
        for number in (1, 2, 3, 4):
            save(tmp_path / who / f"{number:02d}_{(number + 1) // 2}.png", 10 * n + number)
    report, data = read_and_check(f"folder:{tmp_path}")
    assert data is None
    offers = found(report)["cannot be read"].explanation.split("Choose what is meant, the likeliest first:\n")[1]
    right = r"^(?P<identity>[^/]+)/\d+_(?P<camera>\d+)"
    assert offers.startswith(f"  --pattern '{right}'\n      3 identities (train), 2 cameras, 12 images\n")
    report, data = read_and_check(f"folder:{tmp_path}", right)
    assert data is not None
    assert not report.fit
    assert [finding.kind for finding in report.findings if finding.severity == "fault"] == ["nothing to test on"]
    assert "\nnote: no train/ or test/ here: all images are read together, to be split\n" in str(report)
    (tmp_path / "anna" / "train").mkdir()  # then another root may be meant
    report, _ = read_and_check(f"folder:{tmp_path}", right)
    assert "Do you mean" in found(report)["cannot be read"].explanation


def test_what_cannot_be_read_at_all_is_a_fault_too(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    report, data = read_and_check(f"folder:{tmp_path}")
    assert data is None
    assert found(report)["cannot be read"].explanation.startswith(f"no images below {tmp_path}")
    assert str(report).endswith("NOT fit: 1 kind of faults, 0 kinds of notes")
    with pytest.raises(UserError, match="unknown data 'fodler:/x'"):
        read_and_check("fodler:/x")


@pytest.mark.parametrize(
    ("spec", "flags", "message"),
    [
        ("folder:{root}", {"columns": "identity=pid"}, "works with csv:, hub: and coco: only"),
        ("hub:{root}", {"columns": "identity"}, "cannot read 'identity'; write FIELD=COLUMN"),
        ("hub:{root}", {"pattern": "market1501"}, "--pattern reads file names and works with folder:ROOT only"),
        ("folder:{root}", {"pattern": "(?P<identity>"}, "is not a regular expression"),
        ("folder:{root}", {"pattern": "market"}, "has no group (?P<identity>...); Did you mean 'market1501'?"),
        ("folder:{root}/no", {}, "/no does not exist"),
        ("folder:", {}, "lacks its folder: write folder:ROOT"),
        ("csv:{root}", {}, "is not a file"),
        ("msmt17:{root}/no", {}, "/no does not exist"),
        ("hub:no where", {}, "no such folder, and no name on the Hub"),
        ("hub:", {}, "lacks its name"),
        ("synthetic:new-camera", {}, "did you mean 'synthetic:new-cameras'?"),
        ("fodler:/x", {}, "unknown data 'fodler:/x'"),
    ],
)
def test_mistakes_in_what_was_typed_are_no_findings(
    tmp_path: Path, spec: str, flags: dict[str, str], message: str
) -> None:
    street(tmp_path)
    with pytest.raises(UserError) as caught:
        read_and_check(spec.format(root=tmp_path), **flags)
    assert message in str(caught.value)


def test_nothing_to_test_on(tmp_path: Path) -> None:
    for n in range(4):
        save(tmp_path / "train" / f"{n % 2 + 1:04d}_c{n}s1_{n:06d}_00.jpg", n)
    report = run(tmp_path)
    assert not report.fit
    assert found(report)["nothing to test on"] == Finding(
        "fault",
        "nothing to test on",
        "no query and no gallery, so no protocol was checked; `clipreid data split` makes a test of some of the "
        "identities, or name other data with --test",
    )
    assert str(report).endswith("NOT fit for protocol market1501: 1 kind of faults, 2 kinds of notes")


def test_lines_of_a_table_and_entries_of_lists(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 1)
    (tmp_path / "t.csv").write_text("image,identity,camera\na.jpg,1,1\nb.jpg,1,2\na.jpg,1\n")
    report, _ = read_and_check(f"csv:{tmp_path / 't.csv'}")
    finding = found(report)["unusable line"]
    assert finding.severity == "fault"
    assert [item.split("t.csv, ")[1][:22] for item in finding.items] == [
        "line 4 has fewer cells",
        "line 3: no such image:",
    ]


def test_official_counts(tmp_path: Path) -> None:
    for old, new in (("train", "bounding_box_train"), ("gallery", "bounding_box_test"), ("query", "query")):
        (street(tmp_path / "x") / old).rename(tmp_path / new)
        for path in (tmp_path / "x").rglob("*.jpg"):
            path.unlink()
    report, _ = read_and_check(f"market1501:{tmp_path}")
    finding = found(report)["not the official data set"]
    assert finding.severity == "fault"
    assert "train has 6 images, 3 identities" in finding.items[0]
    assert "officially 12,936 images, 751 identities" in finding.items[0]
    assert sum("officially" in f.explanation for f in report.findings) == 0  # said once


# ---- copies ------------------------------------------------------------------------------------------------


def again(source: Path, target: Path, **options: int) -> None:
    Image.open(source).save(target, **options)


def test_copies_across_and_within_splits(tmp_path: Path) -> None:
    root = street(tmp_path)
    train, query = (sorted((root / part).iterdir()) for part in ("train", "query"))
    (root / "gallery" / "0009_c1s1_000900_00.jpg").write_bytes(train[0].read_bytes())  # the same bytes
    again(train[1], root / "gallery" / "0009_c2s1_000901_00.png")  # the same pixels
    again(train[2], root / "query" / "0004_c1s1_000902_00.jpg", quality=60)  # nearly the same pixels
    again(query[0], root / "gallery" / "0004_c2s1_000903_00.png")  # who was seen by camera 1
    again(query[1], root / "gallery" / "0004_c2s1_000904_00.png")  # the same camera
    again(query[2], root / "gallery" / "0004_c2s1_000905_00.png")  # somebody else
    again(train[4], root / "train" / "0003_c1s1_000906_00.png")
    report = run(root)
    assert found(report)["duplicate across train and test"].severity == "fault"
    assert found(report)["duplicate across train and test"].items == (
        "train/0001_c1s1_000110_00.jpg (train) = gallery/0009_c1s1_000900_00.jpg (gallery)",
        "train/0001_c2s1_000120_00.jpg (train) = gallery/0009_c2s1_000901_00.png (gallery)",
    )
    near = one(report, "near duplicate across train and test", "fault")
    assert near == "train/0002_c1s1_000210_00.jpg (train) = query/0004_c1s1_000902_00.jpg (query)"
    assert "000903" in one(report, "duplicate across query and gallery", "fault")
    assert "000904" in one(report, "duplicate across query and gallery, same camera", "note")
    assert "000905" in one(report, "duplicate across query and gallery, of two identities", "fault")
    assert one(report, "duplicate within train", "note").endswith("000906_00.png (train)")


def test_one_file_in_train_and_test(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 1)
    save(tmp_path / "b.jpg", 2)
    (tmp_path / "t.csv").write_text("image,identity,split\na.jpg,1,train\na.jpg,2,test\nb.jpg,2,test\n")
    report, _ = read_and_check(f"csv:{tmp_path / 't.csv'}")
    assert one(report, "the same file in train and test", "fault") == "a.jpg (train, query, gallery)"
    assert not any(kind.startswith("duplicate") for kind in found(report))  # query and gallery share their files


def seen_of(images: list[Image.Image], **options: int) -> list[Seen]:
    found = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options) if options else image.save(buffer, "PNG")
        found.append(inspect_image({"path": None, "bytes": buffer.getvalue()}))
    return found


def test_what_near_finds_and_what_it_does_not() -> None:
    images = [noise(seed, (64, 128)) for seed in range(40)]
    variants = {
        "again": seen_of(images, quality=50),
        "smaller": seen_of([image.resize((48, 96), Image.Resampling.BICUBIC) for image in images]),
        "mirrored": seen_of([image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]),
    }
    originals = seen_of(images)
    every = np.ones(80, bool)
    assert near_pairs(originals, every[:40]).tolist() == []
    for name, least, most in (("again", 38, 40), ("smaller", 38, 40), ("mirrored", 0, 0)):
        pairs = near_pairs([*originals, *variants[name]], every)
        assert all(b - a == 40 for a, b in pairs.tolist()), name
        assert least <= len(pairs) <= most, name


def test_near_search_agrees_with_comparing_each_with_each() -> None:
    random = np.random.default_rng(0)
    seen = []
    for _ in range(300):  # families of relatives at every distance
        if not seen or random.random() < 0.3:
            bits, thumb = random.integers(0, 2, 64), random.integers(20, 230, 384)
        flips = random.choice(64, random.integers(0, 10), replace=False)
        hashed = bits.copy()
        hashed[flips] ^= 1
        shift = random.integers(1, 9)
        moved = (thumb + random.integers(-shift, shift + 1, 384)).astype(np.uint8)
        seen.append(Seen("", dhash=int("".join(map(str, hashed)), 2), thumb=moved.tobytes()))
    expected = [
        [a, b]
        for a in range(300)
        for b in range(a + 1, 300)
        if (seen[a].dhash ^ seen[b].dhash).bit_count() <= 7
        and np.abs(np.frombuffer(seen[a].thumb, np.uint8).astype(int) - np.frombuffer(seen[b].thumb, np.uint8)).mean()
        <= 4
    ]
    assert 50 < len(expected) < 5000
    assert near_pairs(seen, np.ones(300, bool)).tolist() == expected
    some = np.arange(300) % 2 == 0
    assert near_pairs(seen, some).tolist() == [pair for pair in expected if some[pair].all()]


def test_exact_means_the_same_pixels() -> None:
    red, blue = noise(1), noise(2)
    seen = seen_of([red, blue, red, red.resize((30, 64)), Image.new("RGB", (32, 64))])
    assert [group.tolist() for group in exact_groups(seen, np.ones(5, bool))] == [[0, 2]]
    assert [image.blank for image in seen] == [False] * 4 + [True]
    assert exact_groups(seen, np.array([True, True, False, True, True])) == []


# ---- labels ------------------------------------------------------------------------------------------------


def test_people_in_train_and_test_and_lonely_ones(tmp_path: Path) -> None:
    root = street(tmp_path)
    save(root / "train" / "0004_c1s1_000001_00.jpg", 901)
    save(root / "train" / "0004_c1s1_000002_00.jpg", 902)
    save(root / "train" / "0006_c1s1_000003_00.jpg", 903)
    report = run(root)
    shared = one(report, "identity in train and test", "fault")
    assert shared == "0004: train/0004_c1s1_000001_00.jpg, query/0004_c1s1_000411_00.jpg"
    assert one(report, "identity seen by one camera only, in train", "note") == "0004: camera 1"
    assert one(report, "identity with one image, in train", "note") == "0006"
    assert not any("in train and in the test set" in f.explanation for f in report.findings)  # said once


def test_tables_in_memory_are_checked_as_well() -> None:
    images = [{"path": None, "bytes": b"nothing"}, {"path": None, "bytes": b""}]
    data = ReIDData("mine", {"train": Split.from_columns("train", images, ["1", "2"])}, "no-cameras")
    report = check(data)
    assert one(report, "not an image", "fault").startswith("train 0: ")
    assert one(report, "zero-byte file", "fault").startswith("train 1: ")
    assert report.root == ""


def test_progress_and_every_image_is_decoded_once(tmp_path: Path) -> None:
    for n in range(70):
        save(tmp_path / "test" / f"{n % 7 + 1:04d}_c{n % 2}s1_{n:06d}_00.jpg", n, (16, 32))
    told: list[tuple[int, int]] = []
    report, data = read_and_check(f"folder:{tmp_path}", progress=lambda *now: told.append(now), threads=2)
    assert told == [(64, 70), (70, 70)]  # query and gallery are the same files
    assert data is not None
    assert len(scan(data).seen) == 70
    assert report.to_dict()["splits"][1]["pictures"] == 70


def test_in_blocks_keeps_the_order_and_stops_at_errors() -> None:
    images = [{"path": str(n), "bytes": b"x"} for n in range(200)]
    split = Split.from_columns("train", images, ["a"] * 200)
    for threads in (1, 3):
        blocks = list(in_blocks(split, lambda image: image["path"], threads))
        assert [len(block) for block in blocks] == [64, 64, 64, 8]
        assert [int(path) for block in blocks for path in block] == list(range(200))
    with pytest.raises(ZeroDivisionError):
        list(in_blocks(split, lambda image: 1 // (int(image["path"]) - 100)))


def test_a_sheet_of_landscape_crops_has_landscape_cells(tmp_path: Path) -> None:
    for n in range(4):
        save(tmp_path / "test" / f"{n // 2 + 1:04d}_c{n % 2 + 1}s1_{n:06d}_00.jpg", n, (90, 40))
    data = read_and_check(f"folder:{tmp_path}")[1]
    assert data is not None
    draw_sheet(data, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = 136, 60  # 90:40, as many pixels as 64 x 128
        assert sheet.size == (2 * width + 12, 2 * (height + 28))
        assert sheet.getpixel((2, 14 + 2)) != (255, 255, 255)  # the image fills its cell


def test_contact_sheet(tmp_path: Path) -> None:
    data = read_and_check(f"folder:{street(tmp_path / 'set')}")[1]
    assert data is not None
    (tmp_path / "set" / "query" / "0004_c1s1_000411_00.jpg").write_bytes(b"")
    draw_sheet(data, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * (2 * 64 + 12), 3 * 156)
        assert sheet.getpixel((2 * 64 - 1 + 3, 40)) == (255, 255, 255)
        assert (255, 0, 0) in {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}  # the cross
    with pytest.raises(UserError, match=r"cannot be written \(.*\): give a name such as sheet.png"):
        draw_sheet(data, tmp_path / "sheet.what")
