"""What a bank of texts knows: order by attribute, probes of true attributes, and the way from one text to another.

I identities, E embedding, C values of an attribute, S steps, N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.errors import UserError
from clipreid.explore.learned import Learned

Strings = Sequence[str] | np.ndarray
SHUFFLED = "shuffled"
PENALTIES = (1.0, 0.1, 0.01, 0.001)  # in mean eigenvalues of the features' covariance: scale does not matter
INNER = 3  # folds of the choice of a penalty


def order_by(values: Strings, features: Tensor | None = None) -> np.ndarray:
    """Row numbers [I] in the order of their values; among equals, where features [I, E] are given, alike ones together
    (by their first principal component). Rows without a value ("") come last."""
    names = np.asarray(values)
    along = np.zeros(len(names))
    if features is not None:
        centred = (features - features.mean(0)).double()
        along = (centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]).numpy()
    return np.lexsort((along, names, names == ""))


def probe(
    features: Tensor, truth: Strings, groups: Sequence[Any] | np.ndarray | None = None, folds: int = 5, seed: int = 0
) -> float:
    """How well a linear map reads an attribute off features, on identities not fitted on: balanced accuracy, 0..1.

    Ridge regression onto one-hot values, every value counting alike, cross-validated; the penalty is chosen among
    `PENALTIES` by another cross-validation inside each fold. A linear probe shows what lies open in the features, not
    what they cause (Alain and Bengio, arXiv 1610.01644).

    Args:
        features: [I, E].
        truth: the value of each identity, [I]; "" = unknown, left out.
        groups: [I]; identities of one group are never on both sides of a fold (look-alikes, who share their values).
        folds: of the cross-validation.
        seed: which groups are in which fold.

    Returns:
        The mean over the values of the share of their identities that are read rightly; 1 / C is chance.

    Raises:
        UserError: fewer than two values or fewer groups than folds.
    """
    names = np.asarray(truth)
    known = np.flatnonzero(names != "")
    values, labels = np.unique(names[known], return_inverse=True)
    kin = np.unique(known if groups is None else np.asarray(groups)[known], return_inverse=True)[1]
    if len(values) < 2 or kin.max() + 1 < folds:
        raise UserError(
            f"a probe needs two values or more and {folds} groups; here are {len(values)} value(s) and "
            f"{len(np.unique(kin))} group(s)"
        )
    x = features[torch.from_numpy(known)].double()
    said = _cross(x, torch.from_numpy(labels), kin, folds, np.random.default_rng(seed))
    return float(_balanced(said, labels))


def _balanced(said: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows of predictions [..., n] to balanced accuracy [...]."""
    return np.mean([(said[..., labels == value] == value).mean(-1) for value in np.unique(labels)], axis=0)


