"""What is printed where paths leave a doubt: patterns to paste, each with what it would give."""

import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from clipreid.data.evidence import Images
from clipreid.data.parts import Level, Part, inner, take_apart
from clipreid.data.patterns import FOLDER_DATE, NUMBER, PATTERNS, Crop, Pattern, Place, listing, read_paths, unmatched
from clipreid.data.values import is_unknown
from clipreid.errors import UserError

MOST = 8  # patterns that are offered
SAMPLE = 3000  # images that they are ranked on


class Offer(NamedTuple):
    """A pattern, what it would give in words, and how likely that is."""

    pattern: Pattern
    gives: str
    score: float


def as_pattern(levels: Sequence[Level], roles: Mapping[Part, str]) -> Pattern:
    """The regular expression that captures these parts, each under its role."""
    pieces, last = [], max(part.level for part in roles)
    for number in range(last + 1):
        level = levels[number]
        wanted = [part for part in level.parts if part in roles]
        if not wanted:
            pieces.append("[^/]+")
            continue
        text = ""
        for gap, part in zip(level.gaps, level.parts, strict=False):
            text += gap + _piece(part, roles.get(part))
            if number == last and part is wanted[-1]:
                break
        if number < last or wanted[-1] is level.parts[-1]:
            text += level.gaps[-1] if len(levels) - 1 > number else ""
        pieces.append(text)
    end = "/" if last < len(levels) - 1 and wanted[-1] is levels[last].parts[-1] else ""
    regex = "^" + "/".join(pieces) + end
    return Pattern(regex, regex, "the images here")


def _piece(part: Part, role: str | None) -> str:
    start, stop = ("", "") if role is None else (f"(?P<{role}>", ")")
    return re.sub(r"(?<!\\)\{(.*)(?<!\\)\}", lambda match: f"{start}{match[1]}{stop}", part.regex)


def explain(images: Images, doubts: Sequence[str], unknown: Collection[str], others: Sequence[Place] = ()) -> str:
    """The refusal: what is in doubt, and the patterns to choose from. others: images that do not fit the rest."""
    total = len(images.places)
    lines = [f"it is not clear how the paths of {total:,d} images name identities and cameras"]
    lines[0] += f", such as {images.places[0]}:" if not others else ":"
    lines += [f"  {doubt}{':' if others else ''}" for doubt in doubts]
    if others:
        lines.append(listing(others))
    offers = make_offers(images, unknown)
    if offers:
        lines.append("Choose what is meant, the likeliest first:")
        for offer in offers:
            lines += [f"  --pattern {shlex.quote(offer.pattern.name)}", f"      {offer.gives}"]
    lines.append(
        ("Rename or move the files, or give" if others or not offers else "Or give")
        + " --pattern with a regular expression for the path below the split's folder, with the groups identity and, "
        "where known, camera, view, tracklet, session, clothes, such as "
        + shlex.quote(r"(?P<identity>[^/_]+)_(?P<camera>\d+)")
    )
    lines.append("Where paths do not say who it is, write a table (csv:FILE.csv, columns image, identity, camera).")
    return "\n".join(lines)


