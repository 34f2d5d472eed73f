"""What people wear, as images: garment textures wrapped around the body, faces, builds.

Everything here depends on the `Person` alone (never on camera or pose), so one person is recognisable wherever it
is seen. A garment texture is a map over height and *body angle*: the renderer shows the part that faces the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .people import COLOURS, HAIR_COLOURS, RGB, Person

TEXTURE_HEIGHT, TEXTURE_ANGLES = (
    96,
    144,
)  # rows from shoulder to hem; columns over the 360 degrees of the body
_SKINS: tuple[RGB, ...] = ((246, 214, 190), (226, 180, 146), (198, 146, 108), (150, 102, 70), (98, 66, 48))


@dataclass(frozen=True)
class Appearance:
    """The drawn details of one person."""

    top: np.ndarray  # uint8 [96, 144, 3] shoulder to hem x body angle (0 = chest, in the middle column)
    bottom: np.ndarray  # uint8 [96, 144, 3]
    top_colour: RGB
    bottom_colour: RGB
    shoes: RGB
    sole: RGB
    cuff: RGB | None
    belt: RGB | None
    side_stripe: RGB | None
    skin: RGB
    hair: RGB
    hair_strands: tuple[tuple[float, float, float, int], ...]  # x, y, length, shade offset; in head radii
    hat: RGB
    bag: RGB
    bag_patch: RGB
    beard: float  # 0 none .. 1 full
    glasses: bool
    fringe: float
    height: float  # relative to the standard person
    width: float
    head: float
    legs: float  # share of the height


def shift(colour: RGB, offset: float | np.ndarray) -> RGB:
    """`colour` made lighter or darker by `offset` (0..255 units)."""
    value = np.clip(np.asarray(colour, dtype=np.float64) + offset, 0, 255).astype(int)
    return int(value[0]), int(value[1]), int(value[2])


def box(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    """The square around a circle, as PIL wants it."""
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _shaded(colour: RGB, rng: np.random.Generator) -> RGB:
    return shift(colour, rng.uniform(-16, 16) + rng.uniform(-9, 9, 3))


def _any_colour(rng: np.random.Generator) -> RGB:
    return list(COLOURS.values())[int(rng.integers(len(COLOURS)))]


def _blotches(rng: np.random.Generator, cells: tuple[int, int], strength: float) -> np.ndarray:
    """Smooth random light and dark patches of a fabric.  -> float [96, 144]"""
    coarse = rng.uniform(0, 255, cells).astype(np.uint8)
    coarse[:, -1] = coarse[:, 0]  # the texture closes behind the back
    smooth = Image.fromarray(coarse).resize((TEXTURE_ANGLES, TEXTURE_HEIGHT), Image.Resampling.BICUBIC)
    return (np.asarray(smooth, dtype=np.float32) - 127.0) * (strength / 64.0)


def _pattern(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Where a garment shows its second colour.  -> bool [96, 144]"""
    rows, columns = np.mgrid[0:TEXTURE_HEIGHT, 0:TEXTURE_ANGLES]
    phase = rng.uniform(0, 12)
    if kind == "striped":
        period = rng.uniform(13, 21)
        return (rows + phase) % period < period * 0.42
    if kind == "checked":
        period = rng.uniform(14, 22)
        a = (rows + phase) % period < period / 2
        return a ^ ((columns + phase) % period < period / 2)
    if kind == "spotted":
        period = rng.uniform(13, 19)
        y, x = (rows + phase) % period - period / 2, (columns + phase) % period - period / 2
        return x * x + y * y < (period * 0.3) ** 2
    return np.zeros((TEXTURE_HEIGHT, TEXTURE_ANGLES), dtype=bool)


def _draw_logo(texture: Image.Image, rng: np.random.Generator) -> None:
    """A printed mark on chest or back: shape, place, size and colour are the wearer's own."""
    draw = ImageDraw.Draw(texture)
    colour = _any_colour(rng)
    kind = int(rng.integers(5))
    at_front = rng.random() < 0.5
    x = TEXTURE_ANGLES / 2 + rng.uniform(-16, 16)
    y, radius = rng.uniform(16, 52), rng.uniform(8, 15)
    if kind == 4:  # a band around the whole body
        draw.rectangle((0, y, TEXTURE_ANGLES, y + radius * 0.9), fill=colour)
        return
    x = x if at_front else x - TEXTURE_ANGLES / 2
    for centre in (x, x + TEXTURE_ANGLES):  # the back is split by the seam of the map
        square = box((centre, y), radius)
        if kind == 0:
            draw.ellipse(square, fill=colour)
        elif kind == 1:
            draw.rectangle(square, fill=colour)
        elif kind == 2:
            draw.polygon(
                [(centre, y - radius), (centre + radius, y + radius), (centre - radius, y + radius)],
                fill=colour,
            )
        else:
            draw.rectangle((centre - radius, y - radius / 3, centre + radius, y + radius / 3), fill=colour)
            draw.rectangle((centre - radius / 3, y - radius, centre + radius / 3, y + radius), fill=colour)


