"""Averages of weights along the steps of a stage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from clipreid.training.stage import Batch, Stage


class WeightAverage(nn.Module):
    """Exponential moving averages of the trainable weights of a module.

    `average = d average + (1 - d) weights` after each step, where d grows to `decay` like (1 + t) / (10 + t): so that
    the first steps do not stay in it for long.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for nth, parameter in enumerate(trained(module)):
            self.register_buffer(f"weight{nth}", parameter.detach().clone())

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """After a step."""
        t = int(self.steps.add_(1))  # type: ignore[operator]
        keep = min(self.decay, (1 + t) / (10 + t))
        for nth, parameter in enumerate(trained(module)):
            getattr(self, f"weight{nth}").lerp_(parameter, 1 - keep)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Puts the averages in the place of the weights."""
        for nth, parameter in enumerate(trained(module)):
            parameter.copy_(getattr(self, f"weight{nth}"))


def trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def averaged(stage: Stage, decay: float) -> Stage:
    """The stage, which ends with the averages of its weights; itself where `decay` is 0.

    Raises:
        ValueError: a stage with a memory or callbacks of its own.
    """
    if not decay:
        return stage
    if stage.memory is not None or stage.after_step is not None or stage.after_epoch is not None:
        raise ValueError(f"{stage.name} has a memory or callbacks already: average its weights there")
    average = WeightAverage(stage.module, decay)

    def after_step(batch: Batch) -> None:
        average.follow(stage.module)

    def after_epoch(done: int) -> None:
        if done == stage.epochs:
            average.copy_to(stage.module)

    return replace(stage, memory=average, after_step=after_step, after_epoch=after_epoch)
