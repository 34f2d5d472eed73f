"""Reads declared data sets: which folders are which splits, and what the paths of the images say."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipreid.data.crops import ReIDData, Split
from clipreid.data.images import SUFFIXES
from clipreid.data.listings import Listing
from clipreid.data.patterns import Crop, Pattern, Place, fitting, read_paths
from clipreid.data.values import is_unknown
from clipreid.data.walk import find_files, not_read
from clipreid.errors import UserError

Counts = tuple[int | None, int | None, int | None]  # images, identities, cameras; None = nowhere published
Adjust = Callable[[str, Crop], Crop]  # (split, what the pattern read) -> corrected


@dataclass(frozen=True)
class Layout:
    """The declaration of an official data set on disk.

    folders: split -> folder below the root. listing: the files that say which of its images belong to the split;
    None = all. adjust: for what a pattern cannot say, such as a view that follows from the camera.
    official: split -> (images, identities, cameras) after junk is dropped, the fingerprint; a copy that differs is
    read all the same, with a note. notice: what every reader of the set must know; it becomes the first note.
    people: the name that all sets with the same individuals share; "" = no other set shows them (`same_people`).
    remarks: (root, splits) -> further notes on what was read.
    """

    name: str
    folders: Mapping[str, str]
    pattern: Pattern
    protocol: str
    noun: str = "person"
    official: Mapping[str, Counts] = field(default_factory=dict)
    listing: Listing | None = None
    adjust: Adjust | None = None
    notice: str = ""
    people: str = ""
    remarks: Callable[[Path, Mapping[str, Split]], list[str]] | None = None

    @property
    def needed(self) -> list[str]:
        """What must lie below the root: folders with a slash at the end, then files."""
        folders = [f"{folder}/" for folder in dict.fromkeys(self.folders.values())]
        return folders + list(self.listing.needed if self.listing else ())

    def fits(self, root: Path) -> bool:
        """Whether everything needed lies below `root`; nothing is read."""
        return not _missing(root, self.needed)


def read_layout(layout: Layout, root: Path, spec: str, known: Iterable[Layout] = ()) -> ReIDData:
    """Reads a declared data set.

    known: layouts to name when this one does not fit but another does. Raises `UserError` for missing folders and
    files, no images, wrong file names and wrong entries of lists.
    """
    root, notes = _descend(layout, root, spec, known)
    if layout.listing is None:
        places, others = find_places(root, layout.folders)
        notes += others
    else:
        places = layout.listing.read(root, layout.folders)
    splits, more = read_splits(root, layout.folders, places, layout.pattern, layout.adjust)
    more += layout.remarks(root, splits) if layout.remarks else []
    notice = [f"{layout.name}: {layout.notice}"] if layout.notice else []
    return ReIDData(spec, splits, layout.protocol, layout.noun, (*notice, *notes, *more, *differences(layout, splits)))


def differences(layout: Layout, splits: Mapping[str, Split]) -> list[str]:
    """A sentence for each split whose counts are not the official ones."""
    notes = []
    for name, official in layout.official.items():
        found = count(splits[name])
        if any(theirs not in (None, ours) for ours, theirs in zip(found, official, strict=True)):
            notes.append(
                f"{layout.name}: {name} has {_say(found)}; officially {_say(official)}: "
                "figures will not compare with published ones"
            )
    return notes


def count(split: Split) -> tuple[int, int, int]:
    """Images, identities and known cameras."""
    cameras = split.cameras[split.cameras >= 0]
    return len(split), len(set(split.identities.tolist())), len(set(cameras.tolist()))


def _say(counts: Counts) -> str:
    named = zip(counts, ("images", "identities", "cameras"), strict=True)
    return ", ".join(f"{number:,d} {what}" for number, what in named if number is not None)


def find_places(root: Path, folders: Mapping[str, str]) -> tuple[dict[str, list[Place]], list[str]]:
    """All images by split, and a note that counts other files.

    folders: split -> folder below root, where query and gallery may share one.
    """
    found = {folder: find_files(root / folder) for folder in dict.fromkeys(folders.values())}
    places = {folder: [Place(folder, path) for path in files.images] for folder, files in found.items()}
    others = [path for files in found.values() for path in files.others]
    notes = not_read(others, sum(map(len, places.values())))
    return {split: places[folder] for split, folder in folders.items()}, notes


def read_splits(
    root: Path,
    folders: Mapping[str, str],
    places: Mapping[str, Sequence[Place]],
    pattern: Pattern,
    adjust: Adjust | None = None,
    unknown: Collection[str] | None = None,
) -> tuple[dict[str, Split], list[str]]:
    """Reads what the paths say, with one pattern for all splits; returns the splits and notes.

    Junk is dropped everywhere, distractors from the query. unknown: in own data identities that nobody knows are junk,
    by `clipreid.data.values` and these words; None = no word has a special meaning. Raises `UserError` for paths that
    do not fit.
    """
    fit = {name: fitting(pattern, places[name]) for name in folders}
    crops, notes = read_paths(pattern, [place for name in folders for place in fit[name]], unknown or ())
    splits, start = {}, 0
    for name, folder in folders.items():
        read, start = crops[start : start + len(fit[name])], start + len(fit[name])
        junk = pattern.junk | {crop.identity for crop in read if unknown is not None and _nobody(crop, unknown)}
        unwanted = junk | pattern.distractors if name == "query" else junk
        pairs = list(zip(fit[name], read, strict=True))
        kept = [(place, crop) for place, crop in pairs if crop.identity not in unwanted]
        if not kept:
            raise UserError(f"{root / folder} holds only images that the pattern {pattern.name!r} leaves out")
        if adjust is not None:
            kept = [(place, adjust(name, crop)) for place, crop in kept]
        splits[name] = _split(name, root, kept)
        if len(kept) < len(pairs):
            why = "junk and distractors" if name == "query" and pattern.distractors else "junk"
            if unknown is not None:
                said = sorted({crop.identity for crop in read if crop.identity in junk})
                why = f"the identity is {', '.join(map(repr, said))}, which means unknown"
            notes.append(f"{name}: {len(pairs) - len(kept):,d} images left out ({why})")
    return splits, notes


def _nobody(crop: Crop, unknown: Collection[str]) -> bool:
    return is_unknown(crop.identity, unknown)


def _split(name: str, root: Path, pairs: Sequence[tuple[Place, Crop]]) -> Split:
    base = os.path.abspath(root)
    return Split.from_columns(
        name,
        image=[{"path": os.path.normpath(os.path.join(base, place.folder, place.path))} for place, _ in pairs],
        identity=[crop.identity for _, crop in pairs],
        camera=[crop.camera for _, crop in pairs],
        view=[crop.view for _, crop in pairs],
        caption=[place.caption for place, _ in pairs],
        clothes=[crop.clothes for _, crop in pairs],
        tracklet=[crop.tracklet for _, crop in pairs],
        session=[crop.session for _, crop in pairs],
    )


def _missing(root: Path, needed: Sequence[str]) -> list[str]:
    """Those of `needed` that do not lie below root; a slash at the end marks folders, wildcards are allowed."""
    missing = []
    for entry in needed:
        test = Path.is_dir if entry.endswith("/") else Path.is_file
        if not any(test(path) for path in root.glob(entry.rstrip("/"))):
            missing.append(entry)
    return missing


def _descend(layout: Layout, root: Path, spec: str, known: Iterable[Layout]) -> tuple[Path, list[str]]:
    """The root itself; the one folder inside that holds everything (archives unpack with a folder); the one above."""
    if layout.fits(root):
        return root, []
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and layout.fits(path)]
    if len(inside) == 1:
        return inside[0], [f"read from {inside[0].name}/ below {root}"]
    if layout.fits(root.parent):
        return root.parent, [f"read from {root.parent}, above {root}"]
    fitting = [f"{other.name}:{root}" for other in known if other.fits(root)]
    raise UserError(
        f"{spec}: {root} lacks {', '.join(_missing(root, layout.needed))}. "
        f"Expected below it: {', '.join(layout.needed)}. Found: {describe_folder(root)}"
        + (f". It fits {' or '.join(fitting)}" if fitting else "")
    )


def describe_folder(root: Path) -> str:
    """What lies in a folder, in one line, for error messages."""
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    images = [path for path in entries if path.suffix.lower() in SUFFIXES]
    rest = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in set(images)]
    shown = rest[:10] + ([f"{len(rest) - 10:,d} more entries"] if len(rest) > 10 else [])
    if images:
        shown.append(f"{len(images):,d} images, such as {images[0].name}")
    return ", ".join(shown) or "nothing"
