"""Data without a publication: your own folders of images, or a table in a CSV file."""

import csv
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipreid.data.crops import ReIDData, Split
from clipreid.data.folders import describe_folder, find_places, read_splits
from clipreid.data.nouns import guess_noun, noun_note
from clipreid.data.patterns import PATTERNS, choose_pattern
from clipreid.data.problems import tolerate
from clipreid.errors import UserError

SPLITS = ("train", "val", "query", "gallery", "test")
JUNK = "-1"  # an identity: neither right nor wrong, as in Market-1501
OVERLAP, UNTESTED = (  # notes that `clipreid data check` replaces by findings of its own
    "identities are in train and in the test set",
    "no test images: there is nothing to evaluate on",
)
COLUMNS = ("image", "identity", "camera", "view", "split", "caption", "clothes")


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


def read_csv(file: Path, spec: str, noun: str | None = None) -> ReIDData:
    """A table with the columns image (path relative to the file) and identity; camera, view, split, caption, clothes.

    split is one of train, val, query, gallery, test (= query and gallery at once); without it all is train.
    Empty cameras and views are unknown; images of identity -1 are junk and left out. Raises `UserError` naming the
    line.
    """
    rows, ignored = _csv_rows(file)
    junk = sum(row["identity"] == JUNK for row in rows)
    rows = [row for row in rows if row["identity"] != JUNK]
    if not rows:
        raise UserError(f"{file}: every identity is {JUNK}, which marks junk: no images")
    names = {row["split"] for row in rows}
    if "test" in names and names & {"query", "gallery"}:
        raise UserError(f"{file}: the column split has test beside query or gallery; use one or the other")
    if len(names & {"query", "gallery"}) == 1:
        raise UserError(f"{file}: the column split has {'query' if 'query' in names else 'gallery'} alone")
    splits = {}
    for name in ("train", "val", "query", "gallery"):
        accepted = (name, "test") if name in ("query", "gallery") else (name,)
        chosen = [row for row in rows if row["split"] in accepted]
        if chosen:
            splits[name] = Split.from_columns(
                name,
                image=[{"path": row["image"]} for row in chosen],
                identity=[row["identity"] for row in chosen],
                camera=[int(row["camera"]) for row in chosen],
                view=[int(row["view"]) for row in chosen],
                caption=[row["caption"] for row in chosen],
                clothes=[row["clothes"] for row in chosen],
            )
    notes = [f"columns not read: {', '.join(ignored)}"] if ignored else []
    notes += [f"{junk:,d} images of identity {JUNK} left out (junk)"] if junk else []
    return custom_data(spec, splits, "test" in names, noun, notes)


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


def _csv_rows(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The lines below the header, checked, and the columns that mean nothing here."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = [(name or "").strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            lacking = [name for name in ("image", "identity") if name not in columns]
            if lacking:
                raise UserError(
                    f"{file}, line 1: no column {' and '.join(lacking)}; "
                    f"found: {', '.join(columns) or 'nothing'}. "
                    "Needed: image,identity; known: camera,view,split,caption,clothes; separated by commas"
                )
            rows = []
            for row in reader:
                try:
                    rows.append(_csv_row(file, reader.line_num, row))
                except UserError as error:
                    tolerate(error, "unusable line", [str(error)])
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not rows:
        raise UserError(f"{file} has no lines below its header: no images")
    return rows, [name for name in columns if name not in COLUMNS]


def _csv_row(file: Path, line: int, row: dict[str | Any, str | Any]) -> dict[str, str]:
    where = f"{file}, line {line}"
    if None in row:
        raise UserError(f"{where} has more cells than the header: put quotes around cells with commas")
    cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
    for name in ("image", "identity"):
        if not cell[name]:
            raise UserError(f"{where}: {name} is empty")
    cell["image"] = os.path.abspath(file.parent / os.path.expanduser(cell["image"]))
    if not os.path.isfile(cell["image"]):
        raise UserError(f"{where}: no such image: {cell['image']} (paths are relative to the csv file)")
    for name in ("camera", "view"):
        cell[name] = cell[name] or "-1"
        if cell[name] != "-1" and not cell[name].isdecimal():
            raise UserError(f"{where}: {name} {cell[name]!r} is not a whole number (if unknown, leave it empty)")
    cell["split"] = cell["split"].lower() or "train"
    if cell["split"] not in SPLITS:
        raise UserError(f"{where}: unknown split {cell['split']!r}; choose one of {', '.join(SPLITS)}")
    return cell
