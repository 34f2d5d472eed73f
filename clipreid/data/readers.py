"""From a data name such as `folder:/my/crops` to crops with identity, camera, view and caption."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from clipreid.data.annotations import read_coco, read_yolo
from clipreid.data.attributes import with_attributes
from clipreid.data.columns import Columns, parse_columns
from clipreid.data.crops import ReIDData
from clipreid.data.folders import read_layout
from clipreid.data.hub import check_place, read_hub
from clipreid.data.layouts import LAYOUTS, plain_names, variants
from clipreid.data.patterns import named_pattern
from clipreid.data.tables import read_csv
from clipreid.data.trees import read_folder
from clipreid.data.values import split_values
from clipreid.errors import UserError

# and NAME:ROOT for the names of LAYOUTS
VALID = (
    "synthetic", "synthetic:SET", "folder:ROOT", "csv:FILE.csv", "hub:OWNER/NAME", "hub:FOLDER", "coco:FILE.json",
    "coco:FILE.json:FOLDER", "yolo:ROOT",
)  # fmt: skip
READ_BY = {  # which readers a flag is for
    "pattern": ("folder",),
    "columns": ("csv", "hub", "coco"),
    "unknown": ("folder", "csv", "hub", "coco", "yolo"),
}


def load_data(
    spec: str,
    pattern: str | None = None,
    noun: str | None = None,
    columns: Columns = None,
    unknown: str | Sequence[str] | None = None,
) -> ReIDData:
    """Reads `synthetic[:SET]`, `NAME:ROOT` with a NAME of `LAYOUTS`, and one's own data by any other of `VALID`.

    pattern: for `folder:` only, a built-in pattern's name or a regular expression with the groups identity,
    camera, view, clothes (`clipreid.data.patterns`). noun: what an individual is called in prompts; None = the data
    set's own. columns: for tables (`csv:`, `hub:`, `coco:`), `identity=pid,camera=camid` or a dict
    (`clipreid.data.columns`). unknown: for `folder:`, tables and `yolo:`, identities that mean "unknown" beside those
    of `clipreid.data.values`: values, each of which may hold several separated by commas. Nothing is decoded, but
    images that boxes are cut out of.

    Raises `UserError` for an unknown name, a missing root, no images, and wrong contents.
    """
    check_request(spec, pattern, noun, columns, unknown)
    name, _, place = spec.partition(":")
    words = split_values(unknown)
    if name == "synthetic":
        from clipreid.data.synthetic import load_synthetic

        data: ReIDData = load_synthetic(spec)
    elif name in LAYOUTS:
        data = read_layout(LAYOUTS[name], _root(spec, place), spec, [LAYOUTS[known] for known in plain_names()])
    elif name == "folder":
        data = read_folder(_root(spec, place), spec, pattern, noun, words)
    elif name == "csv":
        data = read_csv(_file(spec, place), spec, noun, columns, words)
    elif name == "coco":
        data = read_coco(*_annotations(spec, place), spec, noun, columns, words)
    elif name == "yolo":
        data = read_yolo(_root(spec, place), spec, noun, words)
    else:
        data = read_hub(place, spec, columns, noun, words)
    if name in LAYOUTS or name == "folder":
        data = with_attributes(data, _root(spec, place))
    return data if noun is None else dataclasses.replace(data, noun=noun)


def check_request(
    spec: str,
    pattern: str | None = None,
    noun: str | None = None,
    columns: Columns = None,
    unknown: str | Sequence[str] | None = None,
) -> None:
    """Checks the arguments of `load_data` without reading the data.

    Raises `UserError`: a name, a flag or a root that cannot be used.
    """
    name, _, place = spec.partition(":")
    if "\0" in spec:
        raise UserError(f"--data {spec!r} holds a NUL character, which no name has")
    if noun is not None and not noun.strip():
        raise UserError("the noun is empty: give a word such as person or vehicle")
    if pattern is not None and name not in READ_BY["pattern"]:
        raise UserError(f"--pattern reads file names and works with folder:ROOT only, not with {spec!r}")
    if columns and name not in READ_BY["columns"]:
        raise UserError(f"--columns names columns of tables and works with {reads('columns')} only, not with {spec!r}")
    if unknown and name not in READ_BY["unknown"]:
        raise UserError(f"--unknown names unknown identities and works with {reads('unknown')} only, not with {spec!r}")
    if name == "synthetic":
        from clipreid.data.synthetic.street import check_name

        check_name(spec)
    elif name in LAYOUTS or name in ("folder", "yolo"):
        _root(spec, place)
    elif name == "csv":
        _file(spec, place)
    elif name == "coco":
        _annotations(spec, place)
    elif name == "hub":
        check_place(place, spec)
    else:
        raise UserError(_unknown(spec, name))
    if pattern is not None:
        named_pattern(pattern)
    parse_columns(columns)


def data_place(spec: str) -> str:
    """A key that is equal for two data names that mean the same data, such as `folder:own/` and `folder:own`.

    The reader and the real path of the root; without a path (synthetic, names on the Hub) the name as it is.
    """
    reader, _, root = spec.partition(":")
    path = Path(root).expanduser()
    if not root or reader == "synthetic" or (reader == "hub" and not path.exists()):
        return spec
    return f"{reader}:{os.path.realpath(path)}"


def trained_name(spec: str, trained: Sequence[str]) -> str | None:
    """The training data set whose cameras, with the same numbers, are those of `spec`; None where there is none.

    It is the same data, or another copy of the same public data set; camera 3 of one set is not camera 3 of another.
    """
    kind, home = spec.partition(":")[0], {data_place(name): name for name in trained}
    if data_place(spec) in home:
        return home[data_place(spec)]
    return next((name for name in trained if kind in LAYOUTS and name.partition(":")[0] == kind), None)


def reader_flags(
    specs: Iterable[str], pattern: str | None, columns: str | None, unknown: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """The `pattern`, `columns`, `unknown` of `load_data` for each of several data sets, from one flag of each kind.

    Each is for the readers of `READ_BY`; where none of the sets reads one it stays with all, and `load_data` says what
    it is for.
    """
    specs = list(dict.fromkeys(specs))
    found: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    for flag, value in (("pattern", pattern), ("columns", columns), ("unknown", unknown)):
        readers = [spec for spec in specs if spec.partition(":")[0] in READ_BY[flag]]
        for spec in specs:
            found[spec][flag] = value if spec in readers or not readers else None
    return found


def reads(flag: str) -> str:
    """The readers that a flag is for, as a list in words."""
    *some, last = (f"{name}:" for name in READ_BY[flag])
    return f"{', '.join(some)} and {last}" if some else last


def _annotations(spec: str, place: str) -> tuple[Path, Path | None]:
    """FILE.json and FOLDER of `coco:FILE.json:FOLDER`; None where no folder is given."""
    file, _, folder = place.rpartition(":")
    if not file or not Path(file).expanduser().is_file():
        return _existing(spec, place, "FILE.json", Path.is_file, "file"), None
    return (
        _existing(spec, file, "FILE.json", Path.is_file, "file"),
        _existing(spec, folder, "FILE.json:FOLDER", Path.is_dir, "folder"),
    )


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
    official = [known + _numbers(variants(known)) for known in plain_names()]
    valid = f"valid names: {', '.join(VALID)}, or NAME:ROOT with NAME one of {', '.join(official)}"
    path = Path(spec).expanduser()
    if path.is_dir():
        return f"unknown data {spec!r}: a folder needs its reader in front, folder:{spec}; {valid}"
    if path.is_file() and path.suffix.lower() == ".csv":
        return f"unknown data {spec!r}: a table needs its reader in front, csv:{spec}; {valid}"
    heads = {known: f"{known}:ROOT" for known in LAYOUTS} | {entry.partition(":")[0]: entry for entry in VALID[::-1]}
    close = difflib.get_close_matches(name.lower(), heads, n=1, cutoff=0.5)
    hint = f"did you mean {heads[close[0]]!r}? " if close else ""
    return f"unknown data {spec!r}; {hint}{valid}"


def _numbers(names: list[str]) -> str:
    """`[-1600|-2400]` for the variants of a name; of many only the first and the last."""
    numbers = [f"-{name.rpartition('-')[2]}" for name in names]
    shown = numbers if len(numbers) < 7 else [numbers[0], "...", numbers[-1]]
    return f"[{'|'.join(shown)}]" if shown else ""
