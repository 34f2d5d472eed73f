"""Tables that are text: CSV as spreadsheets, pandas and other tools write it, and lines of JSON."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipreid.data.columns import USUAL, Columns, is_known, plain
from clipreid.data.crops import ReIDData
from clipreid.data.custom import custom_data
from clipreid.data.encoded import Chunk
from clipreid.data.mapping import to_splits
from clipreid.data.problems import tolerate
from clipreid.disk import parse_json
from clipreid.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical lines"}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
OTHERS = {  # how files of other kinds begin
    b"PK\x03\x04": "a workbook of a spreadsheet (or another archive): save the sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "a workbook of a spreadsheet: save the sheet as 'CSV UTF-8'",
    b"PAR1": "a parquet file: read the folder that holds it with hub:FOLDER",
    b"\x1f\x8b": "compressed: unpack it with gunzip",
}
FILE_NAME = re.compile(r"\.[A-Za-z]{3,4}\b")


@dataclass(frozen=True)
class Line:
    """One row. where: its place, for messages. home: the folder that its image's path is relative to."""

    where: str
    home: Path
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class TextTable:
    """Rows whose images are files: a `clipreid.data.encoded.RawTable`."""

    lines: Sequence[Line]
    columns: Sequence[str]
    notes: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, str]:
        return dict.fromkeys(self.columns, "text")

    def __len__(self) -> int:
        return len(self.lines)

    def cells(self, column: str) -> list[Any]:
        return [line.cells.get(column) for line in self.lines]

    def images(self, column: str, wanted: np.ndarray) -> Iterator[Chunk]:
        paths: list[str | None] = []
        turned = 0
        for line, use in zip(self.lines, wanted.tolist(), strict=True):
            path = None
            if use:
                try:
                    path, slashes = find_image(str(line.cells.get(column) or "").strip(), line.home)
                    turned += slashes
                except UserError as error:
                    refusal = UserError(f"{line.where}: {error}")
                    tolerate(refusal, "unusable line", [str(refusal)])
            paths.append(path)
        if turned:
            self.notes.append(f"{turned:,d} paths are written with \\: read with / instead")
        yield pa.nulls(len(paths), pa.binary()), paths

    def where(self, row: int) -> str:
        return self.lines[row].where


def read_csv(
    file: Path, spec: str, noun: str | None = None, columns: Columns = None, unknown: Collection[str] = ()
) -> ReIDData:
    """A table with a column of images (paths relative to the file) and one of identities; others are optional.

    Without a column of splits all is train. What columns are called is said by `clipreid.data.columns`, what values
    mean by `clipreid.data.values`. Raises `UserError` naming the line.
    """
    table = csv_table(file)
    splits, doubled, notes = to_splits({"train": table}, spec, columns, unknown)
    return custom_data(spec, splits, doubled, noun, notes)


def find_image(text: str, home: Path) -> tuple[str, bool]:
    """The absolute path of an image, and whether backslashes had to be read as slashes. Raises `UserError`: no file."""
    if not text:
        raise UserError("image is empty")
    if ADDRESS.match(text):
        raise UserError(f"{text} is an address: images are read from disk; download them, and name the files")
    path = os.path.abspath(os.path.join(home, os.path.expanduser(text)))
    if os.path.isfile(path):
        return path, False
    if "\\" in text and os.path.isfile(turned := os.path.abspath(os.path.join(home, text.replace("\\", "/")))):
        return turned, True
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not an image")
    if WINDOWS.match(text):
        raise UserError(f"no such image: {text} (a path of a Windows machine; write paths relative to {home})")
    raise UserError(f"no such image: {path} (paths are relative to {home})")


# CSV ------------------------------------------------------------------------------------------------------


