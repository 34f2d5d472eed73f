"""How similar images of the same and of different identities are: two histograms, counted in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 200
SAMPLE = (256, 4096)  # queries and gallery images whose cosines say where the bins are to be
NARROWEST = 1e-4  # range of the bins for cosines: below that float32 has too few values


@dataclass(frozen=True)
class Histogram:
    """Pairs of a query and a gallery image, without junk, counted by their similarity.

    edges:     [n + 1] ascending; bin i holds edges[i] <= similarity < edges[i + 1], the outer two all beyond as well.
    positive:  int64 [n], pairs of the same identity.  negative: int64 [n], of different identities.
    """

    edges: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def bin_edges(similarity: Any | None, features: tuple[Tensor, Tensor] | None = None) -> np.ndarray:
    """[BINS + 1], from the least to the largest similarity of a matrix [Q, G], or about the cosines of features.

    features: [Q, D], [G, D], where there is no matrix. Cosines are looked at between rows evenly drawn, and the range
    gets a tenth more on both sides, for what was not drawn; the outer bins hold all beyond.
    """
    if similarity is not None:
        low, high = float(similarity.min()), float(similarity.max())
    else:
        assert features is not None  # one of the two is there
        low, high = _cosine_range(*features)
    if not np.isfinite(high - low):
        low, high = 0.0, 1.0  # NaN, infinity: refused where the rows are read
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)


def _cosine_range(query: Tensor, gallery: Tensor) -> tuple[float, float]:
    drawn = [x[:: max(1, len(x) // most)][:most].float() for x, most in zip((query, gallery), SAMPLE, strict=True)]
    q, g = (F.normalize(x, dim=1) for x in drawn)
    low, high = (float(edge) for edge in (q @ g.to(q.device).T).aminmax())
    margin = max((high - low) / 10, (NARROWEST - (high - low)) / 2)
    return max(-1.0, low - margin), min(1.0, high + margin)


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
