"""k-reciprocal encoding (Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017).

Every image p, query or gallery, is encoded by its surroundings V_p, a row with few non-zero entries:

1.  N(p, k), the k + 1 nearest of p, itself the first; R(p, k) = those in N(p, k) that have p among theirs (eq. 2).
2.  R*(p) = R(p, k1), and for each c in it R(c, k1 / 2), where R(p, k1) holds more than two thirds of that (eq. 5).
3.  V_p[g] = exp(-d(p, g)) for g in R*(p), divided by their sum (eq. 7). d is the squared Euclidean distance of the
    unit features, divided by the largest of p's, as in the authors' code.
4.  V_p becomes the mean of V over the k2 nearest of p, itself the first (eq. 11).
5.  With t = sum over g of min(V_p[g], V_q[g]), the Jaccard distance is 1 - t / (2 - t) (eq. 10), and the new
    distance is (1 - lambda) x Jaccard + lambda x d (eq. 12).

The published code holds several dense [N, N] arrays for this, N = queries + gallery. Here only neighbour lists and the
non-zero entries exist, so memory grows with N, not with its square; the result is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.neighbours import Blocks, Compare, nearest, nearest_in, pairs_in, prepare, product
from clipreid.evaluation.similarity import ALIGN, chunk_size

_ENTRIES = 2**21  # set members or shared entries in memory at once


def k_reciprocal(
    query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Iterator[Tensor]:
    """Re-ranked similarities [c, G], the queries in order: 1 - the distance of eq. 12, in 0..1.

    Args:
        query, gallery: unit rows [Q, D] and [G, D], float32.
        k1: neighbours that make a surrounding; k2: neighbours whose surroundings are averaged, 1 = none.
        lambda_value: share of the original distance, 0..1.

    Raises:
        UserError: k1, k2 or lambda_value out of range.
    """
    check_k_reciprocal(k1, k2, lambda_value)
    n_query, n = len(query), len(query) + len(gallery)
    end = n_query + len(gallery) + -len(gallery) % ALIGN
    units = query.new_zeros(end + -end % ALIGN, query.shape[1])
    units[:n_query], units[n_query:n] = query, gallery
    del query, gallery
    near, lowest = nearest(units, n, min(k1 + 1, n))
    codes = average(encode(partial(_pairs, units, n), near, lowest, k1), near[:, :k2])
    yield from _blend(codes, _originals(units, n_query, n, end), lowest, n_query, lambda_value)


def k_reciprocal_by(
    compare: Compare, query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Iterator[Tensor]:
    """The same by a metric from -1 to 1 in the place of the cosine; d = 2 - 2 s, as seen by the one who asks.

    Args:
        compare: `clipreid.evaluation.neighbours.by_metric`. The rest: as for `k_reciprocal`, rows of any length.
    """
    check_k_reciprocal(k1, k2, lambda_value)
    everyone = torch.cat([query, gallery])
    n = len(everyone)
    near, lowest = nearest_in(compare(everyone, everyone), n, min(k1 + 1, n))
    codes = encode(lambda row, column: pairs_in(compare(everyone, everyone), row, column), near, lowest, k1)
    codes = average(codes, near[:, :k2])
    yield from _blend(codes, compare(query, gallery), lowest, len(query), lambda_value)


def _originals(units: Tensor, n_query: int, n: int, end: int) -> Blocks:
    """Cosines of the queries to the gallery."""
    gallery = prepare(units[n_query:end])
    for start in range(0, n_query, chunk := chunk_size(None, (n_query, n - n_query))):
        stop = min(start + chunk, n_query)
        rows = torch.nn.functional.pad(units[start:stop], (0, 0, 0, (start - stop) % ALIGN))
        yield start, product(rows, gallery)[: stop - start, : n - n_query]


def _blend(codes: Sparse, originals: Blocks, lowest: Tensor, n_query: int, lambda_value: float) -> Iterator[Tensor]:
    """Step 5 for each block of queries [c, G]."""
    n = len(lowest)
    columns = codes.columns_of(range(n_query, n))
    farthest = _distance(lowest).clamp_min(torch.finfo(torch.float32).tiny)
    for start, similarity in originals:
        stop = start + len(similarity)
        original = 1 - _distance(similarity) / farthest[start:stop, None]  # [c, G]
        shared = _shared(codes, columns, range(start, stop), n - n_query)  # [c, G]
        yield (1 - lambda_value) * (shared / (2 - shared)) + lambda_value * original


def check_k_reciprocal(k1: int, k2: int, lambda_value: float) -> None:
    """Raises UserError for what is out of range."""
    if not (isinstance(k1, int) and isinstance(k2, int) and 1 <= k2 <= k1 + 1):
        raise UserError(f"k-reciprocal: k1 is {k1} and k2 is {k2}; whole numbers with 1 <= k2 <= k1 + 1 are needed")
    if not 0 <= lambda_value <= 1:
        raise UserError(f"k-reciprocal: lambda_value is {lambda_value}; it must be between 0 and 1")


def _distance(similarity: Tensor) -> Tensor:
    return (2 - 2 * similarity).clamp_min_(0)


# Sparse rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sparse:
    """A matrix by its entries, row after row: those of row i are start[i] .. start[i + 1] - 1."""

    start: Tensor  # int64 [rows + 1]
    index: Tensor  # int64 [entries], ascending inside a row
    value: Tensor  # float32 [entries]

    @classmethod
    def make(cls, row: Tensor, index: Tensor, value: Tensor, rows: int) -> Sparse:
        """Of entries already in order; `row` [entries]."""
        return cls(_starts(torch.bincount(row, minlength=rows)), index, value)

    def row(self) -> Tensor:
        """The row of each entry, [entries]."""
        return torch.arange(len(self.start) - 1, device=self.index.device).repeat_interleave(self.start.diff())

    def columns_of(self, rows: range) -> Sparse:
        """These rows turned over: column by column, and rows counted from rows.start."""
        part = slice(int(self.start[rows.start]), int(self.start[rows.stop]))
        index, order = self.index[part].sort(stable=True)
        row = self.row()[part][order] - rows.start
        return Sparse.make(index, row, self.value[part][order], len(self.start) - 1)


def _starts(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _segments(starts: Tensor, lengths: Tensor) -> Tensor:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ...: int64 [sum of lengths]."""
    ends = lengths.cumsum(0)
    steps = torch.arange(int(ends[-1]) if len(ends) else 0, device=starts.device)
    return steps + (starts - ends + lengths).repeat_interleave(lengths)


