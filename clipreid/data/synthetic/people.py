"""Who walks the synthetic street: people with captioned attributes and with traits no caption mentions.

A `Person` is a small frozen record. The first block of fields is what a witness would say ("a red striped
jacket"); the second block holds one seed per *trait* that no caption mentions (where the logo sits, how the
fabric is blotched, the face, the hair texture, the build, the exact shades, the trim). Look-alikes come in
families: each sibling differs from the head of its family in exactly two attributes, at least one of them never
captioned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "black": (34, 34, 38),
    "white": (232, 232, 228),
    "grey": (132, 134, 137),
    "red": (192, 36, 40),
    "orange": (236, 124, 34),
    "yellow": (234, 206, 60),
    "green": (44, 132, 66),
    "blue": (44, 82, 180),
    "purple": (116, 58, 148),
    "pink": (238, 140, 178),
    "brown": (116, 76, 46),
}
HAIR_COLOURS: dict[str, RGB] = {
    "black": (30, 26, 26),
    "brown": (92, 58, 34),
    "blond": (222, 188, 112),
    "red": (166, 72, 34),
    "grey": (164, 164, 166),
}
TOPS = ("t-shirt", "sweater", "hoodie", "jacket", "coat")
PATTERNS = ("plain", "striped", "checked", "spotted")
BOTTOMS = ("trousers", "shorts", "skirt")
HAIRS = ("short", "long", "ponytail", "bald")
HATS = ("none", "cap", "beanie", "brimmed hat")
BAGS = ("none", "backpack", "handbag", "shoulder bag")

# How often each value occurs, where not equally: plain clothes, no hat and dark hair are the common case.
_ODDS: dict[str, tuple[float, ...]] = {
    "pattern": (0.46, 0.18, 0.18, 0.18),
    "bottom": (0.6, 0.2, 0.2),
    "hair": (0.42, 0.26, 0.2, 0.12),
    "hat": (0.55, 0.15, 0.15, 0.15),
    "bag": (0.34, 0.26, 0.2, 0.2),
    "hair_colour": (0.3, 0.3, 0.16, 0.1, 0.14),
}
_VALUES: dict[str, tuple[str, ...]] = {
    "top": TOPS,
    "top_colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "bottom": BOTTOMS,
    "bottom_colour": tuple(COLOURS),
    "shoes_colour": tuple(COLOURS),
    "hair": HAIRS,
    "hair_colour": tuple(HAIR_COLOURS),
    "hat": HATS,
    "hat_colour": tuple(COLOURS),
    "bag": BAGS,
    "bag_colour": tuple(COLOURS),
}
CAPTIONED = tuple(_VALUES)
TRAITS = ("logo", "fabric", "face", "hair_texture", "build", "shade", "trim")


@dataclass(frozen=True)
class Person:
    """One identity: 12 captioned attributes (names) and 7 uncaptioned traits (seeds)."""

    top: str
    top_colour: str
    pattern: str
    bottom: str
    bottom_colour: str
    shoes_colour: str
    hair: str
    hair_colour: str
    hat: str
    hat_colour: str
    bag: str
    bag_colour: str
    logo: int
    fabric: int
    face: int
    hair_texture: int
    build: int
    shade: int
    trim: int

    def attributes(self) -> dict[str, str]:
        """The captioned attributes that can be seen at all: no colour for a hat or hair that is not there."""
        values = {name: getattr(self, name) for name in CAPTIONED}
        if self.hat == "none":
            del values["hat_colour"]
        if self.bag == "none":
            del values["bag_colour"]
        if self.hair == "bald":
            del values["hair_colour"]
        return values

    def trait(self, name: str) -> np.random.Generator:
        """The generator that draws the details of one uncaptioned trait."""
        return np.random.default_rng([TRAITS.index(name), getattr(self, name)])


def draw_person(rng: np.random.Generator) -> Person:
    """One person, every attribute drawn independently."""
    values: dict[str, str] = {}
    for name, choices in _VALUES.items():
        values[name] = choices[int(rng.choice(len(choices), p=_ODDS.get(name)))]
    traits = {name: int(rng.integers(2**31)) for name in TRAITS}
    return Person(**values, **traits)  # type: ignore[arg-type]


def draw_family(rng: np.random.Generator, size: int) -> list[Person]:
    """A family of look-alikes: each sibling differs from the first in exactly two attributes.

    Half of the siblings differ in two uncaptioned traits (no caption can tell them apart), half in one captioned
    attribute and one uncaptioned trait: three quarters of what separates look-alikes is never captioned.
    """
    head = draw_person(rng)
    family = [head]
    while len(family) < size:
        stranger = draw_person(rng)
        captioned = [n for n in head.attributes() if getattr(head, n) != getattr(stranger, n)]
        if len(family) % 2:
            changed = list(rng.choice(TRAITS, 2, replace=False))
        else:
            changed = [str(rng.choice(captioned)), str(rng.choice(TRAITS))]
        family.append(replace(head, **{name: getattr(stranger, name) for name in changed}))
    return family


def differences(a: Person, b: Person) -> list[str]:
    """Names of the fields in which two people differ."""
    return [f.name for f in fields(Person) if getattr(a, f.name) != getattr(b, f.name)]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _hair_words(person: Person) -> str:
    if person.hair == "bald":
        return "a bald head"
    if person.hair == "ponytail":
        return f"{_article(person.hair_colour)} ponytail"
    return f"{person.hair} {person.hair_colour} hair"


def _top_words(person: Person) -> str:
    pattern = "" if person.pattern == "plain" else person.pattern + " "
    return _article(f"{person.top_colour} {pattern}{person.top}")


def _bottom_words(person: Person) -> str:
    words = f"{person.bottom_colour} {person.bottom}"
    return _article(words) if person.bottom == "skirt" else words


VIEWS = ("from the front", "from behind", "from the side")


def view_words(angle: float) -> str:
    """Which of `VIEWS` a viewing angle (radians, 0 = facing the camera) is."""
    facing = np.cos(angle)
    return VIEWS[0] if facing > 0.6 else VIEWS[1] if facing < -0.6 else VIEWS[2]


def caption(person: Person, angle: float, rng: np.random.Generator | None = None) -> str:
    """A true caption of an image of `person` seen at `angle`.

    Without `rng` the full caption in fixed order; with it some parts are left out and the wording varies, as
    different witnesses would. Only what can be seen is said: a backpack is not mentioned from the front.
    """
    seen_bag = person.bag != "none" and not (person.bag == "backpack" and np.cos(angle) > 0.6)
    worn = [_top_words(person), _bottom_words(person), f"{person.shoes_colour} shoes"]
    with_parts = [_hair_words(person)]
    if person.hat != "none":
        worn.append(_article(f"{person.hat_colour} {person.hat}"))
    opening, where, joiner = "a photo of a person", view_words(angle), ", "
    carried = [_article(f"{person.bag_colour} {person.bag}")] if seen_bag else []
    if rng is not None:
        keep = 0.8 if rng.random() < 0.7 else 0.45
        worn = [w for w in worn if rng.random() < keep] or [worn[0]]
        with_parts = [w for w in with_parts if rng.random() < 0.6]
        carried = [w for w in carried if rng.random() < keep]
        opening = str(rng.choice(("a photo of a person", "a person", "a pedestrian", "someone")))
        where = where if rng.random() < 0.35 else ""
        if rng.random() < 0.3:
            worn = [worn[i] for i in rng.permutation(len(worn))]
    text = " ".join(p for p in (opening, where) if p)
    if with_parts:
        text += " with " + " and ".join(with_parts)
    if worn:
        text += " wearing " + (joiner.join(worn[:-1]) + " and " + worn[-1] if len(worn) > 1 else worn[0])
    if carried:
        text += " carrying " + carried[0]
    return text
