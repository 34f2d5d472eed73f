"""Confidence intervals: what the figures would be for other identities, and for other training runs.

The queries of one identity are alike, so not queries but *identities* are drawn, all queries of an identity together
(cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8). A draw takes as
many identities as there are, with replacement; its figure is the mean over the queries of those; the interval lies
between the quantiles of the draws (percentile interval: Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13). The gallery stays as it is.

Of several runs (seeds), which all meet the same identities, a draw takes runs and identities independently of each
other, both with replacement (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007). A few runs hardly
say how much runs differ: of R runs the share of the variance that is theirs comes out (R - 1) / R too small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipreid.errors import UserError
from clipreid.evaluation.tables import TITLES

if TYPE_CHECKING:
    from clipreid.evaluation.report import Report

METRICS = tuple(TITLES)
Interval = tuple[float, float]
_DRAWN = 2**22  # identities drawn at once, over all draws of a block


def confidence(
    report: Report | Sequence[Report], draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """{"mAP": (low, high), "mINP", "rank1", "rank5", "rank10"}, 0..1: bootstrap over identities (top of this file).

    report: of one run, or of several runs scored on the same queries. level: the share of the draws inside.

    Raises UserError for fewer than two identities with a scored query, other queries in another run, and draws or
    a level that make no interval.
    """
    return interval_of([Sums.of(several(report))], draws, seed, level)


def same_queries(reports: Sequence[Report]) -> None:
    """Raises UserError, naming the first difference, unless all reports are about the same queries and protocol."""
    first = reports[0]
    for other in reports[1:]:
        sizes = len(first.per_query["ap"]), len(other.per_query["ap"])
        if sizes[0] != sizes[1]:
            raise UserError(f"scored on different queries: {sizes[0]} and {sizes[1]}. Score both on the same data")
        galleries = first.counts["gallery"], other.counts["gallery"]
        if galleries[0] != galleries[1]:
            raise UserError(f"scored on different galleries, of {galleries[0]} and {galleries[1]} images. Use one")
        if first.protocol != other.protocol:
            raise UserError(f"scored under different protocols: {first.protocol} and {other.protocol}. Choose one")
        for column, what in (("identity", "query identities"), ("path", "query images"), ("n_positives", "matches")):
            a, b = (report.per_query.get(column) for report in (first, other))
            if a is not None and b is not None and (a != b).any():
                row = int(np.flatnonzero(a != b)[0])
                found = f"row {row} has {a[row]} and {b[row]}"
                raise UserError(f"scored on different {what}: {found}. Score both on the same data")


@dataclass(frozen=True)
class Sums:
    """Per run and identity: the summed figures of its queries, and how many these are."""

    sums: np.ndarray  # [R, I, 5]
    counts: np.ndarray  # [R, I]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Sums:
        """Raises UserError for other queries in another run, and for fewer than two identities."""
        same_queries(reports)
        _, identity = np.unique(reports[0].per_query["identity"].astype(str), return_inverse=True)  # [Q]
        figures, weights = zip(*(figures_of(report) for report in reports), strict=True)
        weight = np.stack(weights)[..., None]  # [R, Q, 1]
        both = np.concatenate([np.stack(figures) * weight, weight], 2).transpose(1, 0, 2)  # [Q, R, 5 + 1]
        totals = np.zeros((identity.max() + 1, *both.shape[1:]))
        np.add.at(totals, identity, both)
        sums, counts = totals[..., :-1].transpose(1, 0, 2), totals[..., -1].T
        asked = (counts > 0).any(0)
        if asked.sum() < 2:
            raise UserError("an interval over identities needs at least 2 of them with a scored query")
        return cls(sums[:, asked], counts[:, asked])

    def draw(self, identities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Figures [b, 5] of b draws; identities [b, I] how often each was taken. The runs are drawn here."""
        runs, count = len(self.sums), self.sums.shape[1]
        taken = rng.multinomial(runs, np.full(runs, 1 / runs), size=len(identities)).astype(float)  # [b, R]
        sums = identities @ self.sums.transpose(1, 0, 2).reshape(count, -1)  # [b, R * 5]
        sums = (taken[..., None] * sums.reshape(len(identities), runs, -1)).sum(1)  # [b, 5]
        return sums / (taken * (identities @ self.counts.T)).sum(1, keepdims=True)

    def mean(self) -> np.ndarray:
        """The figures [5] themselves."""
        return self.sums.sum((0, 1)) / self.counts.sum()


def figures_of(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """The five figures of each query [Q, 5], 0 where it is not scored, and the weight of each query [Q].

    The weighted mean over the queries is `report.metrics`. A query weighs 1, under a protocol with random galleries as
    many as there are draws that score it.
    """
    scores = report.per_query
    weights = np.asarray(scores.get("times", scores["n_positives"] > 0), float)
    hits = {f"rank{k}": scores["first_rank"] <= k for k in (1, 5, 10)}
    columns = {"mAP": scores["ap"], "mINP": scores["inp"], **hits, **{k: v for k, v in scores.items() if k in hits}}
    return np.nan_to_num(np.stack([np.asarray(columns[name], float) for name in METRICS], 1)), weights


def interval_of(sides: Sequence[Sums], draws: int, seed: int, level: float) -> dict[str, Interval]:
    """Percentile intervals of one side's figures, or of the second's less the first's, on the same identities."""
    _check_draws(draws, level)
    found = []
    rng = np.random.default_rng(seed)
    for taken in _identities(sides[0].sums.shape[1], draws, rng):
        figures = [side.draw(taken, rng) for side in sides]  # [b, 5] each
        found.append(figures[-1] - figures[0] if len(sides) == 2 else figures[0])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(METRICS, low, high, strict=True)}


def _check_draws(draws: int, level: float) -> None:
    if draws < 2 or not 0 < level < 1:
        raise UserError(f"draws={draws}, level={level}: an interval needs at least 2 draws and a level between 0 and 1")


def mean_interval(
    values: np.ndarray,
    identity: np.ndarray,
    weights: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """The mean of values [n], and its interval over the identities [n] that they are of (top of this file).

    weights: of the values, [n], above 0; None: all the same.

    Raises UserError for fewer than two identities, and draws or a level that make no interval.
    """
    _, place = np.unique(identity, return_inverse=True)  # [n]
    weights = np.ones(len(values)) if weights is None else weights
    sums, counts = np.bincount(place, weights * values), np.bincount(place, weights)  # [I]
    if len(counts) < 2:
        raise UserError("an interval over identities needs at least 2 of them")
    _check_draws(draws, level)
    blocks = _identities(len(counts), draws, np.random.default_rng(seed))
    means = np.concatenate([taken @ sums / (taken @ counts) for taken in blocks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(sums.sum() / counts.sum()), (float(low), float(high))


def format_intervals(metrics: Mapping[str, float], intervals: Mapping[str, Interval]) -> dict[str, str]:
    """{"mAP": "46.3% (41.0 to 51.7)", ...}."""
    return {
        name: f"{100 * metrics[name]:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
        for name, (low, high) in intervals.items()
    }


def several(report: Report | Sequence[Report]) -> list[Report]:
    """The reports of one or several runs as a list."""
    return list(report) if isinstance(report, Sequence) else [report]


def _identities(count: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each identity is taken in each draw, float64 [b, I], in blocks of draws."""
    block = max(1, _DRAWN // count)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        taken = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]  # [b, I]
        yield np.bincount(taken.ravel(), minlength=size * count).reshape(size, count).astype(float)
