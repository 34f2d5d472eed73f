"""What inverting images needs of the data: their styles and nouns, batches of their features, and their texts.

N training images, I identities, E embedding, n styles, H hidden width of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clipreid.data import mixed_pk_indices, seed_for
from clipreid.prompts.inversion import InversionPrompts, kept_shares
from clipreid.training.batches import Batches, Lazy
from clipreid.training.run import Run
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch

DROPS = 5437  # keeps the draws of dropout apart from others
CHUNK = 256  # images whose texts are encoded at a time


def styles_of(data: RunData, style: str) -> Tensor:
    """The style of each training image, [N] long, 0..n-1: its "camera" (unknown ones of a data set are one) or its
    "set"."""
    if style == "set":
        return data.groups
    return torch.stack([data.groups, data.sides[0]], 1).unique(dim=0, return_inverse=True)[1]


def nouns_of(data: RunData) -> tuple[list[str], Tensor]:
    """The different nouns, and which of them each training image has, [N] long."""
    nouns = list(dict.fromkeys(each.noun for each in data.mixture.sets))
    kinds = torch.tensor([nouns.index(each.noun) for each in data.mixture.sets])
    return nouns, kinds[data.groups]


def inversion_batches(run: Run, features: Callable[[], Tensor], config: Any) -> Batches:
    """PK batches of about `prompt_batch` cached features, the same in every process: only images of the same identity
    tell the content of an image from the image itself."""
    data, device, K, dropout = run.data, run.device, config.images_per_identity or 1, config.inversion_dropout
    P = min(max(2, config.prompt_batch // K, len(data.mixture.sets)), len(data.names))
    about = {"labels": data.labels, "styles": styles_of(data, config.style), "kinds": nouns_of(data)[1]}

    def batches(epoch: int) -> Sequence[Batch]:
        drawn = mixed_pk_indices(data.labels, data.groups, P, K, run.seed, epoch, config.balance)  # [steps, P * K]

        def make(nth: int) -> Batch:
            rows = drawn[nth]
            batch = {name: x[rows].to(device) for name, x in about.items()}
            if dropout:
                generator = torch.Generator().manual_seed(seed_for(run.seed, epoch, nth, DROPS))
                kept = kept_shares(2 * len(rows), config.inversion_width, dropout, generator)
                batch["kept"] = kept.unflatten(0, (len(rows), 2)).to(device)
            return {**batch, "rows": rows.to(device), "features": features()[rows.to(device)]}

        return Lazy(len(drawn), make)

    return batches


@torch.no_grad()
def texts_of(prompts: InversionPrompts, features: Tensor, kinds: Tensor) -> Tensor:
    """The content texts of images, from features [N, E] and the nouns [N], to [N, E]."""
    parts = zip(features.split(CHUNK), kinds.split(CHUNK), strict=True)
    return torch.cat([prompts.content_texts(feature, kind) for feature, kind in parts])


def identity_means(texts: Tensor, labels: Tensor, identities: int) -> Tensor:
    """The mean text of each identity, from those of its images [N, E], to [I, E]. On the CPU, where sums are
    deterministic."""
    sums = torch.zeros(identities, texts.shape[1]).index_add_(0, labels.cpu(), texts.cpu())
    return (sums / labels.cpu().bincount(minlength=identities)[:, None]).to(texts.device)
