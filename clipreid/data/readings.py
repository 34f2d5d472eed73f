"""Which part of the paths is the identity, and which the camera: taken where it is clear, asked where it is not.

Paths say too little to be guessed from: `1/0001/0001.jpg` may begin with a camera or with a person. Whatever could be
the identity is a rival, and a rival must be ruled out by what it would imply: one image for each identity, the same
identities in train and in the test set, the same grouping as the chosen one. What remains in doubt is refused, with
patterns to choose from (`clipreid.data.offers`).
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from clipreid.data.evidence import SHARED, Evidence, Images, same_groups
from clipreid.data.offers import as_pattern, explain
from clipreid.data.parts import DATE, KIND, YEAR, Level, Part, dates_inside, edges, inner, marks_inside, take_apart
from clipreid.data.patterns import (
    CLASS_CAM,
    FOLDER,
    FOLDER_NAME_CAMERA,
    MISFIT,
    MOT,
    OWN_MARKET,
    PATTERNS,
    SIGNATURES,
    Pattern,
    Place,
    named_pattern,
    read_paths,
    unmatched,
)
from clipreid.data.problems import tolerate
from clipreid.errors import UserError

FEW = 8  # folders; so few may be cameras or days, with people in the file names
CLASSES = re.compile(
    r"(?i)(?:person|people|pedestrian|car|truck|bus|motorcycle|bicycle|vehicle|animal|crop|image|data|dataset|file|all)s?"
)


def choose_pattern(
    places: Mapping[str, Sequence[Place]], wanted: str | None = None, unknown: Collection[str] = ()
) -> Pattern:
    """The pattern asked for, by name or as a regular expression, else the one that the paths leave no doubt about.

    places: by split. unknown: further words for "nobody knows". Raises `UserError` for a regular expression that cannot
    be used; for images that are named in another way than most; and for doubt, with patterns to paste.
    """
    if wanted is not None:
        return named_pattern(wanted)
    everything = Images.of(places)
    images = _most(everything)[1]
    if len(images.places) < len(everything.places):
        fit = set(images.places)
        others = [place for place in everything.places if place not in fit]
        refusal = explain(everything, [f"{len(others):,d} of them are not named as the others are"], unknown, others)
        tolerate(UserError(refusal), MISFIT, list(map(str, others)))
    chosen, doubts = weigh(images, unknown)
    if chosen is None or doubts:
        raise UserError(explain(images, doubts, unknown))
    return chosen


def weigh(everything: Images, unknown: Collection[str] = ()) -> tuple[Pattern | None, list[str]]:
    """The pattern that the paths speak for, and what remains in doubt; None where nothing speaks for any."""
    pattern, images = _most(everything)
    known = Weighing(images, unknown)
    chosen, doubts = known.by_signature(pattern) if pattern else (None, [])
    if chosen is None and not doubts:
        chosen, doubts = known.by_folders()
    return (chosen if chosen is None or doubts else _known_name(chosen, images)), doubts


def _most(images: Images) -> tuple[Pattern | None, Images]:
    """The images that are named alike, at least half of them: by a signature, else by the number of folders."""
    for pattern in SIGNATURES:
        misfits = set(unmatched(pattern, images.places))
        if 2 * len(misfits) < len(images.places):
            return pattern, images.only([place for place in images.places if place not in misfits])
    depths = Counter(place.path.count("/") for place in images.places)
    depth = depths.most_common(1)[0][0]
    return None, images.only([place for place in images.places if place.path.count("/") == depth])


def _known_name(chosen: Pattern, images: Images) -> Pattern:
    """The built-in pattern that reads the same, where there is one: its name is shorter."""
    if chosen in PATTERNS:
        return chosen
    ours = read_paths(chosen, images.places)[0]
    fit = (pattern for pattern in PATTERNS if not unmatched(pattern, images.places))
    return next((pattern for pattern in fit if read_paths(pattern, images.places)[0] == ours), chosen)


class Weighing:
    """What speaks for and against the parts of paths of equal form. All values are of N images."""

    def __init__(self, images: Images, unknown: Collection[str]) -> None:
        self.images, self.unknown = images, unknown
        self.evidence = Evidence(images, unknown)
        paths = [place.path for place in images.places]
        self.levels = take_apart(paths) if len({path.count("/") for path in paths}) == 1 else []

    def by_signature(self, pattern: Pattern) -> tuple[Pattern | None, list[str]]:
        """A name such as 0002_c1s1_000451_03.jpg says all; but not against the folders above it, or the split.

        Neither a pattern nor doubts: the folders say who it is.
        """
        if any(part.kind in ("session", "tracklet") for level in self.levels[:-1] for part in level.parts):
            return None, []  # more than the name says
        crops = read_paths(pattern, self.images.places, self.unknown)[0]
        who = [crop.identity for crop in crops]
        if any(KIND.get(name.partition("_")[0].lower()) for name in set(who)):
            return None, []  # img_1_cam1_0007
        doubts = []
        for folder in (part for level in self.levels[:-1] for part in level.parts if part.kind == "plain"):
            pairs = list(zip(folder.values, who, strict=True))
            if (
                pattern is MOT
                or same_groups(folder.values, who)
                or all(name.startswith(above) for above, name in pairs)
            ):
                continue
            ours, theirs = self.evidence.shared(who), self.evidence.shared(folder.values)
            if ours and theirs == 0 and ours >= SHARED and pattern is CLASS_CAM:
                return None, []
            if not (ours == 0 and theirs and theirs >= SHARED):
                above, name = pairs[0]
                doubts.append(
                    f"the identity may be {name!r} (by the file name, pattern {pattern.name!r}) or {above!r} (by the "
                    f"folder, pattern {FOLDER.name!r}), and the two group the images differently"
                )
        one = [part.values[0] for level in self.levels[:-1] for part in level.parts if part.kind == "constant"]
        one = [folder for folder in one if not CLASSES.fullmatch(folder)]
        if len(one) == 1 and pattern is CLASS_CAM and not self.evidence.could_be_identities(who):
            doubts.append(f"the identity may be {who[0]!r}, with one image of most of them, or {one[0]!r}, the folder")
        if pattern is OWN_MARKET and self.levels and not any(crop.session for crop in crops):
            later = [part for part in self._plain_in_name() if not same_groups(part.values, who)]
            doubts += [
                self._rival(part) for part in later if not self.evidence.ruled_out(part.values, who, by_form=True)
            ]
        if all(YEAR.fullmatch(name) or DATE.fullmatch(name) for name in who):
            doubts.append(f"the identity would be {who[0]!r}, which looks like a date")
        if (self.evidence.shared(who) or 0) >= SHARED and self.levels and self.levels[-1].built_alike:
            doubts += [self._rival(part) for part in self._plain_in_name() if self.evidence.better(part.values, who)]
        return pattern, doubts

    def by_folders(self) -> tuple[Pattern | None, list[str]]:
        """Identity folders, or file names that say identity and camera in words."""
        name = self.levels[-1]
        folders = self._identity_folders()
        cameras = [part for level in self.levels for part in level.parts if part.kind == "camera"]
        doubts = self._hidden_cameras(cameras)
        if len(folders) > 1:
            shown = ", ".join(f"{part.values[0]!r}" for part in folders)
            doubts.append(f"{len(folders)} parts of the folders have no meaning by their looks ({shown})")
            return None, doubts
        doubts += [
            f"cameras are written twice, and differ: {one.values[0]!r}, {two.values[0]!r}"
            for one, two in pairwise(cameras)
            if not same_groups(one.values, two.values)
        ]
        if folders:
            who, more = folders[0], self._about_folder(folders[0], cameras)
        else:
            found, more = self._in_names(cameras)
            if found is None:
                return None, [*doubts, *more]
            who = found
        doubts += more
        if cameras and not name.built_alike and cameras[0].level == name.parts[0].level:
            return FOLDER_NAME_CAMERA, doubts
        roles = {who: "identity"} | dict.fromkeys(cameras[:1], "camera")
        for kind in ("tracklet", "session"):
            said = [part for level in self.levels for part in level.parts if part.kind == kind]
            said.sort(key=lambda part: DATE.fullmatch(part.values[0]) is not None)  # day2 before a date
            roles |= dict.fromkeys(said[:1], kind)
            dates = [part for part in said if DATE.fullmatch(part.values[0])]
            if len(dates) > 1 and len(dates) == len(said) and not same_groups(dates[0].values, dates[1].values):
                doubts.append(f"there are two dates, {dates[0].values[0]!r} and {dates[1].values[0]!r}")
        return as_pattern(self.levels, roles), doubts

    def _identity_folders(self) -> list[Part]:
        """Folders whose looks say nothing else; without those that repeat another, or its class (car/car_0001)."""
        plain = [part for level in self.levels[:-1] for part in level.parts if part.kind == "plain"]
        kept: list[Part] = []
        for part in plain:
            if not any(same_groups(part.values, other.values) for other in kept):
                kept = [other for other in kept if not _is_class_of(other.values, part.values)]
                kept.append(part)
        return kept

    def _hidden_cameras(self, cameras: list[Part]) -> list[str]:
        """Cameras in names that are not built alike: all of them are read, some of them only are a doubt."""
        doubts = []
        for number, level in enumerate(self.levels):
            texts = [place.path.split("/")[number] for place in self.images.places]
            marked = 0 if any(part.kind == "camera" for part in level.parts) else marks_inside(texts)
            if marked == len(texts) and level is self.levels[-1] and not level.built_alike:
                crops = read_paths(FOLDER_NAME_CAMERA, self.images.places)[0] if self._fits_name_camera() else []
                if crops:
                    said = tuple(str(crop.camera) for crop in crops)
                    cameras.append(Part(number, 0, "camera", said, ""))
                    continue
            if marked:
                doubts.append(f"{marked:,d} of {len(texts):,d} names say a camera, such as {_marked(texts)!r}")
            plain = level is not self.levels[-1] and level.parts[0].kind == "plain" and len(level.parts) == 1
            if plain and dates_inside(texts):
                doubts.append(f"there are dates in the names of folders, such as {texts[0]!r}")
        return doubts

    def _fits_name_camera(self) -> bool:
        return not unmatched(FOLDER_NAME_CAMERA, self.images.places)

    def _about_folder(self, who: Part, cameras: list[Part]) -> list[str]:
        """Doubts about an identity folder: what else may be the identity, and what may be a camera."""
        name, doubts = self.levels[-1], []
        few = len(set(who.values)) <= FEW
        by_form = not few or any(who.level < part.level < name.parts[0].level for part in cameras)  # anna/cam2/0001
        left = self._plain_in_name()
        known = [who, *cameras]  # written again in the name
        left = [part for part in left if not any(same_groups(part.values, other.values) for other in known)]
        rivals = [
            part
            for part in left
            if not self.evidence.ruled_out(part.values, who.values, by_form and self._bare_number(part))
        ]
        doubts += [self._rival(part) for part in rivals]
        if all(re.fullmatch("[A-Za-z]", value) for value in who.values):
            doubts.append(f"{who.values[0]!r} in {self._example()} may be a camera")
        inside = inner(who) if who.spot is None else None
        for part in inside.parts if inside else ():
            if part.kind != "constant" and not self._harmless_piece(part, who):
                doubts.append(self._rival(part))
        if inside is None and who.spot is None:
            for _, rest in edges(who.values):
                if not self.evidence.says_nothing_more(rest, who.values):
                    doubts.append(f"{who.values[0]!r} may be one of several folders of {rest[0]!r}")
        if not name.built_alike:
            texts = name.parts[0].values
            if all(text.startswith(folder) for text, folder in zip(texts, who.values, strict=True)):
                texts = tuple(text[len(folder) :] for text, folder in zip(texts, who.values, strict=True))
            for token, _ in edges(texts):
                repeats = any(same_groups(token, other.values) for other in known)
                numbers = cameras and self.evidence.ruled_out(token, who.values, by_form=False)  # of the images
                known_use = repeats or numbers or self._of_one(token, who.values)
                if self.evidence.recurs(token) and not known_use:
                    doubts.append(f"{token[0]!r} in {self._example()} stands in the names of several images")
        if name.built_alike and not self._is_image_number(left, name, cameras):
            doubts += [self._unclear(part) for part in left if part not in rivals and self.evidence.recurs(part.values)]
        return list(dict.fromkeys(doubts))

    def _ruled_out(self, part: Part, who: Part, by_form: bool) -> bool:
        form = by_form and self._bare_number(part)
        return self.evidence.ruled_out(part.values, who.values, form, self._worded(part))

    def _of_one(self, token: Sequence[str], who: Sequence[str]) -> bool:
        """Whether each value is of one individual, such as the first word of its name, written again."""
        return len(set(zip(token, who, strict=True))) == len(set(token))

    def _bare_number(self, part: Part) -> bool:
        """0001, but neither person01 nor person_01."""
        return all(value.isdecimal() for value in part.values) and not self._worded(part)

    def _worded(self, part: Part) -> bool:
        """person01, person_01: a number behind one word, which is not one for images."""
        words = {re.sub(r"\d+$", "", value).lower() for value in part.values}
        if words == {""}:
            parts = self.levels[part.level].parts
            before = parts[parts.index(part) - 1] if part is not parts[0] else part
            words = {before.values[0].lower()} if before.kind == "constant" and len(before.values[0]) > 1 else words
        word = words.pop()
        return not words and word.isalpha() and word not in KIND and all(v[-1].isdecimal() for v in part.values)

    def _harmless_piece(self, part: Part, who: Part) -> bool:
        """anna_1, anna_2: is it anna twice? Not where the pieces group as the whole does, or are classes."""
        if all(map(CLASSES.fullmatch, part.values)):
            return True
        return self.evidence.says_nothing_more(part.values, who.values)

    def _is_image_number(self, left: list[Part], name: Level, cameras: list[Part]) -> bool:
        """Whether one piece of the name remains, which then numbers the image: 0001.jpg, 0001_cam2.jpg."""
        if not left:
            return True
        kinds = {part.kind for part in name.parts}
        others = [part for part in name.parts if part.kind == "plain" and part not in left]  # repeat the folder
        numbered = any(part.kind == "constant" and re.search(r"\d", part.values[0]) for part in name.parts)
        if len(left) > 1 or kinds & {"frame", "time"} or numbered:
            return False
        if cameras:
            return True
        alone = not others and kinds <= {"plain", "constant"}
        return alone and (self._bare_number(left[0]) or not self.evidence.recurs(left[0].values))

    def _in_names(self, cameras: list[Part]) -> tuple[Part | None, list[str]]:
        """The identity in file names, without a folder for it."""
        name = self.levels[-1]
        left = self._plain_in_name()
        same = [part for level in self.levels[:-1] for part in level.parts if part.kind == "constant"]
        if same and not any(self.evidence.could_be_identities(part.values) for part in left):
            few = len(self.images.places) <= 2 * FEW and len(same) == 1 and not CLASSES.fullmatch(same[0].values[0])
            if few and all(map(self._bare_number, left)) and self._is_image_number(left, name, cameras):
                return same[0], []  # a first look at the images of one individual
            return None, [f"all {len(self.images.places):,d} images lie in one folder, {same[-1].values[0]!r}"]
        if not name.built_alike:
            return None, ["there is no folder for each identity, and file names are not built alike"]
        named = [part for part in left if self._worded(part)]
        if not left:
            return None, ["no part of the paths names an identity"]
        who = named[0] if len(named) == 1 else left[0]
        others = [part for part in left if part is not who and not same_groups(part.values, who.values)]
        if not self.evidence.could_be_identities(who.values):
            return None, [f"if {who.values[0]!r} were an identity, most identities would have one image"]
        others = [part for part in others if not self._numbers_images(part, who, cameras)]
        rivals = [part for part in others if self.evidence.could_be_identities(part.values)]
        doubts = [self._rival(part) for part in rivals + (named if len(named) > 1 else [])]
        doubts += [self._unclear(part) for part in others if part not in rivals and self.evidence.recurs(part.values)]
        unique = all(5 * len(set(part.values)) >= 4 * len(part.values) for part in others) and len(who.values) >= 30
        if others and not named and not (unique and self.evidence.shared(who.values) == 0):
            doubts.append(f"both {who.values[0]!r} and {others[0].values[0]!r} may be the identity")
        shared = self.evidence.shared(who.values)
        for part in cameras[:1]:
            if (part.weak and shared != 0) or self.evidence.better(part.values, who.values):
                doubts.append(f"the identity may be {who.values[0]!r}, or what stands where {part.values[0]!r} is read")
        return who, list(dict.fromkeys(doubts))

    def _numbers_images(self, part: Part, who: Part, cameras: list[Part]) -> bool:
        """Whether a number only counts the images of each individual and camera, as 90 does in `c2_002_90`.

        The same numbers in train and test, each once for an identity and a camera; while identities are apart.
        """
        if not cameras or part is not self.levels[-1].parts[-1] or self.evidence.shared(who.values) != 0:
            return False
        if not all(value.isdecimal() for value in part.values):
            return False
        rows = set(zip(who.values, cameras[0].values, part.values, strict=True))
        few = len(set(part.values)) <= len(set(who.values))
        return few and self.evidence.shared(part.values) == 1 and len(rows) == len(part.values)

    def _plain_in_name(self) -> list[Part]:
        return [part for part in self.levels[-1].parts if part.kind == "plain"]

    def _rival(self, part: Part) -> str:
        return f"{part.values[0]!r} in {self._example()} may be the identity"

    def _unclear(self, part: Part) -> str:
        what = "a camera, a session, a tracklet, or the number of the image"
        return f"{part.values[0]!r} in {self._example()} may be {what}"

    def _example(self) -> str:
        return str(self.images.places[0])


def _is_class_of(above: Sequence[str], below: Sequence[str]) -> bool:
    return all(name.startswith(kind) for kind, name in zip(above, below, strict=True))


def _marked(texts: Sequence[str]) -> str:
    return next(text for text in texts if marks_inside([text]))
