"""`clipreid data check` and `clipreid data convert`, as a user meets them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from clipreid.cli import main
from clipreid.cli.data import _from_protocol
from clipreid.data import ReIDData, Split, load_data
from clipreid.data.findings import CheckReport
from clipreid.data.folders import Layout
from clipreid.data.layouts import LAYOUTS
from clipreid.data.patterns import MARKET

T2I = "text-to-image"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((32, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    root = tmp_path / "street"
    for part, people in (("train", (1, 2, 3)), ("query", (4, 5)), ("gallery", (4, 5))):
        (root / part).mkdir(parents=True)
        for who in people:
            for camera in (1, 2):
                seed = 100 * who + 10 * camera + (part == "query")
                noise(seed).save(root / part / f"{who:04d}_c{camera}s1_{seed:06d}_00.jpg")
    return root


def checked(*args: object) -> int:
    """The exit status of `clipreid data check`."""
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", *map(str, args)])
    return int(ended.value.code or 0)


def test_a_clean_set(street: Path, tmp_path: Path, capsys: Capture) -> None:
    sheet, file = tmp_path / "sheet.png", tmp_path / "report.json"
    assert checked(f"folder:{street}", "--sheet", sheet, "--json", file) == 0
    said = capsys.readouterr().out
    assert "fit for protocol market1501: 0 kinds of faults" in said
    assert f"written: {sheet}" in said
    assert f"written: {file}" in said
    with Image.open(sheet) as drawn:
        assert min(drawn.size) > 100
    report = json.loads(file.read_text())
    assert (report["fit"], report["protocol"]) == (True, "market1501")


def plant(street: Path) -> dict[str, tuple[str, str]]:
    """Twelve faults of ten kinds: what the report must say of each, and the file or person it must name."""
    train, query, gallery = (street / part for part in ("train", "query", "gallery"))
    whole = (train / "0001_c1s1_000110_00.jpg").read_bytes()
    (train / "0001_c1s1_000110_00.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (train / "0001_c2s1_000120_00.jpg").write_bytes(b"")
    noise(1).save(train / "0001_c1s1_000001_00.jpg", "PNG")
    noise(2).convert("CMYK").save(train / "0001_c1s1_000002_00.jpg")
    Image.fromarray(np.asarray(noise(3).convert("L")).astype(np.uint16) << 8).save(train / "0001_c1s1_000003_00.png")
    noise(4).convert("P").save(train / "0001_c1s1_000004_00.png")
    shutil.copy(train / "0002_c1s1_000210_00.jpg", gallery / "0009_c1s1_000005_00.jpg")
    noise(6).save(query / "0008_c1s1_000006_00.jpg")
    noise(7).save(gallery / "0008_c1s1_000007_00.jpg")
    noise(8).save(train / "0005_c1s1_000008_00.jpg")
    noise(9).save(train / "portrait.jpg")
    (train / "locked").mkdir()
    os.symlink(train, train / "again")
    return {
        "truncated JPEG": ("fault: truncated or damaged image", "train/0001_c1s1_000110_00.jpg"),
        "zero-byte file": ("fault: zero-byte file", "train/0001_c2s1_000120_00.jpg"),
        "PNG named .jpg": ("note: PNG named .jpg", "train/0001_c1s1_000001_00.jpg"),
        "CMYK": ("note: CMYK image", "train/0001_c1s1_000002_00.jpg"),
        "16 bit": ("note: 16-bit image", "train/0001_c1s1_000003_00.png"),
        "palette": ("note: palette image", "train/0001_c1s1_000004_00.png"),
        "duplicate across splits": (
            "fault: duplicate across train and test",
            "train/0002_c1s1_000210_00.jpg (train) = gallery/0009_c1s1_000005_00.jpg (gallery)",
        ),
        "query without match": (
            "fault: query without a match",
            "\n    query/0008_c1s1_000006_00.jpg: 1 of 1 images of identity 0008 in the gallery are from camera 1",
        ),
        "identity in train and test": (
            "fault: identity in train and test",
            "0005: train/0005_c1s1_000008_00.jpg, query/0005_c1s1_000511_00.jpg",
        ),
        "wrong file name": ("fault: wrong file name", "train/portrait.jpg"),
        "unreadable directory": ("fault: unreadable folder (Permission denied)", str(train / "locked")),
        "symlink loop": ("note: symlink loop", str(train / "again")),
    }


def test_every_planted_fault_is_named_at_once(street: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    planted = plant(street)
    plain = os.scandir

    def scandir(path: Path) -> object:  # permissions do not bind a test that runs as root
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr("clipreid.data.folders.os.scandir", scandir)
    assert checked(f"folder:{street}") == 1
    sections = {
        part.partition(" (")[0] if not part.startswith("fault: unreadable") else part.partition(" (1)")[0]: part
        for part in capsys.readouterr().out.split("\n\n")
    }
    for name, (heading, item) in planted.items():
        assert heading in sections, name
        assert item in sections[heading], name
        assert " (1): " in sections[heading], name  # that one, and no other
    assert "NOT fit for protocol market1501: 7 kinds of faults" in "".join(sections.values())


def test_what_was_published_so_is_no_fault(street: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (street / "gallery" / "0004_c2s1_000420_00.jpg").unlink()  # query 0004_c1 finds nothing now
    folders = {"train": "train", "query": "query", "gallery": "gallery"}
    counts = {"train": (6, 3, 2), "query": (4, 2, 2), "gallery": (3, 2, None)}
    for images, status, severity in ((3, 0, "note"), (4, 1, "fault")):
        official = {**counts, "gallery": (images, 2, None)}
        monkeypatch.setitem(LAYOUTS, "mini", Layout("mini", folders, MARKET, "market1501", official=official))
        assert checked(f"mini:{street}") == status
        assert f"{severity}: query without a match (1): 1 of 4 queries" in capsys.readouterr().out


def test_mistakes_in_the_flags(street: Path, tmp_path: Path, capsys: Capture) -> None:
    assert checked("fodler:/x") == 2
    assert "did you mean 'folder:ROOT'?" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert checked(f"folder:{street}", "--json", tmp_path / "file" / "x.json") == 2
    assert f"x.json cannot be written ({tmp_path / 'file'} is a file): give another file" in capsys.readouterr().err
    assert checked(f"folder:{street}", "--json", tmp_path / "new" / "x.json") in (0, 1)
    assert (tmp_path / "new" / "x.json").is_file()
    assert checked(f"folder:{street}", "--threads", "0") == 2
    assert "--threads 0: must be at least 1" in capsys.readouterr().err
    assert checked(f"folder:{tmp_path / 'no'}") == 2
    assert f"{tmp_path / 'no'} does not exist" in capsys.readouterr().err
    assert checked(f"folder:{street}", "--columns", "identity=pid") == 2
    assert "error: --columns names columns" in capsys.readouterr().err
    assert checked(f"folder:{tmp_path}") == 1  # no such layout: a finding
    assert "fault: cannot be read: folder:" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--json", "--sheet"])
def test_what_cannot_be_written_is_refused_at_the_start(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("clipreid.data.check.read_and_check", lambda *_: pytest.fail("the data was looked at"))
    assert checked("synthetic", flag, tmp_path) == 2
    assert f"error: {flag} {tmp_path} is a folder: give a file" in capsys.readouterr().err
    locked = tmp_path / "locked.png"
    with monkeypatch.context() as patch:  # permissions do not bind a test that runs as root
        patch.setattr("clipreid.disk.os.access", lambda *_: False)
        assert checked("synthetic", flag, locked) == 2
    said = f"error: {flag} {locked} cannot be written (no permission for {tmp_path}): give another file"
    assert said in capsys.readouterr().err
    kept = tmp_path / "kept.png"
    kept.write_text("mine")
    assert checked("synthetic", flag, kept, "--threads", 0) == 2
    assert checked("synthetic", flag, tmp_path / "new.png", "--threads", 0) == 2
    assert [(path.name, path.read_text()) for path in tmp_path.glob("*.png")] == [("kept.png", "mine")]


def test_a_sheet_of_no_format_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("clipreid.data.check.read_and_check", lambda *_: pytest.fail("the data was looked at"))
    assert checked("synthetic", "--sheet", tmp_path / "sheet.what") == 2
    assert "sheet.what cannot be written (its name says no format): give a name such as" in capsys.readouterr().err


def test_what_evaluate_refuses_is_no_fit(street: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    folders = {"train": "train", "query": "query", "gallery": "gallery"}
    for protocol, why in (
        ("aerial-ground", "needs the column 'view', and none is known in query or gallery: add it, or choose another"),
        ("text-to-image", "4 of 4 query images have no caption, and here the queries are captions: add them"),
    ):
        monkeypatch.setitem(LAYOUTS, "mini", Layout("mini", folders, MARKET, protocol))
        assert checked(f"mini:{street}") == 1
        said = capsys.readouterr().out
        assert "fault: cannot be scored: " in said
        assert why in said


def test_queries_without_a_caption_are_counted() -> None:
    image = [{"path": f"{n}.png"} for n in range(3)]
    query = Split.from_columns("query", image, ["a", "b", "c"], caption=["a hat\n\na bag", "", "a coat"])
    data = ReIDData("mine", {"query": query, "gallery": Split.from_columns("gallery", image, ["a", "b", "c"])}, T2I)
    (note,) = _from_protocol(data, CheckReport("mine", T2I, "", (), ()))
    assert (note.severity, note.kind) == ("note", "captions")
    assert (
        note.explanation
        == "1 of 3 query images have no caption, and ask nothing; 1 blank lines in captions are left out"
    )


def test_convert_and_read_back(street: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    main(["data", "convert", f"folder:{street}", "--output", str(out), "--noun", "owl"])
    assert f"written: {out}; read it with --data hub:{out}" in capsys.readouterr().out
    back = load_data(f"hub:{out}")
    assert {name: len(split) for name, split in back.splits.items()} == {"train": 6, "query": 4, "gallery": 4}
    assert back.noun == "owl"
    assert checked(f"hub:{out}") == 0
    with pytest.raises(SystemExit):
        main(["data", "convert", f"folder:{street}", "--output", str(out)])
    assert "holds a converted set: give another folder, or --overwrite" in capsys.readouterr().err
    main(["data", "convert", f"folder:{street}", "--output", str(out), "--overwrite", "--noun", "elk"])
    assert load_data(f"hub:{out}").noun == "elk"


def test_columns_reach_the_reader(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "set").mkdir()
    noise(1).save(tmp_path / "set" / "a.jpg")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,id\na.jpg,7\n")
    assert checked(f"hub:{tmp_path / 'set'}") == 1
    assert "--columns identity=id" in capsys.readouterr().out
    assert checked(f"hub:{tmp_path / 'set'}", "--columns", "identity=id") == 1
    said = capsys.readouterr().out
    assert "1 images       1 identities" in said
    assert "fault: nothing to test on: no query and no gallery, so no protocol was checked" in said
    assert checked(f"hub:{tmp_path / 'set'}", "--columns", "identity=id", "--unknown", "7") == 1
    assert "1 rows read, 0 used; left out: 1 of an unknown identity: 7 (1)" in capsys.readouterr().out


def test_help_stays_quick_to_import() -> None:
    loaded = (
        "import sys, clipreid.cli.data; print([m for m in ('torch', 'numpy', 'datasets', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
