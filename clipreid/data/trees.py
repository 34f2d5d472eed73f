"""Your own folders of images: which folders are which splits, and what the paths below them say."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clipreid.data.crops import ReIDData, Split
from clipreid.data.custom import custom_data
from clipreid.data.folders import describe_folder, find_places, read_splits
from clipreid.data.images import SUFFIXES
from clipreid.data.patterns import APART, PATTERNS, Pattern
from clipreid.data.problems import collecting, pooling
from clipreid.data.readings import choose_pattern
from clipreid.data.values import SPLITS
from clipreid.errors import UserError

TESTED = ("query", "gallery")


def read_folder(
    root: Path, spec: str, pattern: str | None = None, noun: str | None = None, unknown: Collection[str] = ()
) -> ReIDData:
    """Your own images: ROOT/train and ROOT/test, or ROOT/query and ROOT/gallery; ROOT/val if you like.

    test/ alone is query and gallery at once. Where data is split anew or checked, all images below ROOT may lie in no
    such folder: they are `train` then. Identity, camera, session, tracklet come from folder levels or file names:
    by `pattern`, else by the one reading that leaves no doubt (`clipreid.data.readings`). unknown: further identities
    that mean "nobody knows". Raises `UserError` explaining the layout when it is another one, and where it is in doubt.
    """
    folders, notes = _split_folders(root, spec)
    found, others = find_places(root, {folder: folder for each in folders.values() for folder in each})
    places = {split: [place for folder in each for place in found[folder]] for split, each in folders.items()}
    chosen = choose_pattern(places, pattern, unknown)
    homes = {split: " and ".join(each) for split, each in folders.items()}
    splits, more = read_splits(root, homes, places, chosen, unknown=unknown)
    if chosen.apart and "train" in splits:
        splits["train"] = _apart(splits["train"])
    how = f"read by the pattern '{chosen.name}':\n{_examples(root, splits)}"
    doubled = "query" in folders and folders["query"] == folders["gallery"]
    notes = [how, *notes, *others, *more, *_zero(splits, chosen)]
    return replace(custom_data(spec, splits, doubled, noun, notes, chosen.name), pattern=chosen.name)


def _apart(split: Split) -> Split:
    """For sets that number the individuals of train and of test from the start: train-0001 is not 0001."""
    said = split.metadata()
    columns = {name: said[name].tolist() for name in ("camera", "view", "clothes", "tracklet", "session")}
    identities = [f"train-{name}" for name in said["identity"].tolist()]
    return Split.from_columns(split.name, [{"path": path} for path in said["path"]], identities, **columns)


def _examples(root: Path, splits: Mapping[str, Split]) -> str:
    """How three images were read, for the user to see whether that is right."""
    names = list(splits)
    rows = [(splits[names[0]], 0), (splits[names[0]], len(splits[names[0]]) // 2), (splits[names[-1]], -1)]
    lines = {}
    for split, row in rows:
        said = split.metadata()
        row = range(len(split))[row]
        camera = f"camera {split.cameras[row]}" if split.cameras[row] >= 0 else "camera unknown"
        more = [f"{name} {str(said[name][row])!r}" for name in ("session", "tracklet", "clothes") if said[name][row]]
        path = os.path.relpath(split.path(row), root)
        lines[path] = f"    {path} is identity {str(said['identity'][row])!r}, {', '.join([camera, *more])}"
    return "\n".join(lines.values())


def _zero(splits: Mapping[str, Split], pattern: Pattern) -> list[str]:
    """In Market-1501 identity 0000 marks distractors; nobody knows whether it does here."""
    names = {name for split in splits.values() for name in split.identities.tolist()}
    zero = sorted(name for name in names if name and not name.strip("0"))
    if not zero or pattern.name.removeprefix(APART) not in ("market1501", "mars"):
        return []
    return [f"{zero[0]} is an individual like any other here (market1501: takes it for distractors)"]


# Splits ---------------------------------------------------------------------------------------------------


def _split_folders(root: Path, spec: str) -> tuple[dict[str, list[str]], list[str]]:
    """split -> folders below root; and notes about what is not read."""
    present = _subfolders(root, spec)
    if "bounding_box_train" in present:
        raise UserError(f"{root} has the layout of Market-1501: read it with market1501:{root}")
    named = _by_split(present, root, spec)
    notes = _left_out(root, [name for lower, name in present.items() if lower not in SPLITS])
    folders = {split: [name] for split, name in named.items() if split != "test"}
    if "val" in named:
        inside = _inside(root, named["val"], spec, notes)
        if inside:
            folders["val"] = [inside[name] for name in TESTED]
            notes.append(f"{named['val']}/query and gallery are one split, val: each of its images is searched in all")
    if "test" in named:
        if "query" in named or "gallery" in named:
            raise UserError(f"{spec}: {root} has test/ beside query/ or gallery/; keep one or the other")
        inside = _inside(root, named["test"], spec, notes)
        folders |= {name: [inside.get(name, named["test"])] for name in TESTED}
    if ("query" in folders) != ("gallery" in folders):
        there, lacking = TESTED if "query" in folders else TESTED[::-1]
        raise UserError(f"{spec}: {root} has {there}/ but no {lacking}/: give both, or a test/ folder instead")
    if not folders and (pooling() or (collecting() and not _with_train(root))):
        return {"train": ["."]}, ["no train/ or test/ here: all images are read together, to be split"]
    if not folders:
        raise UserError(_explain_layout(root, spec))
    return {name: folders[name] for name in ("train", "val", *TESTED) if name in folders}, notes


def _by_split(present: Mapping[str, str], root: Path, spec: str) -> dict[str, str]:
    """split -> the folder of that meaning. Raises `UserError` where there are two."""
    named: dict[str, str] = {}
    for lower, name in present.items():
        split = SPLITS.get(lower)
        if split in named:
            raise UserError(f"{spec}: {root} has {named[split]}/ and {name}/, both for {split}: keep one of them")
        if split:
            named[split] = name
    return named


def _inside(root: Path, folder: str, spec: str, notes: list[str]) -> dict[str, str]:
    """query and gallery within test/ or val/, where they are there: split -> folder below root."""
    within = _by_split(_subfolders(root / folder, spec), root / folder, spec)
    inside = {split: f"{folder}/{name}" for split, name in within.items() if split in TESTED}
    if len(inside) == 1:
        there = next(iter(inside.values()))
        raise UserError(f"{spec}: {root} has {there}/ alone: give query and gallery both, or images in {folder}/ only")
    if inside:
        others = [
            name for name in _subfolders(root / folder, spec).values() if f"{folder}/{name}" not in inside.values()
        ]
        notes += _left_out(root / folder, others, f"{folder}/")
    return inside


def _subfolders(folder: Path, spec: str) -> dict[str, str]:
    """Lower-case name -> name. Raises `UserError` for names that differ in their case only."""
    try:
        found = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
    names = {name.lower(): name for name in found}
    for name in found:
        if name.lower() in SPLITS and names[name.lower()] != name:
            raise UserError(f"{spec}: {folder} has {name}/ and {names[name.lower()]}/: keep one of them")
    return names


def _left_out(folder: Path, names: Sequence[str], above: str = "") -> list[str]:
    """What lies beside the folders of the splits and is not read."""
    loose = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES]
    shown = [f"{above}{name}/" for name in names] + ([f"{len(loose):,d} images in {above or 'ROOT/'}"] if loose else [])
    return [f"not read: {', '.join(shown)}"] if shown else []


def _with_train(root: Path) -> list[str]:
    """Folders below the root that hold a train/: one of them may be meant."""
    return [path.name for path in sorted(root.iterdir()) if (path / "train").is_dir()]


def _explain_layout(root: Path, spec: str) -> str:
    examples = "\n".join(f"  train/{pattern.example:36s}(pattern {pattern.name!r})" for pattern in PATTERNS)
    inside = _with_train(root)
    hint = f" Do you mean {spec.rstrip('/')}/{inside[0]}?" if inside else ""
    return (
        f"{spec}: {root} holds no train/, test/, or query/ and gallery/. "
        f"Found: {describe_folder(root)}.{hint}\n"
        f"Where nothing is set apart for testing yet, `clipreid data split {spec} --output DIR` writes a table that "
        "does, and moves nothing.\n"
        "Else put the images to learn from below train/, those to test on below test/ (or query/ and gallery/) in one "
        f"of these ways:\n{examples}\nor in any other way that a --pattern describes."
    )