def _cross(x: Tensor, labels: Tensor, kin: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """The value [n] of each row of x [n, E], read by a map fitted on the other folds with a penalty chosen there."""
    fold = _folds(kin, folds, rng)
    count, said = int(labels.max()) + 1, np.zeros(len(x), dtype=int)
    for part in range(folds):
        fit, test = torch.from_numpy(fold != part), torch.from_numpy(fold == part)
        inner = _folds(kin[fit.numpy()], INNER, rng)  # [f]
        tried = np.zeros((len(PENALTIES), int(fit.sum())), dtype=int)
        for own in range(INNER):
            seen, held = torch.from_numpy(inner != own), torch.from_numpy(inner == own)
            tried[:, held.numpy()] = _ridge(x[fit][seen], labels[fit][seen], x[fit][held], count).numpy()
        best = int(_balanced(tried, labels[fit].numpy()).argmax())
        said[test.numpy()] = _ridge(x[fit], labels[fit], x[test], count)[best].numpy()
    return said


def _folds(kin: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """kin [n], whose kin each row is, to the fold [n] of each row: kin together, folds of equally many families."""
    _, kin = np.unique(kin, return_inverse=True)
    return rng.permutation(kin.max() + 1)[kin] % folds


def _ridge(x: Tensor, labels: Tensor, test: Tensor, count: int) -> Tensor:
    """Fits x [n, E] float64 to labels [n], 0..count-1; what each penalty reads off test [m, E], [penalties, m]."""
    onehot = F.one_hot(labels, count).double()  # [n, C]
    weight = (1 / onehot.sum(0).clamp_min(1))[labels]  # [n]: every value counts alike
    weight = weight / weight.sum()
    mean, target = weight @ x, weight @ onehot
    centred = x - mean
    values, vectors = torch.linalg.eigh(centred.T @ (weight[:, None] * centred))  # [E], [E, E]
    toward = vectors.T @ centred.T @ (weight[:, None] * (onehot - target))  # [E, C]
    shrunk = values.clamp_min(0) + values.mean() * torch.tensor(PENALTIES, dtype=x.dtype)[:, None]  # [penalties, E]
    return ((test - mean) @ vectors @ (toward / shrunk[..., None]) + target).argmax(-1)


def probe_table(
    banks: Mapping[str, Tensor],
    attributes: Mapping[str, Strings],
    groups: Sequence[Any] | np.ndarray | None = None,
    shuffles: int = 3,
    folds: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`probe` of each attribute in each bank, and its floor.

    Args:
        banks: name -> features [I, E] of the same identities: the learned texts, the captions' own, the images'.
        attributes: name -> value of each identity, [I].
        groups, folds, seed: as for `probe`.
        shuffles: how often the values are dealt out anew to the groups, for the floor.

    Returns:
        One dict for each attribute: `attribute`, `values` (C), the accuracy in each bank by its name, and `shuffled`,
        the mean accuracy in the first bank when everybody has somebody else's values.
    """
    rows = []
    first = next(iter(banks.values()))
    rng = np.random.default_rng(seed)
    for name, truth in attributes.items():
        found = {bank: probe(features, truth, groups, folds, seed) for bank, features in banks.items()}
        floor = [probe(first, deal(truth, groups, rng), groups, folds, seed) for _ in range(shuffles)]
        count = len(set(truth) - {""})
        rows.append({"attribute": name, "values": count, **found, SHUFFLED: float(np.mean(floor))})
    return rows


def deal(truth: Strings, groups: Sequence[Any] | np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Values [I] shuffled: among groups of the same size, whole, so that kin keep values as alike as they were."""
    values = np.asarray(truth)
    if groups is None:
        return rng.permutation(values)
    kin = np.unique(np.asarray(groups), return_inverse=True)[1]
    dealt, sizes = values.copy(), np.bincount(kin)
    for size in set(sizes.tolist()):
        same = np.flatnonzero(sizes == size)
        for to, source in zip(same, rng.permutation(same), strict=True):
            dealt[kin == to] = values[kin == source]
    return dealt


def interpolate(learned: Learned, a: int, b: int, steps: int = 5) -> Tensor:
    """The texts [S, E] of prompts on the straight way from the tokens of identity a to those of identity b.

    The ends are the identities' own texts. Raises ValueError for fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: the way has two ends at least")
    tokens, t = learned.tokens, torch.linspace(0, 1, steps, dtype=learned.tokens.dtype)[:, None, None]
    return learned.read((1 - t) * tokens[a] + t * tokens[b], torch.full((steps,), a))


def retrieve(texts: Tensor, features: Tensor, top: int = 5) -> np.ndarray:
    """The images nearest to each text, best first: [S, E], [N, E] -> row numbers [S, top]."""
    return (texts @ features.T).topk(min(top, len(features)), dim=1).indices.numpy()


def mean_by(features: Tensor, identities: Sequence[str], names: Sequence[str]) -> Tensor:
    """Features [N, E] of images or captions to their mean for each of the names, [I, E], unit length.

    Raises UserError for a name without any.
    """
    place = {name: i for i, name in enumerate(names)}
    kept = [(row, place[name]) for row, name in enumerate(identities) if name in place]
    rows, index = (torch.tensor([pair[i] for pair in kept], dtype=torch.long) for i in (0, 1))
    if missing := sorted(set(range(len(names))) - set(index.tolist())):
        raise UserError(f"nothing to average for {names[missing[0]]!r} (and {len(missing) - 1} others)")
    return F.normalize(torch.zeros(len(names), features.shape[1]).index_add(0, index, features[rows]), dim=1)
