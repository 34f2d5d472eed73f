"""Images to a gallery: the same file whether in one go, in pieces after kills, or by several processes."""

import multiprocessing
import multiprocessing.process
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from galleries import BLOCK
from PIL import Image
from slowly import embed_slowly
from test_hub import make_run

import clipreid
from clipreid.errors import UserError
from clipreid.model import ReIDModel
from clipreid.search import Gallery, embed, embedding, find_images

pytestmark = pytest.mark.usefixtures("small_blocks")


def features(gallery: Gallery) -> np.ndarray:
    return np.concatenate([block.clone().numpy() for _, block in gallery.blocks()])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "parquet" in path.name)


# What is written --------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_model_in_the_order_of_the_paths(
    crops: Path, model: ReIDModel, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    done = embed(
        model,
        find_images([str(crops)], pattern="market1501"),
        tmp_path / "g.parquet",
        run="runs/x",
        batch_size=3,
        progress=lambda *now: told.append(now),
    )
    gallery = Gallery.open(tmp_path / "g.parquet")
    rows = gallery.rows(range(60))
    paths = sorted(str(path) for path in crops.rglob("*.png"))
    assert [row["path"] for row in rows] == paths
    names = [Path(path).name for path in paths]
    assert [row["identity"] for row in rows] == [name[:4] for name in names]
    assert [row["camera"] for row in rows] == [int(name[6]) for name in names]
    np.testing.assert_allclose(features(gallery), model.embed(paths).numpy(), atol=1e-6)
    assert (done.images, done.bad, done.found, done.stale, done.complete) == (60, 0, 0, 0, False)
    assert told[0] == (0, 60)
    assert told[-1] == (60, 60)
    assert [now for now, _ in told] == sorted(now for now, _ in told)
    assert left(tmp_path) == ["g.parquet"]
    assert gallery.about["run"] == "runs/x"


