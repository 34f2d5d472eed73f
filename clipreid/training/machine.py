"""What this machine can do, measured: products of matrices, half precision, compiling."""

from __future__ import annotations

import functools
import time

import torch

from clipreid.errors import UserError

TRIES, LEAST, ENOUGH = 10, 3, 0.05  # products of matrices that are timed: most, least, seconds after which no more


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations in a second, in products of large square matrices: the best of several.

    Measured once in a process, which takes some 20 to 100 ms.
    """
    side = 8192 if device.type == "cuda" else 512 if torch.get_num_threads() <= 4 else 1024
    drawn = torch.Generator(device).manual_seed(0)  # the random numbers of the training stay as they are
    a, b = (torch.rand(side, side, device=device, generator=drawn).to(dtype) for _ in range(2))
    _seconds_of(a, b)
    best, begun = float("inf"), time.perf_counter()
    for nth in range(TRIES):
        best = min(best, _seconds_of(a, b))
        if nth + 1 >= LEAST and time.perf_counter() - begun > ENOUGH:
            break
    return 2 * side**3 / best


def _seconds_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of one product."""
    begun = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begun


def half_slowdown() -> float:
    """How many times as long a matrix product takes in bfloat16 as in float32, on this CPU."""
    cpu = torch.device("cpu")
    return matrix_rate(cpu, torch.float32) / matrix_rate(cpu, torch.bfloat16)


def check_compiles(device: torch.device) -> None:
    """Refuses, with `UserError`, a machine where torch.compile does not work; takes some seconds."""
    try:
        torch.compile(lambda x: (2 * x).sin())(torch.ones(8, device=device))
    except Exception as error:  # of whatever compiler there is, or is not
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--compile: torch.compile does not work here ({said}): a CPU needs a C++ compiler (g++), a GPU triton and "
            "a C compiler; install it, or leave the flag out"
        ) from error
