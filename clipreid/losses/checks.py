"""When a loss may look at values."""

from __future__ import annotations

import torch
from torch import Tensor


def readable(x: Tensor) -> bool:
    """Whether values of `x` can be looked at for nothing: on a CPU, outside of compiled code.

    Elsewhere every look waits for the device, or breaks the graph in two. A loss that cannot be is then NaN, which ends
    a training with a message (`clipreid.training.watch`).
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
