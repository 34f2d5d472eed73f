"""The frame around the loop: threads, clock, log, progress."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipreid.config import RunConfig
from clipreid.errors import UserError
from clipreid.reports.training_curves import read_losses
from clipreid.training import harness
from clipreid.training.harness import Log, Progress, clock, half_slowdown, set_threads, slow_half, start_tracking


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Eight cores, whatever this machine has, and the number of threads put back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    yield monkeypatch
    torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "expected"), [(None, 8), (1, 8), (2, 4), (3, 2), (8, 1), (16, 1)])
def test_local_processes_share_the_cores(cores: pytest.MonkeyPatch, processes: int | None, expected: int) -> None:
    """`accelerate launch` and torchrun set OMP_NUM_THREADS=1: without this each process would use one core."""
    torch.set_num_threads(1)
    if processes is not None:
        cores.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert set_threads(None) == expected
    assert torch.get_num_threads() == expected


def test_threads_can_be_given(cores: pytest.MonkeyPatch) -> None:
    cores.setenv("LOCAL_WORLD_SIZE", "2")
    assert set_threads(3) == torch.get_num_threads() == 3
    for wrong, message in (
        (0, "--threads 0: must be at least 1"),
        (-1, "--threads -1: must be at least 1"),
        (1000, "--threads 1000: must be at most 64 on this machine of 8 cores"),
    ):
        with pytest.raises(UserError, match=message):
            set_threads(wrong)
    assert torch.get_num_threads() == 3


def test_threads_without_affinity(cores: pytest.MonkeyPatch) -> None:
    """macOS and Windows cannot say which cores a process may use."""
    cores.delattr(os, "sched_getaffinity")
    cores.setattr(os, "cpu_count", lambda: 5)
    assert set_threads(None) == 5
    cores.setattr(os, "cpu_count", lambda: None)
    assert set_threads(None) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (36062, "10:01:02"),
     (-5, "0:00")],
)  # fmt: skip
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# Log and progress -------------------------------------------------------------------------------------------------


class Tracker:
    """A tracker that fails."""

    def __init__(self, do: Any, name: str = "wandb") -> None:
        self.do, self.name = do, name


class Recorder:
    """Stands in for accelerate: remembers what would go to the trackers."""

    def __init__(self, is_main: bool = True) -> None:
        self.is_main_process = is_main
        self.sent: list[dict[str, float]] = []
        self.trackers: list[Any] = []

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        for tracker in self.trackers:
            tracker.do()
        self.sent.append(values)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_appends_json_lines_and_sends_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    for step in (1, 2):  # two Logs: a resumed run continues the file
        log = Log(tmp_path, recorder)  # type: ignore[arg-type]
        log.write("stage1", step, loss=0.5, note="text")
    assert lines(tmp_path) == [{"stage": "stage1", "step": step, "loss": 0.5, "note": "text"} for step in (1, 2)]
    # no common step: stages count theirs from 1, and a tracker drops what lies behind its last step
    assert recorder.sent == [{"stage1/loss": 0.5, "stage1/step": step} for step in (1, 2)]
    log.say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_only_the_main_process_writes_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path, Recorder(is_main=False))  # type: ignore[arg-type]
    log.say("hello")
    log.write("stage1", 1, loss=0.5)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_tracker_that_fails_is_let_go_and_training_goes_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()

    def dead() -> None:
        raise ConnectionError("the service is gone")

    recorder.trackers = [Tracker(dead, name)]
    log = Log(tmp_path, recorder)  # type: ignore[arg-type]
    for step in (1, 2):
        log.write("stage1", step, loss=0.5)
    said = f"the tracker failed (ConnectionError: the service is gone) and gets nothing more; {log.file} goes on"
    assert log.warned == [said]
    assert capsys.readouterr().out == f"warning: {said}\n"
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_tracker_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def init_trackers(*args: Any, **more: Any) -> None:
        raise RuntimeError("no API key")

    with pytest.raises(UserError, match=r"--track wandb does not start \(RuntimeError: no API key\): log in"):
        start_tracking(SimpleNamespace(init_trackers=init_trackers), RunConfig(track="wandb"), {})  # type: ignore


def test_epochs_are_read_back_whatever_happened_to_the_file(tmp_path: Path) -> None:
    """An epoch that was trained twice counts once, a line that was cut off not at all."""
    log = Log(tmp_path, Recorder())  # type: ignore[arg-type]
    assert read_losses(log.file) == {}
    for stage, epoch, loss in (("a", 1, 3.0), ("b", 1, 9.0), ("a", 2, 5.0), ("a", 2, 2.0)):
        log.write(stage, epoch, epoch=epoch, loss=loss)
    log.write("a", 2, note="no loss")
    with open(log.file, "a") as handle:
        handle.write('[1]\n{"stage": "a", "epo')
    assert [line["loss"] for line in read_losses(log.file)["a"]] == [3.0, 2.0]


def test_progress_prints_means_speed_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr("time.monotonic", lambda: now.value)
    # 80 steps of 4 epochs are left, 20 were done before a resume
    progress = Progress(Log(tmp_path, Recorder()), "stage2", 4, 20, done=20, every=10.0)  # type: ignore[arg-type]
    for loss in (1.0, 3.0):
        now.value += 4.0
        progress.update({"id_loss": torch.tensor(loss), "i2t_loss": torch.tensor(0.5, requires_grad=True)}, 64)
    assert capsys.readouterr().out == ""  # not yet due
    now.value += 4.0
    progress.update({"id_loss": torch.tensor(5.0), "i2t_loss": torch.tensor(0.5)}, 64)
    printed = capsys.readouterr().out
    assert "stage2  step 23/100" in printed
    assert "loss   3.500 (id 3.000, i2t 0.500)" in printed
    assert "16 images/s" in printed  # 2 x 64 in the 8 seconds behind the first step, and nothing before a resume
    assert printed.endswith("5:08 left\n")  # 77 steps of 4 seconds
    assert not (tmp_path / "log.jsonl").exists()  # only whole epochs are logged
    progress.update({"id_loss": torch.tensor(7.0), "i2t_loss": torch.tensor(0.5)}, 32)  # a smaller batch
    progress.close_epochs(1, 5, rate=0.001)
    assert "epoch 1/5      loss   4.500 (id 4.000, i2t 0.500)  rate 0.001" in capsys.readouterr().out
    progress.update({"id_loss": torch.tensor(2.0), "i2t_loss": torch.tensor(1.0)}, 64)
    progress.close_epochs(2, 5)
    first, second = lines(tmp_path)
    assert (first["step"], first["epoch"], first["loss"], first["id_loss"], first["rate"]) == (24, 1, 4.5, 4.0, 0.001)
    assert (second["step"], second["epoch"], second["loss"], second["id_loss"]) == (25, 2, 3.0, 2.0)  # anew
    assert first["images_per_second"] == pytest.approx((2 * 64 + 32) / 8)


def test_half_precision_that_makes_training_slower_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert half_slowdown() > 0
    monkeypatch.setattr(harness, "half_slowdown", lambda: 26.14)
    assert "bf16: matrix products take 26.1 times as long" in str(slow_half("bf16", cpu))
    assert slow_half("no", cpu) is None
    assert slow_half("bf16", torch.device("cuda")) is None
    monkeypatch.setattr(harness, "half_slowdown", lambda: 0.6)
    assert slow_half("bf16", cpu) is None


def test_a_closed_stdout_does_not_end_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recipe | head -1`: nobody reads the lines any more, and log.jsonl goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(tmp_path, SimpleNamespace(is_main_process=True, trackers=[], log=lambda values: None))  # type: ignore[arg-type]
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        for step in range(3):
            log.say(f"epoch {step}")
            log.write("stage2", step, loss=0.5)
        print("other lines, too", flush=True)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
