"""How features are spread: what a ranking alone does not show. N images, D features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.evaluation.tables import similarity_digits

MOST = 2000  # images whose pairs are looked at
CROWDED, LOST = 0.9, 0.01  # median cosine of different identities, mAP lost: from here on a warning
Spread = tuple[float, float, float]  # the 5th, 50th and 95th percentile


@dataclass(frozen=True)
class Health:
    """How test features are spread, and what storing them in few bits costs.

    Attributes:
        different, same: cosines of images of different identities and of the same one; same is None where no identity
            has two images.
        dimension: effective dimension of the centred features, 1 to D: the participation ratio of the eigenvalues of
            their covariance, (sum)^2 / (sum of squares).
        width: D.
        float16, int8: mAP (0..1) lost when the features are stored so; negative: gained.
    """

    different: Spread
    same: Spread | None
    dimension: float
    width: int
    float16: float
    int8: float

    def to_dict(self) -> dict[str, float]:
        """For metrics.json: numbers by name, rounded to what is meaningful; percentiles as `different_5`, ..."""
        spreads = {"different": self.different, "same": self.same}
        cosine = {
            f"{name}_{percent}": round(value, 6)
            for name, spread in spreads.items()
            for percent, value in zip((5, 50, 95), spread or (), strict=False)
        }
        rest = {"dimension": round(self.dimension, 1), "width": self.width}
        return cosine | rest | {"float16": round(self.float16, 5), "int8": round(self.int8, 5)}

    def __str__(self) -> str:
        digits = similarity_digits([*self.different, *(self.same or ())])
        same = "" if self.same is None else f", of the same {_spread(self.same, digits)}"
        return (
            f"cosine of different identities {_spread(self.different, digits)}{same}; effective dimension "
            f"{self.dimension:.0f} of {self.width}; mAP lost as float16 {100 * self.float16:.1f}, as int8 "
            f"{100 * self.int8:.1f}"
        )

    def facts(self) -> list[tuple[str, str]]:
        """The line about the features and the warnings, each with its name."""
        return [("features", f"{self}"), *(("warning", text) for text in self.warnings())]

    def warnings(self) -> list[str]:
        """What is wrong with these features, one sentence each."""
        found = []
        if self.different[1] > CROWDED:
            found.append(
                f"half of all different identities have a cosine above {_below(self.different[1])}: the features are "
                "squeezed together, similarities say little, and a triplet loss on raw features does that "
                "(--triplet-features unit)"
            )
        if max(self.float16, self.int8) > LOST:
            found.append(
                f"stored as int8 these features lose {100 * self.int8:.1f} mAP, as float16 {100 * self.float16:.1f}: "
                "keep float32, or subtract their mean first"
            )
        return found


def _spread(of: Spread, digits: int) -> str:
    return f"{of[1]:.{digits}f} ({of[0]:.{digits}f} to {of[2]:.{digits}f})"


def _below(value: float) -> str:
    """Rounded down, with as many decimals as tell it from 1."""
    digits = similarity_digits((value, 1.0))
    return f"{np.floor(value * 10**digits) / 10**digits:.{digits}f}"


def measure_health(
    query: Tensor,
    gallery: Tensor,
    identities: Sequence[Any] | np.ndarray,
    mean_ap: Callable[[Tensor, Tensor], float],
) -> Health:
    """The health of test features.

    Args:
        query, gallery: [Q, D], [N, D] of unit length; cosines and dimension are the gallery's.
        identities: [N] of the gallery.
        mean_ap: mAP (0..1) of such a pair of matrices.

    Raises:
        ValueError: as `cosines`.
    """
    different, same = cosines(gallery, identities)
    exact = mean_ap(query, gallery)
    lost = [exact - mean_ap(stored(query), stored(gallery)) for stored in (as_float16, as_int8)]
    return Health(different, same, effective_dimension(gallery), gallery.shape[1], *lost)


def cosines(features: Tensor, identities: Sequence[Any] | np.ndarray) -> tuple[Spread, Spread | None]:
    """Percentiles of the cosines of different identities and of the same one, over all pairs of images.

    features [N, D], identities [N]. Of more than 2,000 images as many are drawn, always the same ones.
    Raises ValueError where all images are of one identity.
    """
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MOST].sort().values
    x = F.normalize(features[rows].float(), dim=1)
    labels = torch.from_numpy(np.unique(np.asarray(identities), return_inverse=True)[1])[rows]
    pairs = torch.triu_indices(len(x), len(x), 1)
    cosine, same = (x @ x.T)[pairs[0], pairs[1]], labels[pairs[0]] == labels[pairs[1]]
    if bool(same.all()):
        raise ValueError("all images are of one identity: there is nothing to tell apart")
    return _percentiles(cosine[~same]), _percentiles(cosine[same]) if bool(same.any()) else None


def _percentiles(values: Tensor) -> Spread:
    low, middle, high = np.percentile(values.numpy(), (5, 50, 95))
    return float(low), float(middle), float(high)


def effective_dimension(features: Tensor) -> float:
    """Participation ratio of the covariance of features [N, D]: 1 where all lie on a line, D where they fill the space
    evenly; 0 where all are equal."""
    x = features.double() - features.double().mean(0)
    covariance = x.T @ x
    total, squares = covariance.trace(), covariance.square().sum()
    return float(total.square() / squares) if squares else 0.0


def as_float16(features: Tensor) -> Tensor:
    """[N, D] as they are after storing them in half precision."""
    return features.half().float()


def as_int8(features: Tensor) -> Tensor:
    """[N, D] as they are after storing them in 8 bits, each row with a scale of its own (its largest value is 127)."""
    scale = features.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (features / scale).round() * scale
