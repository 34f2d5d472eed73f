"""A long stage 2 on a very small tower, in a process of its own, whose memory is looked at: for `test_memory.py`."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from short_runs import short_run

from clipreid.methods import clip_reid
from clipreid.training.harness import Progress

EVERY = 100  # steps


def resident() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(street: Path, backbone: str, run: Path, epochs: int, file: Path) -> None:
    """Trains for so many epochs; writes the memory after every 100 steps, in MB."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    seen: list[float] = []
    update = Progress.update

    def watched(self: Progress, *args: Any) -> None:
        update(self, *args)
        if self.step % EVERY == 0:
            seen.append(resident())

    Progress.update = watched  # type: ignore[method-assign]
    given = {"prompts": "none", "epochs": epochs, "least_steps": 0, "checkpoint_every": 50, "checkpoint_steps": 10}
    short_run(clip_reid, street, run, backbone=backbone, **given)
    file.write_text(json.dumps([round(each, 1) for each in seen]), encoding="utf-8")
