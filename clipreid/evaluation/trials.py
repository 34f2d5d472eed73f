"""Calibrate a model on pairs of some identities, and measure it on pairs of others. Q queries, G gallery images.

Every pair of a query and a gallery image that counts under the protocol is a trial, as in `openset`. The identities are
halved (by a hash of seed and name): pairs within the first half fit the maps and the threshold, pairs within the second
half are what is reported, pairs across are left out. So no identity is on both sides.

False match rate and missed rate are those of ISO/IEC 19795-1 at the threshold: the share of pairs of different
identities that reach it, and of matching pairs that do not. In an open-set search the query counts: how many strangers,
of whom the gallery has no image, are taken for somebody, and how many queries that have a match are told nobody,
because their best match stays below the threshold (false positive and false negative identification rates).

Nothing of the size of all pairs is kept: they are counted in `BINS` bins of similarity, in three walks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.data.split import shuffled
from clipreid.errors import UserError
from clipreid.evaluation.calibration import (
    KINDS,
    Calibration,
    Kind,
    at_prior,
    calibration_error,
    fit_isotonic,
    fit_logistic,
    reliability,
)
from clipreid.evaluation.columns import read_table
from clipreid.evaluation.groups import Groups, find_groups
from clipreid.evaluation.histogram import Histogram
from clipreid.evaluation.pairs import Pairs, pair_blocks
from clipreid.evaluation.protocols import get_protocol

BINS = 8192
LEAST = 20  # identities with a match: ten to fit and ten to measure
FEW = 10  # false matches that must be expected at the threshold, among the pairs that it is fitted to
FIT, REPORT = 0, 1  # the two halves
EVEN = 0.5


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` found; figures are of the second half of the identities, rates 0..1.

    calibration: the maps and the threshold.  identities: with a match, in each half.  fitted, measured: pairs by
    similarity, of each half.  wanted: the false match rate that the threshold was fitted to.
    hits: [H, 2] of each query: similarity of its first hit, whether that is right.  strangers, missing: shares of the
    queries (top of this file).  gallery: mean images that a query is compared with.
    groups: rows for `format_table`, by "camera-pair" and by the columns asked for.
    """

    calibration: Calibration
    identities: tuple[int, int]
    fitted: Histogram
    measured: Histogram
    wanted: float
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
            "fitted": _numbers(self.fitted, self.identities[FIT]) | {"false_match": self.wanted},
            "measured": _numbers(self.measured, self.identities[REPORT])
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
        fit, told = _pairs(self.fitted, self.identities[FIT]), _pairs(self.measured, self.identities[REPORT])
        return "\n".join(
            [
                f"fitted    to {fit}",
                f"measured  on {told}: other identities",
                f"error     expected calibration error: {errors}; shown is {self.calibration.kind}",
                f"first     hits of {len(self.hits):,d} queries: mean probability {100 * said:.1f} %, right "
                f"{100 * right:.1f} % (a hit that was chosen among {self.gallery:,.0f} images is more than a pair)",
                f"threshold {self.calibration.threshold:.4f}: false match rate {100 * self.false_match:.2f} % (fitted "
                f"to {100 * self.wanted:g} %), {100 * self.missed:.1f} % of matching pairs are missed",
                f"open set  among {self.gallery:,.0f} images {100 * self.strangers:.1f} % of strangers are taken for "
                f"somebody, {100 * self.missing:.1f} % of queries with a match are told nobody",
            ]
        )


