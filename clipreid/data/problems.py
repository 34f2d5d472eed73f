"""Errors of readers: normally the first one is raised; inside `collected()` all of them are recorded instead.

`clipreid data check` uses the latter, to report every problem of a data set.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from clipreid.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One kind of mistake that a reader met: what it is, and the files it left out because of it."""

    kind: str
    files: tuple[str, ...]


_collection: ContextVar[list[Problem] | None] = ContextVar("problems", default=None)
_pooled: ContextVar[bool] = ContextVar("pooled", default=False)


@contextmanager
def collected() -> Iterator[list[Problem]]:
    """Inside, readers leave out the files they cannot use and list them here instead of raising."""
    found: list[Problem] = []
    token = _collection.set(found)
    try:
        yield found
    finally:
        _collection.reset(token)


def tolerate(error: UserError, kind: str, files: Sequence[str]) -> None:
    """Raises `error`; inside `collected()` it is noted instead, and the reader is to go on without these files."""
    found = _collection.get()
    if found is None:
        raise error
    found.append(Problem(kind, tuple(files)))


def collecting() -> bool:
    """Whether errors are noted at present, not raised."""
    return _collection.get() is not None


def notice(kind: str, files: Sequence[str]) -> None:
    """Records something that is no error but that `clipreid data check` reports: a link that leads in a circle."""
    found = _collection.get()
    if found is not None and files:
        found.append(Problem(kind, tuple(files)))


@contextmanager
def pooled() -> Iterator[None]:
    """Inside, data is read to be split or embedded: no train/ and test/ are needed, and identities may be in both."""
    token = _pooled.set(True)
    try:
        yield
    finally:
        _pooled.reset(token)


def pooling() -> bool:
    """Whether what is read now will be split anew."""
    return _pooled.get()
