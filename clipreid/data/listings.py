"""Splits that files describe instead of folders: lists of images, caption files, files of numbered splits."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clipreid.data.patterns import SHOWN, Place
from clipreid.data.problems import tolerate
from clipreid.disk import parse_json
from clipreid.errors import UserError


class Listing(Protocol):
    """Says which images of a folder make up a split. needed: files below the root (wildcards allowed)."""

    @property
    def needed(self) -> tuple[str, ...]: ...

    def read(self, root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
        """The images of each split. Raises `UserError` naming file and line, or the images that are not there."""
        ...


@dataclass(frozen=True)
class TextLists:
    """Text files for each split, one image a line: its path below the split's folder, then perhaps labels.

    The pattern reads the whole line. suffix: what the lists leave out of the names of the images.
    """

    files: Mapping[str, tuple[str, ...]]
    suffix: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(file for files in self.files.values() for file in files))

    def read(self, root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
        places = {}
        for split, folder in folders.items():
            lists = [self._lines(root, file, folder) for file in self.files[split]]
            places[split] = [place for group in lists for place in group]
        return places

    def _lines(self, root: Path, file: str, folder: str) -> list[Place]:
        entries = [(number, line.strip()) for number, line in enumerate(read_text(root / file).splitlines(), 1)]
        places = [
            Place(folder, line.split()[0] + self.suffix, line, f"{file}, line {number}")
            for number, line in entries
            if line
        ]
        return _present(root, file, places)


@dataclass(frozen=True)
class CaptionFile:
    """A JSON list of records with the keys split (train, val, test), id, captions, and `image`, the image's path.

    Each caption of a test image is a query of its own; everything else has one row for each image. The pattern
    reads the path and the id, with a space between them.
    """

    file: str
    image: str

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.file,)

    def read(self, root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
        file = next(root.glob(self.file))
        records = [self._record(file, number, entry) for number, entry in enumerate(_json_list(file), 1)]
        places = {}
        for split, folder in folders.items():
            wanted = "test" if split in ("query", "gallery") else split
            places[split] = [
                Place(folder, path, f"{path} {identity}", where, caption)
                for where, name, path, identity, captions in records
                if name == wanted
                for caption in (captions if split == "query" else ["\n".join(captions)])
            ]
            if not places[split]:
                found = ", ".join(repr(name) for name in sorted({record[1] for record in records})) or "no records"
                raise UserError(f"{file}: no record has the split {wanted!r}; found: {found}")
            places[split] = _present(root, file.name, places[split])
        return places

    def _record(self, file: Path, number: int, entry: Any) -> tuple[str, str, str, str, list[str]]:
        where = f"{file.name}, record {number}"
        keys = ("split", self.image, "id", "captions")
        lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if lacking:
            raise UserError(f"{file}, record {number} lacks {', '.join(lacking)}; needed: {', '.join(keys)}")
        captions = entry["captions"]
        if not isinstance(captions, list) or not all([isinstance(x, str) and x.strip() for x in captions] or [False]):
            raise UserError(f"{file}, record {number}: captions must be a list of sentences, not {captions!r}")
        path = str(entry[self.image]).replace("\\", "/")
        return where, str(entry["split"]), path, str(entry["id"]), [" ".join(text.split()) for text in captions]


@dataclass(frozen=True)
class SplitFile:
    """A JSON list of numbered splits, each {"train": [[path, ...], ...], "query": ..., "gallery": ...}.

    Only the names of the images are used: the paths are those of the machine that wrote the file.
    """

    file: str
    number: int = 1

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.file,)

    def read(self, root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
        file = root / self.file
        numbered = _json_list(file)
        if len(numbered) < self.number:
            raise UserError(f"{file} holds {len(numbered)} splits: there is no number {self.number}")
        chosen = numbered[self.number - 1]
        places = {}
        for split, folder in folders.items():
            where = f"{self.file}, split {self.number}, {split}"
            entries = chosen.get(split) if isinstance(chosen, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, list) and entry for entry in entries):
                raise UserError(f"{file}: split {self.number} has no list of images {split!r}")
            names = [re.split(r"[\\/]", str(entry[0]))[-1] for entry in entries]
            rows = [Place(folder, name, name, f"{where} {number}") for number, name in enumerate(names, 1)]
            places[split] = _present(root, self.file, rows)
        return places


def read_text(file: Path) -> str:
    """A file of UTF-8 text; raises `UserError`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error


def _json_list(file: Path) -> list[Any]:
    try:
        content = parse_json(read_text(file))
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"{file}{line} is not JSON ({reason}): is the file complete?") from error
    if not isinstance(content, list):
        raise UserError(f"{file} holds a JSON {type(content).__name__}; a list is needed")
    return content


def _present(root: Path, file: str, places: list[Place]) -> list[Place]:
    """The places whose images exist. Raises `UserError` when there are none, and naming those that are not."""
    if not places:
        raise UserError(f"{root / file} names no images")
    missing = [place for place in places if not os.path.isfile(root / place.folder / place.path)]
    if missing:
        refusal = UserError(_explain_missing(root, file, missing, len(places)))
        tolerate(refusal, "listed, but not there", [str(place) for place in missing])
    gone = set(missing)
    return [place for place in places if place not in gone]


def _explain_missing(root: Path, file: str, missing: Sequence[Place], total: int) -> str:
    lines = [f"  {place.where}: no image {root / place.folder / place.path}" for place in missing[:SHOWN]]
    if len(missing) > SHOWN:
        lines.append(f"  ... and {len(missing) - SHOWN:,d} more")
    head = f"{len(missing):,d} of {total:,d} images that {root / file} names are not there:"
    return "\n".join([head, *lines, "Unpack the whole data set, or fix the list."])
