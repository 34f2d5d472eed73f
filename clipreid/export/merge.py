"""What is learned beside the image tower, put into its own weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from clipreid.model import ReIDModel


@torch.no_grad()
def bake(model: ReIDModel) -> ReIDModel:
    """A copy that gives the features of `model.embed` without adapters and without side information.

    LoRA is added to the weights it adapts (at the model's strength). Of side information stays what unknown cameras
    and views get, the mean embedding, added to the CLS token; linear maps (head tuning) stay as they are.

    Returns:
        The copy, in eval mode, on the CPU, without text tower: it cannot `embed_text`, nor be saved as a run.
    """
    memo: dict[int, Any] = {id(model.source): (), id(model.ends): {}}  # not copied: they are large, and not needed
    baked = copy.deepcopy(model, memo).cpu().eval()
    if model.config.tuning == "lora":
        baked.image = baked.image.merge_and_unload()  # type: ignore[operator]
        baked.config = replace(baked.config, tuning="full")
    if baked.side is not None:
        tower: Any = baked.tower
        tower.embeddings.class_embedding += baked.side(None, None, 1)[0]  # [C]
        baked.side, baked.config = None, replace(baked.config, sie="none", cameras=(), views=())
    return baked
