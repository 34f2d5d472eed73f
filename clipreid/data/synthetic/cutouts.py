"""Objects and people of the street, each alone on a transparent canvas.

Objects of the classes that hide the queries of `synthetic:occluded` are for tests, other classes for training. Nobody
here walks through a named set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from .figure import Figure, Pose, Style
from .painter import paint
from .people import COLOURS, RGB, Person, draw_person
from .wardrobe import shift

Part = Literal["train", "test"]
EACH, PEOPLE = 12, 60  # cut-outs of each class of objects, and of people
_PARTS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class Sketch:
    """An object being drawn: the pen, its own generator, the canvas in pixels, and two shades of its colour."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    w: int
    h: int
    colour: RGB
    dark: RGB
    light: RGB


def paint_objects(part: Part) -> Iterator[tuple[np.ndarray, str, bool]]:
    """EACH cut-outs of every class of that part: uint8 [h, w, 4], the class, whether it stands on the ground."""
    for kind, (painter, size, stands) in OBJECTS[part].items():
        for number in range(EACH):
            yield (
                _paint_object(painter, size, [13, _PARTS[part], list(OBJECTS[part]).index(kind), number]),
                kind,
                stands,
            )


def paint_people(part: Part) -> Iterator[tuple[np.ndarray, str, bool]]:
    """PEOPLE cut-outs of as many people: uint8 [h, w, 4], "person", True."""
    for number in range(PEOPLE):
        rng = np.random.default_rng([14, _PARTS[part], number])
        who = draw_person(rng)  # the first draws: as in `people_of`
        canvas = Image.new("RGBA", (240, 300))
        pose = Pose(float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(0, 6.28)), 0.3, 120, 284, 250)
        paint(Figure(canvas, who, pose, Style()))
        yield np.asarray(canvas), "person", True


def people_of(part: Part) -> list[Person]:
    """The individuals of `paint_people`."""
    return [draw_person(np.random.default_rng([14, _PARTS[part], number])) for number in range(PEOPLE)]


