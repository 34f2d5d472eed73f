"""One run in a folder at a time: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import os
import socket
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from clipreid.disk import read_json
from clipreid.errors import UserError
from clipreid.hub.files import HOLDER, LOCK, write_json


class RunLock:
    """The lock of a run folder, held by the main process of a run until `release`, or until the process ends.

    The process that holds it may take it again: a notebook goes on in the folder of a run that failed there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = FileLock(folder / LOCK, timeout=0, is_singleton=True, thread_local=False)

    def take(self) -> None:
        """Takes the lock. Raises `UserError` where another process has it, `OSError` where it cannot be written."""
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.folder} is in use {self._holder()}: wait until that run ends, or give another --output"
            ) from None

    def sign(self) -> None:
        """Says in `.lock.json` who has the lock. Raises `OSError`."""
        since = datetime.now().isoformat(" ", "seconds")
        write_json(self.folder / HOLDER, {"process": os.getpid(), "host": socket.gethostname(), "since": since})

    def release(self) -> None:
        """Gives the lock back, where this process has it."""
        if self.lock.is_locked:
            (self.folder / HOLDER).unlink(missing_ok=True)
            self.lock.release(force=True)

    def _holder(self) -> str:
        try:
            found = read_json(self.folder / HOLDER)
            return f"by process {found['process']} on {found['host']} since {found['since']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "by another process"


def lock_folder(folder: Path, accelerator: Accelerator) -> RunLock:
    """Takes the lock of a run folder on the main process; the others learn whether it was had.

    Raises:
        UserError: on every process; another run uses it, or it cannot be written.
    """
    lock, refusal = RunLock(folder), ""
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.take()
            lock.sign()
        except UserError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"--output {folder} cannot be written ({error.strerror or error}): give another folder"
    if accelerator.num_processes > 1:
        (refusal,) = broadcast_object_list([refusal])
    if refusal:
        raise UserError(refusal)
    return lock


def refuse_in_use(folder: Path) -> None:
    """Refuses early, with `UserError`, a folder that another run uses; makes nothing."""
    lock = RunLock(folder)
    if lock.lock.is_locked or not (folder / LOCK).is_file():
        return
    lock.take()
    lock.lock.release()
