"""How a run ends before its time: a disk that fails, Ctrl-C, SIGTERM. Each says what was kept, and how to go on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from clipreid.errors import Terminated, UserError
from clipreid.training.checkpoint import where_last
from clipreid.training.run import Run

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Around everything that trains: a run folder that cannot be written is a `UserError`, Ctrl-C and SIGTERM say how
    to go on, and the lock of the folder is given back."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not of_disk(error, run.folder):
            raise
        raise UserError(
            f"the run folder {run.folder} cannot be written ({reason(error)}); {where_last(run.folder)}. Make room, or "
            f"make it writable, then continue: the same command with {again(run)}"
        ) from error
    except (KeyboardInterrupt, Terminated) as stop:
        raise type(stop)(
            f"interrupted; {where_last(run.folder)}. To continue: the same command with {again(run)}"
        ) from None
    finally:
        if run.lock is not None:
            run.lock.release()


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
