"""A run in a process of its own, which is killed at a chosen event: for `test_chaos.py`.

Events are what changes files (opened for writing, renamed, removed, made) and the steps of training. Some time is
added, so that the kill also hits what lies between two events.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from short_runs import short_run

from clipreid.methods import get_method
from clipreid.training.harness import Progress

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def run_to(name: str, street: str, output: str, init: str | None, kill_at: int, delay: float, log: str) -> None:
    """A short run of a method, or what is left of it. The line of each event goes into the file `log`.

    kill_at: the number of the event, from 1, that starts the end of this process; 0: none.  delay: seconds until then.
    """
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    with open(log, "a", buffering=1, encoding="utf-8") as lines:
        happened = counter(kill_at, delay, lambda line: lines.write(f"{line}\n"), Path(output))
        sys.addaudithook(happened)
        update = Progress.update

        def counted(self: Progress, *args: Any) -> None:
            happened("step", (self.stage, self.step + 1))
            update(self, *args)

        Progress.update = counted  # type: ignore[method-assign]
        method, more = get_method(name), {"checkpoint_steps": 2, "resume": True}
        small = {own: 8 for own in ("prompt_batch", "text_batch") if hasattr(method.Config, own)}  # several steps
        short_run(method, Path(street), Path(output), Path(init) if init else None, **small, **more)


def counter(kill_at: int, delay: float, say: Callable[[str], object], folder: Path) -> Callable[[str, Any], None]:
    count, inside = 0, False

    def happened(event: str, args: Any) -> None:
        nonlocal count, inside
        if inside or not (event == "step" or (_changes(event, args) and str(folder) in str(args[0]))):
            return
        inside = True
        count += 1
        say(f"{count} {event} {' '.join(str(x) for x in args[:2])}")
        if count == kill_at:
            threading.Thread(target=_end_after, args=(delay,)).start()
        inside = False

    return happened


def _changes(event: str, args: Any) -> bool:
    """Whether an audit event changes files."""
    writes = event == "open" and isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return writes or event in CHANGES


def _end_after(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)
