"""The named sets of the synthetic street: which people pass which cameras, painted once and kept on disk.

Version 1. The same name always gives the same images; identities of different sets are disjoint.
"""

from __future__ import annotations

import difflib
import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import datasets
import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from clipreid.data.crops import SCHEMA, ReIDData, Split
from clipreid.data.synthetic.camera import Camera, draw_pose, make_camera, render
from clipreid.data.synthetic.figure import Pose
from clipreid.data.synthetic.people import Person, caption, draw_family, draw_person
from clipreid.data.synthetic.scenes import HOME_SCENES, NEW_SCENES
from clipreid.errors import UserError

VERSION = 1
FAMILY = 3  # look-alikes in a family; every second family is one, the people between are strangers
HARSH_HOME, HARSH_NEW = 2.2, 1.6  # how far the cameras' colours stray from neutral; 0.9 in pretraining
WEATHER = 1.0  # how much light and colours change from image to image; 0 in pretraining
OCCLUDED = (0.25, 0.6)  # share of an occluded query that is hidden


@dataclass(frozen=True)
class Part:
    """One split: identities `first .. first + count - 1`, each seen `shots` times by each of `cameras` cameras."""

    first: int
    count: int
    shots: int = 1
    cameras: int = 6  # how many of the six, drawn for each identity
    occluded: bool = False


@dataclass(frozen=True)
class NamedSet:
    """A named set: its parts, its cameras, and whether the people are families of look-alikes."""

    parts: dict[str, Part]
    new_cameras: bool = False
    look_alikes: bool = True
    protocol: str = field(default="market1501", kw_only=True)
    about: str = field(default="", kw_only=True)


def _test(first: int, count: int, occluded: bool = False) -> dict[str, Part]:
    return {"query": Part(first, count, cameras=2, occluded=occluded), "gallery": Part(first, count)}


SETS: dict[str, NamedSet] = {
    "synthetic": NamedSet(
        {"train": Part(0, 300, shots=2), "val": Part(300, 51)} | _test(351, 150),
        about="train, validation and test at six cameras",
    ),
    "synthetic:new-cameras": NamedSet(
        _test(600, 150), new_cameras=True, about="test only, at six cameras never trained on"
    ),
    "synthetic:large": NamedSet(_test(900, 900), about="test only, 900 identities: for claims"),
    "synthetic:occluded": NamedSet(
        _test(1800, 150, occluded=True), about="test only, queries half hidden by objects and people"
    ),
    "synthetic:captions": NamedSet(
        {"train": Part(2100, 300, shots=2), "val": Part(2400, 50)} | _test(2500, 200),
        look_alikes=False,
        protocol="text-to-image",
        about="people whose captions all differ, for text-to-image",
    ),
}


def cameras_of(named: NamedSet) -> list[Camera]:
    """The six cameras of a set: the new ones hang in other places."""
    return _cameras(named.new_cameras)


@cache
def _cameras(new: bool) -> list[Camera]:
    if new:
        return [make_camera(scene, 200 + i, HARSH_NEW, weather=WEATHER) for i, scene in enumerate(NEW_SCENES)]
    return [make_camera(scene, 100 + i, HARSH_HOME, weather=WEATHER) for i, scene in enumerate(HOME_SCENES)]


@cache
def person(number: int, look_alikes: bool = True) -> Person:
    """The individual with this number. With look-alikes, numbers 6i, 6i+1 and 6i+2 are a family."""
    family, member = divmod(number, FAMILY)
    if look_alikes and family % 2 == 0:
        return draw_family(np.random.default_rng([VERSION, 1, family]), FAMILY)[member]
    return draw_person(np.random.default_rng([VERSION, 2, number]))


@dataclass(frozen=True)
class Shot:
    """One image to be painted."""

    set_name: str
    split: str
    number: int
    camera: int  # 0..5
    shot: int


def _shots(name: str, split: str) -> list[Shot]:
    part = SETS[name].parts[split]
    shots = []
    for number in range(part.first, part.first + part.count):
        chosen = np.random.default_rng([VERSION, 3, number]).permutation(6)[: part.cameras]
        shots += [Shot(name, split, number, int(c), s) for c in sorted(chosen) for s in range(part.shots)]
    return shots


