"""Decode once: built, reused, noticed as stale or damaged, shared by processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipreid.data import PixelCache, Split, cache, pixel_cache, to_pixels
from clipreid.data.images import Crop, to_crop
from clipreid.errors import UserError

SIZE = (32, 16)


def save(path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 255, (40, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def split_of(folder: Path, count: int = 150) -> Split:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        save(path, i)
    return Split.from_columns("train", [{"path": str(p)} for p in paths], [str(i) for i in range(count)])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were decoded so far."""
    seen: list[str] = []

    def counting(source: str | bytes, *rest: object) -> Crop:
        seen.append(str(source))
        return to_crop(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "to_crop", counting)
    return seen


def assert_right(built: PixelCache, split: Split) -> None:
    assert built.pixels.dtype == torch.uint8
    assert built.pixels.shape == (len(split), 3, *SIZE)
    for row in (0, 1, len(split) // 2, len(split) - 1):
        np.testing.assert_array_equal(built.pixels[row], to_pixels(split.path(row), SIZE))


def folders(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "pixels").iterdir() if path.is_dir())


def test_built_once_then_read(tmp_path: Path, home: Path, decoded: list[str]) -> None:
    split = split_of(tmp_path / "p")
    first = pixel_cache(split, SIZE)
    assert len(decoded) == 150
    assert_right(first, split)
    assert first.kept.tolist() == list(range(150))
    assert first.bad == []
    again = pixel_cache(split, SIZE)
    assert len(decoded) == 150
    assert torch.equal(again.pixels, first.pixels)
    assert len(folders(home)) == 1


def test_size_interpolation_and_selection_have_their_own_caches(tmp_path: Path, home: Path) -> None:
    split = split_of(tmp_path / "p", 70)
    pixel_cache(split, SIZE)
    assert pixel_cache(split, (48, 24)).pixels.shape == (70, 3, 48, 24)
    bilinear = pixel_cache(split, SIZE, interpolation="bilinear")
    np.testing.assert_array_equal(bilinear.pixels[3], to_pixels(split.path(3), SIZE, "bilinear"))
    part = split.select([5, 69, 2])
    assert_right(pixel_cache(part, SIZE), part)
    assert len(folders(home)) == 4
    query = Split("query", split.table)  # the same images under another name share the file
    pixel_cache(query, SIZE)
    assert len(folders(home)) == 4


def test_a_changed_file_makes_it_stale_and_the_old_one_goes(tmp_path: Path, home: Path, decoded: list[str]) -> None:
    split = split_of(tmp_path / "p", 10)
    old = pixel_cache(split, SIZE)
    save(tmp_path / "p" / "004.png", 99)
    os.utime(tmp_path / "p" / "004.png", ns=(1, 1))
    new = pixel_cache(split, SIZE)
    assert len(decoded) == 20
    assert_right(new, split)
    assert (new.pixels != old.pixels).flatten(1).any(1).nonzero().flatten().tolist() == [4]
    assert len(folders(home)) == 1


def test_bytes_count_by_content(home: Path, decoded: list[str]) -> None:
    def of(colours: list[int]) -> Split:
        images = []
        for colour in colours:
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (colour, 0, 0)).save(buffer, "PNG")
            images.append({"path": "same name", "bytes": buffer.getvalue()})
        return Split.from_columns("train", images, ["x"] * len(colours))

    assert pixel_cache(of([10, 20]), SIZE).pixels[:, 0, 0, 0].tolist() == [10, 20]
    pixel_cache(of([10, 20]), SIZE)
    assert len(decoded) == 2
    assert pixel_cache(of([10, 30]), SIZE).pixels[:, 0, 0, 0].tolist() == [10, 30]
    pixel_cache(of([10, 20]), SIZE)
    assert len(decoded) == 4  # other bytes are other images, not a newer version of these


def flip_a_byte(folder: Path) -> None:
    with open(folder / cache.PIXELS, "r+b") as handle:
        handle.seek(1000)
        value = handle.read(1)[0]
        handle.seek(1000)
        handle.write(bytes([value ^ 255]))


def cut_short(folder: Path) -> None:
    os.truncate(folder / cache.PIXELS, 5000)


def garble_the_record(folder: Path) -> None:
    (folder / cache.RECORD).write_text("{")


def empty_the_record(folder: Path) -> None:
    (folder / cache.RECORD).write_text(json.dumps({"kept": []}))


def lose_the_record(folder: Path) -> None:
    (folder / cache.RECORD).unlink()


