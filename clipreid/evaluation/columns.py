"""Read the columns of a query or gallery table, and turn them into integers that a protocol can compare.

A protocol is a predicate on metadata, evaluated for millions of (query, gallery) pairs at once, so every
column becomes an int64 tensor: whole numbers stay as they are, text is numbered over both tables together
(equal numbers exactly where the text is equal), and whatever is unknown (-1, "-1", "", None, NaN) is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError

UNKNOWN = -1
OPTIONAL = ("camera", "view", "path", "digest")  # absent is the same as unknown everywhere

Table = Any  # a dict of arrays, lists or tensors; a datasets.Dataset; a pandas frame; a Split (has .metadata())


class Columns(dict[str, Tensor]):
    """Column name -> int64 [n]; `camera`, `view`, `path` and `digest` always exist; others are refused."""

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"the protocol needs a column {name!r} in both query and gallery; "
            f"the columns they share are: {', '.join(sorted(self))}. Add it, or choose another protocol."
        )

    def rows(self, start: int, stop: int) -> Columns:
        """The columns of rows start..stop-1."""
        return Columns({name: values[start:stop] for name, values in self.items()})

    def to(self, device: torch.device) -> Columns:
        """The columns on another device."""
        return Columns({name: values.to(device) for name, values in self.items()})


CAMERAS = frozenset({"camid", "camids", "cam", "cam_id", "camera_id", "cameraid"})  # what others call this column


def read_table(table: Table, side: str) -> dict[str, np.ndarray]:
    """Columns of `table` as 1-D arrays: int64, or objects holding text; images and matrices are skipped.

    `side` ("query" or "gallery") is named in errors. Raises UserError when the table has no identities, cameras under
    another name, holds unknown identities, or has columns of different lengths.
    """
    flat = {name: _flat(values) for name, values in _columns_of(table, side).items()}
    columns = {name: _plain(values) for name, values in flat.items() if values is not None}
    if "identity" not in columns:
        have = ", ".join(sorted(columns)) or "none"
        raise UserError(f"{side} has no 'identity' column (its columns: {have}). Add one value for each image.")
    if "camera" not in columns and (other := next((name for name in columns if name in CAMERAS), None)):
        raise UserError(f"{side} has a column {other!r} and none 'camera', so cameras would not count: rename it.")
    n = len(columns["identity"])
    if n == 0:
        raise UserError(f"{side} is empty: there is nothing to score.")
    for name, values in columns.items():
        if len(values) != n:
            raise UserError(f"{side}: column {name!r} has {len(values)} rows, 'identity' has {n}. They must agree.")
    unknown = np.flatnonzero(_unknown(columns["identity"]))
    if len(unknown):
        raise UserError(
            f"{side}: no identity in {name_rows(unknown)} (-1, empty or missing). Leave those images out "
            "(Market-1501 marks junk, neither right nor wrong, by -1), or name distractors otherwise."
        )
    return columns


def code_columns(query: dict[str, np.ndarray], gallery: dict[str, np.ndarray]) -> tuple[Columns, Columns]:
    """Code what `read_table` returned: two sets of int64 columns, comparable with each other.

    Raises UserError when a column holds numbers on one side and text on the other.
    """
    coded = Columns(), Columns()
    for name in dict.fromkeys([*query, *gallery, *OPTIONAL]):
        if name in OPTIONAL or (name in query and name in gallery):
            sides = (side.get(name, np.full(len(side["identity"]), UNKNOWN)) for side in (query, gallery))
            for columns, values in zip(coded, _code(name, *sides), strict=True):
                columns[name] = torch.from_numpy(values)
    return coded


def name_rows(rows: np.ndarray | list[int], limit: int = 8) -> str:
    """ "row 3", "rows 3, 5 and 9", "rows 0, 1, ... and 40 more"."""
    shown = [str(int(row)) for row in rows[:limit]]
    if len(rows) > limit:
        return f"rows {', '.join(shown)} and {len(rows) - limit} more"
    return f"row {shown[0]}" if len(shown) == 1 else f"rows {', '.join(shown[:-1])} and {shown[-1]}"


def _columns_of(table: Table, side: str) -> dict[str, Any]:
    if callable(getattr(table, "metadata", None)):  # clipreid.data.Split
        table = table.metadata()
    if hasattr(table, "column_names") and hasattr(table, "features"):  # datasets.Dataset: never decode images
        plain = [n for n, f in table.features.items() if type(f).__name__ in ("Value", "ClassLabel")]
        return dict(table.with_format(None).select_columns(plain)[:])
    if hasattr(table, "columns") and hasattr(table, "iloc"):  # pandas
        return {str(name): table[name].to_numpy() for name in table.columns}
    if hasattr(table, "items"):
        return dict(table.items())
    raise UserError(
        f"{side} is a {type(table).__name__}; give its metadata as a dict of arrays, a datasets.Dataset or a "
        "pandas frame with an 'identity' column (and 'camera' and 'path' where known)."
    )


def _flat(values: Any) -> np.ndarray | None:
    """A 1-D array, or None for what is no column of numbers or text (images, features)."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if hasattr(values, "ndim"):
        return np.asarray(values) if values.ndim == 1 else None
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    items = list(values)
    if not all(value is None or isinstance(value, str | int | float | np.generic) for value in items):
        return None
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _plain(values: np.ndarray) -> np.ndarray:
    """int64 [n] with -1 for unknown, or objects [n] holding text with "" for unknown."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    items = ["" if _is_missing(value) else value for value in values.tolist()]
    known = [value for value in items if not isinstance(value, str)]
    if len(known) == len(items) - items.count("") and all(_is_whole(value) for value in known):
        return np.array([UNKNOWN if value == "" else int(value) for value in items], dtype=np.int64)
    return np.array([str(value) for value in items], dtype=object)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value in ("", "-1") or value != value


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())


def _unknown(values: np.ndarray) -> np.ndarray:
    return values == ("" if values.dtype == object else UNKNOWN)


def _code(name: str, query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if query.dtype != gallery.dtype:
        if not (_unknown(query).all() or _unknown(gallery).all()):
            kinds = ["text" if side.dtype == object else "numbers" for side in (query, gallery)]
            raise UserError(
                f"column {name!r} holds {kinds[0]} in query and {kinds[1]} in gallery "
                f"(for example {query.tolist()[0]!r} and {gallery.tolist()[0]!r}), so nothing can match. "
                "Use one kind for both."
            )
        query, gallery = query.astype(object), gallery.astype(object)
        query[query == UNKNOWN], gallery[gallery == UNKNOWN] = "", ""
    if query.dtype != object:
        return query, gallery
    numbers: dict[object, int] = {"": UNKNOWN}
    codes = [np.array([numbers.setdefault(v, len(numbers) - 1) for v in side]) for side in (query, gallery)]
    return codes[0].astype(np.int64), codes[1].astype(np.int64)
