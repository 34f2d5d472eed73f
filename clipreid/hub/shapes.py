"""Values of JSON against the types that they should have: what others wrote is used only where it fits."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from clipreid.config import range_by
from clipreid.errors import UserError

MOST = 10_000  # values of one list or table


def checked(values: Any, hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values, with lists as tuples: exactly these keys, each of its type and in its range (`range_by`)."""
    if not isinstance(values, dict) or values.keys() != hints.keys():
        odd = sorted(set(values) ^ set(hints), key=str)[:5] if isinstance(values, dict) else ["(all)"]
        raise UserError(f"{what} {', '.join(odd)} are unknown or missing: another version wrote it, or not clipreid")
    for key, hint in hints.items():
        range_ = range_by(hint, key)
        low, high = range_ or (-1e12, 1e12)
        if not fits(values[key], hint, low, high):
            numbers = f", numbers from {low:g} to {high:g}" if range_ else ""
            raise UserError(f"{what} {key} is {shown(values[key])}: it must be {named(hint)}{numbers}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def check_table(values: Any, hints: Mapping[str, Any], what: str, needed: Collection[str] = ()) -> None:
    """Refuses, with `UserError`, what is no table, lacks a key that is needed, or has another type under one of these.

    Other keys may have any value: nothing reads them.
    """
    if not isinstance(values, dict):
        raise UserError(f"{what} is {shown(values)}: clipreid writes a table there")
    if lacking := [key for key in needed if key not in values]:
        raise UserError(f"{what} lacks {', '.join(lacking[:5])}: another version wrote it, or not clipreid")
    for key, hint in hints.items():
        if key in values and not fits(values[key], hint):
            raise UserError(f"{what}.{key} is {shown(values[key])}: it must be {named(hint)}")


def fits(value: Any, hint: Any, low: float = -1e12, high: float = 1e12) -> bool:
    """Whether a value of JSON is of a field's type, and its numbers are in the range (which no NaN is)."""
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return fits(value, parts[0], low, high)
    if kind is tuple:
        if not isinstance(value, list) or len(value) > MOST:
            return False
        hints = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(hints) and all(fits(v, h, low, high) for v, h in zip(value, hints, strict=True))
    if kind is dict:
        texts = isinstance(value, dict) and len(value) <= MOST and all(len(key) < 1000 for key in value)
        return texts and all(fits(each, parts[1], low, high) for each in value.values())
    if kind in (UnionType, Union):
        return any(fits(value, part, low, high) for part in parts)
    if hint is Path:
        return isinstance(value, str | Path) and len(str(value)) < 1000
    if kind is Literal:  # the code that uses it checks the word
        return isinstance(value, str) and len(value) < 100
    return isinstance(value, hint) and (hint is not str or (len(value) < 1000 and "\0" not in value))


def named(hint: Any) -> str:
    """A type in words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return named(parts[0])
    if kind is tuple:
        many = "" if Ellipsis in parts else f"{len(parts)} "
        return f"a list of {many}{named(parts[0]).split()[-1]}s"
    if kind is dict:
        return f"a table, each value {named(parts[1])}"
    if kind in (UnionType, Union):
        return " or ".join(named(part) for part in parts)
    words = {int: "an integer", float: "a number", NoneType: "null", bool: "true or false", dict: "a table"}
    return words.get(hint, "a short text")


def shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:57]}..."
