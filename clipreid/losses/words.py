"""Masked language modelling: which words are hidden, and how well they are found. B texts of L tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # instead of a wanted token: nothing is asked here
HIDDEN, REPLACED = 0.8, 0.9  # of the chosen words the first 80 % are hidden, up to 90 % replaced, the rest kept


class MaskedWords(NamedTuple):
    """What is read instead of the texts, and what is to be found.

    Attributes:
        ids: [B, L] with the words that were replaced by random ones.
        hidden: [B, L] bool, where the mask is read instead of a token.
        wanted: [B, L], the token that was there, `IGNORED` where none is asked.
    """

    ids: Tensor
    hidden: Tensor
    wanted: Tensor


def mask_words(ids: Tensor, words: Tensor, drawn: Tensor, ordinary: Tensor, share: float = 0.15) -> MaskedWords:
    """Chooses words of each text, as BERT does (Devlin et al., arXiv 1810.04805, section 3.1): 80 % of them are hidden,
    10 % become another token, 10 % stay.

    Of a text in which no word would be chosen, the one with the smallest draw is hidden.

    Args:
        ids: [B, L] long.
        words: [B, L] bool, which tokens may be chosen: neither start, end nor padding.
        drawn: uniform [3, B, L]: whether a word is chosen, what becomes of it, by which token it is replaced.
        ordinary: [V], the tokens that may replace one.
        share: of the words, 0..1.
    """
    chosen = words & (drawn[0] < share)
    lone = (words.any(1) & ~chosen.any(1))[:, None]  # [B, 1]
    first = F.one_hot(drawn[0].masked_fill(~words, torch.inf).argmin(1), ids.shape[1]).bool()
    chosen = chosen | (lone & first)
    hidden = chosen & ((drawn[1] < HIDDEN) | lone)
    replaced = chosen & ~hidden & (drawn[1] < REPLACED)
    others = ordinary[(drawn[2] * len(ordinary)).long().clamp_max(len(ordinary) - 1)]  # [B, L]
    return MaskedWords(torch.where(replaced, others, ids), hidden, ids.masked_fill(~chosen, IGNORED))


def word_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the vocabulary, *summed* over the words that are asked, and their number; the loss of IRRA
    (Jiang and Ye, CVPR 2023, section 3.2) is their quotient over all processes.

    Args:
        logits: [n, V] of the words that are asked.
        wanted: [n] long.
    """
    return F.cross_entropy(logits.float(), wanted, reduction="sum"), logits.new_tensor(float(len(wanted)))
