"""Batches as pure functions of (seed, epoch, process): made when they are asked for, never held.

N training images, P identities x K images make a batch of G images, of which each process takes B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from clipreid.config import RunConfig
from clipreid.data import Pixels, augment, mixed_pk_indices, process_slice, seed_for
from clipreid.data.augment import mirrored_rows
from clipreid.training.captions import Captions, draw_captions, each_once, odd_captions, said_of, tokenised
from clipreid.training.run import Run
from clipreid.training.sampling import draw_classes, sample_size
from clipreid.training.sets import RunData, check_batch
from clipreid.training.stage import Batch

Batches = Callable[[int], Sequence[Batch]]  # of an epoch
# Of a view's uint8 images [B, 3, H, W], with a generator and (rank, processes): what they become, and further keys of
# the batch, [B] each; drawn for the global batch, as in `augment`
Change = Callable[[int, Tensor, torch.Generator, tuple[int, int]], tuple[Tensor, Batch]]
CHANGES = 6947  # keeps the draws of `change` apart from those of augmentation


class Lazy(Sequence[Batch]):
    """`count` batches, each made by `make(nth)` when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Batch]) -> None:
        self.steps, self.make = count, make

    def __len__(self) -> int:
        return self.steps

    @overload
    def __getitem__(self, nth: int) -> Batch: ...
    @overload
    def __getitem__(self, nth: slice) -> Sequence[Batch]: ...
    def __getitem__(self, nth: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(nth, slice):
            return [self.make(each) for each in range(self.steps)[nth]]
        return self.make(range(self.steps)[nth])

    def __iter__(self) -> Iterator[Batch]:
        return (self.make(nth) for nth in range(self.steps))


def image_batches(
    run: Run,
    *,
    views: int = 1,
    captions: Captions | None = None,
    every_caption: bool = False,
    change: Change | None = None,
) -> Batches:
    """PK batches of augmented images: "pixels" [B, 3, H, W] normalised, "labels", "cameras", "views", "rows" [B], and
    with sample_classes below 1 "classes" [S].

    Args:
        run: its method's settings have identities_per_batch, images_per_identity, balance, flip, pad (pixels at a
            height of 256), erase, and perhaps tint, tint_share and sample_classes.
        views: how often each image is in the batch, each time augmented anew: [views x B] rows, the first view first.
        captions: the sentences of every image [N] (`run.data.captions`). One of each is drawn, as "captions" [B, L]
            token ids, with "captioned" [B] bool: whether there is any. In that of a mirrored image left and right
            change places. What is odd about them is said, with numbers.
        every_caption: not P identities x K images, but as many images in random order, so that every caption comes once
            an epoch; an image with two comes twice.
        change: what is done to the images of a view before they are augmented, called as
            `change(view, images, generator, share)`; it gives the same keys for every view.

    Raises:
        UserError: P is not divisible by the number of processes, or such batches cannot be drawn.
        ValueError: captions for a backbone without a tokenizer; every_caption without captions.
    """
    config, data, device, share = run.config, run.data, run.device, run.share
    tokenizer, said = run.backbone.tokenizer, None if captions is None else said_of(captions)
    if captions is not None and tokenizer is None:
        raise ValueError("captions need a backbone with a tokenizer")
    if every_caption and said is None:
        raise ValueError("every_caption needs captions")
    for note in odd_captions(captions, tokenizer) if captions is not None else ():
        run.log.say(f"note: captions: {note}")
    P, K, (cameras, views_of) = config.identities_per_batch, config.images_per_identity, data.sides
    crops, sampled = cache_on_gpu(run.crops(), device), sample_size(config, len(data.names))  # uint8 [N, 3, H, W]

    def make_view(images: Tensor, epoch: int, nth: int, view: int) -> tuple[Tensor, Tensor, Batch]:
        more: Batch = {}
        if change is not None:
            generator = torch.Generator().manual_seed(seed_for(run.seed, epoch, nth, CHANGES + view))
            images, more = change(view, images, generator, share)
        seed = seed_for(run.seed, epoch, nth, *[view] * bool(view))
        mirrored = mirrored_rows(len(images), config.flip, torch.Generator().manual_seed(seed), share)
        return augmented(run, images, torch.Generator().manual_seed(seed), share), mirrored, more

    def batches(epoch: int) -> Sequence[Batch]:
        which = None
        if every_caption and said is not None:
            drawn, which = each_once(said, P * K, run.seed, epoch)  # [steps, G] both
            which = process_slice(which, *share, K=1)
        else:
            drawn = mixed_pk_indices(data.labels, data.groups, P, K, run.seed, epoch, config.balance)  # [steps, G]
        mine = process_slice(drawn, *share, K=1 if every_caption else K)  # [steps, B]

        def make(nth: int) -> Batch:
            rows = mine[nth]
            images = crops.index_select(0, rows.to(crops.device)).to(device)  # uint8 [B, 3, H, W]
            made = [make_view(images, epoch, nth, view) for view in range(views)]
            pixels, mirrored, more = zip(*made, strict=True)
            texts: Batch = {}
            if said is not None:
                chosen = draw_captions(said, rows, run.seed, epoch, nth) if which is None else which[nth]
                again = rows.repeat(views), chosen.repeat(views), torch.cat(mirrored)
                texts = tokenised(said, tokenizer, *again)
            rows = rows.repeat(views)
            batch = {"labels": data.labels[rows], "cameras": cameras[rows], "views": views_of[rows], "rows": rows}
            batch |= {name: torch.cat([keys[name] for keys in more]) for name in more[0]} | texts
            if sampled is not None:
                own = data.labels[drawn[nth]].unique()
                batch["classes"] = draw_classes(own, len(data.names), sampled, run.seed, epoch, nth)
            return {"pixels": torch.cat(pixels), **{name: x.to(device) for name, x in batch.items()}}

        return Lazy(len(drawn), make)

    return batches


def augmented(run: Run, images: Tensor, generator: torch.Generator, share: tuple[int, int] = (0, 1)) -> Tensor:
    """uint8 [B, 3, H, W] to augmented, normalised pixels of the same shape, by the settings of the run's method."""
    config, backbone = run.config, run.backbone
    pad = round(config.pad * images.shape[2] / 256)
    return augment(
        images,
        mean=backbone.mean,
        std=backbone.std,
        generator=generator,
        flip=config.flip,
        pad=pad,
        erase=config.erase,
        tint=getattr(config, "tint", 0.0),
        tint_share=getattr(config, "tint_share", 1.0),
        share=share,
    )


def feature_batches(features: Callable[[], Tensor], labels: Tensor, size: int, seed: int) -> Batches:
    """Cached features of all images, shuffled: "features" [B, E], "labels", "rows" [B]; the same in every process.

    features: gives [N, ...]; called once, when the first batch is asked for.  labels: [N], on the same device.
    The last batch of an epoch is smaller, never empty.
    """
    size = min(size, len(labels))

    def batches(epoch: int) -> Sequence[Batch]:
        order = torch.Generator().manual_seed(seed_for(seed, epoch + 1))
        parts = torch.randperm(len(labels), generator=order).split(size)

        def make(nth: int) -> Batch:
            rows = parts[nth].to(labels.device)
            return {"features": features()[rows], "labels": labels[rows], "rows": rows}

        return Lazy(len(parts), make)

    return batches


def cache_on_gpu(crops: Pixels, device: torch.device) -> Pixels:
    """The whole uint8 cache on a GPU where it fills less than half of the free memory; else as it is."""
    if device.type == "cuda" and crops.numel() < torch.cuda.mem_get_info(device)[0] / 2:
        return crops.to(device)
    return crops


def fit_batches(config: Any, data: RunData, flags: RunConfig, processes: int) -> Any:
    """The config with P, K and epochs as the data allow, for methods that train on PK batches.

    K (4 where it is not given) follows the data where most identities have fewer images, but is at least 2; P (16)
    then keeps the batch full, and is divisible by the number of processes. Small data gets more epochs, until there are
    `least_steps` steps.

    Raises:
        UserError: a P or K that was given cannot be drawn from the data or shared by the processes.
    """
    P, K = config.identities_per_batch, config.images_per_identity
    counts = np.unique(data.mixture.identities, return_counts=True)[1]
    asked = P is not None
    if K is None:
        K = int(min(4, max(2, np.median(counts))))
    if P is None:
        P = max(16, min(16 * 4 // K, len(counts)))
        P = P // processes * processes or P
    if asked and P % processes:
        process_slice(torch.zeros(1, P * K), 0, processes, K=K)  # refuses it
    check_batch(data.mixture, P, K, config.balance)
    config = replace(config, identities_per_batch=P, images_per_identity=K)
    if config.least_steps:
        steps = len(mixed_pk_indices(data.labels, data.groups, P, K, flags.seed, 0, config.balance))
        config = replace(config, epochs=max(config.epochs, -(-config.least_steps // steps)))
    return config
