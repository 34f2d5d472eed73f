"""The effect of learned tokens: how much worse does a text find its own images where they are replaced or dropped?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.explore.learned import Learned
from clipreid.prompts import word_embeddings

Replacement = Literal["mean", "neutral", "drop"]


def ablated(learned: Learned, places: Sequence[int], by: Replacement = "mean") -> Tensor:
    """The text bank [I, E] without the tokens at these places (0..M-1) of every prompt.

    by: "mean", the mean of that token over all identities, so that it says nothing of one of them; "neutral", the word
    x, as before training; "drop", a shorter sentence.

    Raises UserError for an unknown `by` or place.
    """
    tokens, count = learned.tokens.clone(), learned.tokens.shape[1]
    if by not in get_args(Replacement):
        raise UserError(f"no replacement {by!r}: choose one of {', '.join(get_args(Replacement))}")
    if wrong := sorted({place for place in places if not 0 <= place < count}):
        raise UserError(f"there is no token {wrong[0]}: the prompts have {count}, from 0 to {count - 1}")
    chosen = sorted(set(places))
    if by == "drop":
        tokens = tokens[:, [place for place in range(count) if place not in chosen]]
    elif by == "mean":
        tokens[:, chosen] = tokens[:, chosen].mean(0, keepdim=True)
    else:
        tokens[:, chosen] = word_embeddings(learned.backbone, "x").to(tokens)  # [1, W]
    return learned.read(tokens, torch.arange(len(tokens)))


def ablation(
    learned: Learned, features: Tensor, identities: Sequence[str], by: Replacement = "mean"
) -> list[dict[str, Any]]:
    """One row for no token, each token alone, and all of them.

    Args:
        features: of images, in the text space, [N, E], unit length.
        identities: whose images they are, [N].

    Returns:
        dicts with `without` (which token, counted from 1), `similarity` (mean cosine to the whole prompt's text),
        `mAP` and `rank1` of text to image: each text is a query, all images of its identity are matches.
    """
    count = learned.tokens.shape[1]
    which: dict[str, list[int]] = {"none": [], **{str(i + 1): [i] for i in range(count)}, "all": list(range(count))}
    rows = []
    for name, places in which.items():
        bank = ablated(learned, places, by)
        found = evaluate(bank, features, {"identity": learned.names}, {"identity": list(identities)}, "text-to-image")
        similarity = float((bank * learned.bank).sum(1).mean())
        rows.append({"without": name, "similarity": similarity} | {k: found.metrics[k] for k in ("mAP", "rank1")})
    return rows
