"""`clipreid data occlude`, as typed."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.cli import main
from clipreid.data import load_data
from clipreid.data.occluders import TOLERANCE, street_library

Capture = pytest.CaptureFixture[str]
TRAINED, ASKED = ("xenia", "yusuf", "zoe"), ("anna", "bert", "carl", "dora")
SIZES = {"query": (40, 80), "gallery": (50, 90), "train": (32, 64)}


def save(file: Path, seed: int, size: tuple[int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def crops(tmp_path: Path) -> str:
    """Three people who are trained on, four who are asked for; a query of camera 1, a gallery of cameras 1 and 2."""
    root, seed = tmp_path / "crops", 0
    for split, names in (("train", TRAINED), ("query", ASKED), ("gallery", ASKED)):
        for name in names:
            for camera in (1,) if split == "query" else (1, 2):
                seed += 1
                save(root / split / name / f"cam{camera}_{seed}.{'jpg' if seed % 2 else 'png'}", seed, SIZES[split])
    return f"folder:{root}"


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    """Two classes of the user's own."""
    for kind, colour in (("cone", (255, 90, 0)), ("tent", (0, 90, 0))):
        pixels = np.zeros((40, 30, 4), np.uint8)
        pixels[5:, 5:] = (*colour, 255)
        (tmp_path / "cutouts" / kind).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "cutouts" / kind / "1.png")
    return tmp_path / "cutouts"


def run(*args: object) -> None:
    main(["data", "occlude", *map(str, args)])


def refused(capsys: Capture, *args: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*args)
    assert ended.value.code == 2
    return capsys.readouterr().err


def record(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "occlusion.csv").open()))


@pytest.mark.parametrize(
    ("condition", "kinds"),
    [
        ("mask", {"rectangle", "left", "right", "bottom"}),
        ("object", set(street_library("test").kinds)),
        ("person", {"person"}),
    ],
)
def test_the_queries_are_occluded_and_the_rest_is_copied(
    crops: str, tmp_path: Path, capsys: Capture, condition: str, kinds: set[str]
) -> None:
    output = tmp_path / "out"
    run(crops, "--condition", condition, "--severity", 0.4, "--output", output)
    said = capsys.readouterr().out
    clean, read = load_data(crops), load_data(f"folder:{output}")
    table = load_data(f"csv:{output / 'data.csv'}")
    assert f"evaluate  clipreid evaluate RUN --data folder:{output}\n" in said
    for copy in (read, table):
        assert copy.protocol == clean.protocol
        assert {name: len(split) for name, split in copy.splits.items()} == {"train": 6, "query": 4, "gallery": 8}
        for name, split in clean.splits.items():
            assert copy.splits[name].identities.tolist() == split.identities.tolist()
            assert copy.splits[name].cameras.tolist() == split.cameras.tolist()
            if name != "query":
                same = zip(copy.splits[name].paths.tolist(), split.paths.tolist(), strict=True)
                assert all(Path(one).read_bytes() == Path(other).read_bytes() for one, other in same)
    rows = record(output)
    assert [row["image"] for row in rows] == [
        str(Path(path).relative_to(output)) for path in read.splits["query"].paths
    ]
    for row, line in enumerate(rows):
        assert line["kind"] in kinds
        assert float(line["asked"]) == 0.4
        assert abs(float(line["reached"]) - 0.4) <= TOLERANCE
        before, after = (np.asarray(data.splits["query"].image(row)) for data in (clean, read))
        assert before.shape == after.shape
        changed = float((before != after).any(2).mean())
        assert abs(changed - float(line["reached"])) < 0.15  # the feather, and noise of the same colour
    with Image.open(output / "occlusion.png") as sheet:
        assert sheet.width >= 4 * 50
        assert sheet.height >= 3 * 100


def test_the_same_seed_gives_the_same_images_and_severity_zero_the_clean_ones(crops: str, tmp_path: Path) -> None:
    for name, more in {"a": (), "b": (), "other": ("--seed", 1), "zero": ("--severity", 0)}.items():
        run(crops, "--output", tmp_path / name, *more)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) == 18 + 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert record(tmp_path / "a") != record(tmp_path / "other")
    assert {(line["kind"], line["reached"]) for line in record(tmp_path / "zero")} == {("", "0.0000")}
    clean, zero = (load_data(name).splits["query"] for name in (crops, f"folder:{tmp_path / 'zero'}"))
    for row in range(len(clean)):
        assert np.array_equal(np.asarray(clean.image(row)), np.asarray(zero.image(row)))


