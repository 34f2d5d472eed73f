"""What `convert` writes loads back identically, whole or not at all."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from clipreid.data import SCHEMA, ReIDData, Split, load_data
from clipreid.data import convert as module
from clipreid.data.convert import convert
from clipreid.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def draw(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (32, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Two people for training, two for testing, the same file names in every folder; one image that is none."""
    root = tmp_path / "crops"
    draw(
        *(
            root / part / who / f"x{n}_cam{n}.jpg"
            for part, people in (("train", ("cara", "ben")), ("test", ("dan", "eve")))
            for who in people
            for n in (1, 2)
        )
    )
    (root / "train" / "ben" / "x2_cam2.jpg").write_bytes(b"")
    return root


def encoded(split: Split) -> list[tuple[str, bytes]]:
    found = []
    for batch in split.encoded_batches(3):
        for image in batch:
            data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
            found.append((image["path"], data))
    return found


def assert_same(back: ReIDData, data: ReIDData) -> None:
    assert (back.protocol, back.noun) == (data.protocol, data.noun)
    assert list(back.splits) == list(data.splits)
    for name, split in data.splits.items():
        other = back.splits[name]
        assert other.table.features == SCHEMA
        for column in set(SCHEMA) - {"image"}:
            assert list(other.table[column]) == list(split.table[column]), column
        assert [image for _, image in encoded(other)] == [image for _, image in encoded(split)]


def test_a_folder_comes_back(crops: Path, tmp_path: Path) -> None:
    data = load_data(f"folder:{crops}", noun="wombat")
    convert(data, tmp_path / "out", progress=False)
    shutil.rmtree(crops)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["clipreid.json", *(f"data/{s}-00000-of-00001.parquet" for s in ("gallery", "query", "train"))]
    back = load_data(f"hub:{tmp_path / 'out'}")
    draw_again = tmp_path / "crops"
    assert (back.protocol, back.noun) == ("cross-camera", "wombat")
    assert back.splits["query"].paths.tolist() == [
        "test/dan/x1_cam1.jpg",
        "test/dan/x2_cam2.jpg",
        "test/eve/x1_cam1.jpg",
        "test/eve/x2_cam2.jpg",
    ]
    assert back.splits["gallery"].paths.tolist() == back.splits["query"].paths.tolist()
    assert str(draw_again) not in (tmp_path / "out" / "clipreid.json").read_text()


def test_every_column_order_and_byte_comes_back(crops: Path, tmp_path: Path) -> None:
    data = load_data(f"folder:{crops}")
    convert(data, tmp_path / "out", progress=False)
    back = load_data(f"hub:{tmp_path / 'out'}")
    assert_same(back, data)
    assert len(encoded(back.splits["train"])[1][1]) == 0  # what cannot be decoded is kept as it is
    assert set(back.notes) == {note.replace(f"{crops}/", "") for note in data.notes}


def test_images_in_memory_and_every_kind_of_value(tmp_path: Path) -> None:
    def split(name: str, count: int) -> Split:
        images = []
        for n in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (n, 0, 0)).save(buffer, "PNG")
            images.append({"path": f"{name}/{n}.png" if n else None, "bytes": buffer.getvalue()})
        values = range(count)
        return Split.from_columns(
            name,
            images,
            [f"z{count - n}" for n in values],
            list(values),
            [n - 1 for n in values],
            ["", "ein Männchen,\nrot", *["x"] * count][:count],
            ["", "7_red", *["y"] * count][:count],
        )

    data = ReIDData(
        "synthetic:mine",
        {"val": split("val", 3), "train": split("train", 4)},
        "cloth-changing",
        "bear",
        ("mind the gap",),
    )
    convert(data, tmp_path / "out", progress=False)
    back = load_data(f"hub:{tmp_path / 'out'}")
    assert_same(back, data)
    assert back.notes == ("mind the gap",)
    assert [path for path, _ in encoded(back.splits["val"])] == [None, "val/1.png", "val/2.png"]
    assert load_data(f"hub:{tmp_path / 'out'}", noun="cat").noun == "cat"
    mapped = load_data(f"hub:{tmp_path / 'out'}", columns="identity=pid")  # for another set of the same run
    assert mapped.notes == ("mind the gap", "--columns is not for this set: `clipreid data convert` wrote it")
    kept = load_data(f"hub:{tmp_path / 'out'}", unknown=str(data.splits["train"].identities[0]))
    assert kept.notes == ("mind the gap", "--unknown is not for this set: `clipreid data convert` wrote it")
    assert_same(kept, data)