def drop_a_row(folder: Path) -> None:
    """A record that fits its pixels, and no longer the split."""
    record, size = json.loads((folder / cache.RECORD).read_text()), 3 * SIZE[0] * SIZE[1]
    pixels = (folder / cache.PIXELS).read_bytes()[:-size]
    record["kept"], record["digests"] = record["kept"][:-1], record["digests"][:-1]
    record["blocks"] = [(len(pixels), zlib.crc32(pixels))]
    (folder / cache.PIXELS).write_bytes(pixels)
    (folder / cache.RECORD).write_text(json.dumps(record))


def repeat_a_row(folder: Path) -> None:
    record = json.loads((folder / cache.RECORD).read_text())
    record["kept"][1] = 0
    (folder / cache.RECORD).write_text(json.dumps(record))


DAMAGES = [flip_a_byte, cut_short, garble_the_record, empty_the_record, lose_the_record, drop_a_row, repeat_a_row]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_noticed_and_made_anew(
    tmp_path: Path, home: Path, decoded: list[str], damage: Callable[[Path], None]
) -> None:
    split = split_of(tmp_path / "p", 10)
    pixel_cache(split, SIZE)
    damage(home / "pixels" / folders(home)[0])
    assert_right(pixel_cache(split, SIZE), split)
    assert len(decoded) == 20


def test_writing_into_the_tensor_does_not_reach_the_file(tmp_path: Path, home: Path) -> None:
    split = split_of(tmp_path / "p", 4)
    pixel_cache(split, SIZE).pixels.zero_()
    assert_right(pixel_cache(split, SIZE), split)


