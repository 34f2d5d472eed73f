"""Losses between images and texts, and their logits. B images, n texts, E features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.losses.checks import readable


def image_text_logits(image: Tensor, text: Tensor, scale: float | None) -> Tensor:
    """How well images and texts fit, [B, n].

    Args:
        image, text: [B, E], [n, E] raw features.
        scale: None for raw dot products at temperature 1, as CLIP-ReID uses with OpenAI's weights; else the
            backbone's own exponentiated temperature, which multiplies the cosine.
    """
    image, text = image.float(), text.float()
    if scale is None:
        return image @ text.T
    return scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T


def class_text_logits(image: Tensor, bank: Tensor, kinds: Tensor, scale: float | None) -> Tensor:
    """How well images fit the texts of all identities in the bank of each image's own class, [B, I].

    Args:
        image: [B, E] raw features.
        bank: [K, I, E], the texts of I identities for K classes (of occluders).
        kinds: [B] long, 0..K-1.
        scale: as of `image_text_logits`.
    """
    logits = image_text_logits(image, bank.flatten(0, 1), scale).unflatten(1, bank.shape[:2])  # [B, K, I]
    own = F.one_hot(kinds, len(bank)).to(logits.dtype)  # a sum, for the backward of indexing is not deterministic
    return torch.einsum("bki,bk->bi", logits, own)


def supcon_loss(logits: Tensor, row_labels: Tensor, column_labels: Tensor) -> Tensor:
    """Supervised contrastive loss over given logits (Khosla et al., arXiv 2004.11362, eq. 2; CLIP-ReID eq. 4-5).

    `-(1/B) sum_i 1/|P(i)| sum_{j in P(i)} log softmax(logits_i)_j`, P(i) = columns with row i's label.
    CLIP-ReID's stage 1 is the sum of this over image-to-text logits and over their transpose.

    Args:
        logits: [B, n] similarities, already scaled.
        row_labels, column_labels: [B], [n] long.

    Raises:
        ValueError: a row without any column of its label; on a GPU and in compiled code the loss is NaN instead.
    """
    positive = row_labels[:, None] == column_labels[None]  # [B, n]
    counts = positive.sum(1)
    if readable(counts) and not bool((counts > 0).all()):
        raise ValueError("supcon_loss: some row has no column with its label")
    log_p = logits.float().log_softmax(dim=1)
    return -((log_p * positive).sum(1) / counts).mean()


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over matching image-text pairs (Radford et al., arXiv 2103.00020, fig. 3).

    Args:
        image, text: [B, E] raw features; row i of one belongs to row i of the other.
        scale: scalar, the exponentiated temperature parameter.
    """
    logits = scale * F.normalize(image.float(), dim=1) @ F.normalize(text.float(), dim=1).T  # [B, B]
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sdm_loss(image: Tensor, text: Tensor, labels: Tensor, scale: float, epsilon: float = 1e-8) -> Tensor:
    """Similarity distribution matching, both ways (IRRA: Jiang and Ye, CVPR 2023, arXiv 2303.12501, section 3.3).

    Of each image, `KL(p || q + epsilon)` of p, the softmax of its scaled cosines with all texts, and q, which is spread
    evenly over the texts of its identity; the mean over images, plus the same of each text with all images.

    Args:
        image, text: [n, E] raw features; row i of both is of the same pair.
        labels: [n] long, the identity of each pair.
        scale: one over the temperature.
        epsilon: keeps the logarithm of a q of 0 finite.
    """
    logits = scale * F.normalize(image.float(), dim=1) @ F.normalize(text.float(), dim=1).T  # [n, n]
    same = (labels[:, None] == labels[None]).float()
    log_wanted = (same / same.sum(1, keepdim=True) + epsilon).log()  # the same for rows and columns

    def divergence(rows: Tensor) -> Tensor:
        log_found = rows.log_softmax(1)
        return (log_found.exp() * (log_found - log_wanted)).sum(1).mean()

    return divergence(logits) + divergence(logits.T)


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss (Zhai et al., arXiv 2303.15343, algorithm 1).

    Args:
        image, text: [B, E] raw features; row i of one belongs to row i of the other.
        scale, bias: scalars (exponentiated temperature, additive bias).
    """
    logits = scale * F.normalize(image.float(), dim=1) @ F.normalize(text.float(), dim=1).T + bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum(1).mean()
