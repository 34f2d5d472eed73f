"""Exact nearest neighbours of every image among all others, by cosine, without ever holding all similarities.

Similarities are computed in square tiles. A tile off the diagonal serves twice, for its rows and, turned over, for its
columns, so half of the matrix product is saved. Memory: features, one tile and its copies, [N, k] neighbours.

At the end the same by a metric of a model, which need not be symmetric: rows are then always those who ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clipreid.evaluation.similarity import ALIGN, chunk_size, full_precision

Blocks = Iterator[tuple[int, Tensor]]  # (first row, similarities [c, n]), the rows in order
Compare = Callable[[Tensor, Tensor], Blocks]  # of rows [m, D] to columns [n, D]

TILE = 2048  # 16 MB of similarities
_TIED = 2**24  # similarities in memory at once where ties are settled


def prepare(columns: Tensor) -> Tensor:
    """Right-hand side of `product`, [n, D]: on CPU in oneDNN's layout where torch has it."""
    dnn = columns.device.type == "cpu" and columns.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return columns.contiguous().to_mkldnn() if dnn else columns


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """[m, D], `prepare`d [n, D] -> dot products [m, n] in full precision.

    oneDNN's float32 product took half the time of torch's default (MKL) on an AMD CPU with AVX-512, and is no slower
    elsewhere that we know of. m and n should be multiples of ALIGN: then equal pairs have equal products.
    """
    with full_precision(rows.device):
        if columns.is_mkldnn:
            return torch.nn.functional.linear(rows.contiguous().to_mkldnn(), columns).to_dense()
        return rows @ columns.T


def nearest(units: Tensor, n: int, k: int, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """The k most similar images of each, and the similarity of the least similar one.

    Args:
        units: [N padded, D] rows of length 1, then zeros up to a multiple of ALIGN; n of them count.
        k: neighbours, at most n. Each image is its own first neighbour; the others are ordered by similarity, equal
            ones by their row.
        tile: rows and columns of similarities at once, a multiple of ALIGN.

    Returns:
        int64 [N, k] rows, and float32 [N] similarities.
    """
    width = min(k + 1, n)  # one more, to see ties across the k-th place
    best = units.new_full((n, width), -torch.inf)
    index = torch.zeros(n, width, dtype=torch.int64, device=units.device)
    lowest = units.new_full((n,), torch.inf)
    for a in range(0, n, tile):
        for b in range(a, n, tile):
            block = product(units[a : a + tile], prepare(units[b : b + tile]))[: n - a, : n - b]
            if a == b:
                block.fill_diagonal_(torch.inf)  # oneself
            _merge(best[a : a + tile], index[a : a + tile], lowest[a : a + tile], block, b)
            if a != b:
                _merge(best[b : b + tile], index[b : b + tile], lowest[b : b + tile], block.T.contiguous(), a)
    index, order = index.sort(1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)[:, :k]
    if width > k:
        _settle(units, n, index, (best[:, k - 1] == best[:, k]).nonzero()[:, 0])
    return index, lowest


def _merge(best: Tensor, index: Tensor, lowest: Tensor, block: Tensor, offset: int) -> None:
    """Take similarities [r, c] to the images offset, offset + 1, ... into the lists of r images, in place."""
    torch.minimum(lowest, block.amin(1), out=lowest)
    values, columns = block.topk(min(best.shape[1], block.shape[1]), dim=1)  # [r, k + 1]
    values, order = torch.cat([best, values], 1).topk(best.shape[1], dim=1)
    best.copy_(values)
    index.copy_(torch.cat([index, columns + offset], 1).gather(1, order))


def _settle(units: Tensor, n: int, index: Tensor, tied: Tensor) -> None:
    """Where the k-th and the next are equally similar, choose by row: sort those images' whole rows."""
    columns = prepare(units)
    for rows in tied.split(max(1, _TIED // len(units))):
        block = torch.nn.functional.pad(units[rows], (0, 0, 0, -len(rows) % ALIGN))
        similarity = product(block, columns)[: len(rows), :n]
        similarity.scatter_(1, rows[:, None], torch.inf)
        index[rows] = similarity.sort(dim=1, descending=True, stable=True).indices[:, : index.shape[1]]


def by_metric(metric: Callable[[Tensor, Tensor], Tensor]) -> Compare:
    """A metric as what re-rankers ask."""

    def compare(rows: Tensor, columns: Tensor) -> Blocks:
        chunk = chunk_size(None, (len(rows), len(columns)))
        for start in range(0, len(rows), chunk):
            with torch.no_grad(), full_precision(rows.device):
                yield start, metric(rows[start : start + chunk], columns).float()

    return compare


def nearest_in(blocks: Blocks, n: int, k: int) -> tuple[Tensor, Tensor]:
    """`nearest`, from the similarities of n images to themselves."""
    found, lowest = [], []
    for start, block in blocks:
        block = block.clone()
        block.diagonal(start).fill_(torch.inf)  # oneself
        lowest.append(block.amin(1))
        found.append(block.sort(dim=1, descending=True, stable=True).indices[:, :k])
    assert sum(map(len, found)) == n
    return torch.cat(found), torch.cat(lowest)


def pairs_in(blocks: Blocks, row: Tensor, column: Tensor) -> Tensor:
    """The similarity of each pair (row, column), [pairs]; pairs in order of their rows."""
    found = []
    for start, block in blocks:
        first, last = torch.searchsorted(row, torch.tensor([start, start + len(block)], device=row.device)).tolist()
        found.append(block[row[first:last] - start, column[first:last]])
    return torch.cat(found)
