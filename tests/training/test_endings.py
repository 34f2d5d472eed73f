"""Runs that end before their time: each says what was kept and how to go on, and nothing that was kept is lost."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from toys import STEPS, toy_run, toy_stage, weights

from clipreid.errors import Terminated, UserError
from clipreid.training import checkpoint
from clipreid.training.endings import explained
from clipreid.training.lock import RunLock, lock_folder, refuse_in_use
from clipreid.training.run import Run
from clipreid.training.train import train

FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path / "run")


def failing(do: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """`do`, which raises an error from a certain call on."""
    calls = [0]

    def either(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > times:
            raise error
        return do(*args, **more)

    return either


def trained(run: Run, **more: Any) -> None:
    with explained(run):
        train(toy_stage(run, **more), run)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_disk_that_fails_in_a_checkpoint_says_which_was_the_last_and_resume_ends_as_a_whole_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", failing(checkpoint.save_file, error, times=3))
        with pytest.raises(UserError) as caught:
            trained(run)
    last = run.folder / "checkpoints" / "toy-00003"
    assert f"the last checkpoint is {last}" in str(caught.value)
    assert f"the same command with --output {run.folder} --resume" in str(caught.value)
    assert sorted(os.listdir(run.folder / "checkpoints")) == ["toy-00002", "toy-00003"]
    stage, whole = toy_stage(run), toy_run(run.folder.parent / "whole")
    train(stage, run)
    expected = toy_stage(whole)
    train(expected, whole)
    assert all((weights(stage)[name] == x).all() for name, x in weights(expected).items())


def test_a_log_that_cannot_be_written(run: Run) -> None:
    train(toy_stage(run, epochs=1), run)
    run.log.file.unlink()
    run.log.file.mkdir()  # as good as any other reason
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\); the last checkpoint is .*toy-00001"):
        trained(run, epochs=2)


@pytest.mark.parametrize("step", [0, STEPS - 1, STEPS])
def test_a_folder_that_is_removed_during_training_is_not_made_again(run: Run, step: int) -> None:
    steps = [0]

    def remove(batch: Any) -> None:
        if steps[0] == step:
            shutil.rmtree(run.folder)
        steps[0] += 1

    with pytest.raises(UserError, match=rf"{run.folder} is gone, and its checkpoints with it"):
        trained(run, after_step=remove, line_every=9)
    assert not run.folder.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_ctrl_c_and_sigterm_say_how_to_go_on(run: Run, stop: type[BaseException]) -> None:
    def end(batch: Any) -> None:
        raise stop

    with pytest.raises(stop, match=rf"interrupted; there is no checkpoint yet. .* --output {run.folder} --resume"):
        trained(run, after_step=end)
    train(toy_stage(run, epochs=2), run)
    with pytest.raises(stop, match=r"interrupted; the last checkpoint is .*toy-00002\. "):
        trained(run, after_step=end)


def test_other_errors_stay_what_they_are(run: Run) -> None:
    for error in (ConnectionError("refused"), FileNotFoundError(errno.ENOENT, "no", "/elsewhere"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught, explained(run):
            raise error
        assert caught.value is error


# One run in a folder ----------------------------------------------------------------------------------------------

HOLDING = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(20)
"""


def test_a_folder_is_of_one_run_at_a_time_and_free_when_its_process_is_killed(run: Run) -> None:
    refuse_in_use(run.folder)
    assert os.listdir(run.folder) == []  # looking leaves nothing
    RunLock(run.folder).take()
    RunLock(run.folder).sign()
    lock_folder(run.folder, run.accelerator).release()  # the same process may go on
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(run.folder / ".lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for take in (refuse_in_use, lambda folder: lock_folder(folder, run.accelerator)):
            with pytest.raises(UserError, match=rf"{run.folder} is in use by another process: wait until"):
                take(run.folder)
        (run.folder / ".lock.json").write_text('{"process": 77, "host": "far", "since": "2026-01-02 03:04:05"}')
        with pytest.raises(UserError, match="is in use by process 77 on far since 2026-01-02 03:04:05: wait until"):
            refuse_in_use(run.folder)
        other.kill()
    refuse_in_use(run.folder)
    lock = lock_folder(run.folder, run.accelerator)
    assert f'"process": {os.getpid()}' in (run.folder / ".lock.json").read_text()
    run.lock = lock
    with explained(run):
        pass
    assert not lock.lock.is_locked
    assert not (run.folder / ".lock.json").exists()


def test_a_folder_that_cannot_be_made_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"--output {tmp_path}/file/run cannot be written \(Not a directory\): give"):
        lock_folder(tmp_path / "file" / "run", run.accelerator)
