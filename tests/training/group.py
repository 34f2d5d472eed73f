"""What the processes of `test_processes.py` do; they are started by the name of a function here."""

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

from toys import Killed, dying, toy_run, toy_stage, turns_stage

from clipreid.backbones import load_backbone
from clipreid.config import RunConfig
from clipreid.data import load_data
from clipreid.errors import print_user_errors
from clipreid.evaluation.score import score
from clipreid.model import untrained_model
from clipreid.training.endings import explained
from clipreid.training.harness import make_accelerator
from clipreid.training.stage import Batch
from clipreid.training.train import train


def interrupt(folder: Path, at: tuple[int, int]) -> None:
    """Both stages of `toys.train_both`, the second up to (epoch, step), with a checkpoint after every step."""
    run = toy_run(folder, checkpoint_steps=1)
    train(turns_stage(run), run)
    stage = toy_stage(run)
    stage.batches = dying(stage.batches, at)
    try:
        train(stage, run)
    except Killed:
        return
    raise AssertionError("it was not interrupted")


def die_in_step(folder: Path, nth: int) -> None:
    """A stage as a recipe runs it; the second process is killed after `nth` steps. What the first one says is kept."""
    run = toy_run(folder)
    stage, steps = toy_stage(run), count(1)
    follow = stage.after_step
    assert follow is not None

    def after_step(batch: Batch) -> None:
        follow(batch)
        if next(steps) == nth and not run.main:
            os.kill(os.getpid(), signal.SIGKILL)

    stage.after_step = after_step
    if run.main:
        sys.stderr = open(folder / "stderr.txt", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    with print_user_errors(), explained(run):
        train(stage, run)


def score_folder(street: Path, file: Path) -> None:
    """The figures of the untrained tiny-clip on the street, by feature."""
    accelerator = make_accelerator(RunConfig())
    model = untrained_model(load_backbone("tiny-clip", image_size=(64, 32)))
    found = score(load_data(f"folder:{street}"), model, accelerator=accelerator)
    if accelerator.is_main_process:
        file.write_text(json.dumps({name: report.metrics for name, report in found.reports.items()}, indent=1))
