"""Small galleries for tests, written as `embed` writes them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipreid.search.format import schema_of, writer

ABOUT = {
    "gallery": 1,
    "run": "runs/test",
    "backbone": "none",
    "model": "0" * 24,
    "strength": 1.0,
    "sources": [],
    "split": "gallery",
    "image_size": [64, 32],
}

BLOCK = 8  # images, in the tests of `embed`


def about(dimension: int, projection: int = 1) -> dict:
    return ABOUT | {"dimension": dimension, "parts": {"final": dimension - projection, "projection": projection}}


def table(features: np.ndarray, cameras: Sequence[int | None] | None = None, projection: int = 1) -> pa.Table:
    n, width = features.shape
    columns = [
        pa.array([f"/crops/{row}.jpg" for row in range(n)]),
        pa.array([f"anna {row % 3}" if row % 2 else None for row in range(n)], pa.string()),
        pa.array(cameras if cameras is not None else [None] * n, pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float32).reshape(-1)), width),
    ]
    return pa.table(columns, ["path", "identity", "camera", "feature"]).cast(schema_of(about(width, projection)))


def write_gallery(
    file: Path,
    features: np.ndarray,
    groups: Sequence[int] = (),
    cameras: Sequence[int | None] | None = None,
    projection: int = 1,
) -> Path:
    """features [G, D]; groups: rows of each row group but the last."""
    rows = table(features, cameras, projection)
    with writer(file, about(features.shape[1], projection)) as out:
        cuts = [0, *np.cumsum(groups, dtype=int).tolist(), len(rows)]
        for start, stop in pairwise(cuts):
            if stop > start:
                out.write_table(rows.slice(start, stop - start))
    return file


def unit(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
