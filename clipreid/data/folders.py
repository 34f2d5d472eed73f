"""The engine under every reader of folders: which folders are which splits, and what their paths say."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipreid.data.crops import ReIDData, Split
from clipreid.data.patterns import Crop, Pattern, Place, read_paths
from clipreid.data.pictures import SUFFIXES
from clipreid.errors import UserError


@dataclass(frozen=True)
class Layout:
    """An official data set on disk, declared: a reader is one of these.

    folders: split -> folder below the root. official: split -> (pictures, identities) after junk is dropped,
    the fingerprint; a copy that differs is read all the same, with a note.
    """

    name: str
    folders: Mapping[str, str]
    pattern: Pattern
    protocol: str
    noun: str = "person"
    official: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def read_layout(layout: Layout, root: Path, spec: str) -> ReIDData:
    """Reads a declared data set. Raises `UserError` for missing folders, no pictures and wrong file names."""
    root, notes = _descend(root, tuple(layout.folders.values()), spec)
    places = find_places(root, layout.folders)
    splits, more = read_splits(root, layout.folders, places, layout.pattern)
    counts = {name: (len(split), len(set(split.identities))) for name, split in splits.items()}
    differing = [
        f"{layout.name}: {name} has {counts[name][0]:,d} pictures of {counts[name][1]:,d} identities, "
        f"officially {pictures:,d} of {identities:,d}: figures will not compare with published ones"
        for name, (pictures, identities) in layout.official.items()
        if counts[name] != (pictures, identities)
    ]
    return ReIDData(spec, splits, layout.protocol, layout.noun, (*notes, *more, *differing))


def find_places(root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
    """All pictures by folder; folders: split -> folder below root, where query and gallery may share one."""
    return {
        folder: [Place(folder, path) for path in list_pictures(root / folder)]
        for folder in dict.fromkeys(folders.values())
    }


def read_splits(
    root: Path, folders: Mapping[str, str], places: Mapping[str, Sequence[Place]], pattern: Pattern
) -> tuple[dict[str, Split], list[str]]:
    """Reads what the paths say, with one pattern for all folders; returns the splits and notes.

    Junk is dropped everywhere, distractors from the query. Raises `UserError` for paths that do not fit.
    """
    read = {folder: read_paths(pattern, group) for folder, group in places.items()}
    splits, notes = {}, []
    for name, folder in folders.items():
        unwanted = pattern.junk | pattern.distractors if name == "query" else pattern.junk
        pairs = list(zip(places[folder], read[folder], strict=True))
        kept = [(place, crop) for place, crop in pairs if crop.identity not in unwanted]
        if not kept:
            raise UserError(f"{root / folder} holds only pictures that the pattern {pattern.name!r} leaves out")
        splits[name] = _split(name, root, kept)
        if len(kept) < len(pairs):
            left_out = "junk and distractors" if name == "query" else "junk"
            notes.append(f"{name}: {len(pairs) - len(kept):,d} pictures left out ({left_out})")
    return splits, notes


def list_pictures(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, with forward slashes, sorted.

    Hidden files are passed over, links to folders followed (not in circles). Raises `UserError` for a folder
    that cannot be read or holds no picture.
    """
    found: list[str] = []
    others: list[str] = []

    def walk(here: Path, below: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(here)
        if real in above:
            return
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"the folder {here} cannot be read ({error.strerror})") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                walk(here / entry.name, f"{below}{entry.name}/", (*above, real))
            else:
                is_picture = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                (found if is_picture else others).append(f"{below}{entry.name}")

    walk(folder, "", ())
    if not found:
        instead = f"; other files there: {', '.join(others[:5])}" if others else ""
        raise UserError(f"no pictures below {folder} ({', '.join(sorted(SUFFIXES))}){instead}")
    return sorted(found)


def _split(name: str, root: Path, pairs: Sequence[tuple[Place, Crop]]) -> Split:
    base = os.path.abspath(root)
    return Split.from_columns(
        name,
        image=[{"path": os.path.join(base, *str(place).split("/"))} for place, _ in pairs],
        identity=[crop.identity for _, crop in pairs],
        camera=[crop.camera for _, crop in pairs],
        view=[crop.view for _, crop in pairs],
    )


def _descend(root: Path, folders: Sequence[str], spec: str) -> tuple[Path, list[str]]:
    """The root itself, or the one folder inside it that holds everything (archives unpack with a folder)."""
    if all((root / folder).is_dir() for folder in folders):
        return root, []
    inside = [path for path in sorted(root.iterdir()) if all((path / folder).is_dir() for folder in folders)]
    if len(inside) == 1:
        return inside[0], [f"read from {inside[0].name}/ below {root}"]
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    raise UserError(
        f"{spec}: {root} lacks {', '.join(f'{folder}/' for folder in missing)}. "
        f"Expected below it: {', '.join(f'{folder}/' for folder in folders)}. Found: {describe_folder(root)}"
    )


def describe_folder(root: Path) -> str:
    """What lies in a folder, in one line, for error messages."""
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    pictures = [path for path in entries if path.suffix.lower() in SUFFIXES]
    rest = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in set(pictures)]
    shown = rest[:10] + ([f"{len(rest) - 10:,d} more entries"] if len(rest) > 10 else [])
    if pictures:
        shown.append(f"{len(pictures):,d} pictures, such as {pictures[0].name}")
    return ", ".join(shown) or "nothing"
