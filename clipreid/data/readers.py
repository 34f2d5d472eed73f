"""From a data name such as `folder:/my/crops` to crops with identity, camera, view and caption."""

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path

from clipreid.data.crops import ReIDData
from clipreid.data.custom import read_csv, read_folder
from clipreid.data.folders import Layout, read_layout
from clipreid.data.patterns import MARKET
from clipreid.errors import UserError

# Official data sets: a new one is one more declaration.
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "market1501",  # Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015
            {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"},
            MARKET,
            protocol="market1501",
            # 19,732 files in the gallery folder, 3,819 of them junk; its 751st "identity" are the distractors
            official={"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, 751)},
        ),
    )
}
VALID = ("synthetic", "synthetic:SET", *(f"{name}:ROOT" for name in LAYOUTS), "folder:ROOT", "csv:FILE.csv")


def load_data(spec: str, pattern: str | None = None, noun: str | None = None) -> ReIDData:
    """Reads `synthetic`, `synthetic:SET`, `market1501:ROOT`, `folder:ROOT` or `csv:FILE.csv`.

    pattern: for `folder:` only, a built-in pattern's name or a regular expression with the groups identity,
    camera, view (`clipreid.data.patterns`). noun: what an individual is called in prompts; None = the data
    set's own. Nothing is decoded. Raises `UserError` for an unknown name, a missing root, no pictures, and
    wrong contents.
    """
    name, _, place = spec.partition(":")
    if noun is not None and not noun.strip():
        raise UserError("the noun is empty: give a word such as person or vehicle")
    if pattern is not None and name != "folder":
        raise UserError(f"--pattern reads file names and works with folder:ROOT only, not with {spec!r}")
    if name == "synthetic":
        from clipreid.data.synthetic import load_synthetic

        data: ReIDData = load_synthetic(spec)
    elif name in LAYOUTS:
        data = read_layout(LAYOUTS[name], _root(spec, place), spec)
    elif name == "folder":
        data = read_folder(_root(spec, place), spec, pattern, noun)
    elif name == "csv":
        data = read_csv(_file(spec, place), spec, noun)
    else:
        raise UserError(_unknown(spec, name))
    return data if noun is None else dataclasses.replace(data, noun=noun)


def _root(spec: str, place: str) -> Path:
    return _existing(spec, place, "ROOT", Path.is_dir, "folder")


def _file(spec: str, place: str) -> Path:
    return _existing(spec, place, "FILE.csv", Path.is_file, "file")


def _existing(spec: str, place: str, what: str, test: Callable[[Path], bool], kind: str) -> Path:
    name = spec.partition(":")[0]
    if not place:
        raise UserError(f"--data {spec} lacks its {kind}: write {name}:{what}")
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(f"--data {spec}: {path.absolute()} does not exist")
    if not test(path):
        raise UserError(f"--data {spec}: {path.absolute()} is not a {kind}")
    if not os.access(path, os.R_OK):
        raise UserError(f"--data {spec}: {path.absolute()} cannot be read (check its permissions)")
    return Path(os.path.abspath(path))


def _unknown(spec: str, name: str) -> str:
    valid = f"valid names: {', '.join(VALID)}"
    path = Path(spec).expanduser()
    if path.is_dir():
        return f"unknown data {spec!r}: a folder needs its reader in front, folder:{spec}; {valid}"
    if path.is_file() and path.suffix.lower() == ".csv":
        return f"unknown data {spec!r}: a table needs its reader in front, csv:{spec}; {valid}"
    heads = {entry.partition(":")[0]: entry for entry in VALID[::-1]}
    close = difflib.get_close_matches(name.lower(), heads, n=1, cutoff=0.5)
    hint = f"did you mean {heads[close[0]]!r}? " if close else ""
    return f"unknown data {spec!r}; {hint}{valid}"
