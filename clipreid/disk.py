"""Files: JSON parsed without surprises; what is written appears whole or not at all. A leaf: it imports no room."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from clipreid.errors import UserError


class CannotWrite(UserError):
    """A file or folder that cannot be written: a full or read-only disk, no permission, a name that is too long."""


@dataclass
class Unwritten:
    """What a command could not write or draw while it went on, so that its scores are printed all the same."""

    errors: list[UserError] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Keeps a `UserError` for `check`."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def check(self) -> None:
        """At the end: raises a `UserError` that names all of it."""
        if self.errors:
            raise UserError("\n".join(dict.fromkeys(map(str, self.errors))))


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError where it is no JSON, also for brackets nested too deeply (`json` raises RecursionError)."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def read_json(file: Path) -> Any:
    """As `parse_json`, of a UTF-8 file. Raises OSError where it cannot be read."""
    return parse_json(file.read_text(encoding="utf-8"))


@contextmanager
def writing_to(what: Path | str) -> Iterator[None]:
    """What cannot be written in it becomes a `CannotWrite` that names `what`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise CannotWrite(f"{what} cannot be written ({reason}): make room, or give another place") from error


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to, which becomes `file` at the end; after an error nothing is left of it.

    Its folder is made. Raises `CannotWrite`.
    """
    device = str(file).startswith(("/dev/", "/proc/")) or (file.exists() and not (file.is_file() or file.is_dir()))
    scratch = file if device else file.with_name(f".writing-{file.name}")  # its ending may say the format
    with writing_to(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield scratch
            if not device:
                scratch.replace(file)
        except BaseException:
            if not device:
                _forget(scratch)
            raise


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes a file by `whole_file`; text as UTF-8, its line ends as they are."""
    with whole_file(file) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, whose files come into `folder` (new or empty) at the end; after an error none is there.

    Raises `CannotWrite`.
    """
    folder = Path(os.path.abspath(folder))
    scratch = folder / ".writing"
    with writing_to(folder):
        new = not folder.exists()
        try:
            scratch.mkdir(parents=True)
            yield scratch
            for file in sorted(scratch.iterdir()):
                file.replace(folder / file.name)
            scratch.rmdir()
        except BaseException:
            shutil.rmtree(folder if new else scratch, ignore_errors=True)
            raise


def check_place(flag: str, place: Path, kind: str = "folder") -> None:
    """Refuses, before anything slow, a file or folder that could not be written. Nothing is made.

    flag: what named it, for the message. kind: "file" or "folder", what it is to be.

    Raises:
        CannotWrite: another kind of thing is there; a folder above it cannot be written; a name that is impossible.
    """
    try:
        if "\0" in str(place):
            raise ValueError("it holds a null character")
        path = Path(os.path.abspath(place.expanduser()))
        if path.exists() and path.is_dir() != (kind == "folder"):
            raise CannotWrite(f"{flag} {place} is a {'folder' if path.is_dir() else 'file'}: give a {kind}")
        path = path if kind == "folder" else path.parent  # in which the file appears
        there = next(each for each in (path, *path.parents) if each.exists())
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise CannotWrite(f"{flag} {place} cannot be written ({reason}): give another {kind}") from error
    if not there.is_dir():
        raise CannotWrite(f"{flag} {place} cannot be written ({there} is a file): give another {kind}")
    if not os.access(there, os.W_OK):
        raise CannotWrite(f"{flag} {place} cannot be written (no permission for {there}): give another {kind}")


def _forget(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:  # it could not even be looked at: nothing is there
        return