def test_without_a_pattern_nobody_is_known(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    embed(model, find_images([str(crops / "part0")]), tmp_path / "g.parquet")
    rows = Gallery.open(tmp_path / "g.parquet").rows(range(30))
    assert {(row["identity"], row["camera"]) for row in rows} == {(None, None)}


def test_bad_images_are_left_out_counted_and_listed(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    bad = sorted(crops.rglob("*.png"))[::17]
    for nth, file in enumerate(bad):
        file.write_bytes([b"", b"no image", file.read_bytes()[:200]][nth % 3])
    done = embed(model, find_images([str(crops)]), tmp_path / "g.parquet")
    assert (done.images, done.bad) == (60 - len(bad), len(bad))
    lines = (tmp_path / "g.parquet.unusable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(file) for file in bad]
    assert all(line.split("\t")[1] for line in lines)
    gallery = Gallery.open(tmp_path / "g.parquet")
    assert len(gallery) == 60 - len(bad)
    assert not {str(file) for file in bad} & {row["path"] for row in gallery.rows(range(len(gallery)))}
    for file in bad:
        Image.new("RGB", (10, 20), (9, 9, 9)).save(file)
    assert embed(model, find_images([str(crops)]), tmp_path / "g.parquet", overwrite=True).bad == 0
    assert not (tmp_path / "g.parquet.unusable.txt").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_that_failed_once_comes_in_when_it_can_be_read(
    crops: Path, model: ReIDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """As after a wrong permission or a failing network drive: the file itself has not changed."""
    unlucky, decode = sorted(crops.rglob("*.png"))[20], embedding.decode
    output, whole = tmp_path / "g.parquet", tmp_path / "whole.parquet"
    embed(model, find_images([str(crops)]), whole)

    def failing(image: dict, *how: Any) -> Any:
        return "Permission denied" if image["path"] == str(unlucky) else decode(image, *how)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as then:
        then.setattr(embedding, "decode", failing)
        if finished:
            assert embed(model, find_images([str(crops)]), output).bad == 1
            assert embed(model, find_images([str(crops)]), output, overwrite=True).complete  # it still fails
        else:
            then.setattr(embedding._Job, "_join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                embed(model, find_images([str(crops)]), output)
    if finished:
        before = output.read_bytes()
        with pytest.raises(UserError, match=r"made without 1 images that can be decoded by now: --overwrite makes"):
            embed(model, find_images([str(crops)]), output)
        assert output.read_bytes() == before
    done = embed(model, find_images([str(crops)]), output, overwrite=finished)
    assert (done.images, done.bad, done.found) == (60, 0, 0 if finished else 60 - BLOCK)
    assert np.array_equal(features(Gallery.open(output)), features(Gallery.open(whole)))
    assert left(tmp_path) == ["g.parquet", "whole.parquet"]


def test_nothing_but_bad_images_is_an_error(model: ReIDModel, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"none of the 1 images can be decoded: see .*unusable\.txt"):
        embed(model, find_images([str(tmp_path / "a.jpg")]), tmp_path / "g.parquet")
    assert "a.jpg\tnot an image" in (tmp_path / "g.parquet.unusable.txt").read_text()
    assert not (tmp_path / "g.parquet").exists()


# Interrupted, repeated, shared ------------------------------------------------------------------------------------


def straight(crops: Path, run: Path, folder: Path) -> bytes:
    """The gallery in one go, by a process of the same kind, with as many threads."""
    folder.mkdir()
    embed(clipreid.load(run), find_images([str(crops)]), folder / "g.parquet", run="r")
    return (folder / "g.parquet").read_bytes()


def test_what_was_interrupted_goes_on_and_ends_in_the_same_file(
    crops: Path, run: Path, model: ReIDModel, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop_at(limit: int) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if done >= limit:
                raise Stop

        return tell

    output, images = tmp_path / "g.parquet", find_images([str(crops)])
    for limit in (5, 20, 41):
        with pytest.raises(Stop):
            embed(model, images, output, run="r", batch_size=4, progress=stop_at(limit))
        assert not output.exists()
    seen: list[int] = []
    done = embed(model, images, output, run="r", batch_size=4, progress=lambda now, _: seen.append(now))
    assert done.found == seen[0] == 40
    assert done.stale == 0
    once = tmp_path / "once.parquet"
    embed(model, images, once, run="r", batch_size=4)
    assert output.read_bytes() == once.read_bytes()
    assert embed(model, images, output, run="r", batch_size=4).complete


def test_a_killed_process_and_two_at_once_make_the_same_file(crops: Path, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "g.parquet"

    context = multiprocessing.get_context("forkserver")  # imports once for all of them
    context.set_forkserver_preload(["slowly"])

    def start(seconds: float) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=embed_slowly, args=(str(run), str(crops), str(output), BLOCK, seconds))
        process.start()
        return process

    blocks = tmp_path / ".g.parquet.embedding"
    killed = start(0.3)
    while len(list(blocks.glob("*.parquet"))) < 2 and killed.is_alive():
        time.sleep(0.02)
    killed.kill()
    killed.join()
    before = set(blocks.glob("*.parquet"))
    assert 2 <= len(before) < 8
    assert not output.exists()
    both = [start(0.3), start(0.3)]
    while any(process.is_alive() for process in both):
        kept = before <= set(blocks.glob("*.parquet"))  # what was done is not done again
        assert kept or output.exists()
        time.sleep(0.01)
    assert [process.exitcode for process in both] == [0, 0]
    assert output.read_bytes() == straight(crops, run, tmp_path / "straight")
    assert left(tmp_path) == ["g.parquet"]


def test_images_that_changed_between_are_done_again(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    output = tmp_path / "g.parquet"
    files = sorted(crops.rglob("*.png"))

    def stop(done: int, total: int) -> None:
        if done > 40:  # told before the block is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, find_images([str(crops)]), output, progress=stop)
    Image.new("RGB", (10, 20), (200, 30, 30)).save(files[BLOCK])  # the second block
    done = embed(model, find_images([str(crops)]), output)
    assert (done.found, done.stale) == (40 - BLOCK, BLOCK)
    embed(model, find_images([str(crops)]), tmp_path / "once.parquet")
    assert output.read_bytes() == (tmp_path / "once.parquet").read_bytes()
    Image.new("RGB", (10, 20), (30, 200, 30)).save(files[3])
    with pytest.raises(UserError, match="made by another model, from other images or centred otherwise: --overwrite"):
        embed(model, find_images([str(crops)]), output)
    embed(model, find_images([str(crops)]), output, overwrite=True)
    np.testing.assert_allclose(features(Gallery.open(output))[3], model.embed([files[3]])[0].numpy(), atol=1e-6)


def test_an_image_that_changes_meanwhile_is_the_newer_one(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    first = min(crops.rglob("*.png"))
    todo = [(200, 30, 30), (30, 30, 200)]

    def change(done: int, total: int) -> None:
        if done == total and todo:
            Image.new("RGB", (10, 20), todo.pop()).save(first)
            os.utime(first, ns=(1, len(todo)))

    embed(model, find_images([str(crops)]), tmp_path / "g.parquet", progress=change)
    assert not todo
    found = features(Gallery.open(tmp_path / "g.parquet"))[0]
    np.testing.assert_allclose(found, model.embed([first])[0].numpy(), atol=1e-6)

    def restless(done: int, total: int) -> None:
        if done == total:
            os.utime(first, ns=(1, time.monotonic_ns()))

    with pytest.raises(UserError, match="keep changing"):
        embed(model, find_images([str(crops)]), tmp_path / "h.parquet", progress=restless)


def test_a_damaged_block_is_done_again(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    output = tmp_path / "g.parquet"

    def stop(done: int, total: int) -> None:
        if done > 40:  # told before the block is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, find_images([str(crops)]), output, progress=stop)
    block = min((tmp_path / ".g.parquet.embedding").glob("*.parquet"))
    data = bytearray(block.read_bytes())
    data[len(data) // 3] ^= 16  # a feature
    block.write_bytes(data)
    with pytest.raises(UserError, match=r"was damaged .* and is removed: repeat the command"):
        embed(model, find_images([str(crops)]), output)
    embed(model, find_images([str(crops)]), output)
    embed(model, find_images([str(crops)]), tmp_path / "once.parquet")
    assert output.read_bytes() == (tmp_path / "once.parquet").read_bytes()


# Which model ------------------------------------------------------------------------------------------------------


def test_a_gallery_is_for_the_model_that_made_it(
    crops: Path, model: ReIDModel, run: Path, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    images = find_images([str(crops / "part0")])
    embed(model, images, tmp_path / "g.parquet", run="runs/one")
    gallery = Gallery.open(tmp_path / "g.parquet")
    gallery.check(clipreid.load(run))
    with pytest.raises(UserError, match=r"another model \(runs/one; its strength is 1.0, here 0.5\)"):
        gallery.check(clipreid.load(run, strength=0.5))
    make_run(tiny_folder("siglip"), tmp_path / "other")
    with pytest.raises(UserError, match="its backbone is"):
        gallery.check(clipreid.load(tmp_path / "other"))
    other = clipreid.load(run)
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if "lora_B" in n).view(-1)[0] += 1e-3
    with pytest.raises(UserError, match=r"\(runs/one; other weights\)"):
        gallery.check(other)
    with pytest.raises(UserError, match="made by another model, from other images or"):
        embed(other, images, tmp_path / "g.parquet")
    assert not embed(other, images, tmp_path / "g.parquet", overwrite=True).complete


def test_outputs_that_cannot_be(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    images = find_images([str(crops)])
    with pytest.raises(UserError, match="is a folder: give a file"):
        embed(model, images, tmp_path)
    with pytest.raises(UserError, match="--batch-size 0: give 1 to 256"):
        embed(model, images, tmp_path / "g.parquet", batch_size=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        embed(model, images, tmp_path / "file" / "g.parquet")
    (tmp_path / "mine.parquet").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        embed(model, images, tmp_path / "mine.parquet")
    assert (tmp_path / "mine.parquet").read_text() == "mine"
