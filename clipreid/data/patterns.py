"""File-name patterns: what a path below a split's folder says about identity, camera, view and clothes.

A pattern is a regular expression with the named groups identity, camera, view and clothes (all but the first
optional); it is searched for in the path below the split's folder, written with forward slashes, or in the line
of a list that names the image. Cameras and views are whole numbers or single letters, A = 1.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clipreid.data.problems import tolerate
from clipreid.errors import UserError

GROUPS = ("identity", "camera", "view", "clothes")
MISFIT = "wrong file name"
SHOWN = 10  # how many offending files an error lists


@dataclass(frozen=True)
class Pattern:
    """A named way to read paths. Junk identities are dropped; distractors stay in the gallery, but are no queries."""

    name: str
    regex: str
    example: str
    junk: frozenset[str] = field(default_factory=frozenset)
    distractors: frozenset[str] = field(default_factory=frozenset)


class Place(NamedTuple):
    """Where an image lies: the split's folder (below the root), and the path below it, for patterns.

    text: what patterns read where that is not the path: an entry of a list. where: its file and line.
    """

    folder: str
    path: str
    text: str = ""
    where: str = ""
    caption: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else f"{self.folder}/{self.path}"


class Crop(NamedTuple):
    """What one path says: -1 is an unknown camera or view, "" unknown clothes."""

    identity: str
    camera: int = -1
    view: int = -1
    clothes: str = ""


MARKET = Pattern(
    "market1501",
    r"^(?:.*/)?(?P<identity>-1|\d+)_c(?P<camera>\d+)(?:s\d+)?_[^/]*$",
    "0002_c1s1_000451_03.jpg",
    junk=frozenset({"-1"}),
    distractors=frozenset({"0", "0000"}),
)
CLASS_CAM = Pattern(
    "class-cam",
    r"^(?:.*/)?(?P<identity>(?:[A-Za-z][A-Za-z-]*_)*\d+)_cam(?P<camera>\d+)(?:_[^/]*)?\.\w+$",
    "car_0001_cam2.jpg",
)
FOLDER_CAMERA = Pattern(
    "identity/camera/",
    r"^(?P<identity>[^/]+)/(?i:c|cam|camera)?[-_ ]?(?P<camera>\d+)/[^/]+$",
    "anna/cam2/0001.jpg",
)
FOLDER_NAME_CAMERA = Pattern(
    "identity/cam",
    r"^(?P<identity>[^/]+)/(?:[^/]*[-_ ])?(?i:c|cam|camera)[-_ ]?(?P<camera>\d+)"
    r"(?:s\d+)?(?:[-_ ][^/]*)?\.\w+$",
    "anna/0001_cam2.jpg",
)
FOLDER = Pattern("identity/", r"^(?P<identity>[^/]+)/[^/]+$", "anna/0001.jpg")
NUMBER = Pattern("number_", r"^(?P<identity>\d+)[-_][^/]*$", "0002_17.jpg")

# patterns that read more are tried first
PATTERNS = (MARKET, CLASS_CAM, FOLDER_CAMERA, FOLDER_NAME_CAMERA, FOLDER, NUMBER)


def choose_pattern(places: Sequence[Place], wanted: str | None = None) -> Pattern:
    """The pattern asked for, by name or as a regular expression, else the first built-in one that fits all.

    places: the images of all splits. Raises `UserError` for a regular expression that cannot be used, when
    no built-in pattern fits every path (naming those the best one leaves out), and when file names and
    folders give different identities.
    """
    if wanted is not None:
        return named_pattern(wanted)
    misfits = {pattern.name: unmatched(pattern, places) for pattern in PATTERNS}
    chosen = min(PATTERNS, key=lambda pattern: len(misfits[pattern.name]))  # the first one that fits all
    if 2 * len(misfits[chosen.name]) > len(places):
        raise UserError(_explain_misfit(places))
    if misfits[chosen.name]:
        tolerate(UserError(_explain_misfit(places)), MISFIT, list(map(str, misfits[chosen.name])))
    elif chosen.name in (MARKET.name, CLASS_CAM.name) and not misfits[FOLDER.name]:
        _refuse_ambiguity(chosen, places)
    return chosen


def named_pattern(text: str) -> Pattern:
    """The built-in pattern of that name, else a regular expression. Raises `UserError` where that cannot be used."""
    named = [pattern for pattern in PATTERNS if pattern.name == text]
    return named[0] if named else _from_regex(text)


def unmatched(pattern: Pattern, places: Sequence[Place]) -> list[Place]:
    """The paths that the pattern does not fit."""
    regex = re.compile(pattern.regex)
    return [place for place in places if regex.search(place.text or place.path) is None]


def fitting(pattern: Pattern, places: Sequence[Place]) -> list[Place]:
    """The places that the pattern fits. Raises `UserError` naming the others (`clipreid.data.problems`: notes them)."""
    misfits = unmatched(pattern, places)
    if misfits:
        refusal = UserError(
            f"{len(misfits):,d} of {len(places):,d} images do not fit the pattern {pattern.name!r} "
            f"(such as {pattern.example}):\n{_listing(misfits)}\nRename or move them. With folder:ROOT "
            f"there is --pattern, a regular expression with a group (?P<identity>...) or one of {_names()}"
        )
        tolerate(refusal, MISFIT, list(map(str, misfits)))
    left_out = set(misfits)
    return [place for place in places if place not in left_out]


def read_paths(pattern: Pattern, places: Sequence[Place]) -> list[Crop]:
    """Identity, camera, ... of images that the pattern fits."""
    regex = re.compile(pattern.regex)
    return [_crop(pattern, place, regex) for place in places]


def _crop(pattern: Pattern, place: Place, regex: re.Pattern[str]) -> Crop:
    match = regex.search(place.text or place.path)
    found: Mapping[str, str | None] = match.groupdict() if match else {}
    if not found.get("identity"):
        raise UserError(f"pattern {pattern.name!r} reads an empty identity from {place}")
    camera, view = (_number(group, found.get(group), place) for group in ("camera", "view"))
    return Crop(str(found["identity"]), camera, view, found.get("clothes") or "")


def _number(group: str, text: str | None, place: Place) -> int:
    if not text:
        return -1
    if len(text) == 1 and text.isascii() and text.isalpha():
        return ord(text.upper()) - ord("A") + 1
    if not text.isdecimal():
        raise UserError(f"the pattern reads {group} {text!r} from {place}: it must be a whole number or one letter")
    if len(text) > 9:  # kept in 32 bits
        raise UserError(f"the pattern reads {group} {text} from {place}: it must have 9 digits at most")
    return int(text)


def _from_regex(text: str) -> Pattern:
    known = f"the built-in patterns are {_names()}"
    try:
        groups = re.compile(text).groupindex
    except re.error as error:
        raise UserError(f"--pattern {text!r} is not a regular expression ({error}); {known}") from error
    if "identity" not in groups:
        close = difflib.get_close_matches(text, [pattern.name for pattern in PATTERNS], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"--pattern {text!r} has no group (?P<identity>...);{hint} {known}")
    strange = sorted(set(groups) - set(GROUPS))
    if strange:
        raise UserError(f"--pattern {text!r} has a group {strange[0]!r}; known groups are {', '.join(GROUPS)}")
    return Pattern(text, text, "your own regular expression")


def _refuse_ambiguity(chosen: Pattern, places: Sequence[Place]) -> None:
    """anna/0001_cam1.jpg, anna/0002_cam1.jpg: are the identities 0001 and 0002, or is it anna twice?

    Folders and names that group alike are fine, and so are folders of a class (car/car_0001_cam1.jpg).
    """
    named: dict[str, str] = {}  # folder -> identity of its first image
    homes: dict[str, str] = {}  # identity -> folder of its first image
    for place, crop in zip(places, read_paths(chosen, places), strict=True):
        folder = place.path.split("/")[0]
        alike = named.setdefault(folder, crop.identity) == crop.identity
        alike &= homes.setdefault(crop.identity, folder) == folder
        if not alike and not crop.identity.startswith(folder):
            raise UserError(
                f"the identity of {place} is ambiguous: by the file name {crop.identity!r} (pattern {chosen.name!r}), "
                f"by the folder {folder!r} (pattern {FOLDER.name!r}), and the two group the images differently. "
                f"Choose with --pattern {chosen.name!r} or --pattern {FOLDER.name!r}"
            )


def _explain_misfit(places: Sequence[Place]) -> str:
    misfits = {pattern.name: unmatched(pattern, places) for pattern in PATTERNS}
    best = min(PATTERNS, key=lambda pattern: len(misfits[pattern.name]))
    fits = "\n".join(
        f"  {pattern.name:18s}such as {pattern.example:26s}fits {len(places) - len(misfits[pattern.name]):,d}"
        for pattern in PATTERNS
    )
    nearest = (
        f"The nearest is {best.name!r}; these do not fit it:\n{_listing(misfits[best.name])}"
        if len(misfits[best.name]) < len(places)
        else f"For example:\n{_listing(places)}"
    )
    return (
        f"no built-in naming pattern fits all {len(places):,d} images:\n{fits}\n{nearest}\n"
        "Rename or move those files, or give --pattern with a regular expression such as "
        r"'(?P<identity>\w+?)_(?P<camera>\d+)_' for the path below the split's folder"
    )


def _listing(places: Sequence[Place]) -> str:
    more = [f"  ... and {len(places) - SHOWN:,d} more"] if len(places) > SHOWN else []
    return "\n".join([*(f"  {place}" for place in places[:SHOWN]), *more])


def _names() -> str:
    return ", ".join(repr(pattern.name) for pattern in PATTERNS)
