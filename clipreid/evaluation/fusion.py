"""Score fusion of two models, say a language-aligned and a supervised one: a weighted sum of standardised cosines.

    fused = w * (a - mean a) / std a + (1 - w) * (b - mean b) / std b

the sum rule of Kittler et al., "On combining classifiers", TPAMI 1998, section 3, with a weight, of z-scores (Jain,
Nandakumar and Ross, "Score normalization in multimodal biometric systems", Pattern Recognition 2005, section 3). Mean
and standard deviation are one pair of numbers a model, over all pairs of different gallery images: no labels and no
other queries are needed. Without them the weight of a model whose cosines lie between 0.998 and 1 says nothing.

To shift scores changes no ranking, so only std a and std b count, and the sum ranks as one of cosines with the weight
`raw_weight`. That one is of features too: each model's, scaled by the root of its weight, side by side. A gallery of
these can be searched like any other. w is the only thing that is fitted, on the validation split.
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


def cosine_spread(gallery: Tensor) -> float:
    """Standard deviation of the cosines between different images of a gallery, features [N, D]; 0 for one image."""
    x = F.normalize(gallery.double(), dim=1)
    n, x = len(x), x - (middle := x.mean(0))
    if n < 2:
        return 0.0
    # cosine_ij - m m = x_i x_j + x_i m + m x_j of centred rows, which add up to 0: exact in a cone too
    along = x @ middle  # [N]
    own = x.square().sum(1) + 2 * along  # [N]: i = j
    squares = (x.T @ x).square().sum() + 2 * n * along.square().sum()
    mean = -own.sum() / (n * (n - 1))  # of the pairs i != j; all pairs sum to 0
    variance = (squares - own.square().sum()) / (n * (n - 1)) - mean.square()
    return float(variance.clamp_min(0).sqrt())


def raw_weight(weight: float, spreads: tuple[float, float]) -> float:
    """The weight of plain cosines that ranks as `weight` does for standardised ones; spreads: `cosine_spread` of each.

    Raises UserError for a weight outside 0..1.
    """
    _check(weight)
    a, b = weight * spreads[1], (1 - weight) * spreads[0]
    return a / (a + b) if a + b > 0 else weight


def choose_weight(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    query: Table,
    gallery: Table,
    protocol: str | Protocol | Predicate = "market1501",
    grid: Sequence[float] = GRID,
) -> tuple[float, list[float]]:
    """The weight with the highest mAP, and the mAP of every weight of the grid; for validation data, never test data.

    The weight is that of standardised cosines (top of this file); for `fuse` and `fuse_features` it becomes that of
    plain ones by `raw_weight(weight, (cosine_spread(a[1]), cosine_spread(b[1])))`.

    a, b: (query features [Q, D], gallery features [G, D]) of each model. Of equal weights the one nearest to one half
    is taken. Errors as for `evaluate` and `fuse_features`.
    """
    found, spreads = [], (cosine_spread(a[1]), cosine_spread(b[1]))
    for weight in grid:
        plain = raw_weight(weight, spreads)
        queries, galleries = (fuse_features(x, y, plain) for x, y in zip(a, b, strict=True))
        found.append(evaluate(queries, galleries, query, gallery, protocol).metrics["mAP"])
    best = [weight for weight, value in zip(grid, found, strict=True) if value == max(found)]
    return min(best, key=lambda weight: abs(weight - 0.5)), found


def at_edge(weight: float, grid: Sequence[float] = GRID) -> bool:
    """Whether this is one of the two outermost weights on either side: hardly more than one model alone."""
    return weight in (*sorted(grid)[:2], *sorted(grid)[-2:])


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UserError(f"weight {weight}: it is the first model's share, from 0 to 1")
