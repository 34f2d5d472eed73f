"""Data without a publication: your own folders of images; protocol, noun and notes of all such data."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipreid.data.crops import ReIDData, Split
from clipreid.data.folders import describe_folder, find_places, read_splits
from clipreid.data.nouns import guess_noun, noun_note
from clipreid.data.patterns import PATTERNS, choose_pattern
from clipreid.errors import UserError

SPLITS = ("train", "val", "query", "gallery", "test")
OVERLAP, UNTESTED = (  # notes that `clipreid data check` replaces by findings of its own
    "identities are in train and in the test set",
    "no test images: there is nothing to evaluate on",
)


def read_folder(root: Path, spec: str, pattern: str | None = None, noun: str | None = None) -> ReIDData:
    """Your own images: ROOT/train and ROOT/test, or ROOT/query and ROOT/gallery; ROOT/val if you like.

    test/ alone is query and gallery at once. Identity and camera come from folder levels or file names, by
    the one pattern that fits all images. Raises `UserError` explaining the layout when it is another one.
    """
    folders, ignored = _split_folders(root, spec)
    places = find_places(root, folders)
    chosen = choose_pattern(list(dict.fromkeys(place for group in places.values() for place in group)), pattern)
    splits, notes = read_splits(root, folders, places, chosen)
    how = f"read by the pattern {chosen.name!r}: {_example(root, next(iter(splits.values())))}"
    if ignored:
        notes.append(f"not read: {', '.join(f'{folder}/' for folder in ignored)}")
    doubled = "query" in folders and folders["query"] == folders["gallery"]
    return replace(custom_data(spec, splits, doubled, noun, [how, *notes]), pattern=chosen.name)


def custom_data(spec: str, splits: dict[str, Split], doubled: bool, noun: str | None, notes: list[str]) -> ReIDData:
    """Protocol, noun and notes of data without a publication."""
    protocol, about_cameras = custom_protocol(splits, doubled)
    notes = [*notes, *about_cameras, *overlap_notes(splits)]
    if "gallery" not in splits:
        notes.append(UNTESTED)
    if noun is None:
        guess = guess_noun((name for split in splits.values() for name in split.identities), spec)
        noun, source = guess or ("person", None)
        notes.append(noun_note(noun, source))
    return ReIDData(spec, splits, protocol, noun, tuple(notes))


def custom_protocol(splits: Mapping[str, Split], doubled: bool) -> tuple[str, list[str]]:
    """The protocol that a custom data set allows, with a note on the junk rule.

    doubled: query and gallery are the same images. Without a camera for every test image, or with one
    camera only, "no-cameras"; else "cross-camera" for doubled sets and "market1501" for the others.
    """
    tested = [splits[name].cameras for name in ("query", "gallery") if name in splits]
    cameras = np.concatenate(tested or [split.cameras for split in splits.values()])
    unknown, names = int((cameras < 0).sum()), sorted(set(cameras[cameras >= 0].tolist()))
    off = "the junk rule (same identity, same camera) is off"
    if unknown == len(cameras):
        return "no-cameras", [f"no camera is known: {off}"]
    if unknown:
        return "no-cameras", [f"{unknown:,d} of {len(cameras):,d} test images have no camera: {off}"]
    if len(names) == 1:
        return "no-cameras", [f"all test images come from camera {names[0]}: {off}"]
    if not doubled:
        return "market1501", []
    return "cross-camera", ["every test image is query and gallery, compared with the images of the other cameras"]


def overlap_notes(splits: Mapping[str, Split]) -> list[str]:
    """A note when identities of train are also tested on: such figures flatter, unless numbering restarts."""
    named = {part: set(split.identities.tolist()) for part, split in splits.items()}
    tested = named.get("query", set()) | named.get("gallery", set())
    shared = sorted(named.get("train", set()) & tested)
    example = f"(such as {shared[0]!r})" if shared else ""
    return [f"{len(shared):,d} {OVERLAP} {example}"] if shared else []


def _split_folders(root: Path, spec: str) -> tuple[dict[str, str], list[str]]:
    """split -> folder below root, and the folders that are none."""
    present = _subfolders(root)
    if "bounding_box_train" in present:
        raise UserError(f"{root} has the layout of Market-1501: read it with market1501:{root}")
    folders: dict[str, str] = {name: present[name] for name in SPLITS[:4] if name in present}
    if "test" in present:
        if "query" in folders or "gallery" in folders:
            raise UserError(f"{spec}: {root} has test/ beside query/ or gallery/; keep one or the other")
        inside = _subfolders(root / present["test"])
        nested = "query" in inside and "gallery" in inside
        for name in ("query", "gallery"):
            folders[name] = f"{present['test']}/{inside[name]}" if nested else present["test"]
    if ("query" in folders) != ("gallery" in folders):
        there, lacking = ("query", "gallery") if "query" in folders else ("gallery", "query")
        raise UserError(f"{spec}: {root} has {there}/ but no {lacking}/: give both, or a test/ folder instead")
    if not folders:
        raise UserError(_explain_layout(root, spec))
    return folders, [name for lower, name in present.items() if lower not in SPLITS]


def _subfolders(folder: Path) -> dict[str, str]:
    """Lower-case name -> name."""
    try:
        found = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
    return {name.lower(): name for name in found}


def _explain_layout(root: Path, spec: str) -> str:
    examples = "\n".join(f"  train/{pattern.example:28s}(pattern {pattern.name!r})" for pattern in PATTERNS)
    inside = [path.name for path in sorted(root.iterdir()) if (path / "train").is_dir()]
    hint = f" Do you mean {spec.rstrip('/')}/{inside[0]}?" if inside else ""
    return (
        f"{spec}: {root} holds no train/, test/, or query/ and gallery/. "
        f"Found: {describe_folder(root)}.{hint}\n"
        f"Put the images to learn from below train/, those to test on below test/ (or query/ and gallery/)"
        f" in one of these ways:\n{examples}\nor in any other way that a --pattern describes."
    )


def _example(root: Path, split: Split) -> str:
    """How the first image was read, for the user to see whether that is right."""
    camera = f"camera {split.cameras[0]}" if split.cameras[0] >= 0 else "camera unknown"
    path = os.path.relpath(split.path(0), root)
    return f"{path} is identity {str(split.identities[0])!r}, {camera}"
