"""How a run ends before its time: a disk that fails, another process that is gone, Ctrl-C, SIGTERM. Each says what was
kept, and how to go on."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import distributed

from clipreid.errors import LostProcess, Terminated, UserError
from clipreid.training.checkpoint import where_last
from clipreid.training.run import Run

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
LOST = re.compile("gloo|NCCL|connection|broken pipe|timed out", re.IGNORECASE)  # gloo has no error of its own
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed")  # in the command line of whoever started a recipe
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Around everything that trains: a run folder that cannot be written is a `UserError`, another process that is gone
    a `LostProcess`; Ctrl-C and SIGTERM say how to go on, and the lock of the folder is given back."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not of_disk(error, run.folder):
            raise
        raise UserError(
            f"the run folder {run.folder} cannot be written ({reason(error)}); {where_last(run.folder)}. Make room, or "
            f"make it writable, then continue: the same command with {again(run)}"
        ) from error
    except RuntimeError as error:
        if not (run.processes > 1 and (isinstance(error, distributed.DistError) or LOST.search(str(error)))):
            raise
        raise LostProcess(
            f"another of the {run.processes} processes of this run has ended, or cannot be reached any more "
            f"({str(error).splitlines()[0][:200]}); {where_last(run.folder)}. Look at what that one said, and whether "
            f"its machine had enough memory, then continue: the same command with {again(run)}"
        ) from error
    except (KeyboardInterrupt, Terminated) as stop:
        raise type(stop)(
            f"interrupted; {where_last(run.folder)}. To continue: the same command with {again(run)}"
        ) from None
    finally:
        if run.lock is not None:
            run.lock.release()


def end_with_launcher() -> None:
    """Has this process told to end (SIGTERM) when the `accelerate launch` or torchrun that started it ends.

    `accelerate launch` with one process passes no signal on: without this, a training whose launcher was told to end
    would go on, unseen. On Linux; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return
    if any(word in command for word in LAUNCHERS):
        ctypes.CDLL(None).prctl(END_WITH_PARENT, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it has ended meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def again(run: Run) -> str:
    """The flags that continue the run."""
    without = ", without --overwrite" if run.flags.overwrite else ""
    return f"--output {run.folder} --resume{without}"


def of_disk(error: Exception, folder: Path) -> bool:
    """Whether an error is of the disk below a run folder, and not one of ours or of the network."""
    if isinstance(error, SafetensorError):  # it has no number
        return "I/O error" in str(error) or "os error" in str(error) or not folder.is_dir()
    assert isinstance(error, OSError)
    named = isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(folder)
    return named or error.errno in DISK


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
