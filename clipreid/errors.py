"""`UserError`, an error caused by user input, and how commands print it and end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

CLOSED = 141  # exit status of a command whose output nobody reads any more, as of any other in a shell (128 + SIGPIPE)
ROOM, RIGHTS = "make room, or give another place", "check the permissions, or give another place"
REFUSED = {  # what the machine refuses, and what to do: nothing is wrong with the program
    "ENOSPC": ROOM, "EDQUOT": ROOM, "EROFS": "give another place", "EACCES": RIGHTS, "EPERM": RIGHTS,
    "ENAMETOOLONG": "give a shorter name", "EIO": "check the disk", "EMFILE": "raise ulimit -n",
    "ENFILE": "close other programs", "ELOOP": "mend the links", "ENOMEM": "close other programs",
}  # fmt: skip


class UserError(ValueError):
    """An error caused by user input: a flag, a file, a setting.

    The message says what was wrong, where (the file, flag or value), and what to do. Recipes and the
    `clipreid` command print it without a traceback and exit with status 2; library callers can catch it
    as a `ValueError`.
    """


class LostProcess(UserError):
    """Another process of the same run has ended; each that is left says so."""


class Terminated(BaseException):
    """The process was told to end, by SIGTERM."""


@contextmanager
def print_user_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Around a whole command: a `UserError` becomes one message on stderr and exit status 2, Ctrl-C status 130,
    SIGTERM status 143; what the disk or the system refuses (`REFUSED`) is such an error too.

    interrupted: what is said after Ctrl-C and SIGTERM, unless the exception itself says something.

    Where nobody reads the output any more (`clipreid ... | head -1`) the command ends quietly, with status `CLOSED`.
    Of several processes only the first one prints, but for a `LostProcess`. Every other exception is a defect and keeps
    its traceback.
    """
    try:
        _print_anything()
        with _errors_printed(interrupted):
            yield
        sys.stdout.flush()
    except SystemExit:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        ignore_closed(sys.stdout)
        raise
    except BrokenPipeError:
        if not (ignore_closed(sys.stdout) | ignore_closed(sys.stderr)):
            raise  # another pipe or connection
        sys.exit(CLOSED)


@contextmanager
def _errors_printed(interrupted: str) -> Iterator[None]:
    try:
        with _terminable():
            yield
    except UserError as error:
        _say(f"error: {error}", always=isinstance(error, LostProcess))
        sys.exit(2)
    except OSError as error:
        remedy = REFUSED.get(errno.errorcode.get(error.errno or 0, ""))
        if remedy is None:
            raise
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        _say(f"error: {' -> '.join(names) or 'a file'}: {error.strerror}: {remedy}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _say(str(stop) or interrupted)
        sys.exit(130)
    except Terminated as stop:
        _say(str(stop) or interrupted)
        sys.exit(143)


def _say(text: str, always: bool = False) -> None:
    if always or os.environ.get("RANK", "0") == "0":
        print(f"\n{text}", file=sys.stderr, flush=True)


def _print_anything() -> None:
    """What the output's encoding has no letters for is written as \\x.. instead of ending the command: names of files
    that are not UTF-8, and any name in the locale C."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def ignore_closed(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more; if so, what is written to it from now on is thrown away."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no file: a notebook, a test
        return False
    if not _is_closed(stream, number):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
    return True


def _is_closed(stream: TextIO, number: int) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    if not hasattr(select, "poll"):  # Windows
        return False
    asked = select.poll()
    asked.register(number, 0)
    return any(event & select.POLLERR for _, event in asked.poll(0))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`, unless somebody else listens to it already."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
