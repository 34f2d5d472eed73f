"""`UserError`, an error caused by user input, and how commands print it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(ValueError):
    """An error caused by user input: a flag, a file, a setting.

    The message says what was wrong, where (the file, flag or value), and what to do. Recipes and the
    `clipreid` command print it without a traceback and exit with status 2; library callers can catch it
    as a `ValueError`.
    """


class Terminated(BaseException):
    """The process was told to end, by SIGTERM."""


@contextmanager
def print_user_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Around a whole command: a `UserError` becomes one message on stderr and exit status 2, Ctrl-C status 130, SIGTERM
    status 143.

    interrupted: what is said after Ctrl-C and SIGTERM, unless the exception itself says something. Of several processes
    only the first one prints. Every other exception is a defect and keeps its traceback.
    """
    try:
        with _terminable():
            yield
    except UserError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _say(str(stop) or interrupted)
        sys.exit(130)
    except Terminated as stop:
        _say(str(stop) or interrupted)
        sys.exit(143)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{text}", file=sys.stderr, flush=True)


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
