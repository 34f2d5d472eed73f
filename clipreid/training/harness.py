"""The small frame around the loop: processes, threads, log, progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from clipreid.config import RunConfig
from clipreid.errors import UserError, ignore_closed
from clipreid.hub.files import LOG, TENSORBOARD
from clipreid.training.machine import half_slowdown

SPLIT = {  # what `accelerate launch` says in the environment
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}


def set_threads(threads: int | None) -> int:
    """Gives this process its share of the cores: `accelerate launch` and torchrun set OMP_NUM_THREADS to 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(64, 4 * cores)  # more than cores: an interrupted run continues on a smaller machine
    if threads is not None and not 1 <= threads <= most:
        bound = "at least 1" if threads < 1 else f"at most {most} on this machine of {cores} cores"
        raise UserError(f"--threads {threads}: must be {bound}")
    count = threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    return count


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


def make_accelerator(config: RunConfig, folder: Path | None = None) -> Accelerator:
    """Processes, devices, autocast and trackers, all through accelerate.

    folder: of the run, for a tracker that writes files.

    Raises:
        UserError: accelerate is configured to split the model over the processes.
    """
    for name, variable in SPLIT.items():  # asked here, for on a CPU accelerate itself leaves it out without a word
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"accelerate is configured for {name}, which splits the model over the processes; here each keeps it "
                "whole, for optimisers, checkpoints and the saved run are of whole parameters. Launch with "
                "recipes/accelerate/ddp.yaml instead; --tuning lora and --gradient-checkpointing save memory"
            )
    log_with = None if config.track == "none" else config.track
    place = ProjectConfiguration(logging_dir=str((folder or Path()) / TENSORBOARD))
    return Accelerator(mixed_precision=config.precision, log_with=log_with, project_config=place)


def slow_half(precision: str, device: torch.device) -> str | None:
    """A warning where half precision makes training slower: on a CPU without instructions for it, 20 to 30 times."""
    if precision == "no" or device.type != "cpu" or (times := half_slowdown()) < 1.5:
        return None
    return f"--precision {precision}: matrix products take {times:.1f} times as long as in float32 on this CPU"


def start_tracking(accelerator: Accelerator, config: RunConfig, resolved: dict[str, Any]) -> None:
    """Opens the tracker that was asked for; only once the run folder is ours."""
    if config.track != "none":
        flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in resolved.items()}
        try:
            accelerator.init_trackers("clipreid", config=flat)
        except Exception as error:  # of somebody else's program, network or account
            raise UserError(
                f"--track {config.track} does not start ({type(error).__name__}: {error}): log in there, or leave it "
                "out; log.jsonl in the run folder is always written"
            ) from error


