"""Two models on the same queries: their difference, its uncertainty, and the queries that change most.

Difference = the second's figure minus the first's. Its interval is the paired bootstrap over identities: a draw takes
the same identities for both (`bootstrap.py`). The p-value is the paired sign-flip (randomisation) test over identities
(Fisher, "The Design of Experiments", 1935, section 21; Smucker, Allan and Carterette, CIKM 2007, for retrieval): were
there no difference, each identity's could as well have had the other sign, so p = (1 + flips at least as far from 0) /
(1 + flips) (Phipson and Smyth, 2010, section 3: never 0). Each figure is tested for itself: five figures are no five
independent proofs.

Of several runs (seeds) the figures are means over the runs, and the interval draws runs as well. The p-value does not:
it tells whether these runs would differ on other identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipreid.errors import UserError
from clipreid.evaluation.bootstrap import (
    METRICS,
    Interval,
    Sums,
    confidence,
    format_intervals,
    interval_of,
    same_queries,
    several,
)
from clipreid.evaluation.report import Report
from clipreid.evaluation.tables import TITLES, format_table

_FLIPS = 2**22  # signs drawn at once


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; `print(comparison)` shows a table. Figures and AP are 0..1, means over the runs."""

    names: tuple[str, str]
    runs: tuple[int, int]
    metrics: tuple[dict[str, float], dict[str, float]]
    intervals: tuple[dict[str, Interval], dict[str, Interval]]
    difference: dict[str, float]  # the second minus the first
    difference_interval: dict[str, Interval]
    p_value: dict[str, float]
    ap: tuple[np.ndarray, np.ndarray]  # [Q] each, NaN = not scored
    identity: np.ndarray  # [Q]
    path: np.ndarray | None  # [Q]
    level: float

    def changed(self, n: int = 10) -> list[int]:
        """The rows of the n queries whose AP differs most, for better or worse; only such as differ."""
        change = abs(self.ap[1] - self.ap[0])
        order = np.argsort(-np.nan_to_num(change), kind="stable")[:n]
        return [int(row) for row in order if change[row] > 0]

    def changed_table(self, n: int = 10) -> str:
        """Those queries as a table: image, identity, AP under both models."""
        rows = self.changed(n)
        paths = ["" if self.path is None else str(self.path[row]) for row in rows]
        shown = ["/".join(Path(path).parts[-2:]) for path in paths]
        return format_table(
            {
                "query": path or f"row {row}",
                "identity": self.identity[row],
                f"AP {self.names[0]}": _percent(a),
                f"AP {self.names[1]}": _percent(b),
                "change": f"{100 * (b - a):+.1f}",
            }
            for path, row, a, b in zip(shown, rows, self.ap[0][rows], self.ap[1][rows], strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the figures for each query, ready for JSON."""
        sides = [
            {"name": name, "runs": runs, "metrics": metrics, "intervals": _lists(intervals)}
            for name, runs, metrics, intervals in zip(self.names, self.runs, self.metrics, self.intervals, strict=True)
        ]
        return {
            "models": sides,
            "difference": self.difference,
            "level": self.level,
            "p_value": self.p_value,
            "difference_interval": _lists(self.difference_interval),
        }

    def __str__(self) -> str:
        """A row for each figure: both models, difference and p-value, with intervals; then how they were made."""
        sides = [format_intervals(m, i) for m, i in zip(self.metrics, self.intervals, strict=True)]
        table = format_table(
            {
                "figure": TITLES[name],
                self.names[0]: sides[0][name],
                self.names[1]: sides[1][name],
                "difference": _signed(self.difference[name], self.difference_interval[name]),
                "p": f"{self.p_value[name]:.2g}",
            }
            for name in METRICS
        )
        scored = ~np.isnan(self.ap[0])
        drawn = "runs and identities" if max(self.runs) > 1 else "identities"
        identities = len(set(self.identity[scored].tolist()))
        lines = [
            f"{int(scored.sum())} queries of {identities} identities; difference in percentage points",
            f"in brackets {100 * self.level:g}% intervals, paired bootstrap over {drawn}",
            "p: paired sign-flip test over identities",
        ]
        if max(self.runs) > 1:
            lines.append(
                f"means of {self.runs[0]} and {self.runs[1]} runs; p is about these runs only, the intervals "
                "also about other runs like them"
            )
        return "\n".join([table, "", *lines])


def compare(
    a: Report | Sequence[Report],
    b: Report | Sequence[Report],
    names: tuple[str, str] = ("A", "B"),
    draws: int = 1000,
    flips: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare two models, each of one or several runs, on the same queries and gallery (definitions: top of this file).

    draws: of the bootstrap.  flips: of the sign-flip test.  level: of the intervals.

    Raises UserError for models scored on different queries, galleries or protocols, fewer than two identities, equal
    names, and draws, flips or a level without meaning.
    """
    if names[0] == names[1] or flips < 1:
        raise UserError(f"names={names}, flips={flips}: give two different names, and at least one flip")
    sides = several(a), several(b)
    same_queries([*sides[0], *sides[1]])
    sums = Sums.of(sides[0]), Sums.of(sides[1])
    metrics = [{name: float(np.mean([r.metrics[name] for r in side])) for name in METRICS} for side in sides]
    ap = [np.mean([r.per_query["ap"] for r in side], 0) for side in sides]
    apart = sums[1].mean() - sums[0].mean()  # [5]
    first = sides[0][0].per_query
    return Comparison(
        names,
        (len(sides[0]), len(sides[1])),
        (metrics[0], metrics[1]),
        (confidence(sides[0], draws, seed, level), confidence(sides[1], draws, seed, level)),
        dict(zip(METRICS, apart.tolist(), strict=True)),
        interval_of(sums, draws, seed, level),
        dict(zip(METRICS, _sign_flips(sums, flips, seed).tolist(), strict=True)),
        (ap[0], ap[1]),
        first["identity"],
        first.get("path"),
        level,
    )


def _sign_flips(sums: Sequence[Sums], flips: int, seed: int) -> np.ndarray:
    """p-values [5]. Queries per identity are the same on both sides, so sums of differences will do."""
    a, b = (side.sums.mean(0) for side in sums)  # [I, 5]: means over the runs
    apart = b - a
    limit = abs(apart.sum(0)) * (1 - 1e-9)  # all signs flipped is as far, whatever the rounding
    rng = np.random.default_rng(seed)
    far, block = np.zeros(len(METRICS)), max(1, _FLIPS // len(apart))
    for start in range(0, flips, block):
        signs = rng.integers(0, 2, (min(block, flips - start), len(apart)), dtype=np.int8) * 2.0 - 1  # [b, I]
        far += (abs(signs @ apart) >= limit).sum(0)
    return (1 + far) / (1 + flips)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _signed(value: float, interval: Interval) -> str:
    return f"{100 * value:+.1f} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"


def _lists(intervals: dict[str, Interval]) -> dict[str, list[float]]:
    return {name: list(both) for name, both in intervals.items()}
