"""Encoded images in tables: never decoded, never copied, each under a name of its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from clipreid.data.crops import SCHEMA
from clipreid.errors import UserError

Tables = Mapping[str, datasets.Dataset]  # by the name of their split


def encoded_images(raw: Tables, column: str, spec: str, names_stand: bool) -> dict[str, pa.ChunkedArray]:
    """The column of images as {"bytes", "path"}, not copied, each under a name that no other image has.

    Evaluation takes equal names for the same image. Of images that are files the path is the name; of bytes the
    given name, with a digest of the bytes where two have it; the nameless are numbered. names_stand: given names are
    kept as they are. Raises `UserError` for rows without an image and columns that hold none.
    """
    chunks = {name: list(_chunks(table, column, name, spec)) for name, table in raw.items()}
    count: Counter[str | None] = Counter()
    for data, paths in (pair for each in chunks.values() for pair in each):
        count.update(path for path, empty in zip(paths, np.asarray(data.is_null()), strict=True) if not empty)
    found = {}
    for name, each in chunks.items():
        row, arrays = 0, []
        for data, paths in each:
            for i, path in enumerate(paths):
                if not path:
                    paths[i] = f"{name}/{row + i:06d}"
                elif count[path] > 1 and not names_stand and data[i].is_valid:
                    paths[i] = f"{path}#{hashlib.sha256(data[i].as_buffer()).hexdigest()[:12]}"
            row += len(paths)
            arrays.append(pa.StructArray.from_arrays([data, pa.array(paths, pa.string())], ["bytes", "path"]))
        found[name] = pa.chunked_array(arrays, SCHEMA.arrow_schema.field("image").type)
    return found


def _chunks(table: datasets.Dataset, column: str, name: str, spec: str) -> Iterator[tuple[pa.Array, list[str | None]]]:
    """(encoded bytes or null, names or None) of one column, chunk by chunk."""
    row = 0
    for chunk in table.select_columns([column]).with_format("arrow")[:][column].chunks:
        none = pa.nulls(len(chunk))
        if pa.types.is_struct(chunk.type):
            fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
            data, paths = fields.get("bytes", none), fields.get("path", none)
        elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
            data, paths = chunk, none
        else:
            kind = describe_columns({column: table.features[column]})
            raise UserError(f"{spec}: column {kind} holds no images: an Image column, or encoded bytes, is needed")
        empty = np.asarray(data.is_null()) & np.asarray(paths.is_null())
        if empty.any():
            raise UserError(f"{spec}: row {row + int(empty.argmax())} of {name} has no image (column {column!r})")
        yield data.cast(pa.binary()), paths.to_pylist()
        row += len(chunk)


def describe_columns(features: Mapping[str, Any]) -> str:
    """`image (Image), pid (int64)`."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    plain = {name: feature.dtype for name, feature in features.items() if isinstance(feature, datasets.Value)}
    return ", ".join(f"{name} ({kind})" for name, kind in (kinds | plain).items())
