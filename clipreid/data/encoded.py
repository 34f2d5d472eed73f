"""Tables as readers give them, with encoded images: never decoded, never copied, each under a name of its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa

from clipreid.data.crops import SCHEMA
from clipreid.data.problems import tolerate
from clipreid.errors import UserError

Chunk = tuple[pa.Array, list[str | None]]  # encoded bytes or null, paths or None; both empty: there is no image


class RawTable(Protocol):
    """A table of N rows as it was read."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """Column -> what it holds: "text", "int64", ...; "Image" for encoded images."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the user about how it was read."""

    def __len__(self) -> int: ...

    def cells(self, column: str) -> list[Any]:
        """[N] values; None where there is none."""

    def images(self, column: str, wanted: np.ndarray) -> Iterator[Chunk]:
        """The images of a column, chunk by chunk; wanted: bool [N], the others may be left empty.

        Raises `UserError` naming the row without an image (`clipreid.data.problems`: notes it, and leaves it empty).
        """

    def where(self, row: int) -> str:
        """The place of a row, for messages."""


Tables = Mapping[str, RawTable]  # by the name of their split


class HubTable:
    """A table of the library `datasets`: from the Hub, or parquet."""

    def __init__(self, table: datasets.Dataset, name: str, spec: str) -> None:
        self.table, self.name, self.spec = table, name, spec
        self.notes: list[str] = []

    @property
    def kinds(self) -> dict[str, str]:
        features = self.table.features
        return {name: f.dtype if isinstance(f, datasets.Value) else type(f).__name__ for name, f in features.items()}

    def __len__(self) -> int:
        return len(self.table)

    def cells(self, column: str) -> list[Any]:
        """Of a ClassLabel its names."""
        feature = self.table.features[column]
        values: list[Any] = self._arrow(column).to_pylist()
        if isinstance(feature, datasets.ClassLabel):
            return [None if value is None or value < 0 else feature.names[value] for value in values]
        return values

    def images(self, column: str, wanted: np.ndarray) -> Iterator[Chunk]:
        row = 0
        for chunk in self._arrow(column).chunks:
            none = pa.nulls(len(chunk))
            if pa.types.is_struct(chunk.type):
                fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
                data, paths = fields.get("bytes", none), fields.get("path", none)
            elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
                data, paths = chunk, none
            else:
                raise UserError(
                    f"{self.spec}: column {column} ({self.kinds[column]}) holds no images: an Image column, or encoded "
                    "bytes, is needed"
                )
            empty = np.asarray(data.is_null()) & np.asarray(paths.is_null()) & wanted[row : row + len(chunk)]
            for missing in np.flatnonzero(empty).tolist():
                error = UserError(f"{self.where(row + missing)} has no image (column {column!r})")
                tolerate(error, "unusable line", [str(error)])
            yield data.cast(pa.binary()), paths.to_pylist()
            row += len(chunk)

    def where(self, row: int) -> str:
        return f"{self.spec}: row {row} of {self.name}"

    def _arrow(self, column: str) -> pa.ChunkedArray:
        return self.table.select_columns([column]).with_format("arrow")[:][column]


def encoded_images(raw: Tables, column: str, wanted: np.ndarray, names_stand: bool) -> pa.ChunkedArray:
    """The images of all tables, one after the other, as {"bytes", "path"}: not copied, each under a name of its own.

    Evaluation takes equal names for the same image. Of images that are files the path is the name; of bytes the
    given name, with a digest of the bytes where two have it; the nameless are numbered. wanted: bool, of all rows; of
    the others, and of rows without an image, both are null. names_stand: given names are kept as they are.
    """
    chunks: list[tuple[str, int, Chunk]] = []  # name of the table, first row there
    start = 0
    for name, table in raw.items():
        row = 0
        for chunk in table.images(column, wanted[start : start + len(table)]):
            chunks.append((name, row, chunk))
            row += len(chunk[1])
        start += len(table)
    count: Counter[str | None] = Counter()
    for _, _, (data, paths) in chunks:
        count.update(path for path, empty in zip(paths, np.asarray(data.is_null()), strict=True) if not empty)
    arrays = []
    for name, row, (data, paths) in chunks:
        given = np.asarray(data.is_valid())
        for i, path in enumerate(paths):
            if not path and given[i]:
                paths[i] = f"{name}/{row + i:06d}"
            elif given[i] and count[path] > 1 and not names_stand:
                paths[i] = f"{path}#{hashlib.sha256(data[i].as_buffer()).hexdigest()[:12]}"
        arrays.append(pa.StructArray.from_arrays([data, pa.array(paths, pa.string())], ["bytes", "path"]))
    return pa.chunked_array(arrays, SCHEMA.arrow_schema.field("image").type)


def images_paths(images: pa.ChunkedArray) -> list[str | None]:
    """The path or name of every image; None where there is no image."""
    return [path for chunk in images.chunks for path in chunk.field("path").to_pylist()]
