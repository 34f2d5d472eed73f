"""Optimisers and schedules that methods share, and the guard that keeps losses in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from clipreid.model import ReIDModel
from clipreid.training.schedules import cosine_factor, step_factor


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """In this block there is no autocast: losses and distances are computed in float32."""
    return torch.autocast(device.type, enabled=False)


def stage_optimiser(model: ReIDModel, config: Any, module: nn.Module | None = None) -> torch.optim.Optimizer:
    """A group for each pair of rate and decay, of which there are few: tower and heads, decayed or not. LoRA is not
    decayed. Fused on a GPU.

    Token hooks belong to the tower where all of the tower is trained (as published for side information), elsewhere to
    the heads.

    Args:
        model: whose trainable parameters are optimised.
        config: with rate, head_rate, bias_rate_factor, optimiser, weight_decay.
        module: instead of the model, with names of its own: what is not "model.image." and so on are heads.
    """
    tower = ("image.", "maps.", "hooks.") if model.tuning == "full" else ("image.", "maps.")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # by (rate, decay)
    for name, parameter in (module or model).named_parameters():
        if not parameter.requires_grad:
            continue
        in_tower = name.removeprefix("model.").startswith(tower)
        rate = (config.rate if in_tower else config.head_rate) * (
            config.bias_rate_factor if name.endswith("bias") else 1.0
        )
        undecayed = parameter.ndim < 2 or (in_tower and model.tuning == "lora")
        decay = 0.0 if config.optimiser == "adamw" and undecayed else config.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "base": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    on_gpu = any(p.is_cuda for parameters in groups.values() for p in parameters)
    return kind(settings, lr=config.rate, fused=True if on_gpu else None)  # on a CPU it would change last digits


def stage_rate(config: Any) -> Callable[[float], float]:
    """The factor on every base rate: stepped once an epoch (as published for CLIP-ReID), or cosine within epochs."""

    def factor(at: float) -> float:
        if config.schedule == "steps":
            return step_factor(int(at) + 1, config.milestones, 0.1, config.warmup, config.warmup_factor)
        return cosine_factor(at, config.epochs, config.warmup, config.warmup_factor)

    return factor
