"""Clean and occluded views of the training images: as batches, and as features of a frozen tower.

B images, N training images, V occluded versions of each, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clipreid.data import normalise, seed_for
from clipreid.data.occluders import Library
from clipreid.model import ReIDModel
from clipreid.training.batches import Batches, Change, Lazy, feature_batches
from clipreid.training.occluding import paste
from clipreid.training.run import Run
from clipreid.training.stage import Batch

CHUNK = 64  # images that are occluded and go through the frozen tower at a time
PAIRS = 6701  # keeps the draws of pairs apart from others


def occluded_view(config: Any, library: Library | None) -> Change:
    """For `image_batches(change=...)`: the second view gets occluders. Keys: "occluded" [B] bool, and "kinds" [B], the
    class of the occluder (-1: none)."""

    def change(view: int, images: Tensor, generator: torch.Generator, share: tuple[int, int]) -> tuple[Tensor, Batch]:
        kinds = torch.full((len(images),), -1, device=images.device)
        if view and library is not None:
            pasted = paste(images, library, config, config.occlude_probability, generator, share)
            images, kinds = pasted.pixels, pasted.kinds
        return images, {"occluded": kinds >= 0, "kinds": kinds}

    return change


@torch.no_grad()
def pair_features(run: Run, model: ReIDModel, config: Any, library: Library) -> tuple[Tensor, Tensor]:
    """Features of all training images by the tower as it was, without augmentation: [N, 1 + V, E], the clean one first;
    and the classes of their occluders [N, V]. Every process computes all of them."""
    tower, backbone, crops = model.tower.eval(), run.backbone, run.crops(training=False)
    features, kinds = [], []
    for nth, rows in enumerate(torch.arange(len(run.data.labels)).split(CHUNK)):
        clean = crops.index_select(0, rows.to(crops.device)).to(run.device)  # uint8 [b, 3, H, W]
        versions, classes = [clean], []
        for draw in range(config.occluded_draws):
            generator = torch.Generator().manual_seed(seed_for(run.seed, 0, nth, PAIRS + draw))
            pasted = paste(clean, library, config, 1.0, generator)
            versions.append(pasted.pixels)
            classes.append(pasted.kinds)
        pixels = [normalise(version, backbone.mean, backbone.std) for version in versions]
        features.append(torch.stack([tower(each).pooled.float() for each in pixels], 1))
        kinds.append(torch.stack(classes, 1))
    return torch.cat(features), torch.cat(kinds)


def pair_batches(found: Callable[[], tuple[Tensor, Tensor]], labels: Tensor, size: int, seed: int) -> Batches:
    """`feature_batches` of `pair_features`, with one of the V occluded versions of each image: "clean", "occluded"
    [B, E], "kinds", "labels", "rows" [B]."""
    whole = feature_batches(lambda: found()[0], labels, size, seed)

    def batches(epoch: int) -> Sequence[Batch]:
        parts = whole(epoch)

        def make(nth: int) -> Batch:
            batch, kinds = parts[nth], found()[1]
            features, rows = batch.pop("features"), batch["rows"]  # [B, 1 + V, E]
            generator = torch.Generator().manual_seed(seed_for(seed, epoch, nth, PAIRS))
            which = torch.randint(kinds.shape[1], (len(rows),), generator=generator).to(rows.device)
            place = torch.arange(len(rows), device=rows.device)
            pair = {"clean": features[:, 0], "occluded": features[place, 1 + which], "kinds": kinds[rows, which]}
            return batch | pair

        return Lazy(len(parts), make)

    return batches
