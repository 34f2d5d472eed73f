"""What trackers receive: numbers, settings and training crops, read back from what they wrote."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import toy_run, toy_stage

from clipreid.config import RunConfig
from clipreid.errors import UserError
from clipreid.training import trackers
from clipreid.training.harness import Log, make_accelerator, start_tracking
from clipreid.training.run import Run
from clipreid.training.trackers import as_images, check_tracker, show_crops

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())  # it looks at this when it is imported, and never again
NAMES = ["wandb", "tensorboard", "trackio"]


def crops() -> torch.Tensor:
    """uint8 [20, 8, 4, 3]"""
    return torch.randint(0, 256, (20, 8, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def batch() -> dict[str, torch.Tensor]:
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return {"pixels": ((crops() / 255 - mean) / std).permute(0, 3, 1, 2)}


def test_images_are_those_that_were_normalised() -> None:
    assert torch.equal(as_images(batch()["pixels"], MEAN, STD), crops())
    assert as_images(torch.full((1, 3, 2, 2), 99.0), MEAN, STD).unique().tolist() == [255]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track trackio: trackio is not installed \(pip install trackio\)"):
        check_tracker("trackio")
    check_tracker("none")


def tracked(name: str, folder: Path) -> Run:
    """A run that has sent two lines, its settings and the crops of a stage, and has ended."""
    flags = RunConfig(track=name)  # type: ignore[arg-type]
    accelerator = make_accelerator(flags, folder)
    run = replace(toy_run(folder), accelerator=accelerator, log=Log(folder, accelerator))
    run.backbone = SimpleNamespace(mean=MEAN, std=STD)  # type: ignore[assignment]
    start_tracking(accelerator, flags, {"lora_rank": 16, "tuning": "lora", "data": ["synthetic"], "pad": None})
    stage = toy_stage(run)
    show_crops(stage, run, batch())
    for step in (3, 6):
        run.log.write("toy", step, loss=step / 2)
    run.log.track(accelerator.end_training)
    assert run.log.warned == []
    return run


def read_wandb(folder: Path) -> tuple[bool, bool, int]:
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    ends = time.monotonic() + 30  # a process of its own writes, and goes on after the run has ended
    while b"toy/loss" not in (content := record.read_bytes()) and time.monotonic() < ends:
        time.sleep(0.1)
    return (
        b"toy/loss" in content,
        b"lora_rank" in content,
        len(list(record.parent.glob("files/media/images/toy/*.png"))),
    )


def read_tensorboard(folder: Path) -> tuple[bool, bool, int]:
    """It puts the images of one name side by side."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard" / "clipreid"))
    found.Reload()
    losses = [(point.step, point.value) for point in found.Scalars("toy/loss")]
    (settings,) = folder.glob("tensorboard/clipreid/*/hparams.yml")
    (image,) = found.Images("toy/crops")
    within = image.width * image.height // (8 * 4)  # of crops of 8x4, with lines between them
    return losses == [(3, 1.5), (6, 3.0)], "lora_rank: 16" in settings.read_text("utf-8"), min(within, trackers.SHOWN)


def read_trackio(_: Path) -> tuple[bool, bool, int]:
    import sqlite3

    from trackio.utils import TRACKIO_DIR as folder

    with sqlite3.connect(folder / "clipreid.db") as store:
        metrics = [row[0] for row in store.execute("select metrics from metrics")]
        configs = [row[0] for row in store.execute("select config from configs")]
    losses = [line for line in metrics if "toy/loss" in str(line)]
    images = list((folder / "media").rglob("*.png"))
    return len(losses) == 2, any("lora_rank" in str(line) for line in configs), len(images)


@pytest.mark.parametrize(
    ("name", "read"), [("wandb", read_wandb), ("tensorboard", read_tensorboard), ("trackio", read_trackio)]
)
def test_numbers_settings_and_crops_arrive(
    name: str, read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracked(name, tmp_path)
    assert read(tmp_path) == (True, True, trackers.SHOWN)


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_at_images_ends_nothing(name: str, tmp_path: Path) -> None:
    """A stand-in: whatever it is asked, it fails; nobody asks it twice."""

    class Dead:
        def __getattr__(self, asked: str) -> Any:
            raise ConnectionError(f"no {asked}")

    dead = Dead()
    dead.name = name
    run = toy_run(tmp_path)
    run.backbone = SimpleNamespace(mean=MEAN, std=STD)  # type: ignore[assignment]
    run.accelerator.trackers = [dead]
    show_crops(toy_stage(run), run, batch())
    (warned,) = run.log.warned
    assert warned.startswith("the tracker failed (")
    assert run.accelerator.trackers == []
