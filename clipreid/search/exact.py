"""The most similar rows of a large matrix, exactly: fast products find candidates, float64 decides between them.

Q queries, D dimensions, c rows of the matrix at a time, k results. A float32 dot product of unit vectors is off by at
most D u / (1 - D u), u = 2^-24, in whatever order it is summed (Higham, Accuracy and Stability of Numerical Algorithms,
equation 3.5). So a row can be among the k best only where its float32 product is at most twice that below the k-th
best. These few are computed again in float64, each in the same way wherever it stands, so that the outcome depends
neither on the size of chunks, nor on threads, nor on how many queries are asked at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.similarity import full_precision

PAIRS = 2**12  # computed in float64 at a time
UNIT = 2.0**-24  # half the distance of 1 to the next float32


class Nearest:
    """The k most similar rows of each query so far; rows are added in ascending order.

    Args:
        queries: float32 [Q, D], rows of unit length.
        k: how many.
        normalise: rows may have any length, and are compared by cosine; else they have unit length.
    """

    def __init__(self, queries: Tensor, k: int, normalise: bool = False) -> None:
        self.queries, self.normalise = queries.contiguous(), normalise
        self.precise = queries.double().numpy()  # [Q, D]
        self.margin = 4 * (queries.shape[1] + 8) * UNIT  # twice the bound, and room for lengths that are not quite 1
        self.similarity = np.full((len(queries), k), -np.inf)  # [Q, k] float64, descending
        self.rows = np.full((len(queries), k), -1, dtype=np.int64)  # [Q, k]; of equals the lower row comes first

    def add(self, block: Tensor, rows: np.ndarray) -> None:
        """Float32 [c, D], and the numbers [c] of its rows.

        Raises UserError where the block holds NaN or infinity.
        """
        with full_precision(block.device):
            # [Q, c]; the other way round mkldnn is slow for a few queries where the block is not aligned in memory
            product = self.queries @ block.T
        if self.normalise:
            product /= torch.linalg.vector_norm(block, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        if not bool(torch.isfinite(product.sum())):
            raise UserError(f"features of rows {rows[0]} to {rows[-1]} are not finite")
        queries, columns = self._candidates(product)  # [n] each, by query
        for start in range(0, len(queries), PAIRS):
            self._settle(block, rows, queries[start : start + PAIRS], columns[start : start + PAIRS])

    def _candidates(self, product: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of the block may be among the best of which queries."""
        k = self.rows.shape[1]
        floor = torch.from_numpy(self.similarity[:, -1:] - self.margin).float()  # [Q, 1]
        over = product >= floor  # [Q, c]
        if int(over.sum()) > 4 * k * len(floor) and k < product.shape[1]:
            best = product.topk(k, dim=1).values[:, -1:]  # [Q, 1]: the k-th of this block
            over = product >= torch.maximum(floor, best - self.margin)
        found = over.nonzero().numpy()  # [n, 2]
        return found[:, 0], found[:, 1]

    def _settle(self, block: Tensor, rows: np.ndarray, queries: np.ndarray, columns: np.ndarray) -> None:
        """Compares candidates, pairs of a query and a row, with the best so far."""
        x = block[torch.from_numpy(columns)].double().numpy()  # [n, D]
        similarity = (x * self.precise[queries]).sum(1)  # [n]; numpy adds each row up in the same way
        if self.normalise:
            similarity /= np.sqrt(np.maximum((x * x).sum(1), np.finfo(np.float64).tiny))
        k = self.rows.shape[1]
        for part in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(queries)) + 1):
            query = queries[part[0]]
            values = np.concatenate([self.similarity[query], similarity[part]])
            numbers = np.concatenate([self.rows[query], rows[columns[part]]])
            best = np.lexsort((numbers, -values))[:k]
            self.similarity[query], self.rows[query] = values[best], numbers[best]
