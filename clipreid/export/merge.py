"""What is learned beside the image tower, put into its own weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from clipreid.model import ReIDModel


@torch.no_grad()
def bake(model: ReIDModel) -> ReIDModel:
    """A copy that gives the features of `model.embed` without adapters and token hooks.

    LoRA is added to the weights it adapts (at the model's strength). Of side information stays what unknown cameras
    and views get, the mean embedding, added to the CLS token; linear maps (head tuning) stay as they are.

    Raises:
        UserError: a token hook that cannot be part of the weights (`TokenHook.bake`).

    Returns:
        The copy, in eval mode, on the CPU, without text tower: it cannot `embed_text`, nor be saved as a run.
    """
    (backbone,) = model.source
    # not copied, for they are large: what is kept of the weights before training, and the text tower
    memo: dict[int, Any] = {id(model.source): (), id(model.ends): {}}
    memo |= {id(part): part for part in (backbone, backbone.text) if part is not None}
    memo[id(model.text)] = None
    baked = copy.deepcopy(model, memo).cpu().eval()
    if model.tuning == "lora":
        baked.image = baked.image.merge_and_unload()  # type: ignore[operator]
        baked.tuning = "full"
    hooks: list[Any] = list(baked.hooks.values())
    for hook in hooks:
        hook.bake(baked.tower)
    baked.hooks = nn.ModuleDict()
    baked.aggregator.bake()
    return baked
