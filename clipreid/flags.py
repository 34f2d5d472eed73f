"""One rule for flags that are given several times: those that take any number of values take them all, others refuse.

A leaf: nothing of clipreid but `errors` is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from clipreid.errors import UserError

FLAG = re.compile(r"--?[A-Za-z][\w-]*")


def parse_flags(kind: Any, args: Sequence[str], **how: Any) -> Any:
    """The command line as `kind`: a dataclass, or a union of them, subcommands. how: further arguments of `tyro.cli`.

    Raises:
        UserError: a flag of one value that is given two different ones; an empty word. SystemExit: what tyro refuses,
            and `--help`.
    """
    check_words(args)
    return tyro.cli(kind, args=gathered(kind, args), **how)


def check_words(args: Sequence[str]) -> None:
    """Refuses empty words, and words that no file can be named by: "" would be the current folder."""
    for before, word in pairwise(["", *args]):
        flag, equals, value = word.partition("=")
        if not word or (FLAG.fullmatch(flag) and equals and not value):
            where = f"{flag or before}: " if (flag or before).startswith("-") else ""
            raise UserError(f"{where}'' is empty: give a value, or leave it out (an unset variable of the shell?)")
        if "\0" in word:
            raise UserError(f"{word!r} holds a NUL character, which no name and no value has")


def gathered(kind: Any, args: Sequence[str]) -> list[str]:
    """The words with the values of a repeated flag behind its first mention: `--image a --image b` -> `--image a b`.

    Errors as `parse_flags`.
    """
    hints, found = _flags(kind, args), list[list[str]]()  # each a flag with its values, or words without one
    first: dict[str, list[str]] = {}
    for word in args:
        flag, equals, value = word.partition("=")
        if not FLAG.fullmatch(flag):
            if not found:
                found.append([])
            found[-1].append(word)
            continue
        found.append([flag, value] if equals else [flag])
    for part in found:
        hint = hints.get(_name(part[0])) if part else None
        if hint is None or _takes(hint) == "each":
            continue
        before = first.setdefault(hint.name, part)
        if before is part:
            continue
        if _takes(hint) == "all":
            before.extend(part[1:])
        elif before[1:] != part[1:]:
            values = " and ".join(repr(" ".join(each[1:])) for each in (before, part))
            raise UserError(f"{part[0]} is given twice, {values}, and takes one value: give it once")
        part.clear()
    return [word for part in found for word in part]


class _Flag:
    """A field of a command: its name and type, with the marks of `Annotated`."""

    def __init__(self, name: str, hint: Any) -> None:
        self.name, self.hint = name, hint


def _name(word: str) -> str:
    return word.replace("_", "-")


def _takes(flag: _Flag) -> str:
    """ "each": as often as one likes; "all": any number of values behind one mention; "one" value (or pair)."""
    marks = flag.hint.__metadata__ if get_origin(flag.hint) is Annotated else ()
    kind = _bare(flag.hint)
    if tyro.conf.UseAppendAction in marks or kind is bool:
        return "each"
    return "all" if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis else "one"


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _flags(kind: Any, args: Sequence[str]) -> Mapping[str, _Flag]:
    """By every way to write it, the flags of a dataclass, of those in it, and of the subcommand that `args` name."""
    kind = _bare(kind)
    if get_origin(kind) in (Union, UnionType):
        commands = {each.__name__.lower(): each for each in get_args(kind) if isinstance(each, type)}
        named = next((at for at, word in enumerate(args) if word in commands), None)
        return {} if named is None else _flags(commands[args[named]], args[named + 1 :])
    if not is_dataclass(kind):
        return {}
    found: dict[str, _Flag] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if inner := _flags(hint, args):
            found |= inner
            continue
        marks = getattr(hint, "__metadata__", ())
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        found |= dict.fromkeys([f"--{_name(name)}", *aliases], _Flag(name, hint))
    return found
