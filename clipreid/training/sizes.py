"""What changes with the size of a tower: the rates of towers wider or deeper than ViT-B, for which they were chosen.

Adam moves every weight by about the rate in a step, whatever the gradient. The relative update |dW|/|W| of a matrix
with C inputs, whose weights are near C^-1/2, then grows with the root of C. LoRA's does so once A has moved away from
where it started (before, it does not depend on C). So the rate falls with the root of the width.

A tower of L blocks adds up L updates, of which each counts L^-1/2 (the stream that they are added to grows with the
root of L): equal updates of all blocks move the features by the root of L. So the rate falls with the root of the
depth: for LoRA alike in all blocks (few groups are quick), for full tuning from nothing in the last block to all of it
in the first. Up to 48 blocks no block then moves less than half as far as ViT-B's.

Both exponents are derived, and checked for the size of updates on random weights (`benchmarks/update_size.py`). No
figure of a large backbone stands behind them (assumed). Not changed by size: the warm-up, a number of steps in which
Adam's second moment is uncertain; the clipping of gradients, to whose size Adam is blind; LoRA's rank, on which the
update does not depend once alpha follows it (`clipreid.model.usual_alpha`); the rates of heads and prompts.

C width, L blocks of the tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from clipreid.model import usual_alpha

WIDTH, DEPTH = 768, 12  # of ViT-B
LEAST = 0.6  # of ViT-B's |dW|/|W|, that no block gets less: by chance half of it, then
BLOCK = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")  # in the name of a parameter


def depth_of(names: Iterable[str]) -> int:
    """The number of blocks that the names of parameters speak of; 0 for a tower without."""
    return 1 + max((int(found[1]) for name in names if (found := BLOCK.search(name))), default=-1)


def size_rule(width: int, depth: int, tuning: str) -> tuple[float, float]:
    """The factor on the rate of a tower, and the further one from each block to the one below it; 1 and 1 up to ViT-B's
    size."""
    root = min(1.0, WIDTH / width) ** 0.5
    least = max(LEAST, root * min(1.0, DEPTH / max(depth, 1)) ** 0.5)  # of |dW|/|W|, as a share of ViT-B's
    if tuning == "lora":
        return least, 1.0
    fall = min(1.0, least / root) if tuning == "full" else 1.0  # from the last block to the first
    return root**2, fall ** (1 / max(depth - 1, 1))


def sized(config: Any, tower: nn.Module) -> Any:
    """The settings with numbers where they leave rate_factor, layer_decay and lora_alpha to the size of the tower."""
    open = [name for name in ("rate_factor", "layer_decay", "lora_alpha") if getattr(config, name, 1.0) is None]
    if not open:
        return config
    width: Any = tower.width
    factor, decay = size_rule(width, depth_of(name for name, _ in tower.named_parameters()), config.tuning)
    found = {"rate_factor": factor, "layer_decay": decay, "lora_alpha": usual_alpha(config.lora_rank)}
    return replace(config, **{name: found[name] for name in open})


def rate_factors(names: Iterable[str], factor: float, decay: float) -> dict[str, float]:
    """The factor on the rate of each parameter of a tower, by name, in the order of the tower.

    What is before the first block counts as part of it, what is behind the last one as part of that.
    """
    names = list(names)
    last, found, block = max(depth_of(names) - 1, 0), dict[str, float](), 0
    for name in names:
        block = int(match[1]) if (match := BLOCK.search(name)) else (last if block else 0)
        found[name] = factor * decay ** (last - block)
    return found


def about_size(config: Any) -> str | None:
    """A sentence for people where the size of the tower changes rates (of settings that are `sized`)."""
    factor, decay = getattr(config, "rate_factor", 1.0), getattr(config, "layer_decay", 1.0)
    if factor == decay == 1:
        return None
    falls = f", and by {decay:.4g} from each block to the one below" * (decay != 1)
    return f"--rate {config.rate:g} is multiplied by {factor:.3g}{falls} (--rate-factor, --layer-decay)"
