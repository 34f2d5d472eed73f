"""How fast a stage is: the arithmetic of its steps against what the device can do, and a trace of a few of them.

Nothing here changes what is trained, and nothing waits for the device in a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clipreid.training.machine import matrix_rate
from clipreid.training.profiling import StageProfile
from clipreid.training.run import Run
from clipreid.training.stage import Batch, Stage


def flop_counter() -> Any:
    """A context that counts floating point operations as they are done: `get_total_flops()`."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count  # slow to import

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas: dict[Any, Any] = {  # from the shapes of the arguments
        attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


class Gauge:
    """Counts the arithmetic of a stage's first step, and traces a few later ones where `--profile` asks for it.

    steps: how many this process will take.

    Attributes:
        least: seconds that a step of this process would take if all of it were products of matrices; None where the
            batches hold no images, and with `--compile`, as the counter does not see into compiled code. What is
            computed twice (`--gradient-checkpointing`, `--accumulate`) is counted twice.
    """

    def __init__(self, stage: Stage, run: Run, steps: int) -> None:
        self.stage, self.run, self.first = stage, run, True
        self.compiled = run.flags.compile and not stage.shared
        self.least: float | None = None
        self.profile = StageProfile(stage, run, steps) if run.flags.profile else None

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Around one step on the batch."""
        if self.first and self.compiled:
            before = _breaks()
            yield
            self.run.log.say(f"{self.stage.name}  compiled, graph breaks: {_breaks() - before}")
        elif self.first and "pixels" in batch:
            with flop_counter() as counter:
                yield
            dtype = torch.bfloat16 if self.run.flags.precision == "bf16" else torch.float32
            self.least = counter.get_total_flops() / matrix_rate(self.run.device, dtype)
        else:
            yield
        self.first = False
        if self.profile is not None:
            self.profile.step()


def _breaks() -> int:
    """How often torch.compile had to leave a graph so far."""
    from torch._dynamo.utils import counters  # slow to import

    return sum(counters["graph_break"].values())