def calibrate(
    query_features: Any = None,
    gallery_features: Any = None,
    query: Any = None,
    gallery: Any = None,
    protocol: Any = "market1501",
    similarity: Any = None,
    chunk: int | None = None,
    *,
    false_match: float = 0.01,
    kind: Kind = "logistic",
    by: tuple[str, ...] = (),
    seed: int = 0,
) -> Calibrated:
    """Fits a calibration to half of the identities, and measures it on the other half (top of this file).

    The first arguments are those of `open_set`.  false_match: the rate that the threshold is fitted to, 0..1.  kind:
    which map is used.  by: columns of the queries whose values are measured one by one, beside pairs of cameras.

    Raises:
        UserError: what `open_set` refuses; queries that are captions; fewer than `LEAST` identities with a match; too
            few pairs for that false match rate; similarities that are all equal.
    """
    rules = get_protocol(protocol)
    if rules.captions:
        raise UserError(f"calibrate: under {rules.name} the queries are captions; images are compared with images here")
    if not 0 < false_match < 1:
        raise UserError(f"false match rate {false_match}: it lies between 0 and 1, for example 0.01")
    tables = read_table(query, "query"), read_table(gallery, "gallery")
    walk = pair_blocks(query_features, gallery_features, *tables, rules, similarity, chunk)
    low, high, asked = _range(walk)
    names = [table["identity"].astype(str) for table in tables]
    halves, sizes = _halve(names, asked, seed)
    edges = np.linspace(low, high, BINS + 1)
    fitted, measured = (_count(walk, halves, half, edges) for half in (FIT, REPORT))
    chosen = find_groups(*tables, by)
    calibration = _fit(fitted, false_match, kind)
    hits, strangers, missing, kept, groups = _measure(walk, halves, calibration.threshold, chosen)
    return Calibrated(calibration, sizes, fitted, measured, false_match, hits, strangers, missing, kept, groups)


def _range(walk: Callable[[], Iterator[Pairs]]) -> tuple[float, float, np.ndarray]:
    """Least and largest similarity of the pairs that count, and which queries have a match, bool [Q]."""
    low, high, asked = np.inf, -np.inf, []
    for pairs in walk():
        values = pairs.similarity[pairs.positive | pairs.negative]
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        asked.append(pairs.positive.any(1).cpu().numpy())
    if not low < high:
        raise UserError("all similarities are equal: there is nothing to calibrate")
    return low, high, np.concatenate(asked)


