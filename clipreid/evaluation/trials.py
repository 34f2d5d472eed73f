"""Calibrate a model on pairs of some identities, and measure it on pairs of others. Q queries, G gallery images.

Every pair of a query and a gallery image that counts under the protocol is a trial, as in `openset`. The identities are
halved (by a hash of seed and name): pairs within the first half fit the curves and the threshold, pairs within the
second half are what is reported, pairs across are left out. So no identity is on both sides.

False match rate and missed rate are those of ISO/IEC 19795-1 at the threshold: the share of pairs of different
identities that reach it, and of matching pairs that do not. In an open-set search the query counts: how many strangers,
of whom the gallery has no image, are taken for somebody, and how many queries that have a match are told nobody,
because their best match stays below the threshold (false positive and false negative identification rates).

Nothing of the size of all pairs is kept: they are counted in `BINS` bins of similarity, in three walks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.data.split import shuffled
from clipreid.errors import UserError
from clipreid.evaluation.calibrated import Calibrated
from clipreid.evaluation.calibration import Calibration, Kind, fit_isotonic, fit_logistic
from clipreid.evaluation.columns import read_table
from clipreid.evaluation.groups import Groups, find_groups
from clipreid.evaluation.histogram import Histogram
from clipreid.evaluation.pairs import Pairs, pair_blocks
from clipreid.evaluation.protocols import get_protocol

BINS = 8192
LEAST = 20  # identities with a match: ten to fit and ten to measure
FEW = {"false_match": 10, "strangers": 1}  # that must be expected at the threshold, of what it is fitted to
FIT, REPORT = 0, 1  # the two halves


def calibrate(
    query_features: Any = None,
    gallery_features: Any = None,
    query: Any = None,
    gallery: Any = None,
    protocol: Any = "market1501",
    similarity: Any = None,
    chunk: int | None = None,
    *,
    strangers: float = 0.1,
    false_match: float | None = None,
    kind: Kind = "logistic",
    by: tuple[str, ...] = (),
    seed: int = 0,
) -> Calibrated:
    """Fits a calibration to half of the identities, and measures it on the other half (top of this file).

    The first arguments are those of `open_set`.  strangers: the threshold is the least similarity at which at most this
    share of the queries would be taken for somebody if the gallery had no image of them; it suits a gallery of that
    size.  false_match: instead, at most this share of pairs of different identities.  kind: which map is used.  by:
    columns of the queries whose values are measured one by one, beside pairs of cameras.

    Raises:
        UserError: what `open_set` refuses; queries that are captions; fewer than `LEAST` identities with a match; too
            few queries or pairs for that rate; similarities that are all equal.
    """
    rules = get_protocol(protocol)
    if rules.captions:
        raise UserError(f"calibrate: under {rules.name} the queries are captions; images are compared with images here")
    wanted = {"strangers": strangers} if false_match is None else {"false_match": false_match}
    if wrong := [f"{name.replace('_', ' ')} {rate:g}" for name, rate in wanted.items() if not 0 < rate < 1]:
        raise UserError(f"{wrong[0]}: a share lies between 0 and 1, for example 0.1")
    tables = read_table(query, "query"), read_table(gallery, "gallery")
    walk = pair_blocks(query_features, gallery_features, *tables, rules, similarity, chunk)
    low, high, asked = _range(walk)
    names = [table["identity"].astype(str) for table in tables]
    halves, sizes = _halve(names, asked, seed)
    edges = np.linspace(low, high, BINS + 1)
    (fitted, alone), (measured, _) = (_count(walk, halves, half, edges) for half in (FIT, REPORT))
    chosen = find_groups(*tables, by)
    threshold = _threshold(edges, fitted.negative if "false_match" in wanted else alone, wanted)
    calibration = _fit(fitted, threshold, kind)
    return Calibrated(calibration, sizes, fitted, measured, wanted, *_measure(walk, halves, threshold, chosen))


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
            f"calibrate: {len(matched)} identities have a match, and {LEAST} are needed: half of them fit the curves, "
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


def _count(
    walk: Callable[[], Iterator[Pairs]], halves: list[np.ndarray], half: int, edges: np.ndarray
) -> tuple[Histogram, np.ndarray]:
    """The pairs of one half, counted by similarity; and the queries, by the most similar image of another identity."""
    inner, counts, alone = torch.from_numpy(edges[1:-1]), np.zeros((2, BINS), np.int64), np.zeros(BINS, np.int64)
    for _, _, similarity, *sides in _blocks(walk, halves, half):
        bins = torch.bucketize(similarity.double(), inner.to(similarity.device), right=True)  # edge <= similarity
        for side, chosen in enumerate(sides):
            counts[side] += torch.bincount(bins[chosen], minlength=BINS).cpu().numpy()
        best = _best(bins, sides[1])
        alone += np.bincount(best[np.isfinite(best)].astype(int), minlength=BINS)
    return Histogram(edges, *counts), alone


def _threshold(edges: np.ndarray, counts: np.ndarray, wanted: Mapping[str, float]) -> float:
    """The least edge that at most the wanted share reach; counts [n]: of queries or pairs, by similarity."""
    ((name, rate),) = wanted.items()
    if counts.sum() * rate < FEW[name]:
        least = 1.05 * FEW[name] / max(int(counts.sum()), 1)  # still enough when it is rounded
        what = "pairs of different identities" if name == "false_match" else "queries"
        raise UserError(
            f"{name.replace('_', ' ')} {rate:g} cannot be fitted to {int(counts.sum()):,d} {what}: at least "
            f"{FEW[name]} of them must be expected above the threshold. Give at least {least:.2g}, or more images"
        )
    above = counts[::-1].cumsum()[::-1] / counts.sum()  # [n]: share in this bin or a higher one
    fits = np.flatnonzero(above <= rate)
    return float(edges[fits[0]] if len(fits) else np.nextafter(edges[-1], np.inf))


def _fit(found: Histogram, threshold: float, kind: Kind) -> Calibration:
    positive, negative = found.positive, found.negative
    slope, intercept = fit_logistic((found.edges[1:] + found.edges[:-1]) / 2, positive, negative)
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