def spoil(folder: Path) -> list[str]:
    """Six images that cannot be used, of six kinds, and what is said about each."""
    data = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(data[: len(data) // 2])
    (folder / "003.png").write_bytes(b"")
    (folder / "005.png").write_text("this is no image")
    (folder / "007.png").unlink()
    Image.new("RGB", (1, 1)).save(folder / "009.png")
    Image.new("RGB", (300, 5)).save(folder / "011.png")
    return [
        "001.png: ",
        "003.png: not an image, or of an unknown format",
        "005.png: not an image, or of an unknown format",
        "007.png: No such file or directory",
        "009.png: 1x1 pixels, too small (each side needs 8)",
        "011.png: 300x5 pixels, too small (each side needs 8)",
    ]


def test_bad_images_are_named_unless_skipped(tmp_path: Path, home: Path, decoded: list[str]) -> None:
    split = split_of(tmp_path / "p", 140)
    reasons = spoil(tmp_path / "p")
    with pytest.raises(UserError) as caught:
        pixel_cache(split, SIZE)
    message = str(caught.value)
    assert "6 of 140 images of the split 'train' cannot be used" in message
    assert "continue without them: --skip-bad" in message
    for reason in reasons:
        assert f"{tmp_path / 'p'}/{reason}" in message

    before = len(decoded)
    built = pixel_cache(split, SIZE, skip_bad=True)
    assert len(decoded) - before <= 12  # only the bad ones are tried again
    assert len(built.bad) == 6
    kept = split.select(built.kept)
    assert len(kept) == 134
    assert "5" not in kept.identities
    for row in (0, 1, 60, 133):
        np.testing.assert_array_equal(built.pixels[row], to_pixels(kept.path(row), SIZE))


def test_many_bad_images_are_counted(tmp_path: Path, home: Path) -> None:
    split = split_of(tmp_path / "p", 20)
    for i in range(5, 20):
        (tmp_path / "p" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        pixel_cache(split, SIZE)
    assert str(caught.value).count(".png: ") == 10
    assert "... and 5 more" in str(caught.value)


def test_no_image_left_is_an_error_even_when_skipping(tmp_path: Path, home: Path) -> None:
    split = split_of(tmp_path / "p", 2)
    for path in (tmp_path / "p").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 2 images of the split 'train' cannot be used(.|\n)*None is left"):
        pixel_cache(split, SIZE, skip_bad=True)
    with pytest.raises(UserError, match="the split 'train' has no images"):
        pixel_cache(split.select([]), SIZE)


def test_a_mended_image_is_noticed_even_with_the_old_time(tmp_path: Path, home: Path) -> None:
    split = split_of(tmp_path / "p", 3)
    good = (tmp_path / "p" / "001.png").read_bytes()
    os.utime(tmp_path / "p" / "001.png", ns=(5, 5))
    (tmp_path / "p" / "001.png").write_bytes(bytes(len(good)))
    os.utime(tmp_path / "p" / "001.png", ns=(5, 5))
    assert len(pixel_cache(split, SIZE, skip_bad=True).kept) == 2
    (tmp_path / "p" / "001.png").write_bytes(good)
    os.utime(tmp_path / "p" / "001.png", ns=(5, 5))
    assert_right(pixel_cache(split, SIZE), split)


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path / "p", 2)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLIPREID_CACHE", raising=False)
    pixel_cache(split, SIZE)
    assert len(folders(tmp_path / "home" / ".cache" / "clipreid")) == 1
    pixel_cache(split, SIZE, cache_dir=tmp_path / "here")
    assert len(folders(tmp_path / "here")) == 1


def test_a_place_that_cannot_be_written_or_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path / "p", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): set CLIPREID_CACHE to a folder that can"):
        pixel_cache(split, SIZE, cache_dir=tmp_path / "file")
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("clipreid.data.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"decoding 'train' needs 0.0 GB in .*: make room, or set CLIPREID_CACHE"):
        pixel_cache(split, SIZE, cache_dir=tmp_path / "full")


def test_unknown_interpolation(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UserError, match="unknown interpolation 'cubic'; choose one of bicubic"):
        pixel_cache(split_of(tmp_path / "p", 1), SIZE, interpolation="cubic")


OTHER_PROCESS = """
import sys, time
from clipreid.data import Split, cache, parallel, pixel_cache
from clipreid.data.images import to_crop
parallel.cores = lambda: 2  # with more, all blocks would be finished at once
count = int(sys.argv[2])
def slow(*arguments):
    sys.stdout.write("decoding\\n")  # in one piece: several threads write
    sys.stdout.flush()
    time.sleep(float(sys.argv[3]))
    return to_crop(*arguments)
cache.to_crop = slow
paths = [f"{sys.argv[1]}/{i:03d}.png" for i in range(count)]
split = Split.from_columns("train", [{"path": path} for path in paths], [str(i) for i in range(count)])
print("done", pixel_cache(split, (32, 16), progress=False).pixels.sum().item())
"""


def start_other(folder: Path, count: int, pause: float) -> subprocess.Popen[str]:
    """Another process that is in the midst of decoding the same images, slowly."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), str(count), str(pause)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "decoding\n"
    return process


def test_of_two_processes_one_decodes(
    tmp_path: Path,
    home: Path,
    decoded: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 0.01)
    split = split_of(tmp_path / "p", 80)
    other = start_other(tmp_path / "p", 80, 0.02)
    built = pixel_cache(split, SIZE)
    assert decoded == []
    assert_right(built, split)
    assert "waiting for another process that decodes the same images" in capsys.readouterr().err
    output, _ = other.communicate(timeout=60)
    assert output.splitlines()[-1] == f"done {built.pixels.sum().item()}"


def kill_after(folder: Path, home: Path, count: int, blocks: int) -> Path:
    """Kills another process once it has finished so many blocks; returns the folder of its build."""
    other = start_other(folder, count, 0.02)
    (building,) = [home / "pixels" / name for name in folders(home) if name.endswith(".building")]
    journal, patience = building / cache.JOURNAL, time.monotonic() + 60
    while journal.read_text().count("\n") < blocks:
        assert time.monotonic() < patience
        time.sleep(0.01)
    other.send_signal(signal.SIGKILL)
    other.wait()
    return building


def test_a_killed_build_is_continued_and_not_taken_for_finished(
    tmp_path: Path, home: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    split = split_of(tmp_path / "p", 200)
    building = kill_after(tmp_path / "p", home, 200, 1)
    before = (building / cache.JOURNAL).read_text().count("\n")
    assert_all_right(pixel_cache(split, SIZE), split)
    assert len(decoded) == 200 - 64 * before
    assert len(folders(home)) == 1
    assert sorted(path.name for path in (home / "pixels" / folders(home)[0]).iterdir()) == [cache.RECORD, cache.PIXELS]


def assert_all_right(built: PixelCache, split: Split) -> None:
    whole = np.stack([to_pixels(split.path(row), SIZE) for row in range(len(split))])
    np.testing.assert_array_equal(built.pixels, whole)


@pytest.fixture
def interrupted(tmp_path: Path, home: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Split, Path]:
    """A build of 200 images, 7 and 70 of them bad, that was stopped (Ctrl-C) behind its third block of 64."""
    split = split_of(tmp_path / "p", 200)
    for row in (7, 70):
        (tmp_path / "p" / f"{row:03d}.png").write_bytes(b"spoilt")
    bars = 0

    class Bar(cache.tqdm):  # type: ignore[misc, name-defined]
        def update(self, n: float = 1) -> None:
            nonlocal bars
            bars += 1
            if bars == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            pixel_cache(split, SIZE, skip_bad=True)
    decoded.clear()
    (folder,) = (home / "pixels" / name for name in folders(home))
    assert folder.name.endswith(".building")
    return split, folder


def test_an_interrupted_build_ends_as_an_uninterrupted_one(
    interrupted: tuple[Split, Path], tmp_path: Path, decoded: list[str]
) -> None:
    split, _ = interrupted
    built = pixel_cache(split, SIZE, skip_bad=True)
    assert len(decoded) == (200 - 192) + 2  # the rest, and the bad ones once more
    whole = pixel_cache(split, SIZE, skip_bad=True, cache_dir=tmp_path / "other")
    assert torch.equal(built.pixels, whole.pixels)
    assert built.kept.tolist() == whole.kept.tolist() == [row for row in range(200) if row not in (7, 70)]
    assert built.bad == whole.bad


def cut_pixels(folder: Path) -> None:
    os.truncate(folder / cache.PIXELS, 100 * 3 * SIZE[0] * SIZE[1])


def cut_journal(folder: Path) -> None:
    os.truncate(folder / cache.JOURNAL, (folder / cache.JOURNAL).read_bytes().index(b"\n") + 9)


def spoil_second_block(folder: Path) -> None:
    with open(folder / cache.PIXELS, "r+b") as handle:
        handle.seek(100 * 3 * SIZE[0] * SIZE[1])
        handle.write(b"spoilt")


@pytest.mark.parametrize("damage", [cut_pixels, cut_journal, spoil_second_block])
def test_of_an_interrupted_build_only_whole_blocks_are_kept(
    interrupted: tuple[Split, Path], tmp_path: Path, decoded: list[str], damage: Callable[[Path], None]
) -> None:
    split, folder = interrupted
    damage(folder)
    built = pixel_cache(split, SIZE, skip_bad=True)
    assert len(set(decoded)) == 200 - 64 + 1  # one block is left; its one bad image is tried again
    whole = pixel_cache(split, SIZE, skip_bad=True, cache_dir=tmp_path / "other")
    assert torch.equal(built.pixels, whole.pixels)


def test_an_image_mended_during_the_interruption_is_noticed(
    interrupted: tuple[Split, Path], tmp_path: Path, decoded: list[str]
) -> None:
    split, _ = interrupted
    file = tmp_path / "p" / "070.png"
    status = file.stat()
    image = io.BytesIO()
    Image.new("L", (20, 20)).save(image, "PNG")
    file.write_bytes(image.getvalue())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = pixel_cache(split, SIZE, skip_bad=True)
    assert [path for path, _ in again.bad] == [str(tmp_path / "p" / "007.png")]


def test_an_image_changed_during_the_interruption_starts_anew(
    interrupted: tuple[Split, Path], home: Path, tmp_path: Path, decoded: list[str]
) -> None:
    split, _ = interrupted
    save(tmp_path / "p" / "020.png", 999)
    built = pixel_cache(split, SIZE, skip_bad=True)
    assert len(set(decoded)) == 200
    np.testing.assert_array_equal(built.pixels[19], to_pixels(split.path(20), SIZE))
    assert len(folders(home)) == 1  # what was begun is gone


def test_a_disk_that_fails_while_writing_leaves_nothing(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        pixel_cache(split_of(tmp_path / "p", 3), SIZE)
    assert folders(home) == []


def test_the_digest_is_of_the_pixels_wherever_and_whenever_they_were_decoded(tmp_path: Path) -> None:
    """What `--resume` compares: another cache and other times of the files are no other data, another pixel is."""
    split = split_of(tmp_path / "p", 5)
    first = pixel_cache(split, SIZE, cache_dir=tmp_path / "one").digest
    os.utime(tmp_path / "p" / "000.png", (1, 1))
    assert pixel_cache(split, SIZE, cache_dir=tmp_path / "two").digest == first != ""
    Image.new("RGB", (16, 32), (1, 2, 3)).save(tmp_path / "p" / "000.png")
    assert pixel_cache(split, SIZE, cache_dir=tmp_path / "three").digest != first