class Log:
    """`log.jsonl` in the run folder, the trackers, and lines for the person who waits.

    prefix: in front of the names that the trackers get, for a training beside the run's own.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, prefix: str = "") -> None:
        self.accelerator, self.file, self.prefix = accelerator, folder / LOG, prefix
        self.main = accelerator.is_main_process
        self.warned: list[str] = []  # to be said again at the end: what scrolled by in training is not read

    def warn(self, text: str, about: str = "") -> None:
        """Prints a warning, and keeps it for the end of the run.  about: what it is of, a stage or a data set."""
        self.warned.append(f"{about}  {text}" if about else text)
        self.say(f"{about}  warning: {text}" if about else f"warning: {text}")

    def say(self, text: str) -> None:
        """Prints a line, on the main process only. A closed stdout (`... | head`) does not end a training."""
        if self.main:
            try:
                print(text, flush=True)
            except BrokenPipeError:
                if not ignore_closed(sys.stdout):
                    raise

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Appends one JSON line, and sends numbers to the trackers; one that fails is warned of, and left alone."""
        if self.main:
            with open(self.file, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self.send(stage, step, values)

    def send(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Sends numbers to the trackers alone."""
        stage = f"{self.prefix}{stage}"
        numbers = {f"{stage}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        # no common axis, for each stage counts from 1; tensorboard has one for each name
        axis = {"step": step} if any(each.name == "tensorboard" for each in self.accelerator.trackers) else {}
        self.track(lambda: self.accelerator.log(numbers | {f"{stage}/step": step}, **axis))

    def track(self, do: Callable[[], object]) -> None:
        """Does something with the trackers; one that fails is warned of and let go, and ends no training."""
        try:
            do()
        except Exception as error:  # of somebody else's program, network or account
            self.accelerator.trackers = []
            self.warn(
                f"the tracker failed ({type(error).__name__}: {error}) and gets nothing more; {self.file} goes on"
            )
            do()


class Progress:
    """Mean losses of the epochs since the last line, images per second and time left.

    The clock starts behind the first step, which may compute the features of all images or compile.

    Prints every few seconds (`update`) and at the end of epochs (`close_epochs`), which is also logged.

    Attributes:
        least: seconds that a step takes at the least on this device (`speed.Gauge`), where that is known.

    Args:
        stage: its name.  epochs: how many are left.  per_epoch: steps of one.  done: steps before this process began.
    """

    def __init__(self, log: Log, stage: str, epochs: int, per_epoch: int, done: int = 0, every: float = 10.0) -> None:
        self.log, self.stage, self.every = log, stage, every
        self.step, self.steps = done, done + epochs * per_epoch
        self.begun = self.printed = time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.started = False
        self.timed_steps = self.timed_images = 0  # behind the first step
        self.least: float | None = None

    def update(self, losses: dict[str, Tensor], images: int) -> None:
        """Counts one step, its losses and its images; nothing is copied from the device until a line is due."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.count, self.step = self.count + 1, self.step + 1
        if not self.started:
            self.started, self.begun = True, time.monotonic()
        else:
            self.timed_steps, self.timed_images = self.timed_steps + 1, self.timed_images + images
        if time.monotonic() - self.printed > self.every:
            self._line(f"step {self.step}/{self.steps}", {})

    def counted(self) -> dict[str, Tensor]:
        """All steps, and what was summed since the last line, for a checkpoint."""
        steps = {"step": torch.tensor(self.step), "steps": torch.tensor(self.count)}
        return {**steps, **{f"losses.{name}": x for name, x in self.sums.items()}}

    def count_on(self, steps: int, counted: Mapping[str, Tensor], device: torch.device) -> None:
        """Goes on from `counted`, of an earlier process, `steps` steps within the epoch.

        Epochs need not have the same number of steps, so the number of all of them is kept.
        """
        self.step, self.count = int(counted.get("step", self.step + steps)), int(counted.get("steps", 0))
        self.sums = {
            name.removeprefix("losses."): x.to(device) for name, x in counted.items() if name.startswith("losses.")
        }

    def close_epochs(
        self, epoch: int, epochs: int, logged: Mapping[str, float] = MappingProxyType({}), **more: float
    ) -> None:
        """Prints and logs the means, after `epoch` of `epochs`, and begins the next.  logged: for the log only."""
        speed, means = self._line(f"epoch {epoch}/{epochs}", more)
        figures = {"loss": sum(means.values()), **speed, **means, **more, **logged}
        self.log.write(self.stage, self.step, epoch=epoch, **figures)
        self.sums, self.count = {}, 0

    def _line(self, where: str, more: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Prints a line; how fast it is, and the mean losses."""
        means = {name: float(value) / max(self.count, 1) for name, value in self.sums.items()}  # waits for the device
        self.printed = time.monotonic()
        spent = max(self.printed - self.begun, 1e-9)
        step = spent / max(self.timed_steps, 1)
        speed = {"images_per_second": self.timed_images / spent}
        if self.timed_steps:
            speed["step_ms"] = 1000 * step
            if self.least is not None:
                speed["mfu"] = self.least / step
        parts = ", ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in means.items())
        extra = "".join(f"  {name} {value:.3g}" for name, value in more.items())
        total = f"loss {sum(means.values()):7.3f} ({parts})"
        fast = f"{speed['images_per_second']:6.0f} images/s"
        fast += f"  {speed['step_ms']:.0f} ms/step" if "step_ms" in speed else ""
        fast += f"  MFU {speed['mfu']:.0%}" if "mfu" in speed else ""
        left = clock(max(0, self.steps - self.step) * step)
        self.log.say(f"{self.stage}  {where:14s} {total}{extra}  {fast}  {left} left")
        return speed, means


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