def test_shards_and_small_pieces_keep_the_order(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(*(crops / "train" / "dora" / f"y{n:03d}_cam1.jpg" for n in range(100)))
    data = load_data(f"folder:{crops}")
    monkeypatch.setattr(module, "GROUP", 4000)
    monkeypatch.setattr(module, "SHARD", 20_000)
    convert(data, tmp_path / "out", progress=False)
    shards = sorted((tmp_path / "out" / "data").glob("train-*"))
    assert len(shards) > 2
    assert shards[1].name == f"train-00001-of-{len(shards):05d}.parquet"
    assert_same(load_data(f"hub:{tmp_path / 'out'}"), data)


def test_anybody_can_load_it(crops: Path, tmp_path: Path) -> None:
    convert(load_data(f"folder:{crops}"), tmp_path / "out", progress=False)
    plain = datasets.load_dataset(str(tmp_path / "out"))
    assert set(plain) == {"train", "query", "gallery"}
    assert plain["query"].features == SCHEMA
    assert plain["query"][0]["identity"] == "dan"


def test_an_older_set_without_a_column_is_read(crops: Path, tmp_path: Path) -> None:
    data = load_data(f"folder:{crops}")
    convert(data, tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "clipreid.json").read_text())
    for part in record["splits"].values():
        for name in part["files"]:
            path = tmp_path / "out" / name
            datasets.Dataset.from_parquet(str(path)).remove_columns(["clothes"]).to_parquet(path)
            part["files"][name] = path.stat().st_size
    (tmp_path / "out" / "clipreid.json").write_text(json.dumps(record))
    back = load_data(f"hub:{tmp_path / 'out'}")
    assert_same(back, data)
    assert back.splits["query"].paths.tolist() == back.splits["gallery"].paths.tolist()


def refused(data: ReIDData, output: Path, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        convert(data, output, progress=False, **options)
    return str(caught.value)


def test_what_is_there_is_not_overwritten(crops: Path, tmp_path: Path) -> None:
    data, out = load_data(f"folder:{crops}"), tmp_path / "out"
    out.mkdir()
    convert(data, out, progress=False)  # an empty folder is fine
    assert f"--output {out} holds a converted set: give another folder, or --overwrite" in refused(data, out)
    second = ReIDData(data.name, {"train": data.splits["train"]}, data.protocol, "owl")
    convert(second, out, overwrite=True, progress=False)
    assert_same(load_data(f"hub:{out}"), second)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert "holds something else than a converted set" in refused(data, crops, overwrite=True)
    (tmp_path / "file").write_text("")
    assert "is a file: give a folder" in refused(data, tmp_path / "file")
    assert "cannot be written (" in refused(data, tmp_path / "file" / "below")


def test_missing_images_leave_the_old_set_alone(crops: Path, tmp_path: Path) -> None:
    data, out = load_data(f"folder:{crops}"), tmp_path / "out"
    convert(data, out, progress=False)
    (crops / "test" / "dan" / "x1_cam1.jpg").unlink()
    said = refused(data, out, overwrite=True)
    assert f"{crops}/test/dan/x1_cam1.jpg cannot be read (No such file or directory)" in said
    assert len(load_data(f"hub:{out}").splits) == 3


def test_an_incomplete_copy_is_noticed(crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(load_data(f"folder:{crops}"), out, progress=False)
    os.truncate(out / "data" / "query-00000-of-00001.parquet", 100)
    with pytest.raises(UserError, match=r"is incomplete: .*query-00000-of-00001.parquet has another size; copy it"):
        load_data(f"hub:{out}")
    (out / "data" / "query-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"is incomplete: .*query-00000-of-00001.parquet is missing"):
        load_data(f"hub:{out}")
    (out / "clipreid.json").write_text("{")
    with pytest.raises(UserError, match=r"clipreid.json is damaged: convert the data set again"):
        load_data(f"hub:{out}")


SLOW = """
import sys, time
from clipreid.data import load_data
from clipreid.data import convert
def embedded(image, root, plain=convert._embedded):
    print("reading", flush=True)
    time.sleep(0.2)
    return plain(image, root)
convert._embedded = embedded
convert.convert(load_data(f"folder:{sys.argv[1]}"), convert.Path(sys.argv[2]), progress=False)
"""


def test_a_killed_run_leaves_no_set_and_the_next_one_clears_up(crops: Path, tmp_path: Path) -> None:
    data, out = load_data(f"folder:{crops}"), tmp_path / "deep" / "out"
    command = [sys.executable, "-c", SLOW, str(crops), str(out)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    for _ in range(6):  # in the midst of the second split
        assert other.stdout.readline() == "reading\n"
    assert "another process is writing" in refused(data, out)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not out.exists()
    with pytest.raises(UserError, match="was left by an interrupted `clipreid data convert`"):
        load_data(f"hub:{out.parent / '.out.writing'}")
    deadline = time.monotonic() + 10
    while any(p.name.endswith(".lock") and "writing" in refused_or_done(data, out) for p in out.parent.iterdir()):
        assert time.monotonic() < deadline
    assert_same(load_data(f"hub:{out}"), data)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def refused_or_done(data: ReIDData, out: Path) -> str:
    """The lock of a killed process may outlive it by a moment."""
    try:
        convert(data, out, progress=False)
    except UserError as error:
        return str(error)
    return ""
