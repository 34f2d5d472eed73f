"""How far training moved the weights of a tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clipreid.model import ReIDModel
from clipreid.training.run import Run


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


def weight_drift(tower: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """The same of full tuning: |W - W0| / |W0| of every Linear whose weight W0 `before` has, by the name of the Linear.

    before: of the tower's state dict.
    """
    found = {}
    for name, layer in tower.named_modules():
        if isinstance(layer, nn.Linear) and (old := before.get(f"{name}.weight")) is not None:
            found[name] = ((layer.weight.detach() - old).norm() / old.norm()).item()
    return found


def report_drift(run: Run, model: ReIDModel) -> None:
    """Logs |dW|/|W| of every adapted Linear, and warns when the adapter hardly moved."""
    drift = lora_drift(model)
    if not drift:
        return
    run.log.write("drift", run.config.epochs, **drift)
    run.log.say(f"adapter moved |dW|/|W| by {min(drift.values()):.1%} to {max(drift.values()):.1%} of the weights")
    if max(drift.values()) < 1e-3:
        run.log.warn("the adapter hardly moved; raise --rate or --epochs")