def _paint_object(painter: Callable[[Sketch], None], size: tuple[int, int], seed: list[int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w, h = (round(side * rng.uniform(0.85, 1.15)) for side in size)
    colour = shift(list(COLOURS.values())[int(rng.integers(len(COLOURS)))], rng.uniform(-16, 16, 3))
    canvas = Image.new("RGBA", (w, h))
    painter(Sketch(ImageDraw.Draw(canvas), rng, w, h, colour, shift(colour, -50), shift(colour, 40)))
    return np.asarray(canvas)


# For tests: what hides the queries of synthetic:occluded ------------------------------------------------------------


def _bin(s: Sketch) -> None:
    lid = 0.16 * s.h
    s.draw.rounded_rectangle((0.06 * s.w, 0.7 * lid, 0.94 * s.w, s.h - 1), radius=12, fill=s.colour)
    s.draw.rounded_rectangle((0, 0, s.w - 1, lid), radius=10, fill=s.dark)
    for x in np.linspace(0.2, 0.8, int(s.rng.integers(3, 7))) * s.w:
        s.draw.line((x, 1.5 * lid, x, 0.92 * s.h), fill=s.dark, width=4)
    s.draw.line((0.09 * s.w, 1.2 * lid, 0.09 * s.w, s.h - 8), fill=s.light, width=4)


def _car(s: Sketch) -> None:
    body, wheel = 0.42 * s.h, 0.17 * s.h
    roof = [(0.16 * s.w, body), (0.3 * s.w, 2), (0.72 * s.w, 2), (0.86 * s.w, body)]
    s.draw.polygon(roof, fill=s.colour)
    inner = [(0.2 * s.w, body), (0.32 * s.w, 0.07 * s.h), (0.7 * s.w, 0.07 * s.h), (0.81 * s.w, body)]
    s.draw.polygon(inner, fill=(64, 78, 92))
    s.draw.line((0.5 * s.w, 0, 0.5 * s.w, 0.85 * s.h), fill=s.dark, width=5)
    s.draw.rounded_rectangle((0, body, s.w - 1, s.h - 0.6 * wheel), radius=18, fill=s.colour)
    s.draw.line((0, 0.62 * s.h, s.w, 0.62 * s.h), fill=s.dark, width=4)
    s.draw.rectangle((0, 0.5 * s.h, 0.05 * s.w, 0.6 * s.h), fill=(244, 238, 200))
    s.draw.rectangle((0.95 * s.w, 0.5 * s.h, s.w, 0.6 * s.h), fill=(190, 40, 36))
    for x in (0.22 * s.w, 0.78 * s.w):
        _disc(s, x, s.h - wheel - 1, wheel, (30, 30, 32))
        _disc(s, x, s.h - wheel - 1, 0.5 * wheel, (150, 150, 154))


def _pillar(s: Sketch) -> None:
    s.draw.rectangle((0, 0, s.w - 1, s.h - 1), fill=s.colour)
    for i in range(5):  # round: dark edges
        edge = shift(s.colour, -50 + 10 * i)
        s.draw.line((2 * i, 0, 2 * i, s.h), fill=edge, width=3)
        s.draw.line((s.w - 1 - 3 * i, 0, s.w - 1 - 3 * i, s.h), fill=shift(edge, -16), width=3)
    for y in np.linspace(0.1, 0.9, int(s.rng.integers(2, 6))) * s.h:
        s.draw.line((0, y, s.w, y), fill=s.dark, width=3)


def _bush(s: Sketch) -> None:
    for i in range(150):
        y = s.h * (0.12 + 0.8 * s.rng.random())
        half = 0.46 * s.w * np.sqrt(1 - max(0.0, 1 - y / (0.6 * s.h)) ** 2) * 0.9
        x, r = s.w / 2 + s.rng.uniform(-half, half), s.rng.uniform(0.06, 0.1) * s.w
        leaf = (int(s.rng.uniform(30, 70)), int(s.rng.uniform(84, 140)), int(s.rng.uniform(34, 66)))
        _disc(s, x, min(y, s.h - r - 1), r, shift(leaf, -24 if i < 60 else 0))


def _umbrella(s: Sketch) -> None:
    """Held by somebody outside of the crop: half of the roof and the stick."""
    s.draw.line((0, 0.95 * s.h, 0.12 * s.w, 0.3 * s.h), fill=(60, 50, 44), width=9)
    s.draw.pieslice((-s.w, 0, s.w - 1, 1.3 * s.h), 180, 360, fill=s.colour)
    for angle in np.linspace(290, 345, 3):
        s.draw.pieslice((-s.w, 0, s.w - 1, 1.3 * s.h), angle, angle + 1.5, fill=s.dark)
    s.draw.arc((-s.w, 0, s.w - 1, 1.3 * s.h), 270, 360, fill=s.light, width=5)


# For training: classes of their own ---------------------------------------------------------------------------------


def _bicycle(s: Sketch) -> None:
    r, dark = 0.3 * s.h, (34, 34, 36)
    hubs = ((r + 4, s.h - r - 4), (s.w - r - 4, s.h - r - 4))
    for x, y in hubs:
        s.draw.ellipse((x - r, y - r, x + r, y + r), outline=dark, width=11)
        for angle in np.arange(0, np.pi, np.pi / 5):
            dx, dy = r * np.cos(angle), r * np.sin(angle)
            s.draw.line((x - dx, y - dy, x + dx, y + dy), fill=(110, 110, 114), width=2)
    pedal, seat, bar = (0.45 * s.w, s.h - r), (0.36 * s.w, 0.2 * s.h), (0.7 * s.w, 0.2 * s.h)
    for a, b in ((hubs[0], pedal), (hubs[0], seat), (seat, pedal), (pedal, bar), (seat, bar), (bar, hubs[1])):
        s.draw.line((*a, *b), fill=s.colour, width=11)
    s.draw.line((bar[0], bar[1], bar[0] - 0.03 * s.w, 0.05 * s.h), fill=dark, width=9)
    s.draw.line((0.6 * s.w, 0.05 * s.h, 0.76 * s.w, 0.05 * s.h), fill=dark, width=9)
    s.draw.rounded_rectangle((0.27 * s.w, 0.12 * s.h, 0.44 * s.w, 0.19 * s.h), radius=6, fill=dark)
    canvas = shift((112, 100, 84), s.rng.uniform(-40, 40))
    for x, _ in hubs[:1] if s.rng.random() < 0.5 else hubs:  # panniers
        left, top = x - 0.75 * r, s.h - 2.0 * r
        s.draw.rounded_rectangle((left, top, x + 0.65 * r, s.h - 0.8 * r), radius=8, fill=canvas)
        s.draw.rounded_rectangle((left, top, x + 0.65 * r, top + 0.4 * r), radius=8, fill=shift(canvas, -34))
    if s.rng.random() < 0.6:  # a basket
        s.draw.rectangle((0.74 * s.w, 0.1 * s.h, 0.96 * s.w, 0.36 * s.h), fill=(142, 104, 66), outline=(90, 62, 38))


def _bench(s: Sketch) -> None:
    wood = shift((150, 108, 68), s.rng.uniform(-30, 30))
    for x in (0.08, 0.88):
        s.draw.rectangle((x * s.w, 0, (x + 0.05) * s.w, s.h - 1), fill=(48, 48, 52))
    for y in (0.02, 0.2, 0.38):
        s.draw.rectangle((0, y * s.h, s.w - 1, (y + 0.13) * s.h), fill=wood, outline=shift(wood, -40), width=2)
    s.draw.rectangle((0, 0.54 * s.h, s.w - 1, 0.66 * s.h), fill=shift(wood, 20), outline=shift(wood, -40), width=2)


def _pushchair(s: Sketch) -> None:
    r = 0.1 * s.h
    s.draw.line((0.2 * s.w, s.h - 2 * r, 0.92 * s.w, 0.12 * s.h), fill=(60, 60, 64), width=9)
    s.draw.line((0.75 * s.w, s.h - 2 * r, 0.3 * s.w, 0.5 * s.h), fill=(60, 60, 64), width=9)
    s.draw.polygon(
        [(0.08 * s.w, 0.42 * s.h), (0.78 * s.w, 0.42 * s.h), (0.66 * s.w, 0.76 * s.h), (0.2 * s.w, 0.76 * s.h)],
        fill=s.colour,
    )
    s.draw.pieslice((0.02 * s.w, 0.04 * s.h, 0.72 * s.w, 0.8 * s.h), 180, 290, fill=s.dark)
    s.draw.line((0.9 * s.w, 0.14 * s.h, 0.99 * s.w, 0.14 * s.h), fill=(30, 30, 32), width=12)
    for x in (0.2, 0.76):
        _disc(s, x * s.w, s.h - r - 1, r, (32, 32, 34))
        _disc(s, x * s.w, s.h - r - 1, 0.45 * r, (160, 160, 164))


def _board(s: Sketch) -> None:
    """An advertisement between two posts, as tall as a person."""
    for x in (0.04, 0.88):
        s.draw.rectangle((x * s.w, 0.02 * s.h, (x + 0.08) * s.w, s.h - 1), fill=(70, 74, 80))
    s.draw.rounded_rectangle((0, 0, s.w - 1, 0.84 * s.h), radius=8, fill=(70, 74, 80))
    s.draw.rectangle((0.06 * s.w, 0.03 * s.h, 0.94 * s.w, 0.81 * s.h), fill=s.colour)
    for _ in range(int(s.rng.integers(3, 6))):
        x, y = s.rng.uniform(0.1, 0.6) * s.w, s.rng.uniform(0.08, 0.65) * s.h
        other = list(COLOURS.values())[int(s.rng.integers(len(COLOURS)))]
        s.draw.rectangle((x, y, x + s.rng.uniform(0.1, 0.3) * s.w, y + s.rng.uniform(0.03, 0.14) * s.h), fill=other)


def _barrier(s: Sketch) -> None:
    """Of a building site: striped boards on feet."""
    for x in (0.12, 0.8):
        s.draw.rectangle((x * s.w, 0.05 * s.h, (x + 0.08) * s.w, 0.95 * s.h), fill=(208, 204, 196))
        s.draw.rectangle(((x - 0.09) * s.w, 0.92 * s.h, (x + 0.17) * s.w, s.h - 1), fill=(52, 52, 54))
    for y in (0.02, 0.5):
        s.draw.rectangle((0, y * s.h, s.w - 1, (y + 0.34) * s.h), fill=(232, 230, 226))
        step = s.w / 6
        for x in np.arange(-step, s.w, 2 * step):
            low, high = (y + 0.34) * s.h, y * s.h
            s.draw.polygon([(x, low), (x + step, low), (x + 1.6 * step, high), (x + 0.6 * step, high)], fill=s.colour)


def _branch(s: Sketch) -> None:
    bark = shift((92, 68, 48), s.rng.uniform(-20, 20))
    s.draw.line((0, 0.5 * s.h, 0.85 * s.w, 0.45 * s.h), fill=bark, width=10)
    for i in range(110):
        x = s.rng.uniform(0, 0.93) * s.w
        half = s.h * (0.1 + 0.34 * np.sin(np.pi * min(1.0, 0.25 + 0.75 * x / s.w)))
        y, r = 0.5 * s.h + s.rng.uniform(-half, half), s.rng.uniform(0.03, 0.06) * s.w
        leaf = (int(s.rng.uniform(50, 110)), int(s.rng.uniform(100, 150)), int(s.rng.uniform(30, 60)))
        s.draw.ellipse((x - 1.4 * r, y - r, x + 1.4 * r, y + r), fill=shift(leaf, -26 if i < 50 else 0))


def _flag(s: Sketch) -> None:
    """A cloth that hangs in from a pole outside of the crop."""
    top = [(x, 0.12 * s.h + 0.06 * s.h * np.sin(x / s.w * 5)) for x in np.linspace(0, s.w - 1, 20)]
    low = [(x, 0.88 * s.h + 0.06 * s.h * np.sin(x / s.w * 5)) for x in np.linspace(0, s.w - 1, 20)]
    s.draw.polygon([*top, *reversed(low)], fill=s.colour)
    for i in range(0, 18, 4):
        s.draw.polygon([top[i], top[i + 1], low[i + 1], low[i]], fill=shift(s.colour, -26))
    middle = s.h / 2
    s.draw.rectangle((0, middle - 0.1 * s.h, s.w, middle + 0.1 * s.h), fill=s.light)


def _disc(s: Sketch, x: float, y: float, r: float, colour: RGB) -> None:
    s.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


# class -> painter, (width, height) of the canvas in pixels, whether it stands on the ground
OBJECTS: dict[str, dict[str, tuple[Callable[[Sketch], None], tuple[int, int], bool]]] = {
    "train": {
        "barrier": (_barrier, (200, 150), True),
        "bench": (_bench, (240, 140), True),
        "bicycle": (_bicycle, (280, 180), True),
        "board": (_board, (130, 240), True),
        "branch": (_branch, (220, 160), False),
        "flag": (_flag, (200, 160), False),
        "pushchair": (_pushchair, (170, 190), True),
    },
    "test": {
        "bin": (_bin, (120, 160), True),
        "bush": (_bush, (180, 180), True),
        "car": (_car, (320, 160), True),
        "pillar": (_pillar, (70, 256), True),
        "umbrella": (_umbrella, (200, 160), False),
    },
}
