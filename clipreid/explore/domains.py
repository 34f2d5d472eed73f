"""Models in-domain and cross-domain: one model, or two of them fused, on several test sets. Figures are mAPs, 0..1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from clipreid.data import ReIDData
from clipreid.evaluation import evaluate, fuse_features
from clipreid.evaluation.score import Scored, score
from clipreid.explore.figures import Line
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel
from clipreid.strength import set_strength

Domains = Mapping[str, ReIDData]
METRIC = "mAP"


def score_domains(model: ReIDModel, domains: Domains, strength: float | None = None) -> dict[str, Scored]:
    """Scores the model on every test set, on a GPU where there is one.

    strength: set first (`clipreid.strength`); the model keeps it, and stays on the device.

    Raises UserError for what `score` and `set_strength` refuse.
    """
    if strength is not None:
        set_strength(model, strength)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return {name: score(data, model) for name, data in domains.items()}


def mean_precision(scored: Mapping[str, Scored]) -> dict[str, float]:
    """The mAP of the test feature on every test set."""
    return {name: found.reports[found.feature].metrics[METRIC] for name, found in scored.items()}


def fused_precision(a: Mapping[str, Scored], b: Mapping[str, Scored], weight: float) -> dict[str, float]:
    """The mAP on every test set of two models' cosines together: weight * a + (1 - weight) * b (`evaluation.fuse`).

    Raises UserError for other images in a than in b, a weight outside 0..1, and models that compare their features by
    another metric than the cosine.
    """
    found = {}
    for name, first in a.items():
        second, rules = b[name], first.reports[first.feature].protocol
        for one in (first, second):
            needs_cosine(one.metric, "fusion")
        query = fuse_features(first.query_features[first.feature], second.query_features[second.feature], weight)
        gallery = fuse_features(first.gallery_features[first.feature], second.gallery_features[second.feature], weight)
        report = evaluate(query, gallery, first.query.metadata(), first.gallery.metadata(), rules)
        found[name] = report.metrics[METRIC]
    return found


def line_of(name: str, points: Sequence[Mapping[str, float]], labels: Sequence[str] = ()) -> Line:
    """Points with a figure for "in-domain" and one for "cross-domain", for `draw_tradeoff`."""
    return Line(name, [point["in-domain"] for point in points], [point["cross-domain"] for point in points], labels)
