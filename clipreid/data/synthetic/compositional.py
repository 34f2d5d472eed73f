"""What a text tower understands beyond a bag of words: true sentences of the street, and false ones, hardly changed.

As ARO (Yuksekgonul et al., arXiv 2210.01936) and SugarCrepe (Hsieh et al., arXiv 2306.14610) do for photographs: for
each image a true sentence and one that differs as little as possible and is false. Both are made of the street's true
attributes. Half of the kinds are controls, which a bag of words answers: they tell whether the attribute is seen at
all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clipreid.data.synthetic.people import BAGS, BOTTOMS, COLOURS, HATS, Person

# Controls, and what is asked of their words together.
KINDS = {
    "colour": "another colour of the top",
    "garment": "another garment on the legs",
    "colours swapped": "the colours of top and legs exchanged",
    "bag": "another bag",
    "with or without": "a hat or bag is there or not",
    "front or behind": "seen from the front or from behind",
    "left or right": "walking to the left or to the right of the image",
}
MIRRORED = "left or right"
CONTROLS = ("colour", "garment", "bag", "front or behind")


@dataclass(frozen=True)
class Choice:
    """Two sentences about the image in `row`, of which one is true; answer: what the true one says."""

    kind: str
    row: int
    answer: str
    true: str
    false: str


def choices_of(people: Sequence[tuple[Person, float]], seed: int = 0) -> list[Choice]:
    """The choices that each image allows; people: who is on it, and the viewing angle (`people_seen`).

    What is put in another's place is drawn, from what is not on the image at all; seed: of these draws.
    """
    found = []
    for row, (person, angle) in enumerate(people):
        rng = np.random.default_rng([seed, row])
        found += [Choice(kind, row, answer, true, false) for kind, answer, true, false in _about(person, angle, rng)]
    return found


def _about(person: Person, angle: float, rng: np.random.Generator) -> Iterator[tuple[str, str, str, str]]:
    """(kind, answer, true sentence, false sentence) for one image."""
    top, bottom = person.top_colour, person.bottom_colour
    colours = {value for name, value in person.attributes().items() if name.endswith("colour")}

    def dressed(top_colour: str = top, bottom_colour: str = bottom, legs: str = person.bottom) -> str:
        return f"a photo of a person wearing {top_colour} {person.top} and {bottom_colour} {legs}"

    yield "colour", top, dressed(), dressed(top_colour=_other(COLOURS, colours, rng))
    yield "garment", person.bottom, dressed(), dressed(legs=_other(BOTTOMS, {person.bottom}, rng))
    if top != bottom:
        yield "colours swapped", top, dressed(), dressed(bottom, top)
    if person.bag != "backpack" or np.cos(angle) <= 0.6:  # from the front its owner hides it
        yield from _things(person, rng)
    if abs(np.cos(angle)) > 0.6:
        asked, first, views = "front or behind", np.cos(angle) > 0, ("from the front", "from behind")
    else:
        asked, first, views = MIRRORED, np.sin(angle) > 0, ("walking to the right", "walking to the left")
    true, false = views if first else reversed(views)
    yield asked, true, f"a photo of a person {true}", f"a photo of a person {false}"


def _things(person: Person, rng: np.random.Generator) -> Iterator[tuple[str, str, str, str]]:
    """Of bags and hats: another one, and "without"."""
    if person.bag != "none":
        other = _other(BAGS, {"none", person.bag}, rng)
        yield "bag", person.bag, f"a photo of a person with a {person.bag}", f"a photo of a person with a {other}"
    for own, all_of_them in ((person.bag, BAGS), (person.hat, HATS)):
        thing = own if own != "none" else _other(all_of_them, {"none"}, rng)
        true, false = ("with", "without") if own != "none" else ("without", "with")
        yield "with or without", true, f"a photo of a person {true} a {thing}", f"a photo of a person {false} a {thing}"


def _other(values: Iterable[str], but: set[str], rng: np.random.Generator) -> str:
    """One of the values, but none of those."""
    left = [value for value in values if value not in but]
    return left[int(rng.integers(len(left)))]
