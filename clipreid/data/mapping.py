"""From any table to the toolkit's columns: the one way for csv:, hub:, coco: and yolo:, whatever the file's format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from clipreid.data.attributes import COLUMN, attribute_note, pack, unpack
from clipreid.data.boxes import cut_out, read_boxes
from clipreid.data.columns import Columns, column_notes, find_columns
from clipreid.data.crops import SCHEMA, Split
from clipreid.data.encoded import Tables, encoded_images, images_paths
from clipreid.data.problems import tolerate
from clipreid.data.values import ENOUGH, SPLITS, is_distractor, is_unknown, number_all, split_named, text_of
from clipreid.errors import UserError

TEXTS = ("clothes", "tracklet", "session")  # may be unknown, which is ""
CONFLICT = "the same image under two identities"


class Rows:
    """The rows of all tables, one after the other; which are kept, and why the others are not. N rows."""

    def __init__(self, raw: Tables) -> None:
        self.raw = raw
        self.tables = [name for name, table in raw.items() for _ in range(len(table))]  # [N]
        self.starts = np.cumsum([0, *map(len, raw.values())])
        self.kept = np.ones(len(self.tables), bool)
        self.left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.tables)

    def cells(self, column: str | None) -> list[Any]:
        """[N] values, None throughout where there is no such column."""
        if column is None:
            return [None] * len(self)
        return [value for table in self.raw.values() for value in table.cells(column)]

    def where(self, row: int) -> str:
        nth = int(np.searchsorted(self.starts, row, side="right")) - 1
        return list(self.raw.values())[nth].where(row - int(self.starts[nth]))

    def drop(self, rows: Sequence[int] | np.ndarray, why: str) -> None:
        """Leaves out these rows and counts those that were still there."""
        there = [row for row in rows if self.kept[row]]
        if there:
            self.kept[there] = False
            self.left_out[why] = self.left_out.get(why, 0) + len(there)

    def refuse(self, row: int, why: str) -> None:
        """Raises `UserError` naming the row; inside `clipreid.data.problems.collected` it is left out instead."""
        error = UserError(f"{self.where(row)}: {why}")
        tolerate(error, "unusable line", [str(error)])
        self.drop([row], "unusable")

    def note(self) -> list[str]:
        """What was read against what is used, where that differs."""
        if self.kept.all():
            return []
        why = "; ".join(f"{count:,d} {reason}" for reason, count in self.left_out.items())
        return [f"{len(self):,d} rows read, {int(self.kept.sum()):,d} used; left out: {why}"]


def to_splits(
    raw: Tables,
    spec: str,
    columns: Columns = None,
    unknown: Collection[str] = (),
    names_stand: bool = False,
    anonymous: bool = False,
) -> tuple[dict[str, Split], bool, list[str]]:
    """Tables -> (splits of this toolkit, whether all test images are query and gallery at once, notes).

    The column of splits decides where there is one, else the names of the tables: train, val or validation, query,
    gallery, test (query and gallery at once). What values mean is said by `clipreid.data.values`; rows of an unknown
    identity are left out and counted. Boxes are cut out (`clipreid.data.boxes`). Other images stay encoded and are not
    copied (but `datasets.load_dataset` wrote Arrow copies of parquet below HF_HOME to make `raw`).

    unknown: further identities that mean "unknown". names_stand: identities are as they are, and images of one name are
    the same image, as in a set that was converted (else that is made sure of). anonymous: nobody knows any identity;
    all images are the gallery. Raises `UserError` naming columns and rows.
    """
    rows, kinds = Rows(raw), next(iter(raw.values())).kinds
    found = find_columns(kinds, columns, spec, ("image",) if anonymous else ("image", "identity"))
    cells = {f: rows.cells(found.get(f)) for f in ("identity", "split", "camera", "view", "caption", *TEXTS)}
    notes = column_notes(kinds, found)
    identities = [text_of(value) for value in cells["identity"]]
    if not names_stand and not anonymous:
        _drop_unknown(rows, identities, unknown)
        _refuse_two_ways(rows, identities)
        notes += _all_different(rows, identities, found)
    parts = ["gallery"] * len(rows) if anonymous else _parts(rows, found, cells["split"], spec, notes)
    silent = np.array([not names_stand and is_distractor(name) for name in identities])
    notes += _place_distractors(rows, silent, parts)
    images, about = _images(rows, found, spec, names_stand)
    full = {"image": images, "identity": pa.array(identities, pa.string())}
    for field in TEXTS:
        texts = [text_of(value) for value in cells[field]] if field in found else [""] * len(rows)
        full[field] = pa.array(["" if is_unknown(text) else text for text in texts], pa.string())
    full["caption"] = pa.array([_caption(value) for value in cells["caption"]], pa.string())
    attributes = _attributes(rows, found)
    full["attributes"] = pa.array(attributes, pa.string())
    if any(attributes):
        notes.append(attribute_note([unpack(text) for text in np.array(attributes)[rows.kept].tolist()], "columns"))
    for field in ("camera", "view"):
        full[field] = pa.array(_numbers(field, cells[field], found, spec, notes), pa.int32())
    if not names_stand:
        others = [list(map(str, each)) for field, each in cells.items() if field != "split"]
        notes += _repeated(rows, images, identities, [parts, *others, attributes])
    splits = _splits(full, np.array(parts), rows.kept, silent)
    if len(splits.keys() & {"query", "gallery"}) == 1 and not anonymous:
        raise UserError(f"{spec}: all images of query or of gallery are left out. {' '.join(rows.note())}")
    if not splits:
        raise UserError(f"{spec}: no images are left. {' '.join(rows.note())}")
    how = [note for table in raw.values() for note in table.notes]
    return splits, "test" in parts, [*how, *notes, *about, *rows.note()]


def split_of(name: str) -> str | None:
    """train, val, query, gallery or test, by the last word of a name that is one of these; None = none is."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def _splits(full: Mapping[str, Any], parts: np.ndarray, kept: np.ndarray, silent: np.ndarray) -> dict[str, Split]:
    """The splits out of the columns of all rows; images are not copied. silent: rows that are never in the query."""
    schema, info, splits = SCHEMA.arrow_schema, datasets.DatasetInfo(features=SCHEMA), {}
    for split in ("train", "val", "query", "gallery"):
        chosen = np.flatnonzero(kept & np.isin(parts, [split, "test"] if split in ("query", "gallery") else [split]))
        chosen = chosen[~silent[chosen]] if split == "query" else chosen
        if len(chosen):
            columns = {**full, "split": pa.array([split] * len(parts), pa.string())}
            table = datasets.table.InMemoryTable(pa.table([columns[f] for f in schema.names], schema=schema))
            # a fingerprint of the contents would read every image
            whole = datasets.Dataset(table, info=info, fingerprint=generate_random_fingerprint())
            splits[split] = Split(split, whole if len(chosen) == len(parts) else whole.select(chosen))
    return splits


