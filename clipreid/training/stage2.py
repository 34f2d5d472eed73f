"""Stage 2: adapt the image tower, pulled towards the learned text features (CLIP-ReID, section 3.3).

P identities x K pictures make the global batch G; E embedding, I identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipreid.data import Pixels, augment, mixed_pk_indices, process_slice, seed_for
from clipreid.losses import id_loss, image_text_logits, triplet_loss
from clipreid.model import Output, ReIDModel
from clipreid.training import checkpoint
from clipreid.training.config import Values
from clipreid.training.harness import Log, Progress
from clipreid.training.schedules import cosine_factor, step_factor


def tuning_loss(
    output: Output, labels: Tensor, bank: Tensor | None, scale: float | None, values: Values
) -> dict[str, Tensor]:
    """The three weighted terms of CLIP-ReID (eq. 9): ID on both necks, triplet on three taps, image-to-text.

    Args:
        output: features and logits of the global batch.
        labels: [G] long.
        bank: [I, E] fixed text features; None leaves the image-to-text term out.
        scale: temperature of image-text logits, None for raw dot products.
    """
    losses = {
        "id_loss": values.weight_id * sum(id_loss(x, labels, values.smoothing) for x in output.logits.values()),
        "triplet_loss": values.weight_triplet
        * sum(triplet_loss(x, labels, values.margin) for x in output.features.values()),
    }
    if bank is not None:
        logits = image_text_logits(output.features["projection"], bank, scale)  # [G, I]
        losses["i2t_loss"] = values.weight_i2t * id_loss(logits, labels, values.smoothing)
    return losses  # type: ignore[return-value]


def make_optimiser(model: ReIDModel, values: Values) -> torch.optim.Optimizer:
    """Few groups: tower and heads, each with matrices, biases and other vectors. LoRA is not decayed.

    The embedding of side information belongs to the tower where the tower is trained (as published), elsewhere to
    the heads. Each group carries `base`, its rate before the schedule.
    """
    tower_rate = values.rate[values.tuning]
    tower = ("image.", "maps.", "side.") if values.tuning == "full" else ("image.", "maps.")
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = name.startswith(tower), name.endswith("bias"), parameter.ndim < 2
            groups.setdefault(place, []).append(parameter)
    settings = []
    for (in_tower, is_bias, is_vector), parameters in groups.items():
        rate = (tower_rate if in_tower else values.head_rate) * (values.bias_rate_factor if is_bias else 1.0)
        undecayed = values.optimiser == "adamw" and (is_vector or (in_tower and values.tuning == "lora"))
        decay = 0.0 if undecayed else values.weight_decay
        settings.append({"params": parameters, "lr": rate, "base": rate, "weight_decay": decay})
    kind = torch.optim.AdamW if values.optimiser == "adamw" else torch.optim.Adam
    return kind(settings, lr=tower_rate)


def rate_factor(values: Values, epoch: int, step: int, per_epoch: int) -> float:
    """Factor on every base rate: stepped once an epoch (as published) or cosine within epochs. `epoch` from 0."""
    if values.schedule == "steps":
        return step_factor(epoch + 1, values.milestones, 0.1, values.warmup, values.warmup_factor)
    return cosine_factor(epoch + step / per_epoch, values.epochs, values.warmup, values.warmup_factor)


def on_device(crops: Pixels, device: torch.device) -> Pixels:
    """The whole uint8 cache on a GPU where it fills less than half of the free memory; else as it is."""
    if device.type == "cuda" and crops.numel() < torch.cuda.mem_get_info(device)[0] / 2:
        return crops.to(device)
    return crops


def tune(
    accelerator: Accelerator,
    log: Log,
    model: ReIDModel,
    crops: Pixels,
    labels: Tensor,
    bank: Tensor | None,
    scale: float | None,
    values: Values,
    *,
    seed: int,
    folder: Path,
    sides: Sequence[Tensor] = (),
    groups: Tensor | None = None,
    balance: str = "proportional",
    resume: bool = False,
    checkpoint_every: int = 1,
) -> None:
    """Trains `model` in place.

    Args:
        crops, labels: uint8 [N, 3, H, W] (memory-mapped) and [N] long, 0..I-1.
        bank, scale: the text bank [I, E] of stage 1 and the temperature of its logits; None for no text.
        values: weights, rates, epochs, batch, augmentation.
        folder: where checkpoints go.
        sides: cameras [N] and views [N] of the pictures, for a model with side information.
        groups, balance: [N] the data set of each picture, where there are several, and how they share a batch
            (`set_shares`).
        resume: continue from the last checkpoint of this stage, bit for bit, if there is one.
    """
    device = accelerator.device
    rank, size = accelerator.process_index, accelerator.num_processes
    P, K = values.identities_per_batch, values.pictures_per_identity
    model.to(device)
    optimiser, start = make_optimiser(model, values), 0
    if resume and (found := checkpoint.latest(folder / "checkpoints", "stage2")):
        start = int(checkpoint.load(found, model, optimiser)["epoch"])
        log.say(f"stage 2 resumes after epoch {start}")
    wrapped = accelerator.prepare(model)
    crops, labels = on_device(crops, device), labels.to(device)
    bank = None if bank is None else bank.to(device)
    groups = torch.zeros(len(labels), dtype=torch.long) if groups is None else groups
    pad = round(values.pad * model.image_size[0] / 256)
    progress: Progress | None = None
    step = 0
    for epoch in range(values.epochs):
        rows = mixed_pk_indices(labels.cpu(), groups, P, K, seed, epoch, balance)  # [steps, P*K]
        if epoch < start:
            step += len(rows)
            continue
        mine = process_slice(rows, rank, size, K=K)
        progress = progress or Progress(log, "stage 2", step + (values.epochs - epoch) * len(rows), P * K, step)
        wrapped.train()
        for nth in range(len(rows)):
            factor = rate_factor(values, epoch, nth, len(rows))
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor
            drawn = torch.Generator().manual_seed(seed_for(seed, epoch, nth))
            batch = crops.index_select(0, mine[nth].to(crops.device)).to(device)
            pixels = augment(batch, mean=model.config.mean, std=model.config.std, generator=drawn, flip=values.flip,
                             pad=pad, erase=values.erase, share=(rank, size))  # fmt: skip
            told = [side[mine[nth]].to(device) for side in sides]  # [B] each
            losses = tuning_loss(wrapped(pixels, *told), labels[rows[nth].to(device)], bank, scale, values)
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(sum(losses.values()))
            optimiser.step()
            progress.update(step, losses)
            step += 1
        progress.close_epoch(step - 1, f"epoch {epoch + 1}/{values.epochs}")
        if accelerator.is_main_process and (epoch + 1 == values.epochs or (epoch + 1) % checkpoint_every == 0):
            checkpoint.save(folder / "checkpoints", f"stage2-{epoch + 1:05d}", model, optimiser, {"epoch": epoch + 1})
    accelerator.wait_for_everyone()
    model.eval()


def lora_drift(model: ReIDModel) -> dict[str, float]:
    """|dW| / |W| (Frobenius) of every adapted Linear, by name; empty unless LoRA was used.

    dW = alpha / r * B A, Hu et al., arXiv 2106.09685, eq. 3.
    """
    drift = {}
    for name, layer in model.tower.named_modules():
        parts: Any = layer
        if hasattr(layer, "lora_A"):
            delta = parts.lora_B["default"].weight @ parts.lora_A["default"].weight * parts.scaling["default"]
            drift[name] = (delta.norm() / parts.base_layer.weight.norm()).item()
    return drift
