"""Losses on distances between features. B images, E features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.losses.checks import readable


def triplet_loss(
    features: Tensor, labels: Tensor, margin: float = 0.3, *, normalise: bool = False, soft: bool = False
) -> Tensor:
    """Batch-hard triplet loss with Euclidean distances (Hermans et al., arXiv 1703.07737, eq. 5).

    Each image is an anchor; its positive is the farthest image of the same identity (possibly itself, at
    distance 0, when it is alone), its negative the nearest of another.

    Args:
        features: [B, E] float.
        labels: [B] long; identities may have any number of images.
        margin: in units of distance; between features of unit length distances are at most 2.
        normalise: L2-normalise the features first, so that the loss sees what retrieval compares. CLIP-ReID takes them
            as they come: then the margin is small beside distances of raw features, and the loss can be lowered by
            squeezing all features together.
        soft: log(1 + exp(positive - negative)) in the place of the margin (section 3.2 there), which never ends.

    Raises:
        ValueError: fewer than two identities in the batch, so that some anchor has no negative; on a GPU and in
            compiled code the loss is NaN instead.
    """
    x = F.normalize(features.float(), dim=1) if normalise else features.float()
    same = labels[:, None] == labels[None]  # [B, B]
    if readable(same) and bool(same.all()):
        raise ValueError("triplet_loss needs at least two identities in a batch: every image has the same label")
    norms = x.square().sum(1)
    squared = norms[:, None] + norms[None] - 2 * x @ x.T  # [B, B]
    distance = squared.clamp_min(1e-12).sqrt()
    positive = distance.masked_fill(~same, -torch.inf).amax(1)  # [B]
    negative = distance.masked_fill(same, torch.inf).amin(1)  # [B]
    violation = positive - negative
    loss = (F.softplus(violation) if soft else F.relu(violation + margin)).mean()
    return loss if readable(same) else torch.where(same.all(), torch.nan, loss)
