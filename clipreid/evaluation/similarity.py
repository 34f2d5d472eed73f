"""Similarities of queries and gallery in chunks of queries: from features, from a matrix, or from a stream of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import name_rows

Matrix = Any  # a torch tensor, numpy array or nested list of two dimensions
ALIGN = 64  # matrix products are padded to multiples of this, see `unit_rows`
_CHUNK_ELEMENTS = 2**24  # similarities in memory at once: 64 MB in float32
_TILE = 2**13  # gallery images multiplied at once: matrix libraries copy what they are given


def cosine_similarity(query_features: Matrix, gallery_features: Matrix) -> Tensor:
    """[Q, D], [G, D] -> cosine similarities [Q, G], exactly those that `evaluate` ranks by; same errors."""
    q, g = as_features(query_features, "query_features"), as_features(gallery_features, "gallery_features")
    sizes = len(q), len(g)
    return torch.cat(list(similarities(q, g, None, sizes, chunk_size(None, sizes))))


def chunk_size(chunk: int | None, sizes: tuple[int, int]) -> int:
    """How many of sizes = (Q, G) queries are scored at once. Raises UserError for less than one."""
    if chunk is None:
        return max(ALIGN, min(_CHUNK_ELEMENTS // sizes[1], sizes[0]) // ALIGN * ALIGN)
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it is the number of queries scored at once, at least 1.")
    return chunk


def similarities(
    query: Matrix | None,
    gallery: Matrix | None,
    similarity: Matrix | None,
    sizes: tuple[int, int],
    chunk: int,
) -> Iterator[Tensor]:
    """Check the input now; then yield similarities [c, G] in chunks, each free to be overwritten."""
    if similarity is not None:
        if query is not None or gallery is not None:
            raise UserError("give either features or similarity, not both: similarity replaces them.")
        if isinstance(similarity, Iterator):
            return _streamed(similarity, sizes)
        similarity = as_matrix(similarity)
        _check_shape(similarity, "similarity", sizes, "[queries, gallery]")
        return _given(similarity, chunk)
    if query is None or gallery is None:
        raise UserError("give query_features and gallery_features, or similarity [queries, gallery].")
    q, g = as_features(query, "query_features"), as_features(gallery, "gallery_features")
    _check_shape(q, "query_features", (sizes[0], q.shape[1]), "[queries, D]")
    _check_shape(g, "gallery_features", (sizes[1], q.shape[1]), "[gallery, D], with the D of the queries")
    return _products(q, g, chunk)


def as_matrix(similarity: Matrix) -> Matrix:
    """What has a shape as it is, else an array."""
    return similarity if hasattr(similarity, "shape") else np.asarray(similarity)


def as_features(features: Matrix, name: str) -> Tensor:
    """[N, D] as a tensor without gradient; other shapes are refused."""
    if isinstance(features, list | tuple) and any(isinstance(row, Tensor) for row in features):
        raise UserError(f"{name} is a list of tensors; features are one matrix [images, D]: torch.stack({name}).")
    x = torch.as_tensor(features if isinstance(features, Tensor) else np.asarray(features)).detach()
    if x.ndim != 2 or not x.shape[1]:
        raise UserError(f"{name} has shape {list(x.shape)}; features are a matrix [images, D].")
    return x


def _check_shape(matrix: Matrix, name: str, expected: tuple[int, int], meaning: str) -> None:
    if tuple(matrix.shape) != expected:
        raise UserError(f"{name} has shape {list(matrix.shape)}, the metadata needs {list(expected)}: {meaning}.")


def _given(similarity: Matrix, chunk: int) -> Iterator[Tensor]:
    for start in range(0, len(similarity), chunk):
        yield _own_block(similarity[start : start + chunk], start)


def _streamed(blocks: Iterator[Matrix], sizes: tuple[int, int]) -> Iterator[Tensor]:
    start = 0
    for block in map(as_matrix, blocks):
        _check_shape(block, f"the block of similarity from row {start}", (len(block), sizes[1]), "[rows, gallery]")
        yield _own_block(block, start)
        start += len(block)
        if start > sizes[0]:
            break
    if start != sizes[0]:
        more = "at least " if start > sizes[0] else ""
        raise UserError(f"similarity: its blocks have {more}{start} rows, the metadata needs {sizes[0]} queries.")


def _own_block(block: Matrix, start: int) -> Tensor:
    """A copy [c, G] in floating point, at least float32; `start` is the row that errors count from."""
    block = block.detach().clone() if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
    block = block.float() if block.dtype in (torch.float16, torch.bfloat16) else block
    block = block if block.is_floating_point() else block.double()
    _check_finite(block.abs().amax(1), "similarity", start)
    return block


def _products(query: Tensor, gallery: Tensor, chunk: int) -> Iterator[Tensor]:
    dtype = torch.float64 if torch.float64 in (query.dtype, gallery.dtype) else torch.float32
    queries = unit_rows(query.to(dtype), "query_features")  # [Q padded, D]
    columns = unit_rows(gallery.to(query.device, dtype), "gallery_features").T  # [D, G padded]
    for start in range(0, len(query), chunk):
        rows = min(chunk, len(query) - start)
        block = queries[start : start + rows]  # [c, D]
        block = torch.nn.functional.pad(block, (0, 0, 0, -rows % ALIGN))  # [c padded, D]
        product = block.new_empty(len(block), columns.shape[1])  # [c padded, G padded]
        with full_precision(block.device):
            for a in range(0, columns.shape[1], _TILE):
                product[:, a : a + _TILE] = block @ columns[:, a : a + _TILE]
        yield product[:rows, : len(gallery)]  # [c, G]


def unit_rows(features: Tensor, name: str) -> Tensor:
    """[N, D] -> rows of length 1 (all-zero rows stay zero), padded with zeros to a multiple of ALIGN rows.

    Matrix libraries round differently in ragged last rows and columns; with none of these, equal images
    have equal similarities, wherever they stand and whatever the chunk. Each row is divided by its largest
    component first, so that no square overflows.
    """
    n, tiny = len(features), torch.finfo(features.dtype).tiny
    largest = torch.linalg.vector_norm(features, torch.inf, dim=1, keepdim=True)  # [N, 1]
    _check_finite(largest[:, 0], name)  # the largest of a row is finite exactly where the row is
    padded = features.new_zeros(n + -n % ALIGN, features.shape[1])
    unit = torch.div(features, largest.clamp_min(tiny), out=padded[:n])
    unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min(tiny))
    return padded


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32: training may have set them, figures should not depend on it."""
    before = torch.get_float32_matmul_precision()
    try:
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def _check_finite(values: Tensor, name: str, start: int = 0) -> None:
    rows = (~torch.isfinite(values)).nonzero()[:, 0].cpu().numpy() + start
    if len(rows):
        raise UserError(f"{name}: NaN or infinity in {name_rows(rows)}. Look where they were computed.")
