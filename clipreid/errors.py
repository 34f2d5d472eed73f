"""`UserError`, an error caused by user input, and how commands print it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error caused by user input: a flag, a file, a setting.

    The message says what was wrong, where (the file, flag or value), and what to do. Recipes and the
    `clipreid` command print it without a traceback and exit with status 2; library callers can catch it
    as a `ValueError`.
    """


@contextmanager
def print_user_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Around a whole command: a `UserError` becomes one message on stderr and exit status 2, Ctrl-C status 130.

    Of several processes only the first one prints. Every other exception is a defect and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr, flush=True)
        sys.exit(130)
