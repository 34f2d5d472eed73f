"""Optimisers and schedules that methods share, and the guard that keeps losses in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from clipreid.model import ReIDModel
from clipreid.training.sampling import SampledRows
from clipreid.training.schedules import cosine_factor, step_factor
from clipreid.training.sizes import rate_factors, sized


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """In this block there is no autocast: losses and distances are computed in float32."""
    return torch.autocast(device.type, enabled=False)


def stage_optimiser(model: ReIDModel, config: Any, module: nn.Module | None = None) -> torch.optim.Optimizer:
    """Few groups: towers and heads, each with matrices, biases and other vectors. LoRA is not decayed.

    Token hooks belong to the tower where all of the tower is trained (as published for side information), elsewhere to
    the heads. Where rates fall from block to block (`layer_decay`), each block of the tower has groups of its own.

    Args:
        model: whose trainable parameters are optimised.
        config: with rate, head_rate, bias_rate_factor, optimiser, weight_decay, and perhaps adam_eps, rate_factor and
            layer_decay (None: by the size of the image tower, whose blocks alone they are of).
        module: instead of the model, with names of its own: what is not "model.image." and so on are heads.
    """
    config = sized(config, model.tower)
    tower = ("image.", "text.", "maps.", *["hooks."] * (model.tuning == "full"))
    tunings = {"image.": model.tuning, "text.": model.text_tuning}
    lora = tuple(name for name, tuning in tunings.items() if tuning == "lora")
    factor, decay = getattr(config, "rate_factor", 1.0), getattr(config, "layer_decay", 1.0)
    of_tower = rate_factors((name for name, _ in model.image.named_parameters(prefix="image")), factor, decay)
    groups: dict[tuple[bool, bool, bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in (module or model).named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("model.")
            in_tower, is_lora = own.startswith(tower), own.startswith(lora)
            scale = of_tower.get(own, factor) if in_tower and not own.startswith("text.") else 1.0
            place = in_tower, is_lora, own.endswith("bias"), parameter.ndim < 2, scale
            groups.setdefault(place, []).append(parameter)
    settings = []
    for (in_tower, is_lora, is_bias, is_vector, scale), parameters in groups.items():
        rate = (config.rate * scale if in_tower else config.head_rate) * (config.bias_rate_factor if is_bias else 1.0)
        undecayed = config.optimiser == "adamw" and (is_vector or is_lora)
        decayed = 0.0 if undecayed else config.weight_decay
        settings.append({"params": parameters, "lr": rate, "base": rate, "weight_decay": decayed})
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    optimiser = kind(settings, lr=config.rate, eps=getattr(config, "adam_eps", 1e-8))
    for part in (module or model).modules():
        if isinstance(part, SampledRows):
            optimiser.register_step_pre_hook(part.step)
    return optimiser


def stage_rate(config: Any) -> Callable[[float], float]:
    """The factor on every base rate: stepped once an epoch (as published for CLIP-ReID), or cosine within epochs."""

    def factor(at: float) -> float:
        if config.schedule == "steps":
            return step_factor(int(at) + 1, config.milestones, 0.1, config.warmup, config.warmup_factor)
        return cosine_factor(at, config.epochs, config.warmup, config.warmup_factor)

    return factor
