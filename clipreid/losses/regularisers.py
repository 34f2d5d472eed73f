"""Regularisers: losses that look at weights, features or attention alone, not at labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def anchor_diversity_loss(anchors: Tensor) -> Tensor:
    """How alike anchors are: the mean squared cosine of different ones (SAGA-ReID, arXiv 2604.22190, its code).

    `1/(K(K-1)) sum_{i != j} cos(a_i, a_j)^2`: 0 where they are orthogonal, 1 where they are parallel. SAGA adds it with
    weight 0.05, for the text anchors after their map.

    Args:
        anchors: [K, C] float; a single one gives 0.
    """
    count = len(anchors)
    unit = F.normalize(anchors.float(), dim=1)
    squared = (unit @ unit.T).square()  # [K, K]
    others = ~torch.eye(count, dtype=torch.bool, device=anchors.device)
    return (squared * others).sum() / max(1, count * (count - 1))


def consistency_loss(a: Tensor, b: Tensor) -> Tensor:
    """How far two views of the same images are apart: the mean squared distance of their unit features.

    `1/B sum_i |a_i / |a_i| - b_i / |b_i||^2 = 2 - 2 cos`, between 0 and 4 (for DPL-ReID, arXiv 2605.19527; the norm is
    assumed).

    Args:
        a, b: [B, D]; row i of both is of the same image.
    """
    return (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()


def orthogonality_loss(a: Tensor, b: Tensor) -> Tensor:
    """How far two features of the same images are from being orthogonal: the mean squared cosine.

    `1/B sum_i cos(a_i, b_i)^2`, between 0 and 1 (for PDM, arXiv 2511.05092; the square is assumed).

    Args:
        a, b: [B, D]; row i of both is of the same image.
    """
    return F.cosine_similarity(a.float(), b.float(), dim=1).square().mean()


def head_likeness(scores: Tensor) -> Tensor:
    """How alike the heads of an attention are, for each image: the head-enrich loss of DPM (Tan et al., ACM MM 2022).

    `||A A^T - I||_F^2 / H^2` with the rows of A, the scores of one head, L2-normalised: 0 where all heads look at
    different patches. The published loss is the sum over the batch, which grows with it.

    Args:
        scores: [B, H, N] of H heads on N patches, before the softmax.

    Returns:
        [B].
    """
    unit = F.normalize(scores.float(), dim=2)
    likeness = unit @ unit.mT  # [B, H, H]
    own = torch.eye(scores.shape[1], device=scores.device)
    return (likeness - own).square().sum((1, 2)) / scores.shape[1] ** 2
