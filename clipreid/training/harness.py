"""The small shared frame of both stages: processes, threads, log, progress. No loop lives here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from clipreid.errors import UserError, print_user_errors
from clipreid.training.config import RunConfig

Config = TypeVar("Config")


def launch(main: Callable[[Config], object], config: Config) -> None:
    """Runs a recipe: what the user can mend is printed as one message and ends with status 2, without traceback."""
    with print_user_errors("interrupted; --resume with the same --output continues from the last checkpoint"):
        main(config)


def set_threads(threads: int | None) -> int:
    """Gives this process its share of the cores: `accelerate launch` and torchrun set OMP_NUM_THREADS to 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: must be at least 1")
    count = threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    return count


def seed_weights(seed: int) -> None:
    """From here on new weights are drawn alike for the same seed.

    For recipes, which do not import torch themselves: it would be there before clipreid, which says how threads wait.
    """
    torch.manual_seed(seed)


def check_writable(output: Path, example: str) -> None:
    """Refuses an --output file that could not be written, before anything slow; makes its folder."""
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give a file, such as {output / example}")
    new = not output.exists()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
        if new:
            output.unlink()
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): give another file") from error


def make_accelerator(config: RunConfig) -> Accelerator:
    """Processes, devices, autocast and trackers, all through accelerate."""
    log_with = None if config.track == "none" else config.track
    return Accelerator(mixed_precision=config.precision, log_with=log_with)


def start_tracking(accelerator: Accelerator, config: RunConfig, resolved: dict[str, Any]) -> None:
    """Opens the tracker that was asked for; only once the run folder is ours."""
    if config.track != "none":
        flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in resolved.items()}
        accelerator.init_trackers("clipreid", config=flat)


class Log:
    """`log.jsonl` in the run folder, the trackers, and lines for the person who waits."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.accelerator, self.file = accelerator, folder / "log.jsonl"
        self.main = accelerator.is_main_process

    def say(self, text: str) -> None:
        """Prints a line, on the main process only."""
        if self.main:
            print(text, flush=True)

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Appends one JSON line, and sends numbers to the trackers."""
        if self.main:
            with open(self.file, "a") as handle:
                handle.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        numbers = {f"{stage}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        self.accelerator.log(numbers | {f"{stage}/step": step})  # stages count their steps from 1: no common axis


class Progress:
    """Mean losses of the epoch so far, pictures per second and time left.

    Prints every few seconds (`update`) and at the end of an epoch (`close_epoch`), which is also logged.
    """

    def __init__(self, log: Log, stage: str, steps: int, per_step: int, first: int = 0, every: float = 10.0) -> None:
        self.log, self.stage, self.steps, self.per_step, self.every = log, stage, steps, per_step, every
        self.first, self.begun, self.printed = first, time.monotonic(), time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def update(self, step: int, losses: dict[str, Tensor]) -> None:
        """Counts one step (0-based) and its losses; nothing is copied from the device until a line is due."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.count += 1
        if time.monotonic() - self.printed > self.every:
            self._line(step, f"step {step + 1}/{self.steps}", {})

    def close_epoch(self, step: int, where: str, **more: float) -> None:
        """Prints and logs the means of the epoch, and begins the next."""
        rate, means = self._line(step, where, more)
        self.log.write(self.stage, step + 1, loss=sum(means.values()), images_per_second=rate, **means, **more)
        self.sums, self.count = {}, 0

    def _line(self, step: int, where: str, more: dict[str, float]) -> tuple[float, dict[str, float]]:
        self.printed = time.monotonic()
        rate = (step + 1 - self.first) * self.per_step / max(self.printed - self.begun, 1e-9)
        left = (self.steps - step - 1) * self.per_step / rate
        means = {name: float(value) / max(self.count, 1) for name, value in self.sums.items()}
        parts = ", ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in means.items())
        extra = "".join(f"  {name} {value:.3g}" for name, value in more.items())
        total = f"loss {sum(means.values()):7.3f} ({parts})"
        self.log.say(f"{self.stage}  {where:14s} {total}{extra}  {rate:6.0f} images/s  {clock(left)} left")
        return rate, means


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