def make_offers(images: Images, unknown: Collection[str] = ()) -> list[Offer]:
    """Patterns that fit, the likeliest first, each reading the images in another way.

    They are ranked on every so many-th image, and what the first ones give is then counted on all.
    """
    step = -(-len(images.places) // SAMPLE)
    some = type(images)(images.places[::step], images.homes[::step])
    builtin = [pattern for pattern in PATTERNS if pattern not in (FOLDER_DATE, NUMBER)]  # fit anything
    ranked = _offers([*builtin, *_combined(some)], some, unknown)
    return ranked if step == 1 else _offers([offer.pattern for offer in ranked], images, unknown)


def _offers(patterns: Sequence[Pattern], images: Images, unknown: Collection[str]) -> list[Offer]:
    seen: dict[tuple[Crop, ...], Offer] = {}
    for pattern in patterns:
        if unmatched(pattern, images.places):
            continue
        try:
            crops = read_paths(pattern, images.places, unknown)[0]
        except UserError:
            continue
        key = tuple(crops)
        if key not in seen and len({crop.identity for crop in crops}) > 1:
            seen[key] = Offer(pattern, *_judge(crops, images.homes, unknown))
    return sorted(seen.values(), key=lambda offer: -offer.score)[:MOST]


def _combined(images: Images) -> list[Pattern]:
    """Every part as the identity, with every other part as the camera, session or tracklet."""
    paths = [place.path for place in images.places]
    if len({path.count("/") for path in paths}) > 1:
        return []
    levels = take_apart(paths)
    levels = [
        *[inner(level.parts[0]) or level if _is_mixed(level) else level for level in levels[:-1]],
        levels[-1],
    ]
    found = []
    parts = [part for level in levels for part in level.parts]
    plain = [part for part in parts if part.kind in ("plain", "camera") or (part.kind == "frame" and part.weak)]
    cameras = [part for part in parts if part.kind == "camera"][:1]
    fixed = {part: part.kind for kind in ("session", "tracklet") for part in [p for p in parts if p.kind == kind][:1]}
    image = parts[-1]  # at the end of a name is the number of the image, or its camera
    for who in plain:
        rest = [part for part in plain if part is not who and 2 <= len(set(part.values)) <= len(part.values) / 2]
        rest = [part for part in rest if part is not image or len(levels[-1].parts) > 1]
        seen_by: list[Part | None] = [*cameras] if cameras and who not in cameras else [None, *rest]
        for camera in seen_by:
            roles = {**fixed, who: "identity"} | ({camera: "camera"} if camera else {})
            found.append(as_pattern(levels, roles))
            others = [part for part in rest if part not in roles and part is not image]
            kinds = [kind for kind in ("session", "tracklet") if kind not in fixed.values()]
            found += [as_pattern(levels, {**roles, other: kind}) for other, kind in product(others, kinds)]
    return [*found, *_joint(levels)]


def _is_mixed(level: Level) -> bool:
    """A folder such as 0001_2, whose pieces may say different things."""
    part = level.parts[0]
    pieces = inner(part) if len(level.parts) == 1 and part.kind == "plain" else None
    return pieces is not None and sum(len(set(piece.values)) > 1 for piece in pieces.parts) > 1


def _joint(levels: Sequence[Level]) -> list[Pattern]:
    """Two folders that are one identity together: tracks that are numbered anew in each sequence."""
    found = []
    for at in range(len(levels) - 2):
        above = "[^/]+/" * at
        for camera in ("", "?P<camera>"):
            first = f"({camera}[^/]+)" if camera else "[^/]+"
            regex = f"^{above}(?P<identity>{first}/[^/]+)/"
            found.append(Pattern(regex, regex, "the images here"))
    return found


def _judge(crops: Sequence[Crop], homes: Sequence[str], unknown: Collection[str]) -> tuple[str, float]:
    """What a pattern would give, in words, and a score for the order of the offers."""
    rows = [(crop, home) for crop, home in zip(crops, homes, strict=True) if not is_unknown(crop.identity, unknown)]
    parts = [part for part in ("train", "val", "test") if part in homes]
    who = {part: {crop.identity for crop, home in rows if home == part} for part in parts}
    counts = Counter(crop.identity for crop, _ in rows)
    seen: dict[str, set[int]] = {}
    for crop, _ in rows:
        seen.setdefault(crop.identity, set()).add(crop.camera)
    cameras = set().union(*seen.values()) - {-1} if seen else set()
    several = sum(len(each) > 1 for each in seen.values())
    columns = [name for name in ("session", "tracklet") if any(getattr(crop, name) for crop, _ in rows)]
    gives = ", ".join(
        [
            f"{' + '.join(str(len(who[part])) for part in parts)} identities ({' + '.join(parts)})",
            f"{len(cameras)} cameras" if cameras else "no cameras",
            f"{len(rows):,d} images",
            *(f"{len({getattr(crop, name) for crop, _ in rows} - {''}):,d} {name}s" for name in columns),
        ]
    )
    shared = len(who.get("train", set()) & who.get("test", set()))
    single = sum(number == 1 for number in counts.values())
    faults = [f"{shared:,d} identities are in train and test"] if shared else []
    faults += [f"{single:,d} identities have one image only"] if 2 * single > len(counts) else []
    faults += ["no identity is seen by two cameras"] if len(cameras) > 1 and not several else []
    score = -4.0 * bool(shared) - 3 * (2 * single > len(counts))
    score += 2 * (several > len(seen) / 2) - 2 * (len(cameras) > 1 and not several) - (len(cameras) > 50)
    score -= 0.5 * (len(cameras) > len(counts))
    for name, gain in (("camera", 0.0625), ("session", 0.25), ("tracklet", 0.125)):
        groups = {(crop.identity, getattr(crop, name)) for crop, _ in rows}
        if name in columns or (name == "camera" and cameras):
            score += gain if len(groups) < len(rows) else -gain  # each value once: the number of the image
    return gives + (f" (but {'; '.join(faults)})" if faults else ""), score
