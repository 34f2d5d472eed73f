"""Several jobs for one output: from other images, with another batch size, with hardly any room."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from galleries import BLOCK

from clipreid.errors import UserError
from clipreid.model import ReIDModel
from clipreid.search import Gallery, embed, find_images

pytestmark = pytest.mark.usefixtures("small_blocks")
Disk = namedtuple("Disk", "total used free")
COLLIDE = "made by another model, from other images or centred otherwise: --overwrite, or another name"


def blocks(output: Path) -> set[str]:
    return {file.name for file in output.with_name(f".{output.name}.embedding").glob("*.parquet")}


def stop_at(limit: int) -> Callable[[int, int], None]:
    """Interrupts; what is done of the block that is being embedded is lost."""

    def tell(done: int, total: int) -> None:
        if done > limit:
            raise KeyboardInterrupt

    return tell


def test_two_jobs_for_one_output_leave_each_other_alone(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    output, seen = tmp_path / "g.parquet", []
    first, other = find_images([str(crops)]), find_images([str(crops / "part1")])

    def meanwhile(done: int, total: int) -> None:
        seen.append(done)
        if done > 20 and not output.exists():
            before = blocks(output)
            inner = embed(model, other, output, run="other")
            assert (inner.images, inner.found, inner.stale) == (30, 0, 0)
            assert before <= blocks(output)

    with pytest.raises(UserError, match=COLLIDE):
        embed(model, first, output, run="first", progress=meanwhile)
    assert seen == sorted(seen)  # nothing was done again
    assert seen[-1] == 60
    assert (Gallery.open(output).about["run"], len(Gallery.open(output))) == ("other", 30)
    assert embed(model, first, output, run="first", overwrite=True).found == 60
    assert Gallery.open(output).about["run"] == "first"
    assert not output.with_name(f".{output.name}.embedding").exists()  # the last one at work removes it


def test_what_a_killed_job_held_does_not_stay(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    output = tmp_path / "g.parquet"
    folder = output.with_name(f".{output.name}.embedding")
    folder.mkdir()
    (folder / "0000.at-work").touch()  # nobody holds it
    embed(model, find_images([str(crops)]), output)
    assert not folder.exists()


def test_the_batch_size_makes_no_other_gallery(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    output, images = tmp_path / "g.parquet", find_images([str(crops)])
    embed(model, images, output, batch_size=8)
    written = output.read_bytes()
    assert embed(model, images, output, batch_size=3).complete
    assert output.read_bytes() == written


def test_blocks_of_another_batch_size_are_done_again(crops: Path, model: ReIDModel, tmp_path: Path) -> None:
    """So that the file is the same, bit for bit, as in one go."""
    output, images = tmp_path / "g.parquet", find_images([str(crops)])
    with pytest.raises(KeyboardInterrupt):
        embed(model, images, output, batch_size=8, progress=stop_at(40))
    done = embed(model, images, output, batch_size=3)
    assert (done.found, done.stale) == (0, 40)


def test_room_is_asked_for_what_is_not_done_yet(
    crops: Path, model: ReIDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, images, image = tmp_path / "g.parquet", find_images([str(crops)]), 4 * sum(model.widths.values())

    def free(size: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda folder: Disk(10**12, 0, size))

    free(120 * image - 1)
    with pytest.raises(UserError, match=r"embedding 60 images needs [\d.]+ kB in .*, where [\d.]+ kB are free: make"):
        embed(model, images, output)
    free(120 * image)
    with pytest.raises(KeyboardInterrupt):
        embed(model, images, output, progress=stop_at(5 * BLOCK))
    free((60 + 60 - 5 * BLOCK) * image - 1)
    with pytest.raises(UserError, match="embedding 20 images needs"):
        embed(model, images, output)
    free((60 + 60 - 5 * BLOCK) * image)
    assert embed(model, images, output).found == 5 * BLOCK
