"""How far adapters moved the weights they adapt."""

from __future__ import annotations

from typing import Any

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


def report_drift(run: Run, model: ReIDModel) -> None:
    """Logs |dW|/|W| of every adapted Linear, and warns when the adapter hardly moved."""
    drift = lora_drift(model)
    if not drift:
        return
    run.log.write("drift", run.config.epochs, **drift)
    run.log.say(f"adapter moved |dW|/|W| by {min(drift.values()):.1%} to {max(drift.values()):.1%} of the weights")
    if max(drift.values()) < 1e-3:
        run.log.warn("the adapter hardly moved; raise --rate or --epochs")
