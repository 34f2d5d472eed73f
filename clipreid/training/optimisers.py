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
    """A group for each pair of rate and decay, of which there are few: towers and heads, decayed or not. LoRA is not
    decayed. Fused on a GPU.

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
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # by (rate, decay)
    for name, parameter in (module or model).named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix("model.")
        scale = 1.0 if own.startswith("text.") else of_tower.get(own, factor)
        rate = config.rate * scale if own.startswith(tower) else config.head_rate
        rate *= config.bias_rate_factor if own.endswith("bias") else 1.0
        undecayed = config.optimiser == "adamw" and (parameter.ndim < 2 or own.startswith(lora))
        groups.setdefault((rate, 0.0 if undecayed else config.weight_decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "base": rate, "weight_decay": decayed}
        for (rate, decayed), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    on_gpu = any(p.is_cuda for parameters in groups.values() for p in parameters)
    fused = True if on_gpu else None  # on a CPU it would change last digits
    optimiser = kind(settings, lr=config.rate, eps=getattr(config, "adam_eps", 1e-8), fused=fused)
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
