"""Losses on logits over identities. B images, C identities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def id_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over identities with label smoothing (Szegedy et al. 2016, eq. in section 7).

    The target is `(1 - smoothing) * onehot + smoothing / C`; the same function scores image-to-text logits
    (CLIP-ReID, arXiv 2211.13977, eq. 7-8).

    Args:
        logits: [B, C] float.
        labels: [B] long in 0..C-1.
        smoothing: share of the target spread evenly over all identities, 0..1.
        weights: [B], what each image's term is multiplied by before the mean over all B; None: 1.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")).mean()
