"""How wide the intervals of a test set will be, before anything is trained for it.

Stripes of colour (`backbones.colour`) are scored on the test set itself, and their 95 % interval comes from a
bootstrap over its identities (`bootstrap`). Its width w is decided by how many identities there are, how unlike they
are, and how many queries each has, which another feature meets as well; and by the figure m itself, for figures near 0
and 1 vary less. So w is scaled to a figure of one half, where intervals are widest,

    w * sqrt(1/4 / (m (1 - m)))      at most 1.96 / sqrt(identities), if each identity had 0 or 1

with the variance of a share. On two sets of photographs the intervals of models were within two points of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clipreid.backbones.colour import SIZE, colour_stripes
from clipreid.data import Split, pixel_cache
from clipreid.evaluation.bootstrap import METRICS, figures_of
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.report import Report


@dataclass(frozen=True, eq=False)
class Colours:
    """Stripes of colour of N images.  features: float32 [N, D].  bad: bool [N], which could not be decoded."""

    images: Split
    features: Tensor
    bad: np.ndarray

    @classmethod
    def of(cls, images: Split) -> Colours:
        """Decodes every image once. Raises `UserError` where none can be decoded."""
        cache = pixel_cache(images, SIZE, skip_bad=True)
        kept = torch.as_tensor(cache.kept)
        found = torch.cat([colour_stripes(crops) for crops in torch.as_tensor(cache.pixels).split(64)])
        features = torch.zeros(len(images), found.shape[1]).index_copy(0, kept, found)
        bad = np.ones(len(images), bool)
        bad[cache.kept] = False
        return cls(images, features, bad)

    def score(self, query: np.ndarray, gallery: np.ndarray, protocol: str) -> Report:
        """The report of these rows (bool [N] each), without what could not be decoded.

        Raises `UserError` as `evaluate`.
        """
        rows = [np.flatnonzero(side & ~self.bad) for side in (query, gallery)]
        q, g = (self.images.select(side).metadata() for side in rows)
        return evaluate(self.features[rows[0]], self.features[rows[1]], q, g, protocol)


def expected_width(report: Report, name: str) -> float:
    """The width of the 95 % interval to expect for a figure of about one half (top of this file), 0..1.

    report: of colours.  name: "mAP", "rank1", ...
    """
    scored = report.per_query["n_positives"] > 0
    most = 1.96 / np.sqrt(len(set(report.per_query["identity"][scored].tolist())))
    low, high = report.intervals.get(name, (0.0, 0.0))
    m = report.metrics[name]
    if not low < high or not 0 < m < 1:  # all alike: nothing can be learned from it
        return float(most)
    return float(min((high - low) * np.sqrt(0.25 / (m * (1 - m))), most))


def joined(reports: Sequence[Report]) -> Report:
    """The report of all queries of several test sets, such as the folds of a cross-validation, each against its own
    gallery; counts and notes are those of the first."""
    columns = reports[0].per_query.keys()
    both = {name: np.concatenate([report.per_query[name] for report in reports]) for name in columns}
    whole = replace(reports[0], per_query=both)
    figures, weights = figures_of(whole)
    means = (figures * weights[:, None]).sum(0) / weights.sum()
    return replace(whole, metrics=dict(zip(METRICS, means.tolist(), strict=True)))