def csv_table(file: Path) -> TextTable:
    """A CSV file: UTF-8 (or UTF-16 with its mark); the separator is found in its header. Raises `UserError`."""
    text, notes = _decoded(file)
    raw = list(io.StringIO(text, newline=""))
    before, separator = _header(raw)
    if separator != ",":
        notes.append(f"cells are separated by {SEPARATORS.get(separator, repr(separator))}")
    records = [(number, cells) for number, cells in _records(raw, file, separator, before) if cells]
    filled = [(number, cells) for number, cells in records if any(map(str.strip, cells))]
    if len(filled) < len(records):
        notes.append(f"{len(records) - len(filled):,d} lines without any value are passed over")
    number, header = filled[0] if filled else (1, [])
    names = [name.strip() or f"(column {nth} has no name)" for nth, name in enumerate(header, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}, line {number}: the column {twice!r} is there twice: rename or remove one of the two")
    if not names:
        raise UserError(
            f"{file} is empty: write a header such as image,identity,camera,split, and a line for each image"
        )
    lines, home = [], file.parent
    for number, cells in filled[1:]:
        where = f"{file}, line {number}"
        if len(cells) == len(names):
            lines.append(Line(where, home, dict(zip(names, cells, strict=True))))
            continue
        more = len(cells) > len(names)
        why = "more" if more else "fewer"
        advice = "put quotes around cells with a separator in them" if more else "is the file whole?"
        error = UserError(f"{where} has {why} cells than the header ({len(cells)} and {len(names)}): {advice}")
        tolerate(error, "unusable line", [str(error)])
    if not lines:
        raise UserError(f"{file} has no lines below its header: no images")
    return TextTable(lines, names, notes)


def _decoded(file: Path) -> tuple[str, list[str]]:
    notes: list[str] = []
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    if other := next((what for start, what in OTHERS.items() if data.startswith(start)), None):
        raise UserError(f"{file} is no text, but {other}")
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = data.decode("utf-16")
            notes.append("the table is read as UTF-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.encoding.startswith("utf-16"):
            raise UserError(f"{file} is not whole UTF-16 text ({error.reason}): save it again, as UTF-8") from error
        line = data.count(b"\n", 0, error.start) + 1
        seen = data.splitlines()[line - 1].decode("cp1252", errors="replace") if line <= len(data.splitlines()) else ""
        raise UserError(
            f"{file} is not UTF-8 text: see line {line}, which is {seen[:80]!r} if the file is of Windows (Western "
            f"Europe). Save it as UTF-8, in a spreadsheet as 'CSV UTF-8', or with: iconv -f WINDOWS-1252 -t UTF-8 "
            f"{file.name} > utf8.csv"
        ) from error
    if "\0" in text:
        where = f"{file}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}"
        raise UserError(f"{where} holds a NUL byte: the file is damaged, or UTF-16 without its mark; save it as UTF-8")
    return text, notes


def _header(lines: Sequence[str]) -> tuple[int, str]:
    """The number of lines before the header, and the separator.

    The separator is the one which splits the header into the most columns that are known, then the most columns. A line
    `sep=;` before the header, as spreadsheets write it, says it.
    """
    if lines and (said := re.fullmatch(r"sep=(.)\r?\n", lines[0])):
        return 1, said[1]
    line = next((line for line in lines if line.strip()), "")

    def known(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"') for name in line.split(separator)]
        return sum(map(is_known, names)), len(names)

    return 0, max(SEPARATORS, key=known)


def _records(lines: Sequence[str], file: Path, separator: str, before: int) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every record; before: lines to pass over.

    Raises `UserError` for a quote that swallows lines, or that stands where none may be.
    """
    reader = csv.reader(lines[before:], delimiter=separator, strict=True)
    cell = rf'(?:"(?:[^"]|"")*"|[^"{re.escape(separator)}\r\n]*)'
    quoted = re.compile(rf"{cell}(?:{re.escape(separator)}{cell})*[\r\n]*")
    header: list[str] = []
    start = before
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(_stray(lines, start, before + reader.line_num, file, str(error))) from error
        if cells is None:
            return
        header = header or [plain(name) for name in cells]
        end = before + reader.line_num
        if end > start + 1 and any(map(_swallowed, cells, [*header, *[""] * len(cells)])):
            raise UserError(_stray(lines, start, end, file, "it goes on over several lines"))
        record = "".join(lines[start:end])
        if '"' in record and not quoted.fullmatch(record):
            raise UserError(_stray(lines, start, end, file, "it is in the middle of a cell"))
        yield start + 1, cells
        start = end


def _swallowed(cell: str, column: str) -> bool:
    """Whether a quoted cell holds other rows, which name an image: captions and what is not read may have lines."""
    fixed = is_known(column) and column not in ("caption", *USUAL["caption"])
    return ("\n" in cell or "\r" in cell) and (fixed or bool(FILE_NAME.search(cell)))


def _stray(lines: Sequence[str], start: int, end: int, file: Path, why: str) -> str:
    """What is wrong with the record in lines[start:end]: usually a quote, and then where it opens."""
    odd = [number for number in range(start, end) if lines[number].count('"') % 2]
    if not any('"' in line for line in lines[start:end]):
        return f"{file}, line {end} cannot be read ({why})"
    where = odd[-1 if len(odd) % 2 else -2] if odd else start
    return (
        f'{file}, line {where + 1}: a quote (") opens here and does not end with its cell ({why}). Remove it, or write '
        'it twice inside of quotes: "say ""hi"""'
    )


# JSON -----------------------------------------------------------------------------------------------------


def json_table(file: Path) -> TextTable:
    """A file with one JSON object in each line. Raises `UserError` naming the line."""
    text, notes = _decoded(file)
    lines = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            cells = parse_json(line)
            if not isinstance(cells, dict):
                raise ValueError(f"it is {type(cells).__name__}")
        except ValueError as error:
            raise UserError(f"{file}, line {number} is not one JSON object ({error})") from error
        lines.append(Line(f"{file}, line {number}", file.parent, cells))
    return TextTable(lines, list(dict.fromkeys(name for line in lines for name in line.cells)), notes)


def merged(tables: Sequence[TextTable], part: Callable[[Line], str]) -> dict[str, TextTable]:
    """The rows of several tables by `part`, which names the split of a row."""
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    rows: dict[str, list[Line]] = {}
    for line in (line for table in tables for line in table.lines):
        rows.setdefault(part(line), []).append(line)
    return {name: TextTable(each, columns, notes if nth == 0 else []) for nth, (name, each) in enumerate(rows.items())}
