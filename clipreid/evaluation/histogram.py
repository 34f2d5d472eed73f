"""How similar images of the same and of different identities are: two histograms, counted in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 200


@dataclass(frozen=True)
class Histogram:
    """Pairs of a query and a gallery image, without junk, counted by their similarity.

    edges:     [n + 1] ascending; bin i holds edges[i] <= similarity < edges[i + 1], the outer two all beyond as well.
    positive:  int64 [n], pairs of the same identity.  negative: int64 [n], of different identities.
    """

    edges: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def bin_edges(similarity: Any | None) -> np.ndarray:
    """[BINS + 1]: over -1..1 for cosines (None), else from the least to the largest similarity of a matrix [Q, G]."""
    low, high = (-1.0, 1.0) if similarity is None else (float(similarity.min()), float(similarity.max()))
    if not np.isfinite(high - low):
        low, high = 0.0, 1.0  # NaN, infinity: refused where the rows are read
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)


def count_sorted(rows: Tensor, edges: np.ndarray) -> np.ndarray:
    """Rows [c, N], each ascending, first -inf for what does not count -> int64 [bins]: a few look-ups, not c x N."""
    if not rows.shape[1]:
        return np.zeros(len(edges) - 1, dtype=np.int64)
    inner = torch.from_numpy(edges[1:-1]).to(rows).expand(len(rows), -1).contiguous()  # [c, bins - 1]
    lowest = torch.full_like(rows[:, :1], torch.finfo(rows.dtype).min)
    first = torch.searchsorted(rows, lowest)  # [c, 1], the -inf
    below = torch.searchsorted(rows, inner)  # [c, bins - 1]
    ends = torch.full_like(first, rows.shape[1])
    return torch.cat([first, below, ends], 1).diff(dim=1).sum(0).cpu().numpy()
