"""Learning-rate factors as pure functions of the epoch, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def prompt_rate(epoch: int, epochs: int, rate: float, warmup: int, floor: float = 1e-6, start: float = 1e-5) -> float:
    """Rate of stage 1 in `epoch` (1-based): linear from `start` for `warmup` epochs, then cosine over all to `floor`.

    CLIP-ReID's schedule: with 120 epochs, warm-up 5 and 3.5e-4 it gives 7.8e-5, ..., 3.485e-4 (epoch 5), ..., 1e-6.
    """
    if epoch < warmup:
        return start + (rate - start) * epoch / warmup
    return floor + 0.5 * (rate - floor) * (1 + math.cos(math.pi * epoch / epochs))


def step_factor(epoch: int, milestones: Sequence[int], gamma: float, warmup: float, warmup_factor: float) -> float:
    """Factor of stage 2 in `epoch` (1-based): linear warm-up from `warmup_factor`, then times gamma at each milestone.

    CLIP-ReID's schedule: with milestones 30 and 50, warm-up 10 from 0.1: 0.19 in epoch 1, 1 in epochs 10-29, ...
    """
    alpha = min(1.0, epoch / warmup) if warmup else 1.0
    return (warmup_factor * (1 - alpha) + alpha) * gamma ** bisect_right(milestones, epoch)


def cosine_factor(progress: float, epochs: int, warmup: float, warmup_factor: float) -> float:
    """Factor after `progress` epochs (fractional, from 0): linear warm-up from `warmup_factor`, then cosine to 0."""
    if progress < warmup:
        return warmup_factor + (1 - warmup_factor) * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(epochs - warmup, 1e-9)))
