"""Score fusion of two models, say a language-aligned and a supervised one: a weighted sum of their cosines.

    fused = w * a + (1 - w) * b

the sum rule of Kittler et al., "On combining classifiers", TPAMI 1998, section 3, with a weight. The cosines are taken
as they are: to shift a model's scores changes no ranking, and to scale them is what the weight does. So w is the only
thing that is fitted, on the validation split. As cosines, the fused ones are those of features too: each model's,
scaled by the root of its weight, side by side. A gallery of these can be searched like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import Table
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.protocols import Predicate, Protocol

GRID = tuple(round(0.05 * step, 2) for step in range(21))


def fuse(similarity_a: Tensor, similarity_b: Tensor, weight: float) -> Tensor:
    """[Q, G], [Q, G] -> weight * a + (1 - weight) * b [Q, G]; a weight of 1 or 0 gives a or b unchanged.

    Raises UserError for different shapes and a weight outside 0..1.
    """
    _check(weight)
    if similarity_a.shape != similarity_b.shape:
        raise UserError(
            f"similarities of {list(similarity_a.shape)} and {list(similarity_b.shape)} cannot be fused: "
            "both models must score the same queries and gallery"
        )
    return weight * similarity_a + (1 - weight) * similarity_b


def fuse_features(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Features [N, D] and [N, E] of the same images -> [N, D + E], whose cosine is the fused cosine; unit length.

    Raises UserError for another number of images and a weight outside 0..1.
    """
    _check(weight)
    if len(a) != len(b):
        raise UserError(f"features of {len(a)} and {len(b)} images cannot be fused: embed the same ones")
    return torch.cat([weight**0.5 * F.normalize(a, dim=1), (1 - weight) ** 0.5 * F.normalize(b, dim=1)], dim=1)


def choose_weight(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    query: Table,
    gallery: Table,
    protocol: str | Protocol | Predicate = "market1501",
    grid: Sequence[float] = GRID,
) -> tuple[float, list[float]]:
    """The weight with the highest mAP, and the mAP of every weight of the grid; for validation data, never test data.

    a, b: (query features [Q, D], gallery features [G, D]) of each model. Of equal weights the one nearest to one half
    is taken. Errors as for `evaluate` and `fuse_features`.
    """
    found = []
    for weight in grid:
        queries, galleries = (fuse_features(x, y, weight) for x, y in zip(a, b, strict=True))
        found.append(evaluate(queries, galleries, query, gallery, protocol).metrics["mAP"])
    best = [weight for weight, value in zip(grid, found, strict=True) if value == max(found)]
    return min(best, key=lambda weight: abs(weight - 0.5)), found


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UserError(f"weight {weight}: it is the first model's share, from 0 to 1")
