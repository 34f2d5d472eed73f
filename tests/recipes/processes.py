"""Functions in processes of their own: several of one group, as torchrun starts them, or one that a test may kill.

They are forked from a server that has imported torch, peft and clipreid once: starting Python anew and importing these
takes more than ten times as long as what these tests do. `tests/recipes/test_two_stage.py` starts torchrun itself.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

WARM = ("peft", "clipreid.training.launch", "clipreid.methods.clip_reid", "clipreid.methods.saga")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forked(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """`function(*args)` in another process, not started yet; it must be importable by its module's name."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WARM))
    return context.Process(target=_calm, args=(function, args))


def in_processes(count: int, function: Callable[..., Any], *args: Any) -> None:
    """`function(*args)` in each of `count` processes of one group.

    Raises:
        AssertionError: one of them failed (its traceback is printed) or did not end in 240 seconds.
    """
    started = members(count, function, *args)
    for member in started:
        member.join(240)
    codes = [member.exitcode for member in started]
    for member in started:
        member.kill()
    assert codes == [0] * count, f"exit codes {codes}"


def members(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The same processes, started and not waited for."""
    port = free_port()
    found = [forked(_member, rank, count, port, function, args) for rank in range(count)]
    for member in found:
        member.start()
    return found


def _calm(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    function(*args)


def _member(rank: int, count: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    function(*args)
