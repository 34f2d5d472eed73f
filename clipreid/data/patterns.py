"""File-name patterns: what a path below a split's folder says about identity, camera, view, clothes, tracklet, session.

A pattern is a regular expression with the named groups of `GROUPS` (all but identity optional); it is searched for in
the path below the split's folder, written with forward slashes, or in the line of a list that names the image. What
the values mean is said by `clipreid.data.values`; which pattern fits a folder is weighed in `clipreid.data.readings`.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from clipreid.data.problems import tolerate
from clipreid.data.values import is_unknown, number_all, text_of
from clipreid.errors import UserError

GROUPS = ("identity", "camera", "view", "clothes", "tracklet", "session")
MISFIT = "wrong file name"
SHOWN = 10  # how many offending files an error lists
APART = "apart:"  # in front of a pattern: the same name in train and in the test set is another individual


@dataclass(frozen=True)
class Pattern:
    """A named way to read paths. Junk identities are dropped; distractors stay in the gallery, but are no queries.

    apart: train and test are both numbered from the start: identities of train are called train-NAME.
    """

    name: str
    regex: str
    example: str
    junk: frozenset[str] = field(default_factory=frozenset)
    distractors: frozenset[str] = field(default_factory=frozenset)
    apart: bool = False


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
        path = self.path if self.folder == "." else f"{self.folder}/{self.path}"
        return f"{self.where}: {self.text}" if self.where else path


class Crop(NamedTuple):
    """What one path says: -1 is an unknown camera or view, "" unknown clothes, tracklet, session."""

    identity: str
    camera: int = -1
    view: int = -1
    clothes: str = ""
    tracklet: str = ""
    session: str = ""


MARKET = Pattern(
    "market1501",
    r"^(?:.*/)?(?P<identity>-1|\d+)_c(?P<camera>\d+)(?:s\d+)?_[^/]*$",
    "0002_c1s1_000451_03.jpg",
    junk=frozenset({"-1"}),
    distractors=frozenset({"0", "0000"}),
)
OWN_MARKET = replace(  # in own data no number has a special meaning, and what is no number may say something else
    MARKET,
    regex=r"^(?:.*/)?(?P<identity>-1|\d+)_c(?P<camera>\d+)(?:s(?P<session>\d+)_[^/]*|(?:_(?!(?:19|20)\d{6}(?!\d))f?\d+)+(?:\.\w+)*)$",
    distractors=frozenset(),
)
CLASS_CAM = Pattern(
    "class-cam",
    r"^(?:.*/)?(?P<identity>(?P<word>(?:[A-Za-z][A-Za-z-]*_)+)?\d+)_cam(?P<camera>\d+)"
    r"(?(word)(?:_(?!(?:19|20)\d{6}\b)\d+)?)(?:\.\w+)?$",  # behind a bare number a second one may be the identity
    "car_0001_cam2.jpg",
)
MARS = Pattern(  # Zheng et al., "MARS: A Video Benchmark", ECCV 2016
    "mars",
    r"^(?:.*/)?(?P<identity>\d{4}|00-1)C(?P<camera>\d)(?P<tracklet>T\d{4})F\d+(?:\.\w+)?$",
    "0001/0001C1T0001F001.jpg",
    junk=frozenset({"00-1"}),
)
MSMT = Pattern(
    "msmt",
    r"^(?:.*/)?(?P<identity>\d{4,})_\d{3,}_(?P<camera>\d\d)_(?P<session>\d{4}[a-z]+)_\d+(?:_\d+)*(?:\.\w+)?$",
    "0000_000_01_0303morning_0015_0.jpg",
)
MOT = Pattern(  # tracks are numbered in each sequence, by its one camera
    "mot",
    r"^(?P<identity>(?P<camera>MOT\d+-\d+[^/]*)/(?P<tracklet>\d+))/[^/]+$",
    "MOT17-02/0001/000001.jpg",
)
FOLDER_CAMERA = Pattern(
    "identity/camera/",
    r"^(?P<identity>[^/]+)/(?i:camera|cam|c)[-_ ]?(?P<camera>\d+|[A-Za-z])/[^/]+$",
    "anna/cam2/0001.jpg",
)
CAMERA_FOLDER = Pattern(
    "camera/identity/",
    r"^(?i:camera|cam|c)[-_ ]?(?P<camera>\d+|[A-Za-z])/(?P<identity>[^/]+)/[^/]+$",
    "cam2/anna/0001.jpg",
)
FOLDER_NAME_CAMERA = Pattern(
    "identity/cam",
    r"^(?P<identity>[^/]+)/(?:[^/]*[-_ ])?(?i:c|cam|camera)[-_ ]?(?P<camera>\d+)"
    r"(?:s(?P<session>\d+))?(?:[-_ ][^/]*)?(?:\.\w+)?$",
    "anna/0001_cam2.jpg",
)
FOLDER_DATE = Pattern(
    "identity/session/",
    r"^(?P<identity>[^/]+)/(?P<session>[^/]+)/[^/]+$",
    "whale3/2011-01-03/DSC001.jpg",
)
FOLDER = Pattern("identity/", r"^(?P<identity>[^/]+)/[^/]+$", "anna/0001.jpg")
NUMBER = Pattern("number_", r"^(?P<identity>\d+)[-_][^/]*$", "0002_17.jpg")

SIGNATURES = (OWN_MARKET, MARS, MSMT, MOT, CLASS_CAM)  # names that nothing else looks like
PATTERNS = (*SIGNATURES, FOLDER_CAMERA, CAMERA_FOLDER, FOLDER_NAME_CAMERA, FOLDER_DATE, FOLDER, NUMBER)


def named_pattern(text: str) -> Pattern:
    """The built-in pattern of that name, else a regular expression; `apart:` may stand in front.

    Raises `UserError` where that cannot be used.
    """
    if text.startswith(APART):
        return replace(named_pattern(text[len(APART) :]), name=text, apart=True)
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
            f"(such as {pattern.example}):\n{listing(misfits)}\nRename or move them. With folder:ROOT "
            f"there is --pattern, a regular expression with a group (?P<identity>...) or one of {_names()}"
        )
        tolerate(refusal, MISFIT, list(map(str, misfits)))
    left_out = set(misfits)
    return [place for place in places if place not in left_out]


def read_paths(
    pattern: Pattern, places: Sequence[Place], unknown: Collection[str] = ()
) -> tuple[list[Crop], list[str]]:
    """Identity, camera, ... of images that the pattern fits, and notes for the user.

    places: of all splits together, for what `cam1` and `entrance` mean depends on the others. unknown: further words
    for "nobody knows". A tracklet is one of one identity and camera; where numbers restart it is called
    IDENTITY/CAMERA/NUMBER. Raises `UserError` for an empty identity.
    """
    regex = re.compile(pattern.regex)
    found = [_groups(pattern, place, regex) for place in places]
    numbers, notes = {}, []
    for group in ("camera", "view"):
        values = [said.get(group) for said in found]
        once = list(dict.fromkeys(values))
        number, about = number_all(group, once, unknown)
        known = dict(zip(once, number, strict=True))
        numbers[group] = [known[value] for value in values]
        notes += about
    texts = {}
    for group in ("clothes", "tracklet", "session"):
        values = [said.get(group) for said in found]
        clean = {value: "" if is_unknown(value, unknown) else text_of(value) for value in set(values)}
        texts[group] = [clean[value] for value in values]
    crops = [
        Crop(said["identity"] or "", *row)
        for said, row in zip(found, zip(*numbers.values(), *texts.values(), strict=True), strict=True)
    ]
    return _unique_tracklets(crops), notes


def _groups(pattern: Pattern, place: Place, regex: re.Pattern[str]) -> Mapping[str, str | None]:
    match = regex.search(place.text or place.path)
    found: Mapping[str, str | None] = match.groupdict() if match else {}
    if not found.get("identity"):
        raise UserError(f"pattern {pattern.name!r} reads an empty identity from {place}")
    return found


def _unique_tracklets(crops: list[Crop]) -> list[Crop]:
    home: dict[str, tuple[str, int]] = {}
    if all(home.setdefault(crop.tracklet, crop[:2]) == crop[:2] for crop in crops if crop.tracklet):
        return crops
    return [
        crop._replace(tracklet=f"{crop.identity}/{crop.camera}/{crop.tracklet}") if crop.tracklet else crop
        for crop in crops
    ]


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


def listing(places: Sequence[Place]) -> str:
    """The first of them, a line each, and how many more there are."""
    more = [f"  ... and {len(places) - SHOWN:,d} more"] if len(places) > SHOWN else []
    return "\n".join([*(f"  {place}" for place in places[:SHOWN]), *more])


def _names() -> str:
    return ", ".join(repr(pattern.name) for pattern in PATTERNS)
