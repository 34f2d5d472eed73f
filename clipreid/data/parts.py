"""Paths of images, taken apart: folders and pieces of file names, each with what its own looks say that it is.

`anna/cam2/0001.jpg`: a plain part (anna), a camera (2), a plain part (0001). Only what is written out counts: `cam2`,
`camera_b`, `T0001`, `frame026`, `2011-01-03`. Bare numbers stay plain; `clipreid.data.readings` weighs them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

WORDS = {  # before a number
    "camera": ("camera", "cam", "c"),
    "tracklet": ("tracklet", "track", "trk", "t"),
    "session": ("session", "sess", "day", "date", "visit", "encounter", "enc", "s"),
    "frame": ("frame", "fr", "f", "image", "img", "im", "photo", "pic", "dsc", "dscn", "dscf", "crop", "det"),
}
KIND = {word: kind for kind, words in WORDS.items() for word in words}
TOKEN = re.compile(r"(?<![^\W_])-1(?![^\W_])|[^\W_]+")
GLUED = re.compile(r"(?i)\d*(?:(?:camera|cam|c|tracklet|track|t|frame|f|s)\d+)+")  # 0001C1T0001F001, c1s1
PIECE = re.compile(r"(?i)^\d+|[a-z]+\d+")
NUMBERED = re.compile(r"([^\W\d_]+)(\d+)")
DATE = re.compile(r"(?:19|20)\d\d(?:0\d|1[0-2])[0-3]\d(?:[0-2]\d[0-5]\d(?:[0-5]\d)?)?")
DATED = re.compile(r"(?:19|20)\d\d([-_.]?)(?:0\d|1[0-2])\1[0-3]\d(?:[-_. T]?[0-2]\d[-:.]?[0-5]\d[-:.]?[0-5]\d)?")
YEAR = re.compile(r"19[5-9]\d|20[0-4]\d")
DAYTIME = re.compile(r"\d{2,4}(?:morning|noon|afternoon|evening|night)")
CAMERA_LEVEL = re.compile(r"(?i)(?:cam|camera)[-_ ]?(?:\d{1,4}|[a-z])|c\d{1,3}")
CAMERA_INSIDE = re.compile(r"(?i)(?<![a-z])(?:cam|camera)(?:[-_ ]?\d|[-_ ][a-z](?![a-z]))")
DATE_INSIDE = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)")
LETTER_INSIDE = re.compile(r"(?i)(?<![^\W_])c\d{1,4}(?![^\W_])")


LETTERED = re.compile(r"(?i)(?<![a-z])[tfs]\d")


@dataclass(frozen=True)
class Part:
    """One part of every path. N paths.

    level: 0 is the first folder below the split; the last level is the file name without its ending. spot: which token
    of that level, None = all of it. kind: camera, tracklet, session, frame, time, constant, or plain. weak: one letter
    says the kind (c1), which may stand for something else. regex: fits the values; {} marks what is captured.
    """

    level: int
    spot: int | None
    kind: str
    values: tuple[str, ...]
    regex: str
    weak: bool = False


class Level(NamedTuple):
    """One level of the paths: its parts in their order; the separators as a regex before each part and at the end.

    built_alike: False for names that share no structure, such as photo.jpg beside x-1.jpg: then it is one plain part.
    """

    parts: list[Part]
    gaps: list[str]
    built_alike: bool = True


def take_apart(paths: Sequence[str]) -> list[Level]:
    """The levels of paths of equal depth, without endings."""
    rows = [stem_of(path).split("/") for path in paths]
    columns = [list(column) for column in zip(*rows, strict=True)]
    levels = [_level(number, texts, number == len(columns) - 1) for number, texts in enumerate(columns)]
    known = [any(part.kind == "camera" for part in level.parts) for level in levels]
    if any(known):  # then T0001 is a tracklet, in the other levels as well
        for number, texts in enumerate(columns):
            if not known[number] and LETTERED.search(texts[0]):
                levels[number] = _level(number, texts, number == len(columns) - 1, True)
    return levels


def stem_of(path: str) -> str:
    """The path without the ending of the file: letters and digits after the last dot, at least one of them a letter."""
    return re.sub(r"(?<=[^/])\.(?=[^./]*[A-Za-z])[A-Za-z0-9]{1,5}$", "", path)


def marks_inside(texts: Sequence[str]) -> int:
    """How many of them name a camera somewhere: `x_cam2`; or `x_c2`, where at least half of them do."""
    words = sum(CAMERA_INSIDE.search(text) is not None for text in texts)
    letters = sum(LETTER_INSIDE.search(text) is not None for text in texts)
    return max(words, letters if 2 * letters >= len(texts) else 0)


def dates_inside(texts: Sequence[str]) -> int:
    """How many of them hold a date."""
    return sum(DATE_INSIDE.search(text) is not None for text in texts)


def edges(texts: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """(the first token, the rest), and (the last token, the rest) of names that are not built alike."""
    rows = [TOKEN.findall(text) or [text] for text in texts]
    for at, rest in ((-1, slice(None, -1)), (0, slice(1, None))):
        while all(len(row) > 1 for row in rows) and len({row[at] for row in rows}) == 1:
            rows = [row[rest] for row in rows]
    ends = [([row[at] for row in rows], at) for at in (0, -1)]
    return [(tokens, [" ".join(row[1:] if at == 0 else row[:-1]) for row in rows]) for tokens, at in ends]


def _level(number: int, texts: list[str], is_name: bool, cameras: bool = False) -> Level:
    whole = Part(number, None, _kind_of_folder(texts), tuple(texts), "{[^/]+}")
    if not is_name and whole.kind in ("constant", "session", "frame"):
        return Level([whole], ["", ""])
    if not is_name and whole.kind in ("camera", "tracklet"):
        said = tuple(re.findall(r"\d+$|[A-Za-z]$", text)[0] for text in texts)
        word = r"[^/\d]*{\d+}" if all(value.isdecimal() for value in said) else r"[^/]*{[^\W_]}"
        weak = any(re.fullmatch(r"(?i)c\d+", text) for text in texts)
        return Level([replace(whole, values=said, regex=word, weak=weak)], ["", ""])
    tokens = _tokens(texts)
    if tokens is None:
        return Level([whole], ["", ""], built_alike=False)
    parts, gaps = _columns(number, tokens, cameras)
    labelled = [part for part in parts if part.kind in ("camera", "tracklet", "session")]
    if not is_name and (not labelled or len(labelled) == len(parts)):
        return Level([replace(whole, kind="plain")], ["", ""])  # person_001: a name; its tokens are given by `inner`
    return Level(parts, gaps)


def inner(part: Part) -> Level | None:
    """The tokens of a whole folder level, such as 0001 and 2 of `0001_2`; None where they are not built alike."""
    tokens = _tokens(list(part.values))
    return None if tokens is None else Level(*_columns(part.level, tokens))


def _kind_of_folder(texts: Sequence[str]) -> str:
    tests: dict[str, Callable[[str], object]] = {"camera": CAMERA_LEVEL.fullmatch, "session": DATED.fullmatch}
    for kind, test in tests.items():
        if all(map(test, texts)):
            return kind
    if all(map(YEAR.fullmatch, texts)) or all(map(DAYTIME.fullmatch, texts)):
        return "session"
    for kind in ("tracklet", "session", "frame"):
        words = "|".join(word for word in WORDS[kind] if len(word) > 1)
        if all(re.fullmatch(rf"(?i)(?:{words})[-_ ]?\d+", text) for text in texts):
            return kind
    return "constant" if len(set(texts)) == 1 else "plain"


class Tokens(NamedTuple):
    """Texts that are built alike: T tokens in each of N texts, and the separators as regexes before, between, after."""

    rows: list[tuple[str, ...]]
    gaps: list[str]


def _tokens(texts: Sequence[str]) -> Tokens | None:
    """None where texts differ in their number of tokens.

    Tokens are runs of letters and digits, taken apart further where that is possible for all texts (c1s1).
    """
    for glued in (True, False):
        rows = [_split(text, glued) for text in texts]
        if len({len(row[0]) for row in rows}) == 1 and rows[0][0]:
            gaps = list(zip(*(row[1] for row in rows), strict=True))
            if all(len({bool(gap) for gap in column}) == 1 for column in gaps[1:-1]):
                return Tokens([row[0] for row in rows], [_gap(column) for column in gaps])
    return None


def _split(text: str, glued: bool) -> tuple[tuple[str, ...], list[str]]:
    tokens, gaps, at = [], [], 0
    for match in TOKEN.finditer(text):
        apart = glued and GLUED.fullmatch(match[0])
        for piece in PIECE.finditer(match[0]) if apart else [match]:
            start = piece.start() + (match.start() if apart else 0)
            gaps.append(text[at:start])
            tokens.append(piece[0])
            at = start + len(piece[0])
    return tuple(tokens), [*gaps, text[at:]]


def _gap(column: Sequence[str]) -> str:
    found = set(column)
    return re.escape(column[0]).replace(r"\-", "-").replace(r"\ ", " ") if len(found) == 1 else r"[\W_]*"


def _columns(level: int, tokens: Tokens, cameras: bool = False) -> tuple[list[Part], list[str]]:
    """Each token's kind; a word such as `cam` in front of a number says what that is.

    cameras: whether they are known, so that single letters may be taken for tracklets, sessions, frames (C1T0001F001).
    """
    parts: list[Part] = []
    for spot, values in enumerate(zip(*tokens.rows, strict=True)):
        part = _column(level, spot, values)
        before = parts[-1].values[0].lower() if parts and parts[-1].kind == "constant" else ""
        kind = KIND.get(before, "") if len(before) > 1 else ""
        if part.kind == "plain" and kind and all(re.fullmatch(r"\d+|[A-Za-z]", value) for value in values):
            part = replace(part, kind=kind)
        if part.kind == "plain" and parts and DATE.fullmatch(parts[-1].values[0]) and _times(values):
            part = replace(part, kind="time")
        parts.append(part)
    letters = {"t", "f", "s"}
    if not cameras and not any(part.kind == "camera" for part in parts):  # a single letter says little by itself
        parts = [replace(part, kind="plain") if part.weak and _word(part) in letters else part for part in parts]
    return _merge_dates(parts, tokens.gaps)


def _column(level: int, spot: int, values: tuple[str, ...]) -> Part:
    if len(set(values)) == 1 and not NUMBERED.fullmatch(values[0]) and not values[0].isdecimal():
        return Part(level, spot, "constant", values, re.escape(values[0]))
    matches = [NUMBERED.fullmatch(value) for value in values]
    words = {match[1].lower() for match in matches if match}
    if all(matches) and len(words) == 1 and (word := words.pop()) in KIND:
        said = tuple(match[2] for match in matches if match)
        return Part(level, spot, KIND[word], said, f"(?i:{word}){{\\d+}}", weak=len(word) == 1)
    digits = all(value.isdecimal() for value in values)
    kind = "session" if _mostly(DATE.fullmatch, values) or all(map(DAYTIME.fullmatch, values)) else "plain"
    if len(set(values)) == 1 and kind == "plain":
        kind = "constant"
    regex = r"\d+" if digits else r"[^\W_]+"
    return Part(level, spot, kind, values, f"{{{regex}}}")


def _word(part: Part) -> str:
    return part.regex[4] if part.regex.startswith("(?i:") else ""


def _mostly(test: Callable[[str], object], values: Sequence[str]) -> bool:
    """Dates are often a little wrong: half of them are enough for all to be taken for dates, not for numbers."""
    return 2 * sum(test(value) is not None for value in values) > len(values)


def _times(values: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[0-2]\d[0-5]\d[0-6]\d(?:\d{3})?", value) for value in values)


def _merge_dates(parts: list[Part], gaps: list[str]) -> tuple[list[Part], list[str]]:
    """2011, 01, 03 is one date."""
    for at in range(len(parts) - 2):
        year, month, day = parts[at : at + 3]
        rows = list(zip(year.values, month.values, day.values, strict=True))
        if all(DATE.fullmatch("".join(row)) and [len(text) for text in row] == [4, 2, 2] for row in rows):
            regex = rf"{{\d+{gaps[at + 1]}\d+{gaps[at + 2]}\d+}}"
            date = replace(year, kind="session", values=tuple(map("-".join, rows)), regex=regex)
            return _merge_dates([*parts[:at], date, *parts[at + 3 :]], [*gaps[: at + 1], *gaps[at + 3 :]])
    return parts, gaps