def _second_colour(colour: RGB, rng: np.random.Generator) -> RGB:
    """A clearly different shade for a pattern: light on dark clothes, dark on light ones."""
    light = sum(colour) > 380
    return shift(colour, rng.uniform(-110, -70) if light else rng.uniform(70, 120))


def _garment(colour: RGB, kind: str, fabric: np.random.Generator) -> np.ndarray:
    """Base colour, pattern and fabric blotches.  -> float [96, 144, 3]"""
    second = _second_colour(colour, fabric)
    mask = _pattern(kind, fabric)[..., None]
    cells = (int(fabric.integers(5, 11)), int(fabric.integers(8, 15)))
    blotches = _blotches(fabric, cells, fabric.uniform(14, 30))[..., None]
    return np.where(mask, np.asarray(second, np.float32), np.asarray(colour, np.float32)) + blotches


def _top_texture(person: Person, colour: RGB) -> np.ndarray:
    cloth = _garment(colour, person.pattern, person.trait("fabric"))
    image = Image.fromarray(np.clip(cloth, 0, 255).astype(np.uint8))
    _draw_logo(image, person.trait("logo"))
    draw, middle = ImageDraw.Draw(image), TEXTURE_ANGLES // 2
    dark, light = shift(colour, -46), shift(colour, 52)
    if person.top in ("jacket", "coat"):  # open front with a shirt below, or a row of buttons
        if person.top == "jacket":
            draw.polygon([(middle - 15, 0), (middle + 15, 0), (middle + 3, 40), (middle - 3, 40)], fill=(214, 214, 210))
        draw.line((middle, 0, middle, TEXTURE_HEIGHT), fill=dark, width=3)
        for side in (-20, 20):
            draw.line((middle + side, 0, middle + side // 3, 34), fill=dark, width=3)
    elif person.top == "hoodie":
        draw.rectangle((middle - 22, 58, middle + 22, 84), outline=dark, width=3)
        draw.line((middle - 6, 0, middle - 6, 26), fill=light, width=2)
        draw.line((middle + 6, 0, middle + 6, 26), fill=light, width=2)
    elif person.top == "sweater":
        draw.rectangle((0, 86, TEXTURE_ANGLES, 95), fill=dark)
    return np.asarray(image)


@lru_cache(maxsize=256)
def appearance(person: Person) -> Appearance:
    """The details of `person`, drawn from its attributes and trait seeds (the same on every call)."""
    shade, trim, face = person.trait("shade"), person.trait("trim"), person.trait("face")
    build, strands = person.trait("build"), person.trait("hair_texture")
    top, bottom = _shaded(COLOURS[person.top_colour], shade), _shaded(COLOURS[person.bottom_colour], shade)
    hair = _shaded(HAIR_COLOURS[person.hair_colour], shade)
    bottom_cloth = _garment(bottom, "plain", np.random.default_rng([99, person.fabric]))
    return Appearance(
        top=_top_texture(person, top),
        bottom=np.clip(bottom_cloth, 0, 255).astype(np.uint8),
        top_colour=top,
        bottom_colour=bottom,
        shoes=_shaded(COLOURS[person.shoes_colour], shade),
        sole=_any_colour(trim) if trim.random() < 0.6 else (225, 225, 220),
        cuff=_any_colour(trim) if trim.random() < 0.6 else None,
        belt=_any_colour(trim) if trim.random() < 0.6 else None,
        side_stripe=_any_colour(trim) if trim.random() < 0.5 else None,
        skin=shift(_SKINS[int(face.integers(len(_SKINS)))], face.uniform(-8, 8)),
        hair=hair,
        hair_strands=tuple(
            (
                strands.uniform(-0.9, 0.9),
                strands.uniform(-1.0, 0.5),
                strands.uniform(0.3, 1.0),
                int(strands.choice((-42, 42, 64))),
            )
            for _ in range(int(strands.integers(2, 9)))
        ),
        hat=_shaded(COLOURS[person.hat_colour], shade),
        bag=_shaded(COLOURS[person.bag_colour], shade),
        bag_patch=_any_colour(trim),
        beard=float(face.uniform(0.4, 1.0)) if face.random() < 0.35 else 0.0,
        glasses=bool(face.random() < 0.35),
        fringe=float(strands.uniform(0.0, 0.5)),
        height=float(build.uniform(0.88, 1.06)),
        width=float(build.uniform(0.8, 1.28)),
        head=float(build.uniform(0.9, 1.12)),
        legs=float(build.uniform(0.43, 0.5)),
    )
