"""How wide the intervals of a test set will be, before anything is trained for it.

Measured, not assumed: stripes of colour (`floor.colour_stripes`) are scored on the test set itself, and the 95 %
interval comes from a bootstrap over its identities (`bootstrap`). The width is decided by how many identities there
are, how much they differ, and how many queries each has, which another feature meets as well. It is no bound: near 0
and 100 % intervals are narrower, and four times the identities halve them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clipreid.data import Split, pixel_cache
from clipreid.evaluation.bootstrap import METRICS, figures_of
from clipreid.evaluation.floor import colour_stripes
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.report import Report

SIZE = (128, 64)  # of the crops that stripes are taken of


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


def joined(reports: Sequence[Report]) -> Report:
    """The report of all queries of several test sets, such as the folds of a cross-validation, each against its own
    gallery; counts and notes are those of the first."""
    columns = reports[0].per_query.keys()
    both = {name: np.concatenate([report.per_query[name] for report in reports]) for name in columns}
    whole = replace(reports[0], per_query=both)
    figures, weights = figures_of(whole)
    means = (figures * weights[:, None]).sum(0) / weights.sum()
    return replace(whole, metrics=dict(zip(METRICS, means.tolist(), strict=True)))
