"""From any table to the toolkit's columns: which column is which, and what its values mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from clipreid.data.crops import SCHEMA, Split
from clipreid.data.encoded import Tables, describe_columns, encoded_images
from clipreid.errors import UserError

FIELDS = tuple(SCHEMA)
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "query": "query",
    "gallery": "gallery",
    "test": "test",
    "testing": "test",
}
LIKELY = {  # only for advice in errors and notes: no column is guessed
    "image": ("img", "picture", "photo", "crop", "jpg", "png"),
    "identity": ("pid", "person_id", "vehicle_id", "identity_id", "individual_id", "name", "label", "id"),
    "camera": ("camid", "cam_id", "camera_id", "cam"),
    "view": ("viewid", "view_id", "viewpoint", "orientation"),
    "split": ("subset", "partition", "fold"),
    "caption": ("captions", "text", "description"),
    "clothes": ("clothes_id", "cloth_id", "outfit"),
    "tracklet": ("tracklet_id", "track_id", "track"),
    "session": ("date", "day", "encounter", "encounter_id", "session_id"),
}
Columns = str | Mapping[str, str] | None


def parse_columns(columns: Columns) -> dict[str, str]:
    """`identity=pid,camera=camid` (or a dict) as {"identity": "pid", ...}. Raises `UserError` for anything else."""
    if isinstance(columns, str):
        parts = (pair.partition("=") for pair in columns.split(","))
        pairs = [(field.strip(), name.strip()) for field, _, name in parts]
    else:
        pairs = list((columns or {}).items())
    for field, name in pairs:
        if field not in FIELDS or not name:
            raise UserError(
                f"--columns {columns}: cannot read {field!r}; write FIELD=COLUMN,FIELD=COLUMN, such as "
                f"identity=pid,camera=camid; the fields are {', '.join(FIELDS)}"
            )
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--columns {columns}: a field is given twice")
    return dict(pairs)


def find_columns(features: Mapping[str, Any], columns: Columns, spec: str) -> dict[str, str]:
    """{field: column}: what was asked for, then columns that bear a field's name, then the only column of images.

    Raises `UserError` listing the columns, and the mapping that is needed.
    """
    found = parse_columns(columns)
    for field, name in found.items():
        if name not in features:
            raise UserError(
                f"{spec}: --columns {field}={name}: no such column. {_advice(features, {})}. One --columns is for all "
                "hub: data of a command: where their columns have different names, convert one of them first with "
                "`clipreid data convert`"
            )
    for field in FIELDS:
        if field in features and field not in found and field not in found.values():
            found[field] = field
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if "image" not in found and len(images) == 1:
        found["image"] = images[0]
    lacking = [repr(field) for field in ("image", "identity") if field not in found]
    if lacking:
        raise UserError(f"{spec}: no column {' and no '.join(lacking)}. {_advice(features, found)}")
    return found


def split_of(name: str) -> str | None:
    """train, val, query, gallery or test, by the last word of a name that is one of these; None = none is."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def to_splits(
    raw: Tables, spec: str, columns: Columns = None, names_stand: bool = False
) -> tuple[dict[str, Split], bool, list[str]]:
    """Tables -> (splits of this toolkit, whether all test images are query and gallery at once, notes).

    The column mapped to `split` decides where there is one, else the names of the tables: train, val or validation,
    query, gallery, test (query and gallery at once). Identities may be text, whole numbers or a ClassLabel; those of
    "-1" are junk and left out. Images stay encoded and are not copied (but `datasets.load_dataset` wrote Arrow copies
    of parquet below HF_HOME to make `raw`). names_stand: images of one name are the same image (else that is made
    sure of). Raises `UserError` naming columns, table and row.
    """
    features = next(iter(raw.values())).features
    found = find_columns(features, columns, spec)
    cells = {
        field: {name: _cells(table, column) for name, table in raw.items()}
        for field, column in found.items()
        if field != "image"
    }
    notes = _column_notes(features, found)
    identities = {
        name: _identities(values, found["identity"], name, spec) for name, values in cells["identity"].items()
    }
    parts = _parts(raw, cells.get("split"), found.get("split"), spec, notes)
    images = encoded_images(raw, found["image"], spec, names_stand)
    full = {}
    for name, table in raw.items():
        full[name] = {"image": images[name], "identity": pa.array(identities[name], pa.string())}
        for field in ("caption", "clothes", "tracklet", "session"):
            values = cells[field][name] if field in cells else [None] * len(table)
            full[name][field] = pa.array([_text(value) for value in values], pa.string())
    for field in ("camera", "view"):
        for name, numbers in _numbers(field, cells.get(field), found, raw, notes, spec).items():
            full[name][field] = pa.array(numbers, pa.int32())
    splits, dropped = {}, 0
    for split in ("train", "val", "query", "gallery"):
        pieces = parts.get(split) or (parts.get("test") if split in ("query", "gallery") else None)
        if pieces:
            kept = {name: rows[[identities[name][row] != "-1" for row in rows]] for name, rows in pieces.items()}
            dropped += sum(map(len, pieces.values())) - sum(map(len, kept.values()))
            splits[split] = _split(split, {name: full[name] for name in kept}, kept)
    notes += [f"{dropped:,d} images of identity -1 left out (junk)"] if dropped else []
    return splits, "test" in parts, notes