def _posed(shot: Shot) -> tuple[Camera, Person, Pose, np.random.Generator]:
    """Who is seen by which camera, and how; the generator draws the rest."""
    named = SETS[shot.set_name]
    rng = np.random.default_rng([VERSION, 4, shot.number, shot.camera, shot.shot, int(shot.split == "query")])
    camera, who = cameras_of(named)[shot.camera], person(shot.number, named.look_alikes)
    return camera, who, draw_pose(camera, rng), rng


def paint(shot: Shot) -> tuple[np.ndarray, str]:
    """The image, uint8 [128, 64, 3], and its true caption."""
    camera, who, pose, rng = _posed(shot)
    hidden = float(rng.uniform(*OCCLUDED)) if SETS[shot.set_name].parts[shot.split].occluded else 0.0
    return render(who, camera, rng, pose, occlude=hidden), caption(who, pose.angle)


def people_seen(name: str, split: str) -> list[tuple[Person, float]]:
    """Who is on each image of a split of a named set, and the viewing angle (radians; 0 = facing the camera, positive =
    to the right of the image), in the order of its rows.

    Raises `KeyError` for a set or split that there is not.
    """
    return [(who, pose.angle) for _, who, pose, _ in map(_posed, _shots(name, split))]


def _row(shot: Shot) -> tuple[bytes, str]:
    pixels, words = paint(shot)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    return png.getvalue(), words


def _build(name: str, split: str, progress: bool) -> Split:
    shots = _shots(name, split)
    # no processes: where threads run already (Jupyter, arrow), a fork can hang; more threads wait for Python's lock
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = pool.map(_row, shots)
        bar = tqdm(jobs, f"painting {name} {split}", len(shots), unit=" images", disable=not progress, delay=1)
        rows = list(bar)
    return Split.from_columns(
        split,
        image=[
            {"path": f"{s.number:04d}_c{s.camera + 1}_{s.split}{s.shot}.png", "bytes": r[0]}
            for s, r in zip(shots, rows, strict=True)
        ],
        identity=[f"{s.number:04d}" for s in shots],
        camera=[s.camera + 1 for s in shots],
        caption=[r[1] for r in rows],
        attributes=[person(s.number, SETS[name].look_alikes).attributes() for s in shots],
    )


def load_synthetic(name: str = "synthetic", progress: bool = True) -> ReIDData:
    """A named set of the synthetic street.

    Images are painted on the first call (about 1.5 ms each) and kept in $CLIPREID_CACHE, else
    ~/.cache/clipreid.

    Args:
        name: one of `SETS`: `synthetic`, `synthetic:new-cameras`, ...
        progress: show a bar while painting.

    Raises:
        UserError: no such set.
    """
    check_name(name)
    home = Path(os.environ.get("CLIPREID_CACHE") or "~/.cache/clipreid").expanduser()
    folder = home / f"synthetic-v{VERSION}-{len(SCHEMA)}" / name.replace(":", "-")  # more columns: another table
    splits = {split: _kept(folder / split, partial(_build, name, split, progress)) for split in SETS[name].parts}
    return ReIDData(name, splits, SETS[name].protocol, "person")


def check_name(name: str) -> None:
    """Raises `UserError` where there is no such set."""
    if name not in SETS:
        close = difflib.get_close_matches(name, SETS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"no synthetic set {name!r}: {hint}the sets are {', '.join(SETS)}")


def _kept(folder: Path, build: Callable[[], Split]) -> Split:
    """The split kept in `folder`, painted first where it is not there; safe when several processes ask at once."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    _write(build(), Path(scratch) / "table")
                    (Path(scratch) / "table").rename(folder)
    except OSError as error:
        raise UserError(
            f"the synthetic images cannot be kept in {folder.parent} ({error.strerror or error}): "
            "set CLIPREID_CACHE to a folder that can be written"
        ) from error
    return Split(folder.name, datasets.load_from_disk(str(folder)))


def _write(split: Split, folder: Path) -> None:
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # ours has been shown
    try:
        split.table.save_to_disk(str(folder))
    finally:
        if shown:
            datasets.enable_progress_bars()
