"""Batches of what a frozen tower makes of augmented images: computed once for a few views where they fit into memory.

N training images, V views, P identities x K images make a batch of G images, of which each process takes B.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipreid.data import Pixels, mixed_pk_indices, process_slice, seed_for
from clipreid.training.batches import CHANGES, Batches, Change, Lazy, augmented, cache_on_gpu, image_batches
from clipreid.training.run import Run
from clipreid.training.stage import Batch

CHUNK = 64  # images through the tower at a time
Tokens = Callable[[Tensor, Batch], Batch]  # normalised pixels [B, 3, H, W] and what is known of them -> [B, ...] each


def token_batches(run: Run, tokens: Tokens, change: Change | None = None) -> Batches:
    """PK batches of what `tokens` returns (kept as float16, given as float32), with "labels" and "rows" [B].

    `config.token_views` augmented views of every image are computed by every process, before its first batch, and kept
    in its memory, at most `config.cache_gb` (10^9 bytes). Every step takes one view of each image, drawn alike in all
    processes. Fewer views are kept where these do not fit; where not even one does, the tower works in every step,
    which augments every image anew. The run says which it is.

    Args:
        run: as for `image_batches`; its method's settings also have token_views and cache_gb.
        tokens: of a frozen tower, in eval mode.
        change: as for `image_batches`.
    """
    config, made = run.config, functools.partial(_augmented, run, cache_on_gpu(run.crops(), run.device), change)
    with torch.no_grad():
        first = tokens(*made(torch.arange(1), 0))
    size = sum(2 * x.numel() for x in first.values()) * len(run.data.labels)  # bytes of one view
    views = min(config.token_views, int(config.cache_gb * 1e9 // size))
    budget = f"(one takes {size / 1e9:.3g} GB, --cache-gb {config.cache_gb:g})"
    if not views:
        run.log.say(f"no augmented view of the tokens is kept {budget}: the tower works in every step")
        return _computed(run, tokens, change)
    run.log.say(f"tokens of {views} of {config.token_views} augmented views are kept {budget}")
    kept: list[Batch] = []  # {name: [N, ...]} of each view, float16 on the CPU

    def batches(epoch: int) -> Sequence[Batch]:
        while len(kept) < views:
            kept.append(_view(made, tokens, len(run.data.labels), len(kept)))
        P, K, data = config.identities_per_batch, config.images_per_identity, run.data
        drawn = mixed_pk_indices(data.labels, data.groups, P, K, run.seed, epoch, config.balance)  # [steps, G]
        mine = process_slice(drawn, *run.share, K=K)  # [steps, B]

        def make(nth: int) -> Batch:
            generator = torch.Generator().manual_seed(seed_for(run.seed, epoch, nth))
            which = torch.randint(views, drawn[nth : nth + 1].shape, generator=generator)  # [1, G]
            pairs = list(zip(process_slice(which, *run.share, K=K)[0].tolist(), mine[nth].tolist(), strict=True))
            batch = {name: torch.stack([kept[view][name][row] for view, row in pairs]).float() for name in kept[0]}
            batch |= {"labels": data.labels[mine[nth]], "rows": mine[nth]}
            return {name: x.to(run.device) for name, x in batch.items()}

        return Lazy(len(drawn), make)

    return batches


def _augmented(run: Run, crops: Pixels, change: Change | None, rows: Tensor, view: int) -> tuple[Tensor, Batch]:
    """Training images, perhaps changed, augmented and normalised [B, 3, H, W], and their cameras and views [B]."""
    cameras, views = run.data.sides
    generator = torch.Generator().manual_seed(seed_for(run.seed, 0, int(rows[0]), view + 1))
    images = crops.index_select(0, rows.to(crops.device)).to(run.device)
    if change is not None:
        drawn = torch.Generator().manual_seed(seed_for(run.seed, 0, int(rows[0]), CHANGES + view))
        images, _ = change(0, images, drawn, (0, 1))
    about = {"cameras": cameras[rows].to(run.device), "views": views[rows].to(run.device)}
    return augmented(run, images, generator), about


@torch.no_grad()
def _view(made: Callable[[Tensor, int], tuple[Tensor, Batch]], tokens: Tokens, count: int, view: int) -> Batch:
    """What the tower makes of all N training images, augmented once: [N, ...] each, float16 on the CPU."""
    kept: Batch = {}
    for rows in torch.arange(count).split(CHUNK):
        for name, x in tokens(*made(rows, view)).items():
            if name not in kept:
                kept[name] = torch.empty(count, *x.shape[1:], dtype=torch.float16)
            kept[name][rows] = x.half().cpu()
    return kept


def _computed(run: Run, tokens: Tokens, change: Change | None) -> Batches:
    """The same batches with the tower at work in every step, every image augmented anew."""
    images = image_batches(run, change=change)

    def batches(epoch: int) -> Sequence[Batch]:
        pixels = images(epoch)

        def make(nth: int) -> Batch:
            batch = pixels[nth]
            with torch.no_grad():
                found = {name: x.half().float() for name, x in tokens(batch["pixels"], batch).items()}
            return found | {"labels": batch["labels"], "rows": batch["rows"]}

        return Lazy(len(pixels), make)

    return batches