# What values mean -----------------------------------------------------------------------------------------


def _drop_unknown(rows: Rows, identities: Sequence[str], unknown: Collection[str]) -> None:
    strange = [row for row, name in enumerate(identities) if is_unknown(name, unknown)]
    words = Counter(identities[row] or "empty" for row in strange)
    said = ", ".join(f"{word} ({count:,d})" for word, count in words.most_common(6))
    rows.drop(strange, f"of an unknown identity: {said}{', ...' if len(words) > 6 else ''}")


def _place_distractors(rows: Rows, silent: np.ndarray, parts: Sequence[str]) -> list[str]:
    """Drops distractors outside of the gallery; a note on the others."""
    tested = np.isin(parts, ["gallery", "test"])
    rows.drop(np.flatnonzero(silent & ~tested), "distractors outside of the gallery")
    count = int((silent & tested & rows.kept).sum())
    return [f"{count:,d} distractors are in the gallery only"] if count else []


def _all_different(rows: Rows, identities: Sequence[str], found: Mapping[str, str]) -> list[str]:
    """A note where the column of identities may be one of rows."""
    known = [identities[row] for row in np.flatnonzero(rows.kept).tolist()]
    if len(known) < ENOUGH or len(set(known)) < len(known):
        return []
    return [f"every row is an identity of its own: is {found['identity']!r} the individual, or a number of the row?"]


def _refuse_two_ways(rows: Rows, identities: Sequence[str]) -> None:
    """Raises `UserError` where one number is written in two ways, as when a spreadsheet took the zeros off: 7, 007."""
    written: dict[int, int] = {}  # number -> first row
    for row in np.flatnonzero(rows.kept).tolist():
        name = identities[row]
        if name.isascii() and name.isdecimal() and identities[before := written.setdefault(int(name), row)] != name:
            raise UserError(
                f"{rows.where(row)}: identity {name!r}, but {identities[before]!r} in {rows.where(before)}: if they "
                "are one individual, write them alike; if not, give them names that differ in more than zeros"
            )


def _numbers(field: str, cells: list[Any], found: Mapping[str, str], spec: str, notes: list[str]) -> list[int]:
    if field not in found:
        return [-1] * len(cells)
    try:
        numbers, about = number_all(field, cells)
    except UserError as error:
        raise UserError(
            f"{spec}: column {found[field]!r}: {error}. Name another column with --columns {field}=COLUMN, or leave it "
            f"out with --columns {field}=none (session=COLUMN, tracklet=COLUMN take any text)"
        ) from error
    notes += about
    return numbers


