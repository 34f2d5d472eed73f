"""Some images of a data set: of one individual, a few of everybody, or written out as a folder of files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from clipreid.data import Split
from clipreid.errors import UserError
from clipreid.names import folder_name


def rows_of(split: Split, identity: str, most: int | None = None) -> list[int]:
    """Row numbers of an individual's images, one of each camera first. UserError where there is none."""
    rows = np.flatnonzero(split.identities == identity)
    if not len(rows):
        raise UserError(f"no image of {identity!r} in {split.name}")
    return [int(row) for row in rows[np.argsort(_nth(split.cameras[rows]), kind="stable")][:most]]


def images_of(split: Split, identity: str, most: int | None = None) -> list[Image.Image]:
    """An individual's images, at most so many, in the order of `rows_of`. UserError where there is none."""
    return [split.image(row) for row in rows_of(split, identity, most)]


def few(split: Split, most: int, identities: int | None = None) -> Split:
    """At most so many images of each individual, of different cameras where they can be; the first so many
    individuals (default: all), in the order of their names."""
    names = np.unique(split.identities)[:identities]
    return split.select([row for name in names.tolist() for row in rows_of(split, name, most)])


def write_folder(splits: Mapping[str, Split], folder: Path) -> int:
    """Writes images as FOLDER/SPLIT/IDENTITY/camCAMERA_NUMBER.png, to be read as `folder:FOLDER`; returns how many.

    What could not be the name of a folder is written as in a URL: the identity `street/0001` of a mixture of data sets
    as `street%2F0001`. Where a camera is not known, no name of its split says one. The folder is there when all is
    written, not before.

    Raises UserError where the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already: give an empty or a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as half:
            count = sum(_write(split, Path(half, "whole", name)) for name, split in splits.items())
            if folder.exists():
                folder.rmdir()
            Path(half, "whole").rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): give another folder") from error
    return count


def _write(split: Split, folder: Path) -> int:
    known = bool((split.cameras >= 0).all())  # one way of naming for all
    for row, (identity, camera) in enumerate(zip(split.identities, split.cameras, strict=True)):
        own = folder / folder_name(identity)
        own.mkdir(parents=True, exist_ok=True)
        split.image(row).save(own / f"{f'cam{camera}_' if known else ''}{row:05d}.png")
    return len(split)


def _nth(values: np.ndarray) -> np.ndarray:
    """Which occurrence of its value each entry is, [n]: 0 for the first."""
    return np.array([(values[:i] == value).sum() for i, value in enumerate(values)], dtype=int)