def _halve(names: list[np.ndarray], asked: np.ndarray, seed: int) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The half of each query and gallery image, int [Q] and [G], and how many identities with a match are in each."""
    matched = set(names[0][asked].tolist())
    if len(matched) < LEAST:
        raise UserError(
            f"calibrate: {len(matched)} identities have a match, and {LEAST} are needed: half of them fit the maps, "
            "the others measure them. Name data with more identities"
        )
    others = set(names[0].tolist()) | set(names[1].tolist())
    orders = shuffled(matched, seed), shuffled(others - matched, seed)
    half = {name: place % 2 for order in orders for place, name in enumerate(order)}
    sizes = (len(matched) + 1) // 2, len(matched) // 2
    return [np.array([half[name] for name in side.tolist()]) for side in names], sizes


def _blocks(walk: Callable[[], Iterator[Pairs]], halves: list[np.ndarray], half: int) -> Iterator[tuple[Any, ...]]:
    """Pairs within a half, by chunks of queries: rows of the queries, columns of the gallery, similarity, positive,
    negative, each [c, g]."""
    columns, start = torch.from_numpy(np.flatnonzero(halves[1] == half)), 0
    for pairs in walk():
        own = np.flatnonzero(halves[0][start : start + len(pairs.similarity)] == half)
        place = pairs.similarity.device
        rows, there = torch.from_numpy(own).to(place), columns.to(place)
        parts = (part[rows][:, there] for part in (pairs.similarity, pairs.positive, pairs.negative))
        yield own + start, columns.numpy(), *parts
        start += len(pairs.similarity)


def _count(walk: Callable[[], Iterator[Pairs]], halves: list[np.ndarray], half: int, edges: np.ndarray) -> Histogram:
    """The pairs of one half, counted by similarity."""
    inner, counts = torch.from_numpy(edges[1:-1]), np.zeros((2, BINS), np.int64)
    for _, _, similarity, *sides in _blocks(walk, halves, half):
        bins = torch.bucketize(similarity.double(), inner.to(similarity.device), right=True)  # edge <= similarity
        for side, chosen in enumerate(sides):
            counts[side] += torch.bincount(bins[chosen], minlength=BINS).cpu().numpy()
    return Histogram(edges, *counts)


def _fit(found: Histogram, false_match: float, kind: Kind) -> Calibration:
    positive, negative = found.positive, found.negative
    if negative.sum() * false_match < FEW:
        least = 1.05 * FEW / max(int(negative.sum()), 1)  # still enough when it is rounded
        raise UserError(
            f"a false match rate of {false_match:g} cannot be fitted to {int(negative.sum()):,d} pairs of different "
            f"identities: {FEW} of them must be expected above the threshold. Give at least {least:.2g}, or more images"
        )
    middle = (found.edges[1:] + found.edges[:-1]) / 2
    above = negative[::-1].cumsum()[::-1] / negative.sum()  # [n]: share of pairs in this bin or a higher one
    fits = np.flatnonzero(above <= false_match)
    threshold = float(found.edges[fits[0]] if len(fits) else np.nextafter(found.edges[-1], np.inf))
    slope, intercept = fit_logistic(middle, positive, negative)
    steps = fit_isotonic(found.edges, positive, negative)
    prior = float(positive.sum() / (positive.sum() + negative.sum()))
    return Calibration(slope, intercept, steps, prior, threshold, kind)


def _measure(
    walk: Callable[[], Iterator[Pairs]], halves: list[np.ndarray], threshold: float, groups: dict[str, Groups]
) -> tuple[np.ndarray, float, float, float, dict[str, list[dict[str, object]]]]:
    """The last walk, over the second half: first hits, strangers, missing, images a query meets, rows of the groups."""
    hits, strangers, missing, kept = [], [], [], []
    counts = {name: np.zeros((4, len(group.names)), np.int64) for name, group in groups.items()}
    for rows, columns, similarity, positive, negative in _blocks(walk, halves, REPORT):
        right, wrong = (_best(similarity, side) for side in (positive, negative))
        images = (positive | negative).sum(1).cpu().numpy()
        some = images > 0
        hits.append(np.stack([np.maximum(right, wrong), right > wrong], 1)[some])
        strangers.append(wrong[some] >= threshold)
        missing.append(right[np.isfinite(right)] < threshold)
        kept.append(images[some])
        for name, group in groups.items():
            reached = similarity.double() >= threshold
            for line, chosen in enumerate((negative, negative & reached, positive, positive & ~reached)):
                counts[name][line] += group.count(rows, columns, chosen)
    taken, told, met = (float(np.concatenate(part).mean()) for part in (strangers, missing, kept))
    found = {name: groups[name].rows(name, table) for name, table in counts.items()}
    return np.concatenate(hits), taken, told, met, found


def _best(similarity: Tensor, chosen: Tensor) -> np.ndarray:
    """The largest similarity of each row's chosen pairs, float64 [c]; -inf where there are none."""
    if not similarity.shape[1]:
        return np.full(len(similarity), -np.inf)
    return similarity.double().masked_fill(~chosen, -torch.inf).amax(1).cpu().numpy()


def _above(edges: np.ndarray, counts: np.ndarray, threshold: float) -> float:
    """Share of the counted pairs in bins at or above the threshold, which is an edge."""
    return float(counts[edges[:-1] >= threshold].sum() / max(counts.sum(), 1))


def _numbers(found: Histogram, identities: int) -> dict[str, int]:
    both = {"positive_pairs": int(found.positive.sum()), "negative_pairs": int(found.negative.sum())}
    return {"identities": identities, **both}


def _pairs(found: Histogram, identities: int) -> str:
    positive, negative = int(found.positive.sum()), int(found.negative.sum())
    return f"{identities:,d} identities, {positive:,d} matching and {negative:,d} other pairs"
