"""Losses on logits over identities. B images, C identities."""

from __future__ import annotations

import math

import torch
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


def arcface_logits(cosine: Tensor, labels: Tensor, scale: float = 30.0, margin: float = 0.5) -> Tensor:
    """Logits with an additive angular margin (ArcFace: Deng et al., CVPR 2019, arXiv 1801.07698, eq. 3).

    `scale * cos(theta + margin)` at the label, `scale * cos(theta)` elsewhere. Beyond theta = pi - margin, where
    cos(theta + margin) would grow again, the label gets `scale * (cos(theta) - margin * sin(margin))`, as in the code
    of that paper.

    Args:
        cosine: [B, C] cosines theta between images and identities.
        labels: [B] long in 0..C-1.
        scale: s.
        margin: in radians, 0 to pi.
    """
    cosine = cosine.float()
    own = cosine.gather(1, labels[:, None])  # [B, 1]
    sine = (1 - own.square()).clamp_min(1e-7).sqrt()
    moved = own * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(own > math.cos(math.pi - margin), moved, own - margin * math.sin(margin))
    return scale * cosine.scatter(1, labels[:, None], moved)
