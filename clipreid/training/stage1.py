"""Stage 1: learn a few prompt tokens per identity; both encoders stay frozen (CLIP-ReID, section 3.2).

N pictures, B batch, I identities, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from clipreid.backbones import Backbone
from clipreid.data import Pixels, normalise, seed_for
from clipreid.evaluation import extract
from clipreid.losses import image_text_logits, supcon_loss
from clipreid.prompts import IdentityPrompts
from clipreid.training import checkpoint
from clipreid.training.config import Values
from clipreid.training.harness import Log, Progress
from clipreid.training.schedules import prompt_rate


def text_scale(backbone: Backbone) -> float | None:
    """Temperature of image-text logits: None (raw dot products) for OpenAI's CLIP, else the backbone's own."""
    return None if backbone.raw_logits else backbone.logit_scale


def prompt_loss(images: Tensor, texts: Tensor, labels: Tensor, scale: float | None) -> dict[str, Tensor]:
    """L_i2t and L_t2i of CLIP-ReID (eq. 4-5), for images [B, E] and the text of each image's identity [B, E]."""
    logits = image_text_logits(images, texts, scale)  # [B, B]
    return {
        "i2t_loss": supcon_loss(logits, labels, labels),
        "t2i_loss": supcon_loss(logits.T, labels, labels),
    }


def image_features(backbone: Backbone, crops: Pixels, pixels: tuple, accelerator: Accelerator) -> Tensor:
    """Features of all training pictures in the text space, [N, E]: computed once, without augmentation."""
    mean, std = pixels
    tower = backbone.image.eval()
    found = extract(lambda batch: tower(normalise(batch, mean, std)).pooled, crops, accelerator=accelerator)
    assert isinstance(found, Tensor)
    return found


def learn_prompts(
    accelerator: Accelerator,
    log: Log,
    backbone: Backbone,
    features: Tensor,
    labels: Tensor,
    values: Values,
    *,
    noun: str | Sequence[str],
    tokens: int,
    seed: int,
    folder: Path,
    resume: bool = False,
) -> IdentityPrompts:
    """Trains `IdentityPrompts` on cached image features.

    The pictures of several data sets are shuffled together: a text is set against pictures of every set.

    Args:
        features, labels: [N, E] and [N] long, 0..I-1, on the training device.
        values: rates, epochs, batch.
        noun: for the prompts; one, or one for each identity.
        folder: where checkpoints go.
        resume: continue from the last checkpoint of this stage, if there is one.

    Returns:
        The trained prompts, on the training device.
    """
    device, count = accelerator.device, len(labels)
    drawn = torch.Generator().manual_seed(seed_for(seed, 0, 0, 0))
    prompts = IdentityPrompts(backbone, int(labels.max()) + 1, noun, tokens, drawn).to(device)
    optimiser = torch.optim.Adam([prompts.context], lr=values.prompt_rate, weight_decay=1e-4)
    start = 0
    if resume and (found := checkpoint.latest(folder / "checkpoints", "stage1")):
        start = int(checkpoint.load(found, prompts, optimiser)["epoch"])
        log.say(f"stage 1 resumes after epoch {start}")
    wrapped, scale = accelerator.prepare(prompts), text_scale(backbone)
    batch = min(values.prompt_batch, count)
    per_epoch = -(-count // batch)  # the last batch is smaller, never empty
    progress = Progress(log, "stage 1", values.prompt_epochs * per_epoch, batch, start * per_epoch)
    for epoch in range(start, values.prompt_epochs):
        rate = prompt_rate(epoch + 1, values.prompt_epochs, values.prompt_rate, values.prompt_warmup)
        optimiser.param_groups[0]["lr"] = rate
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed_for(seed, epoch + 1)))
        for nth, index in enumerate(shuffled.split(batch)):
            index = index.to(device)
            identities, place = labels[index].unique(return_inverse=True)  # each identity is encoded once
            texts = wrapped(identities).index_select(0, place)  # [B, E]
            losses = prompt_loss(features[index], texts, labels[index], scale)
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(sum(losses.values()))
            optimiser.step()
            progress.update(epoch * per_epoch + nth, losses)
        done = epoch + 1
        if done % max(1, values.prompt_epochs // 10) == 0 or done == values.prompt_epochs:
            progress.close_epoch(done * per_epoch - 1, f"epoch {done}/{values.prompt_epochs}", rate=rate)
            if accelerator.is_main_process:
                checkpoint.save(folder / "checkpoints", f"stage1-{done:05d}", prompts, optimiser, {"epoch": done})
    accelerator.wait_for_everyone()
    return prompts


@torch.no_grad()
def separability(features: Tensor, bank: Tensor, labels: Tensor, scale: float | None) -> dict[str, float]:
    """How well the text bank [I, E] tells the training pictures [N, E] apart, 0..1.

    `text_to_image`: identities whose most similar picture is their own; `image_to_text`: pictures whose most
    similar text is their own.
    """
    logits = image_text_logits(features, bank, scale)  # [N, I]
    own = torch.arange(len(bank), device=labels.device)
    return {
        "text_to_image": (labels[logits.argmax(0)] == own).float().mean().item(),
        "image_to_text": (logits.argmax(1) == labels).float().mean().item(),
    }