def _split(split: str, tables: Mapping[str, dict[str, Any]], rows: Mapping[str, np.ndarray]) -> Split:
    """One split out of some rows of some tables; the images are not copied."""
    schema, pieces, chosen, start = SCHEMA.arrow_schema, [], [], 0
    for name, columns in tables.items():
        count = len(columns["identity"])
        columns = columns | {"split": pa.array([split] * count, pa.string())}
        pieces.append(pa.table([columns[field] for field in schema.names], schema=schema))
        chosen.append(rows[name] + start)
        start += count
    table = datasets.table.InMemoryTable(pa.concat_tables(pieces))
    info = datasets.DatasetInfo(features=SCHEMA)
    # a fingerprint of the contents would read every image
    whole = Split(split, datasets.Dataset(table, info=info, fingerprint=generate_random_fingerprint()))
    order = np.concatenate(chosen)
    return whole if len(order) == start else whole.select(order)


def _cells(table: datasets.Dataset, column: str) -> list[Any]:
    """The values of one column; of a ClassLabel its names."""
    feature = table.features[column]
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    return values


def _identities(values: list[Any], column: str, table: str, spec: str) -> list[str]:
    found = []
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            what = "is empty" if value is None or value == "" else f"is {value!r}"
            raise UserError(
                f"{spec}: the identity in row {row} of {table} (column {column!r}) {what}: text, a whole number or a "
                "ClassLabel is needed; map another column with --columns identity=COLUMN"
            )
        found.append(str(value).strip())
    return found


def _numbers(
    field: str,
    cells: dict[str, list[Any]] | None,
    found: Mapping[str, str],
    raw: Tables,
    notes: list[str],
    spec: str,
) -> dict[str, list[int]]:
    """Cameras or views: whole numbers as they are, names numbered in their order, with a note; -1 = unknown."""
    if cells is None:
        return {name: [-1] * len(table) for name, table in raw.items()}
    plain = {name: [_whole(value) for value in values] for name, values in cells.items()}
    known = {value for values in plain.values() for value in values if value is not None}
    if all(isinstance(value, int) for value in known):
        number: dict[Any, int] = {value: value for value in known}
    elif all(isinstance(value, int | str) for value in known):
        number = {value: nth for nth, value in enumerate(sorted(known, key=str))}
        shown = ", ".join(f"{value!r} is {nth}" for value, nth in list(number.items())[:4])
        notes.append(f"{field}s are numbered: {shown}{', ...' if len(number) > 4 else ''}")
    else:
        odd = next(value for value in known if not isinstance(value, int | str))
        raise UserError(f"{spec}: column {found[field]!r} says {field} {odd!r}: whole numbers or names are needed")
    return {name: [-1 if value is None else number[value] for value in values] for name, values in plain.items()}


def _whole(value: Any) -> Any:
    """None for unknown, int for whole numbers however written, else the value itself."""
    if value is None or value != value or value in (-1, "", "-1"):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _text(value: Any) -> str:
    """Several captions are separated by line breaks."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None or value == -1 else str(value)


def _parts(
    raw: Tables, cells: dict[str, list[Any]] | None, column: str | None, spec: str, notes: list[str]
) -> dict[str, dict[str, np.ndarray]]:
    """{train, val, query, gallery or test: {table: its rows}}."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for table, dataset in raw.items():
        if cells is None:
            names = [split_of(table)] * len(dataset)
        else:
            names = [SPLITS.get(str(value).strip().lower()) for value in cells[table]]
        values = np.array(["" if name is None else name for name in names])
        for name in dict.fromkeys(values.tolist()):
            parts.setdefault(name, {})[table] = np.flatnonzero(values == name)
    unknown = parts.pop("", {})
    if unknown and cells is not None:
        table, rows = next(iter(unknown.items()))
        said = cells[table][int(rows[0])]
        raise UserError(
            f"{spec}: column {column!r} says {said!r} in row {rows[0]} of {table}; splits are {', '.join(SPLITS)}"
        )
    if unknown and parts:
        notes.append(f"not read: {', '.join(unknown)}")
    if not parts:
        raise UserError(
            f"{spec}: none of its splits ({', '.join(unknown) or 'none'}) is one of {', '.join(SPLITS)}: rename them, "
            "or map a column that says so with --columns split=COLUMN"
        )
    tested = parts.keys() & {"query", "gallery", "test"}
    if "test" in tested and len(tested) > 1:
        raise UserError(f"{spec} has test beside {' and '.join(sorted(tested - {'test'}))}: keep one or the other")
    if len(tested) == 1 and "test" not in tested:
        raise UserError(f"{spec} has {tested.pop()} alone: give both query and gallery, or test instead")
    return parts


def _column_notes(features: Mapping[str, Any], found: Mapping[str, str]) -> list[str]:
    renamed = [f"{field} is {name!r}" for field, name in found.items() if field != name]
    unused = [name for name in features if name not in found.values()]
    notes = [f"columns: {', '.join(renamed)}"] if renamed else []
    if unused:
        likely = _likely(features, found)
        hint = f" (if wanted: --columns {likely})" if likely else ""
        notes.append(f"columns not read: {', '.join(unused)}{hint}")
    return notes


def _likely(features: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """The mapping that the names of unused columns suggest."""
    unused = {name.lower(): name for name in features if name not in found.values()}
    pairs = [(field, next((unused[n] for n in names if n in unused), None)) for field, names in LIKELY.items()]
    return ",".join(f"{field}={name}" for field, name in pairs if name and field not in found)


def _advice(features: Mapping[str, Any], found: Mapping[str, str]) -> str:
    example = _likely(features, found) or "identity=COLUMN,camera=COLUMN"
    return f"Columns found: {describe_columns(features)}. Say which is which, such as --columns {example}"
