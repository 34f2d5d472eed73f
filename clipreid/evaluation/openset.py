"""Open-set figures: how well one threshold on the similarity tells the same identity from another one.

Ranking assumes that the gallery contains the individual. In the open world it may not, and a threshold on the
similarity decides. Here every pair of a query and a gallery image is a verification trial: positive where the gallery
image is a valid match under the protocol, negative where its identity is another; junk is no trial. Pairs of all
queries are pooled, those without a match too. At a threshold t, FPR(t) is the share of negatives with similarity >= t
and TPR(t) that of positives (false match rate and 1 - false non-match rate in ISO/IEC 19795-1). Then

    TPR at FPR x  = the largest TPR(t) with FPR(t) <= x
    EER           = the smallest e such that some t has FPR(t) <= e and 1 - TPR(t) <= e

Both are exact, not interpolated; all-equal similarities have TPR 0 and EER 1, as ties go against the query elsewhere.

Nothing of the size of all pairs is kept. A similarity's bits, read as an integer, keep its order; they are counted in
histograms of 16 bits a pass, each pass inside the bin that the one before found: two passes for float32, four for
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import Table
from clipreid.evaluation.pairs import Pairs, pair_blocks
from clipreid.evaluation.protocols import Predicate, Protocol
from clipreid.evaluation.similarity import Matrix

_BINS = 2**16


@dataclass(frozen=True)
class OpenSet:
    """Verification figures, all 0..1; definitions at the top of this file."""

    tpr: dict[float, float]  # FPR -> the largest TPR
    eer: float
    positives: int  # pairs
    negatives: int

    def to_dict(self) -> dict[str, float]:
        """{"tpr@0.01": ..., "eer": ..., "positive_pairs": ..., "negative_pairs": ...}, ready for JSON."""
        rates = {f"tpr@{rate:g}": value for rate, value in self.tpr.items()}
        return {**rates, "eer": self.eer, "positive_pairs": self.positives, "negative_pairs": self.negatives}

    def __str__(self) -> str:
        """One line."""
        rates = ", ".join(f"TPR {100 * value:.1f}% at FPR {rate:g}" for rate, value in self.tpr.items())
        pairs = f"{self.positives:,d} positive and {self.negatives:,d} negative pairs"
        return f"{rates}, equal error rate {100 * self.eer:.1f}% ({pairs})"


def open_set(
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    query: Table = None,
    gallery: Table = None,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
    fpr: Sequence[float] = (1e-2, 1e-3),
) -> OpenSet:
    """TPR at some FPR and the equal error rate over all pairs (definitions: top of this file).

    Arguments as for `evaluate`; memory grows with chunk x G. A protocol with random galleries is taken with its whole
    gallery. fpr: each between 0 and 1.

    Raises UserError for what `evaluate` refuses, an fpr outside (0, 1), and no positive or no negative pair.
    """
    wrong = [rate for rate in fpr if not 0 < rate < 1]
    if wrong:
        raise UserError(f"fpr={wrong[0]}: false positive rates lie between 0 and 1, for example 0.01")
    if isinstance(similarity, Iterator):
        raise UserError("similarity is an iterator, and all pairs are looked at several times: give the matrix")
    walk = pair_blocks(query_features, gallery_features, query, gallery, protocol, similarity, chunk)
    searches = [_Search(rate) for rate in (*fpr, None)]
    _refine(walk, searches)
    positives, negatives = (int(n) for n in searches[0].total)
    rates = [search.rates() for search in searches]  # ((tpr, fpr) at the last bad threshold, at the next one)
    eer = min(rates[-1][0][1], 1 - rates[-1][1][0])
    return OpenSet(dict(zip(fpr, (good[0] for _, good in rates[:-1]), strict=True)), eer, positives, negatives)


def rates_at(
    threshold: float,
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    query: Table = None,
    gallery: Table = None,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
) -> tuple[float, float]:
    """What a threshold that was chosen elsewhere does here: (false match rate, share of matching pairs missed), 0..1.

    The other arguments as for `open_set`; a pair reaches the threshold where its similarity is not below it. Raises
    UserError for what `evaluate` refuses, and no positive or no negative pair.
    """
    counts = np.zeros((2, 2))  # positives, negatives x all, those that reach it
    for pairs in pair_blocks(query_features, gallery_features, query, gallery, protocol, similarity, chunk)():
        reached = pairs.similarity.double() >= threshold
        counts += [[int(side.sum()), int((side & reached).sum())] for side in (pairs.positive, pairs.negative)]
    _check_pairs(counts[:, 0])
    found, false = counts[:, 1] / counts[:, 0]
    return float(false), float(1 - found)


def _check_pairs(counts: np.ndarray) -> None:
    """counts [2]: positive and negative pairs. Raises UserError where one kind is missing."""
    if not counts.all():
        kind = "negative" if counts[0] else "positive"
        raise UserError(f"there is no {kind} pair: a threshold needs matches and mistakes to tell apart")


@dataclass
class _Search:
    """The largest threshold that is still too low, found 16 bits at a time.

    Too low: its FPR is above `rate`, or, for the EER (None), its FPR is at least 1 - TPR.
    """

    rate: float | None
    prefix: int = 0  # the bits found so far, as a signed number
    above: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))  # positives, negatives above that bin
    inside: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))  # and in it
    total: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))  # and all of them, 0 before the first pass

    def narrow(self, counts: np.ndarray) -> None:
        """counts [2, bins] of the positives and negatives inside the present bin."""
        first = not self.total.any()
        if first:
            self.total = counts.sum(1)
            _check_pairs(self.total)
        least = self.above[:, None] + counts[:, ::-1].cumsum(1)[:, ::-1]  # [2, bins]: pairs in this bin or above it
        tpr, fpr = least / self.total[:, None]
        too_low = fpr >= 1 - tpr if self.rate is None else fpr > self.rate  # from the lowest bin up to some bin
        chosen = int(np.flatnonzero(too_low)[-1])
        self.above, self.inside = least[:, chosen] - counts[:, chosen], counts[:, chosen]
        self.prefix = chosen - _BINS // 2 if first else self.prefix * _BINS + chosen

    def rates(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(TPR, FPR) at the found threshold and at the next higher one."""
        at, over = (self.above + self.inside) / self.total, self.above / self.total
        return (float(at[0]), float(at[1])), (float(over[0]), float(over[1]))


