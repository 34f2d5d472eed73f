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


def own_memory() -> float:
    """What this process has taken, in MB, also where the system has put it aside; without mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return sum(int(found[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1000


def soak(street: Path, backbone: str, run: Path, epochs: int, file: Path) -> None:
    """Trains for so many epochs; writes the memory after every 100 steps, in MB."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    seen: list[float] = []
    update = Progress.update

    def watched(self: Progress, *args: Any) -> None:
        update(self, *args)
        if self.step % EVERY == 0:
            seen.append(own_memory())

    Progress.update = watched  # type: ignore[method-assign]
    given = {"prompts": "none", "epochs": epochs, "least_steps": 0, "checkpoint_every": 50, "checkpoint_steps": 10}
    short_run(clip_reid, street, run, backbone=backbone, **given)
    file.write_text(json.dumps([round(each, 1) for each in seen]), encoding="utf-8")