def _attributes(rows: Rows, found: Mapping[str, str]) -> list[str]:
    """The attributes of all rows [N], packed: those of the column `attributes`, and those with a column each."""
    own = {field.removeprefix(COLUMN): rows.cells(c) for field, c in found.items() if field.startswith(COLUMN)}
    packed = []
    for row, text in enumerate(rows.cells(found.get("attributes"))):
        try:
            together = unpack(text_of(text))
        except UserError as error:
            together = {}
            rows.refuse(row, str(error))
        packed.append(pack(together | {name: cells[row] for name, cells in own.items()}))
    return packed


def _caption(value: Any) -> str:
    """Several captions are separated by line breaks."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None or value != value else str(value).strip()


def _parts(rows: Rows, found: Mapping[str, str], cells: list[Any], spec: str, notes: list[str]) -> list[str]:
    """train, val, query, gallery or test for each row; "" for rows that are left out."""
    if "split" in found:
        names = _named_splits(rows, cells, notes)
    else:
        names = [split_of(table) or "" for table in rows.tables]
        lost = Counter(table for table, name in zip(rows.tables, names, strict=True) if not name)
        rows.drop([row for row, name in enumerate(names) if not name], f"in {', '.join(lost)}, which is no split")
    present = {name for name, kept in zip(names, rows.kept.tolist(), strict=True) if name and kept}
    if not any(names):
        raise UserError(
            f"{spec}: none of its splits ({', '.join(rows.raw)}) is one of {', '.join(SPLITS)}: rename them, "
            "or map a column that says so with --columns split=COLUMN"
        )
    tested = present & {"query", "gallery", "test"}
    if "test" in tested and len(tested) > 1:
        raise UserError(f"{spec} has test beside {' and '.join(sorted(tested - {'test'}))}: keep one or the other")
    if len(tested) == 1 and "test" not in tested:
        raise UserError(f"{spec} has {tested.pop()} alone: give both query and gallery, or test instead")
    return names


def _named_splits(rows: Rows, cells: list[Any], notes: list[str]) -> list[str]:
    names, empty = [], 0
    for row, value in enumerate(cells):
        try:
            names.append(split_named(value))
            empty += bool(rows.kept[row]) and not text_of(value)
        except UserError as error:
            names.append("")
            if rows.kept[row]:
                rows.refuse(row, str(error))
    if empty:
        notes.append(f"{empty:,d} rows with an empty split are read as train")
    return names


# Images ---------------------------------------------------------------------------------------------------


def _images(rows: Rows, found: Mapping[str, str], spec: str, names_stand: bool) -> tuple[pa.ChunkedArray, list[str]]:
    """The images of all rows, boxes cut out, and notes; rows without one are dropped."""
    boxes = read_boxes(rows, found, spec)
    images = encoded_images(rows.raw, found["image"], rows.kept, names_stand)
    paths = images_paths(images)
    rows.drop([row for row, path in enumerate(paths) if path is None], "without a usable image")
    return (images, []) if boxes is None else cut_out(images, boxes, rows, spec)


def _repeated(
    rows: Rows, images: pa.ChunkedArray, identities: Sequence[str], values: Sequence[Sequence[str]]
) -> list[str]:
    """Drops rows that are there twice; refuses one image under two identities; a note on images in several rows.

    values: the columns (each [N]) that make two rows of one image and identity differ; the splits first.
    """
    first: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    twice, several = [], set()
    for row, path in enumerate(images_paths(images)):
        if path is None or not rows.kept[row]:
            continue
        before = first.setdefault(path, row)
        if identities[before] != identities[row]:
            error = UserError(
                f"{rows.where(row)}: {path} is of identity {identities[row]!r} here and of {identities[before]!r} in "
                f"{rows.where(before)}: one of the two is wrong"
            )
            tolerate(error, CONFLICT, [str(error)])
        key = (path, *(column[row] for column in values))
        if key in seen:
            twice.append(row)
        elif before != row and not _asks_and_is_found(values, before, row):
            several.add(path)
        seen.add(key)
    rows.drop(twice, "the same row as one before")
    return [f"{len(several):,d} images are named by several rows that differ"] if several else []


def _asks_and_is_found(values: Sequence[Sequence[str]], one: int, two: int) -> bool:
    """Whether two rows of an image differ in this alone: one is in query, the other in gallery. values[0]: splits."""
    parts, others = {values[0][one], values[0][two]}, values[1:]
    return parts == {"query", "gallery"} and all(column[one] == column[two] for column in others)