def test_splits_parts_and_one_s_own_cutouts(crops: str, cutouts: Path, tmp_path: Path, capsys: Capture) -> None:
    run(crops, "--splits", "gallery", "--splits", "train", "--occluders", cutouts, "--output", tmp_path / "own")
    assert "2 cut-outs of" in capsys.readouterr().out
    rows = record(tmp_path / "own")
    assert {line["split"] for line in rows} == {"train", "gallery"}
    assert {line["kind"] for line in rows} == {"cone", "tent"}
    kinds = {}
    for part in ("train", "test"):
        run(crops, "--occluders", cutouts, "--part", part, "--output", tmp_path / part)
        kinds[part] = {line["kind"] for line in record(tmp_path / part)}
    assert sorted(map(len, kinds.values())) == [1, 1]
    assert kinds["train"] != kinds["test"]
    run(crops, "--part", "train", "--output", tmp_path / "street")
    assert {line["kind"] for line in record(tmp_path / "street")} <= set(street_library("train").kinds)


def test_a_mask_has_the_colour_that_is_asked_for(crops: str, tmp_path: Path) -> None:
    run(crops, "--condition", "mask", "--fill", 9, 8, 7, "--severity", 0.5, "--output", tmp_path / "out")
    image = load_data(f"folder:{tmp_path / 'out'}").splits["query"].image(0)
    filled = float((np.asarray(image) == (9, 8, 7)).all(2).mean())
    assert abs(filled - 0.5) <= TOLERANCE


def test_what_is_known_of_the_images_is_kept(tmp_path: Path, capsys: Capture) -> None:
    """Views, captions, clothes and identities that cannot be folders; the protocol is said where it is another one."""
    for n in range(4):
        save(tmp_path / f"{n}.png", n, (24, 48))
    rows = ["image,identity,camera,view,caption,clothes,split"]
    rows += [f'{n}.png,a/{n % 2},{n // 2},{n},"red, {n}",c{n},test' for n in range(4)]
    (tmp_path / "own.csv").write_text("\n".join(rows) + "\n")
    run(f"csv:{tmp_path / 'own.csv'}", "--output", tmp_path / "out")
    said = capsys.readouterr().out
    assert "--protocol cross-camera" in said
    clean, copy = (load_data(f"csv:{file}").splits for file in (tmp_path / "own.csv", tmp_path / "out" / "data.csv"))
    for name in ("query", "gallery"):
        for column in ("identities", "cameras", "views", "captions", "clothes"):
            assert getattr(copy[name], column).tolist() == getattr(clean[name], column).tolist()
    assert (tmp_path / "out" / "query" / "a%2F0").is_dir()


def test_mistakes_are_named(crops: str, cutouts: Path, tmp_path: Path, capsys: Capture) -> None:
    output = ("--output", tmp_path / "out")
    for severity in (1, -0.1, "nan"):
        assert "at least 0 and less than 1" in refused(capsys, crops, "--severity", severity, *output)
    mask = (crops, "--condition", "mask", *output)
    assert "not with occluders" in refused(capsys, *mask, "--occluders", cutouts)
    assert "not with occluders" in refused(capsys, *mask, "--part", "test")
    assert "three values from 0 to 255" in refused(capsys, *mask, "--fill", 0, 0, 256)
    assert "--fill is the colour of --condition mask" in refused(capsys, crops, "--fill", 0, 0, 0, *output)
    assert "--splits val: folder:" in refused(capsys, crops, "--splits", "val", *output)
    assert "--part train chooses among cut-outs" in refused(
        capsys, crops, "--condition", "person", "--part", "train", *output
    )
    assert "is not there" in refused(capsys, crops, "--occluders", tmp_path / "none", *output)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    assert "is a file: give a folder" in refused(capsys, crops, *output)
    full = ("--output", tmp_path / "crops")
    assert "holds something already: give an empty or a new folder" in refused(capsys, crops, *full)


def test_queries_that_would_find_their_clean_image_are_refused(tmp_path: Path, capsys: Capture) -> None:
    for n in range(4):
        save(tmp_path / "crops" / "test" / f"p{n // 2}" / f"{n}.png", n, (24, 48))
    said = refused(capsys, f"folder:{tmp_path / 'crops'}", "--output", tmp_path / "out")
    assert "its clean image would be a match of the occluded one by protocol no-cameras" in said
    run(f"folder:{tmp_path / 'crops'}", "--splits", "gallery", "--output", tmp_path / "out")


def test_captions_cannot_be_occluded(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import clipreid.data

    save(tmp_path / "crops" / "query" / "a" / "cam1_1.png", 1, (24, 48))
    save(tmp_path / "crops" / "gallery" / "a" / "cam2_1.png", 2, (24, 48))
    read = load_data(f"folder:{tmp_path / 'crops'}")
    described = type(read)(read.name, read.splits, "text-to-image")
    monkeypatch.setattr(clipreid.data, "load_data", lambda *_, **__: described)
    said = refused(capsys, read.name, "--output", tmp_path / "out")
    assert "are captions: occlude the images with --splits gallery" in said
    alone = type(read)(read.name, {"query": read.splits["query"]}, "market1501")
    monkeypatch.setattr(clipreid.data, "load_data", lambda *_, **__: alone)
    said = refused(capsys, read.name, "--condition", "person", "--output", tmp_path / "out")
    assert "has no other identities to distract with: give cut-outs, --occluders FOLDER" in said
