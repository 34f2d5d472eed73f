"""How similar two images are, from their test features. c queries, G gallery images, D feature width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.errors import UserError

BLOCK = 64  # rows and columns of matrix products are padded to multiples of this, so that chunks change no bit
TILE = 2**13  # gallery images multiplied at once


class Metric(nn.Module):
    """Query and gallery features to similarities; larger is closer. It need not be symmetric.

    A model's metric is asked by everything that compares images: evaluation, comparison, re-ranking, open set, reports.

    name: for messages.
    cosine: whether it is the cosine of the features. What can only work with that (memory-mapped search, fusion of
        features, ONNX) asks `needs_cosine`.
    bounded: whether its similarities are cosines of some kind, from -1 to 1: then re-ranking, which turns them into
        distances 2 - 2 s, works with it.
    """

    name: str = "metric"
    cosine: bool = False
    bounded: bool = False

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Test features [c, D] and [G, D] to similarities [c, G]."""
        raise NotImplementedError


class Cosine(Metric):
    """The cosine of the test features."""

    name, cosine, bounded = "cosine", True, True

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Test features [c, D] and [G, D] to cosines [c, G]."""
        return F.normalize(query.float(), dim=1) @ F.normalize(gallery.float(), dim=1).T


class MaskedCosine(Metric):
    """The masked cosine of DPM (Tan et al., ACM MM 2022): each query says in which dimensions it is to be compared.

    Test features are [f | m]: D dimensions of the feature and as many of its mask. The masks of the gallery are not
    looked at, so the similarity of a to b is not that of b to a.
    """

    name, bounded = "masked cosine", True

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Test features [c, 2 D] and [G, 2 D] to masked cosines [c, G]; the same bits for a query whatever c is.

        Raises:
            ValueError: an odd width.
        """
        width, odd = divmod(query.shape[1], 2)
        if odd or gallery.shape[1] != query.shape[1]:
            raise ValueError(
                f"test features of widths {query.shape[1]} and {gallery.shape[1]}: [feature | mask] has an even one"
            )
        rows, columns = _padded(query), _padded(gallery[:, :width])
        parts = [masked_cosine(rows[:, :width], rows[:, width:], part) for part in columns.split(TILE)]
        return torch.cat(parts, dim=1)[: len(query), : len(gallery)]


def masked_cosine(feature: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    """s_ij = <f_i, m_i w_j> / (|f_i| |m_i w_j|), without a loop over i, float32.

    `(f^ m) w^T / sqrt((m m)(w w)^T)`: the mask multiplies the other side before its length is measured. Only
    directions of f_i, m_i and w_j count. 0 where nothing is left of w_j.

    Args:
        feature, mask: [c, D], f and m of each query.
        other: [G, D], w: gallery features or prototypes.
    """
    unit, scaled, w = F.normalize(feature.float(), dim=1), F.normalize(mask.float(), dim=1), F.normalize(other.float())
    length = (scaled.square() @ w.square().T).clamp_min(1e-12).sqrt()  # [c, G]
    return (unit * scaled) @ w.T / length


def _padded(rows: Tensor) -> Tensor:
    """[n, D] with rows of zeros up to a multiple of `BLOCK`."""
    return F.pad(rows.float(), (0, 0, 0, -len(rows) % BLOCK))


def needs_cosine(metric: Metric, what: str) -> None:
    """Refuses, with `UserError`, to do `what` with features that are not compared by cosine."""
    if not metric.cosine:
        raise UserError(
            f"{what} compares features by cosine, and this model compares them by its own metric "
            f"({metric.name}): use clipreid evaluate or compare, which ask it"
        )
