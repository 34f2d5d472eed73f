"""What a calibration of a model found: the maps, the threshold, and how well they hold on other identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clipreid.evaluation.calibration import KINDS, Calibration, Kind, at_prior, calibration_error, reliability
from clipreid.evaluation.histogram import Histogram

EVEN = 0.5  # odds at which errors among few matching pairs show


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` found; figures are of the second half of the identities, rates 0..1.

    calibration: the maps and the threshold.  identities: with a match, in each half.  fitted, measured: pairs by
    similarity, of each half.  wanted: what the threshold was fitted to, {"strangers": rate} or {"false_match": rate}.
    hits: [H, 2] of each query: similarity of its first hit, whether that is right.  strangers, missing: shares of the
    queries (`trials`).  gallery: mean images that a query is compared with.
    groups: rows for `format_table`, by "camera-pair" and by the columns asked for.
    """

    calibration: Calibration
    identities: tuple[int, int]
    fitted: Histogram
    measured: Histogram
    wanted: Mapping[str, float]
    hits: np.ndarray
    strangers: float
    missing: float
    gallery: float
    groups: Mapping[str, list[dict[str, object]]]

    @cached_property
    def similarities(self) -> np.ndarray:
        """The middle of each bin [n]."""
        return (self.measured.edges[1:] + self.measured.edges[:-1]) / 2

    @property
    def false_match(self) -> float:
        """Share of pairs of different identities at or above the threshold."""
        return _above(self.measured.edges, self.measured.negative, self.calibration.threshold)

    @property
    def missed(self) -> float:
        """Share of matching pairs below the threshold."""
        return 1 - _above(self.measured.edges, self.measured.positive, self.calibration.threshold)

    def error(self, kind: Kind, even: bool) -> float:
        """Expected calibration error of all pairs; even: as if half of them matched, so that errors among the few
        matching ones are not hidden by the many others."""
        p, positive, negative = self._weighted(kind, even)
        return calibration_error(p, positive, negative)

    def curve(self, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the reliability diagram, at even odds: `reliability`."""
        return reliability(*self._weighted(kind, even=True))

    def first_hits(self) -> tuple[float, float]:
        """Of the first hit of each query: mean probability, and the share that is right."""
        return float(self.calibration.probability(self.hits[:, 0]).mean()), float(self.hits[:, 1].mean())

    def _weighted(self, kind: Kind, even: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p, found = self.calibration.probability(self.similarities, kind=kind), self.measured
        if not even:
            return p, found.positive.astype(float), found.negative.astype(float)
        p = at_prior(p, self.calibration.prior, EVEN)
        return p, found.positive / found.positive.sum(), found.negative / found.negative.sum()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the groups and the histograms, ready for JSON; nothing in it belongs to one identity."""
        found, (said, right) = self.calibration, self.first_hits()
        starts, heights = zip(*found.steps, strict=True)
        return {
            "shown": found.kind,
            "prior": found.prior,
            "threshold": found.threshold,
            "logistic": {"slope": found.slope, "intercept": found.intercept},
            "isotonic": {"similarity": list(starts), "probability": list(heights)},
            "fitted": _numbers(self.fitted, self.identities[0]) | dict(self.wanted),
            "measured": _numbers(self.measured, self.identities[1])
            | {"false_match": self.false_match, "missed": self.missed}
            | {"strangers": self.strangers, "missing": self.missing, "gallery": self.gallery}
            | {"first_hits_said": said, "first_hits_right": right}
            | {f"error_{kind}": self.error(kind, even=False) for kind in KINDS}
            | {f"error_{kind}_even": self.error(kind, even=True) for kind in KINDS},
        }

    def __str__(self) -> str:
        """Some lines: what it was fitted to, how well it holds, and what the threshold does."""
        said, right = self.first_hits()
        errors = ", ".join(
            f"{kind} {100 * self.error(kind, False):.2f} % (at even odds {100 * self.error(kind, True):.1f} %)"
            for kind in KINDS
        )
        fit, told = _pairs(self.fitted, self.identities[0]), _pairs(self.measured, self.identities[1])
        return "\n".join(
            [
                f"fitted    to {fit}",
                f"measured  on {told}: other identities",
                f"error     expected calibration error: {errors}; shown is {self.calibration.kind}",
                f"first     hits of {len(self.hits):,d} queries: mean probability {100 * said:.1f} %, right "
                f"{100 * right:.1f} % (a hit that was chosen among {self.gallery:,.0f} images is more than a pair)",
                f"threshold {self.calibration.threshold:.4f}, fitted to {_wanted(self.wanted)}",
                f"open set  among {self.gallery:,.0f} images {100 * self.strangers:.1f} % of strangers are taken for "
                f"somebody, {100 * self.missing:.1f} % of queries with a match are told nobody",
                f"pairs     {100 * self.false_match:.3g} % of different identities reach it (false match rate), "
                f"{100 * self.missed:.1f} % of matching ones do not",
            ]
        )


def _above(edges: np.ndarray, counts: np.ndarray, threshold: float) -> float:
    """Share of the counted pairs in bins at or above the threshold, which is an edge."""
    return float(counts[edges[:-1] >= threshold].sum() / max(counts.sum(), 1))


def _numbers(found: Histogram, identities: int) -> dict[str, int]:
    both = {"positive_pairs": int(found.positive.sum()), "negative_pairs": int(found.negative.sum())}
    return {"identities": identities, **both}


def _wanted(wanted: Mapping[str, float]) -> str:
    ((name, rate),) = wanted.items()
    return f"{100 * rate:g} % of strangers" if name == "strangers" else f"a false match rate of {100 * rate:g} %"


def _pairs(found: Histogram, identities: int) -> str:
    positive, negative = int(found.positive.sum()), int(found.negative.sum())
    return f"{identities:,d} identities, {positive:,d} matching and {negative:,d} other pairs"
