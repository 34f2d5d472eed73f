"""Of two sentences about an image, which one does a model take? N images, n choices, E features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipreid.evaluation.bootstrap import mean_interval


def right_choices(images: Tensor, true: Tensor, false: Tensor) -> np.ndarray:
    """1 where an image is more like its true sentence than like its false one, 0 where less, 0.5 where alike: [n].

    images, true, false: [n, E], rows of unit length. By chance the mean is 0.5.
    """
    difference = (images.double() * (true.double() - false.double())).sum(1)
    return (0.5 + 0.5 * torch.sign(difference)).numpy()


def accuracy_rows(
    right: np.ndarray,
    kinds: Sequence[str],
    answers: Sequence[str],
    identity: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> list[dict[str, object]]:
    """A row of a table for each kind: the share of right choices in percent, with 95 % interval over identities.

    Each answer counts alike, however often it is the true one: the share is the mean over the answers of a kind, so
    that a model which always prefers the same one has 50 %. Where there are two, both are shown.

    right: [n] as of `right_choices`; kinds, answers, identity: [n].
    """
    rows, kind_of, answer_of = list[dict[str, object]](), np.asarray(kinds), np.asarray(answers)
    for kind in dict.fromkeys(kinds):
        own = kind_of == kind
        names, place, counts = np.unique(answer_of[own], return_inverse=True, return_counts=True)
        mean, (low, high) = mean_interval(right[own], identity[own], 1 / counts[place], draws, seed)
        each = {name: right[own][place == nth].mean() for nth, name in enumerate(names)} if len(names) == 2 else {}
        row: dict[str, object] = {"kind": kind, "choices": int(own.sum())}
        row["right"] = f"{100 * mean:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
        row["each answer"] = ", ".join(f"{name} {100 * share:.1f}%" for name, share in each.items()) or None
        rows.append(row)
    return rows