def _refine(walk: Callable[[], Iterator[Pairs]], searches: list[_Search]) -> None:
    """All passes: afterwards every search has found its threshold to the last bit."""
    counts, rest = _count(walk, searches[:1], None)  # the first pass is the same for all
    counts = counts.repeat(len(searches), 0)
    while True:
        for search, count in zip(searches, counts, strict=True):
            search.narrow(count)
        if not rest:
            return
        counts, rest = _count(walk, searches, rest - 16)


def _count(walk: Callable[[], Iterator[Pairs]], searches: list[_Search], rest: int | None) -> tuple[np.ndarray, int]:
    """One pass: histograms [searches, 2, bins] of the 16 bits above the last `rest` ones, inside each search's bin.

    rest=None: of the first 16 bits, of all pairs. Returned with the number of bits that are still to be found.
    """
    counts, begun, left = np.zeros((len(searches), 2, _BINS), np.int64), rest is not None, rest or 0
    for pairs in walk():
        keys, bits = _ordered(pairs.similarity)
        left = left if begun else bits - 16
        high = keys >> left  # [c, G]: the 16 bits of this pass, below those that are found
        for search, count in zip(searches, counts, strict=True):
            for side, chosen in enumerate((pairs.positive, pairs.negative)):
                if begun:
                    found = high[chosen & ((high >> 16) == search.prefix)] & (_BINS - 1)
                else:
                    found = high[chosen] + _BINS // 2  # signed
                count[side] += torch.bincount(found, minlength=_BINS).cpu().numpy()
    return counts, left


def _ordered(similarity: Tensor) -> tuple[Tensor, int]:
    """Signed integers [c, G] in the order of the similarities, and how many bits they have."""
    values = similarity + 0.0  # -0 and 0 are equal
    kind, bits = (torch.int64, 64) if values.dtype == torch.float64 else (torch.int32, 32)
    keys = values.contiguous().view(kind)
    return keys ^ ((keys >> (bits - 1)) & torch.iinfo(kind).max), bits
