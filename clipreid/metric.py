"""How similar two images are, from their test features. c queries, G gallery images, D feature width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.errors import UserError


class Metric(nn.Module):
    """Query and gallery features to similarities; larger is closer. It need not be symmetric.

    A model's metric is asked by everything that compares images: evaluation, comparison, re-ranking, open set, reports.

    name: for messages.
    cosine: whether it is the cosine of the features. What can only work with that (memory-mapped search, fusion of
        features, ONNX) asks `needs_cosine`.
    """

    name: str = "metric"
    cosine: bool = False

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Test features [c, D] and [G, D] to similarities [c, G]."""
        raise NotImplementedError


class Cosine(Metric):
    """The cosine of the test features."""

    name, cosine = "cosine", True

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Test features [c, D] and [G, D] to cosines [c, G]."""
        return F.normalize(query.float(), dim=1) @ F.normalize(gallery.float(), dim=1).T


def needs_cosine(metric: Metric, what: str) -> None:
    """Refuses, with `UserError`, to do `what` with features that are not compared by cosine."""
    if not metric.cosine:
        raise UserError(
            f"{what} compares features by cosine, and this model compares them by its own metric "
            f"({metric.name}): use clipreid evaluate or compare, which ask it"
        )
