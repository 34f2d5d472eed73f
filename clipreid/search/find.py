"""From what a user names (folders, files, globs, data sets) to images with identity and camera where known."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from clipreid.data import Split, load_data
from clipreid.data.layouts import LAYOUTS
from clipreid.data.patterns import Crop, Place, fitting, named_pattern, read_paths
from clipreid.data.problems import pooled
from clipreid.data.readers import READ_BY, VALID, reads
from clipreid.data.walk import list_images
from clipreid.errors import UserError

READERS = frozenset({*(name.partition(":")[0] for name in VALID), *LAYOUTS})


def find_images(
    images: Sequence[str],
    *,
    split: str = "gallery",
    pattern: str | None = None,
    columns: str | None = None,
    unknown: Sequence[str] = (),
) -> Split:
    """The images that are named, in that order, each file once; nothing is decoded.

    images: folders (everything below them), files, globs (`crops/**/*.jpg`), or names of data sets (`synthetic`,
        `market1501:ROOT`), of which `split` is taken. What exists as a file or folder is never taken for anything else.
    pattern: reads identity, camera and view from paths (`clipreid.data.patterns`): below a named folder, or a file's
        as it was written. Without it they are unknown: "" and -1.
    columns, unknown: as for `load_data`.

    Raises:
        UserError: nothing is named; no such thing; no images; a pattern that does not fit; no such split.
    """
    if not images:
        raise UserError("name what to embed: folders, files, globs, or a data set such as synthetic")
    specs = list(dict.fromkeys(entry for entry in images if is_data(entry)))
    readers = {spec.partition(":")[0] for spec in specs}
    if split != "gallery" and not specs:
        raise UserError(f"--split {split} is a part of a data set, and {images[0]} is none: leave it out")
    for flag, value in (("columns", columns), ("unknown", unknown)):
        if value and not readers & {*READ_BY[flag]}:
            raise UserError(f"--{flag} works with {reads(flag)} only, not with {images[0]!r}")
    if pattern and set(specs) == set(images) and "folder" not in readers:
        raise UserError(f"--pattern reads paths of folders, files and folder:, not of {images[0]!r}: leave it out")
    parts = {spec: split_of_data(spec, split, pattern, columns, unknown) for spec in specs}
    _check_names(parts)
    tables = [part.table for part in parts.values()]
    places: dict[str, Place] = {}  # by the absolute path
    for entry in images:
        if entry not in parts:
            for path, place in _of_files(entry):
                places.setdefault(path, place)
    if places:
        tables.append(_split(places, pattern).table)
    return Split(split, datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0])


def _check_names(parts: Mapping[str, Split]) -> None:
    """Raises UserError for data sets with equal names for different images: results would be ambiguous."""
    known: dict[str, str] = {}  # name -> data set
    for spec, part in parts.items():
        names = set(part.paths.tolist()) - {""}
        if both := names & known.keys():
            name = min(both)
            raise UserError(
                f"{known[name]} and {spec} both have an image {name!r} ({len(both):,} such names), and results "
                "are identified by name: embed them into two galleries"
            )
        known |= dict.fromkeys(names, spec)


def is_data(entry: str) -> bool:
    """Whether this is the name of a data set: `synthetic`, `market1501:ROOT`, and no file or folder here."""
    return entry.partition(":")[0] in READERS and not os.path.exists(entry)


def absolute_entry(entry: str) -> str:
    """The entry with an absolute path, so that it is valid in any working folder."""
    reader, _, root = entry.partition(":") if is_data(entry) else ("", "", entry)
    path = os.path.abspath(Path(root).expanduser())
    if not reader:
        return path
    return f"{reader}:{path}" if root and reader != "synthetic" and os.path.exists(path) else entry


def split_of_data(
    spec: str, split: str, pattern: str | None, columns: str | None, unknown: Sequence[str] = ()
) -> Split:
    """One part of a data set; pattern, columns, unknown: for the readers that take them. Raises `UserError`."""
    reader = spec.partition(":")[0]
    flags: dict[str, Any] = {"pattern": pattern, "columns": columns, "unknown": unknown}
    with pooled():  # folder: needs no train/ and test/ here, for nothing is trained or scored
        data = load_data(spec, **{flag: value for flag, value in flags.items() if reader in READ_BY[flag]})
    if split not in data.splits:
        raise UserError(f"{spec} has no split {split!r}: give --split {' or '.join(data.splits)}")
    return data.splits[split]


def _of_files(entry: str) -> list[tuple[str, Place]]:
    """(absolute path, what a pattern reads) of every image of one folder, file or glob; a glob names files, and
    folders unless it goes down into all of them (`**`)."""
    path = Path(entry).expanduser()
    if path.is_dir():
        home = os.path.abspath(path)
        below = list_images(path)
        return [(_readable(os.path.join(home, *name.split("/"))), Place(str(path), name)) for name in below]
    if path.exists():
        return [(_readable(os.path.abspath(path)), Place("", str(path).replace(os.sep, "/")))]
    found = sorted(glob.glob(str(path), recursive=True))
    if named := [name for name in found if os.path.isfile(name) or "**" not in entry]:
        return [each for name in named for each in _of_files(name)]
    what = "the glob finds nothing" if glob.has_magic(entry) else "no such file or folder"
    what += " (a bracket that is part of a name is written [[])" if "[" in entry else ""
    raise UserError(f"{entry}: {what}, and it is no data set (those are {', '.join(VALID)}, or NAME:ROOT)")


def _readable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {os.fsencode(path)!r} is not UTF-8, which a gallery needs: rename it") from error
    return path


def _split(places: dict[str, Place], pattern: str | None) -> Split:
    crops = [Crop("")] * len(places)
    if pattern is not None:
        chosen = named_pattern(pattern)
        crops, _ = read_paths(chosen, fitting(chosen, list(places.values())))
    return Split.from_columns(
        "images",
        image=[{"path": path} for path in places],
        identity=[crop.identity for crop in crops],
        camera=[crop.camera for crop in crops],
        view=[crop.view for crop in crops],
    )
