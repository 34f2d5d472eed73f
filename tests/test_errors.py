"""How commands end: what is said, and with which status."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator

import pytest

from clipreid.errors import CLOSED, UserError, ignore_closed, print_user_errors

Stream = io.TextIOWrapper


@pytest.fixture(params=["buffered", "unbuffered"])
def closed(request: pytest.FixtureRequest) -> Iterator[Stream]:
    """A pipe whose reader has gone, as stdout is after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    buffering = -1 if request.param == "buffered" else 0  # PYTHONUNBUFFERED=1
    with open(writer, "wb", buffering=buffering) as raw:
        yield io.TextIOWrapper(raw, write_through=buffering == 0)


def ended(work: Callable[[], object], stdout: Stream | None = None) -> object:
    """The exit status of a command that does this."""
    with contextlib.redirect_stdout(stdout or sys.stdout), pytest.raises(SystemExit) as caught, print_user_errors():
        work()
    return caught.value.code


def speak() -> None:
    for _ in range(3000):
        print("a line of a table", flush=True)


def test_a_command_ends_quietly_when_nobody_reads(closed: Stream, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(speak, closed) == CLOSED == 141
    closed.write("what comes later is thrown away")
    closed.flush()
    assert capfd.readouterr().err == ""


def test_so_does_help(closed: Stream) -> None:
    """Its text may still be in the buffer when the command is over: then the status is that of help."""

    def help_() -> None:
        print("usage")
        sys.exit(0)

    assert ended(help_, closed) in (0, CLOSED)


def test_the_last_lines_too(closed: Stream) -> None:
    """They are flushed when everything is done."""
    assert ended(lambda: print("written"), closed) == CLOSED


def test_an_error_is_said_all_the_same(closed: Stream, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with contextlib.suppress(BrokenPipeError):
            print("not flushed")
        raise UserError("--top 0: give 1 to 9")

    assert ended(work, closed) == 2
    assert "error: --top 0: give 1 to 9" in capsys.readouterr().err


def test_a_broken_connection_is_no_closed_stdout() -> None:
    def work() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError), print_user_errors():
        work()
    assert not ignore_closed(sys.stdout)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_one_message(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(number, os.strerror(number), "runs/demo/x.json")

    assert ended(work) == 2
    assert f"error: runs/demo/x.json: {os.strerror(number)}: " in capsys.readouterr().err


def test_other_errors_are_defects() -> None:
    for error in (OSError(errno.ENOENT, "no such file", "x"), KeyError("x"), RecursionError()):
        with pytest.raises(type(error)), print_user_errors():
            raise error


def test_names_that_the_output_has_no_letters_for() -> None:
    """Names of files that are not UTF-8; any name but ASCII in the locale C."""
    for encoding, name, printed in (("utf-8", "a\udcff", b"a\\udcff\n"), ("ascii", "“é”", b"\\u201c\\xe9\\u201d\n")):
        found = io.BytesIO()
        stream = io.TextIOWrapper(found, encoding=encoding, newline="")
        with contextlib.redirect_stdout(stream), print_user_errors():
            print(name)
        assert found.getvalue() == printed
