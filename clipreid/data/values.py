"""What a value means, wherever it was read: in a path, a CSV table, a parquet file. One rule for all readers.

identity, tracklet, session, clothes: text as it stands; whole numbers however written (7, 7.0) are one value, and so
are days (2024-01-02, 2024-01-02 00:00:00).
camera, view: whole numbers as they are; single letters (A is 1); one word and a number (cam1, c02: 1, 2); any other
names are numbered in their order, with a note. Unknown is an empty cell, -1, NaN, none, unknown, ... (`UNKNOWN`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Sequence
from typing import Any

from clipreid.errors import UserError

UNKNOWN = frozenset({"", "-1", "nan", "nat", "none", "null", "na", "n/a", "<na>", "unknown", "unk", "?"})
DISTRACTORS = frozenset({"distractor", "distractors"})  # individuals that are only in the gallery, and never ask
SPLITS = {  # as it may be written -> the split; `test` is query and gallery at once
    "train": "train", "training": "train",
    "val": "val", "validation": "val", "valid": "val", "dev": "val",
    "query": "query", "queries": "query", "probe": "query",
    "gallery": "gallery",
    "test": "test", "testing": "test",
}  # fmt: skip
LARGEST = 2**31 - 1  # cameras and views are kept in 32 bits
ENOUGH = 20  # images from which on more cameras than half of them are doubted
WHOLE = re.compile(r"(-?\d+)\.0+")
MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d)[T ]00:00(:00(\.0+)?)?")
WORD_NUMBER = re.compile(r"([A-Za-z]+)[-_ ]?(\d{1,9})")


def text_of(value: Any) -> str:
    """A cell as text: 7.0 is "7", None and NaN are "", days in ISO form, spaces around it removed; True is "True"."""
    if value is None or value != value:  # NaN is not equal to itself
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = (value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)).strip()
    if not text.endswith("0"):
        return text
    plain = MIDNIGHT.fullmatch(text) or WHOLE.fullmatch(text)
    return plain[1] if plain else text


def is_unknown(value: Any, also: Collection[str] = ()) -> bool:
    """Whether nobody knows it. also: what the user said means unknown (`--unknown`)."""
    text = text_of(value)
    return text.lower() in UNKNOWN or text in also


def is_distractor(value: Any) -> bool:
    """Whether the identity says only that it is nobody who is asked for."""
    return text_of(value).lower() in DISTRACTORS


def split_values(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The values of a flag that is repeated or holds several, separated by commas."""
    entries = [given] if isinstance(given, str) else given or ()
    return tuple(text_of(value) for entry in entries for value in str(entry).split(",") if value.strip())


def split_named(value: Any) -> str:
    """train, val, query, gallery or test. Raises `UserError` for another word; an empty cell is train."""
    text = text_of(value).lower()
    if text and text not in SPLITS:
        raise UserError(f"unknown split {str(value).strip()!r}; known are {', '.join(SPLITS)}")
    return SPLITS.get(text, "train")


def number_all(field: str, values: Sequence[Any], also: Collection[str] = ()) -> tuple[list[int], list[str]]:
    """Cameras or views as numbers, and notes for the user. -1 = unknown.

    values: of all splits together, for what one value means depends on the others. field: "camera" or "view". Raises
    `UserError` for cameras that are as good as all different: times or numbers of rows.
    """
    texts = [text_of(value) for value in values]
    names = sorted({text for text in texts if not is_unknown(text, also)}, key=_natural)
    if field == "camera":
        _doubt_cameras(names, sum(not is_unknown(text, also) for text in texts))
    number, notes = _numbering(names), []
    if number is None:
        number = {name: nth for nth, name in enumerate(names)}
        shown = ", ".join(f"{name!r} is {nth}" for name, nth in list(number.items())[:4])
        notes.append(f"{field}s are numbered: {shown}{', ...' if len(number) > 4 else ''}")
    return [number.get(text, -1) for text in texts], notes


def _doubt_cameras(names: Sequence[str], known: int) -> None:
    if known >= ENOUGH and 2 * len(names) > known:
        raise UserError(
            f"{len(names):,d} different cameras in {known:,d} images ({', '.join(names[:3])}, ...): these are no "
            "cameras, but times, frames or numbers of rows"
        )


def _numbering(names: Sequence[str]) -> dict[str, int] | None:
    """The numbers that the names themselves say; None where they say none, or the same twice."""
    if all(name.isascii() and name.isdecimal() for name in names):
        found = {name: int(name) for name in names}  # "01" and "1" are one camera
        return found if max(found.values(), default=0) <= LARGEST else None
    if all(len(name) == 1 and name.isascii() and name.isalpha() for name in names):
        return {name: ord(name.upper()) - ord("A") + 1 for name in names}
    matches = [WORD_NUMBER.fullmatch(name) for name in names]
    if all(matches) and len({match[1].lower() for match in matches if match}) == 1:
        return {match[0]: int(match[2]) for match in matches if match}
    return None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort cam2 before cam10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
