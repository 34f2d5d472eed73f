"""From a similarity to the probability that two images show the same individual. n bins of similarity.

Two maps are fitted to counted pairs:

    logistic  p = 1 / (1 + exp(-(slope * similarity + intercept))), by maximum likelihood (Newton's method), with the
              targets of Platt, "Probabilistic outputs for support vector machines", 1999, so that it ends for classes
              that do not overlap, too
    isotonic  the non-decreasing steps with the least squared error, by pooling adjacent violators (Ayer et al., Annals
              of Mathematical Statistics 1955; for probabilities Zadrozny and Elkan, KDD 2002)

A probability holds at the share of matching pairs it was fitted at, the prior. At another one its odds are multiplied
by the ratio of the priors' odds (Bayes' rule): in a gallery ten times as large, with as many matches, by a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from clipreid.errors import UserError

Kind = Literal["logistic", "isotonic"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STEPS = 200  # of Newton's method; it needs about ten


@dataclass(frozen=True)
class Calibration:
    """A fitted map, and a threshold.

    slope, intercept: of the logistic map.  steps: of the isotonic one, (similarity from which on, probability) in
    ascending order.  prior: the share of matching pairs among those it was fitted to, 0..1.  threshold: the similarity
    from which on two images count as the same individual.  kind: which map `probability` uses.
    """

    slope: float
    intercept: float
    steps: tuple[tuple[float, float], ...]
    prior: float
    threshold: float
    kind: Kind = "logistic"

    def probability(self, similarity: object, prior: float | None = None, kind: Kind | None = None) -> np.ndarray:
        """Similarities of any shape -> probabilities 0..1 of that shape.

        prior: the share of matching pairs to expect; None is that of the calibration.
        Raises `UserError` for a prior outside (0, 1).
        """
        values = np.asarray(similarity, dtype=np.float64)
        if (kind or self.kind) == "logistic":
            p = _sigmoid(self.slope * values + self.intercept)
        else:
            starts, heights = np.array(self.steps).T
            p = heights[np.maximum(np.searchsorted(starts, values, side="right") - 1, 0)]
        return p if prior is None else at_prior(p, self.prior, prior)


def at_prior(p: np.ndarray, old: float, new: float) -> np.ndarray:
    """Probabilities that hold where a share `old` of the pairs match -> those where a share `new` does."""
    if not 0 < new < 1:
        raise UserError(f"prior {new}: it is the share of pairs that match, between 0 and 1, for example 0.01")
    ours, others = p * new / old, (1 - p) * (1 - new) / (1 - old)
    return ours / (ours + others)


def fit_logistic(x: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Similarities x [n] with so many matching and other pairs [n] each -> slope and intercept (top of this file).

    The slope is that of the data even where that is negative: such similarities are the wrong way round.
    """
    total = positive.sum() + negative.sum()
    high, low = (positive.sum() + 1) / (positive.sum() + 2), 1 / (negative.sum() + 2)  # Platt's targets
    weight = positive + negative
    wanted = positive * high + negative * low  # [n], of the weight
    centre = (weight * x).sum() / total
    scale = np.sqrt((weight * (x - centre) ** 2).sum() / total) or 1.0
    design = np.stack([(x - centre) / scale, np.ones_like(x)], 1)  # [n, 2]

    def loss(beta: np.ndarray) -> float:
        z = design @ beta
        return float((weight * np.logaddexp(0, z) - wanted * z).sum())

    beta = np.array([0.0, np.log(positive.sum() / negative.sum())])
    for _ in range(STEPS):
        p = _sigmoid(design @ beta)
        gradient = design.T @ (weight * p - wanted)
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-12 * total * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(beta - step) > loss(beta) and abs(step).max() > 1e-12:  # convex: some shorter step is better
            step = step / 2
        beta = beta - step
        if abs(step).max() < 1e-10:
            break
    slope = beta[0] / scale
    return float(slope), float(beta[1] - slope * centre)


def fit_isotonic(edges: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Bins in ascending order, their edges [n + 1] and pairs [n] -> (lower edge, share of matching pairs) of each step.

    Shares of 0 and 1 are moved inwards by what one pair more could change (Laplace), so that odds stay finite.
    """
    blocks: list[list[float]] = []  # lower edge, matching pairs, pairs
    for row in np.flatnonzero(positive + negative):
        blocks.append([float(edges[row]), float(positive[row]), float(positive[row] + negative[row])])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            _, matching, pairs = blocks.pop()
            blocks[-1][1] += matching
            blocks[-1][2] += pairs
    least = 1 / (positive.sum() + negative.sum() + 2)
    return tuple((start, float(np.clip(matching / pairs, least, 1 - least))) for start, matching, pairs in blocks)


def calibration_error(p: np.ndarray, positive: np.ndarray, negative: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error, 0..1: mean over pairs of |probability - share of matching pairs|, both of a bin.

    Guo et al., "On calibration of modern neural networks", ICML 2017, section 2: bins of equal width. p [n], and so
    many pairs with it, [n] each (weights of any scale).
    """
    said, share, weight = reliability(p, positive, negative, bins)
    return float((weight * abs(said - share)).sum())


def reliability(
    p: np.ndarray, positive: np.ndarray, negative: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin of probability that is used [k]: mean probability, share of matching pairs, share of all pairs."""
    rows = np.minimum((p * bins).astype(int), bins - 1)
    pairs = positive + negative
    weight = np.bincount(rows, pairs, bins)
    used = weight > 0
    said, found = np.bincount(rows, pairs * p, bins)[used], np.bincount(rows, positive, bins)[used]
    return said / weight[used], found / weight[used], weight[used] / weight.sum()


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow
