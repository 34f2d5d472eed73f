"""The strength dial: how much of what training changed takes part, from none (zero-shot) to all of it (the run)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipreid.backbones import load_backbone
from clipreid.backbones.imported import IMPORTED
from clipreid.errors import UserError
from clipreid.model import ReIDModel


def check_strength(strength: float) -> float:
    """The strength, if it is a number from 0 to 1; raises `UserError` else."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise UserError(f"strength {strength!r}: give a number from 0 (zero-shot) to 1 (as trained)")
    return float(strength)


def set_strength(model: ReIDModel, strength: float) -> ReIDModel:
    """Scales what training changed in a model that embeds, in place; may be called again with another strength.

    At 0 the features are those of the backbone before training, at 1 those of the run, both exactly. In between:

        LoRA          the update is scaled: W + s * (alpha / r) B A; of a trained text tower too
        full tuning   weights between before and after: (1 - s) W0 + s W (WiSE-FT, arXiv 2109.01903, equation 1)
        head tuning   the linear maps between the identity and what was learned, likewise
        token hooks   by themselves (`TokenHook.strength`): side information is multiplied by s

    For full tuning the backbone is read again, and both ends stay in memory. The aggregator stays as it
    is: with one that was trained (SAGA), 0 is not zero-shot.

    Returns:
        The same model.

    Raises:
        UserError: not a number from 0 to 1; less than 1 for an imported run, whose base is not known.
    """
    strength = check_strength(strength)
    if strength == model.strength:
        return model
    adapted = [model.image] if model.tuning == "lora" else []
    adapted += [model.text] if model.text is not None and model.text_tuning == "lora" else []
    for layer in (layer for tower in adapted for layer in _lora_layers(tower)):
        layer.set_scale("default", strength)
    _interpolate(model, strength)
    hooks: list[Any] = list(model.hooks.values())
    for hook in hooks:
        hook.strength = strength
    model.strength = strength
    return model


@torch.no_grad()
def keep_strength(model: ReIDModel) -> ReIDModel:
    """Makes the model's present strength part of its weights, in place: from then on it is the whole (1).

    Returns:
        The same model, with the same features.

    Raises:
        ValueError: token hooks, whose own strength is no weight.
    """
    if model.hooks:
        raise ValueError("the strength of a model with token hooks cannot become part of its weights")
    for layer in _lora_layers(model):
        if "default" in layer.lora_B:
            layer.lora_B["default"].weight.mul_(model.strength)
            layer.set_scale("default", 1.0)
    model.ends, model.strength = {}, 1.0  # what is interpolated is in the weights already
    return model


def _lora_layers(module: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer  # loaded with the adapters already

    return [layer for layer in module.modules() if isinstance(layer, LoraLayer)]


@torch.no_grad()
def _interpolate(model: ReIDModel, strength: float) -> None:
    """Sets the weights of towers that were trained whole, and of linear maps, between the two ends, found once."""
    trained = {f"maps.{name}": tensor for name, tensor in model.maps.state_dict().items()}
    if model.tuning == "full":
        trained |= {f"image.{name}": tensor for name, tensor in model.tower.state_dict().items()}
    if model.text is not None and model.text_tuning == "full":
        trained |= {f"text.{name}": tensor for name, tensor in model.text.state_dict().items()}
    if trained and not model.ends:
        towers = any(not name.startswith("maps.") for name in trained)
        before = (_base(model) if towers else {}) | {
            n: torch.eye(len(t)) for n, t in trained.items() if n[:5] == "maps."
        }
        model.ends = {name: (before[name].to(tensor.device), tensor.clone()) for name, tensor in trained.items()}
    for name, tensor in trained.items():
        start, end = model.ends[name]
        if tensor.is_floating_point():
            tensor.copy_(start.lerp(end, strength))  # exact at 0 and at 1
        else:  # counts of batches
            tensor.copy_(end if strength else start)


def _base(model: ReIDModel) -> dict[str, Tensor]:
    """The weights of the towers before full tuning: "image.NAME" and, where there is text, "text.NAME"."""
    (backbone,) = model.source
    if backbone.name == IMPORTED:
        raise UserError(
            "strength: an imported run holds no backbone from before its training to mix with; "
            "only strength 1 is known of it"
        )
    stride = None if backbone.family == "image-only" else backbone.image.config.stride
    fresh = load_backbone(
        backbone.name,
        revision=backbone.revision,
        image_size=backbone.image_size,
        positions=backbone.positions,
        stride=stride,
    )
    return {name: x for name, x in fresh.state_dict().items() if name.startswith(("image.", "text."))}


def parse_strengths(text: str) -> tuple[float, ...]:
    """`0,0.25,1` as numbers, each once, in the order given.

    Raises:
        UserError: something that is no number from 0 to 1.
    """
    found = []
    for word in text.split(","):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            raise UserError(
                f"--strength {text}: {word.strip() or '(nothing)'} is no number from 0 (zero-shot) to 1 "
                "(as trained); give such as 0,0.25,0.5,0.75,1"
            )
        found.append(number)
    return tuple(dict.fromkeys(found))