# Encoding -------------------------------------------------------------------------------------------------


def encode(pairs: Callable[[Tensor, Tensor], Tensor], near: Tensor, lowest: Tensor, k1: int) -> Sparse:
    """V of steps 1 to 3, [N, N], each row summing to 1.

    Args:
        pairs: gives the similarity of each pair (row, column), [pairs], the pairs in order of their rows.
        near, lowest: what `nearest` returned for k1 + 1 neighbours, [N, k1 + 1] and [N].
    """
    n = len(near)
    mutual = _mutual(near)
    half = near[:, : round(k1 / 2) + 1]  # round half to even, as numpy.around
    half_mutual = _mutual(half)
    rows, members = [], []
    step = max(1, _ENTRIES // (near.shape[1] ** 2 * half.shape[1]))
    for chunk in torch.arange(n, device=near.device).split(step):
        keys = _surroundings(near, mutual, half, half_mutual, chunk)
        rows.append(keys // n)
        members.append(keys % n)
    row, member = torch.cat(rows), torch.cat(members)
    similarity = pairs(row, member)
    distance = _distance(similarity) / _distance(lowest).clamp_min(torch.finfo(torch.float32).tiny)[row]
    weight = torch.exp(-distance.masked_fill_(row == member, 0))
    total = torch.zeros(n, device=weight.device).index_add_(0, row, weight)
    return Sparse.make(row, member, weight / total[row], n)


def _mutual(near: Tensor) -> Tensor:
    """bool [N, k]: whether the neighbour has this image among its own k."""
    rows = torch.arange(len(near), device=near.device)
    step = max(1, _ENTRIES // near.shape[1] ** 2)
    return torch.cat([(near[near[chunk]] == chunk[:, None, None]).any(2) for chunk in rows.split(step)])


def _surroundings(near: Tensor, mutual: Tensor, half: Tensor, half_mutual: Tensor, rows: Tensor) -> Tensor:
    """R* of these rows as sorted keys, row x N + member."""
    own, ours = near[rows], mutual[rows]  # [r, K]
    theirs, valid = half[own], half_mutual[own] & ours[:, :, None]  # [r, K, H], of the candidates in R(p, k1)
    shared = ((theirs[..., None] == own[:, None, None]) & ours[:, None, None]).any(3) & valid  # [r, K, H]
    accepted = valid & (3 * shared.sum(2) > 2 * valid.sum(2))[:, :, None]
    keys = torch.cat([own, theirs.flatten(1)], 1) + rows[:, None] * len(near)
    return torch.unique(keys[torch.cat([ours, accepted.flatten(1)], 1)])


def _pairs(units: Tensor, n: int, row: Tensor, column: Tensor) -> Tensor:
    """Similarity of each pair (row, column), [pairs]; pairs in order of their rows."""
    start = _starts(torch.bincount(row, minlength=n))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # what is used here is under test
        pattern = torch.sparse_csr_tensor(
            start, column, torch.zeros(len(row), device=units.device), (n, n), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, units[:n], units[:n].T, beta=0.0).values()


def average(codes: Sparse, near: Tensor) -> Sparse:
    """Step 4: the mean of the rows `near` [N, k2] of the codes."""
    n, k2 = near.shape
    if k2 == 1:
        return codes
    lengths = codes.start.diff()
    parts = []
    step = max(1, _ENTRIES * n // (k2 * max(1, len(codes.index))))
    for chunk in torch.arange(n, device=near.device).split(step):
        sources = near[chunk].flatten()  # [r * k2]
        count = lengths[sources]
        entries = _segments(codes.start[sources], count)
        keys = chunk.repeat_interleave(k2).repeat_interleave(count) * n + codes.index[entries]
        keys, order = keys.sort(stable=True)
        keys, place = torch.unique_consecutive(keys, return_inverse=True)
        parts.append(
            (keys, torch.zeros(len(keys), device=near.device).index_add_(0, place, codes.value[entries][order]))
        )
    keys = torch.cat([part[0] for part in parts])
    return Sparse.make(keys // n, keys % n, torch.cat([part[1] for part in parts]) / k2, n)


def _shared(codes: Sparse, columns: Sparse, rows: range, size: int) -> Tensor:
    """t of step 5 between these rows and every gallery image: sums of minima, [r, G]."""
    out = torch.zeros(len(rows) * size, device=codes.value.device)
    first, last = int(codes.start[rows.start]), int(codes.start[rows.stop])
    row = torch.arange(len(rows), device=out.device).repeat_interleave(codes.start[rows.start : rows.stop + 1].diff())
    lengths = columns.start.diff()[codes.index[first:last]]  # gallery images that share each entry
    cuts = torch.searchsorted(lengths.cumsum(0), torch.arange(0, int(lengths.sum()), _ENTRIES, device=out.device))
    bounds = [*cuts.tolist(), last - first]
    for a, b in pairwise(bounds):
        count = lengths[a:b]
        entries = _segments(columns.start[codes.index[first + a : first + b]], count)
        minima = torch.minimum(columns.value[entries], codes.value[first + a : first + b].repeat_interleave(count))
        out.index_add_(0, columns.index[entries] + (row[a:b] * size).repeat_interleave(count), minima)
    return out.view(len(rows), size)
