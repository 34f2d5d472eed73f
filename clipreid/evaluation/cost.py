"""What a feature costs: weights, arithmetic and time of an image tower."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(module: nn.Module) -> int:
    """Number of weights, each counted once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def gflops(forward: Callable[[Tensor], object], size: tuple[int, int], device: torch.device | str = "cpu") -> float:
    """Thousand millions of multiply-adds for one image, as the papers' "GFLOPs" count them (OSNet's 0.98).

    Matrix products and convolutions, those inside the attention too; norms and activations are left out.

    Args:
        forward: pixels [1, 3, H, W] -> anything.
        size: (H, W) in pixels.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not all counted
        forward(torch.zeros(1, 3, *size, device=device))
    return counter.get_total_flops() / 2e9


@torch.no_grad()
def latency(
    forward: Callable[[Tensor], object],
    size: tuple[int, int],
    batch_size: int,
    device: torch.device | str = "cpu",
    repeats: int = 5,
) -> float:
    """Milliseconds per image: the median over `repeats` batches of noise, after one that is not counted.

    Args:
        forward: pixels [B, 3, H, W] -> anything.
        size: (H, W) in pixels.
    """
    pixels = torch.randn(batch_size, 3, *size, device=device)
    taken = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        forward(pixels)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return 1000 * median(taken[1:]) / batch_size
