"""The places where the cameras of the synthetic street hang, without people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .people import RGB

CANVAS = (256, 128)  # height, width: crops are painted twice as large, then halved


@dataclass(frozen=True)
class Site:
    """What every scene is painted from: two colours, a horizon, and the generator of this camera."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    base: np.ndarray  # colour above the horizon, float [3]
    ground: np.ndarray  # colour below it
    w: int
    h: int
    horizon: int


def _rgb(colour: np.ndarray) -> RGB:
    c = np.clip(colour, 0, 255).astype(int)
    return int(c[0]), int(c[1]), int(c[2])


def _grid(site: Site, colour: np.ndarray, y0: int, y1: int, step: int, offset: int) -> None:
    """Joints of tiles (offset 0) or bricks."""
    for row, y in enumerate(range(y0, y1, step)):
        site.draw.line((0, y, site.w, y), fill=_rgb(colour), width=2)
        for x in range((row % 2) * offset, site.w, 2 * step):
            site.draw.line((x, y, x, min(y + step, y1)), fill=_rgb(colour), width=2)


def _wall(site: Site) -> None:
    for x in range(int(site.rng.integers(30)), site.w, int(site.rng.integers(60, 120))):
        site.draw.line((x, 0, x, site.horizon), fill=_rgb(site.base - 30), width=5)


def _tiles(site: Site) -> None:
    _grid(site, site.ground - 28, site.horizon, site.h, int(site.rng.integers(16, 30)), 0)


def _windows(site: Site) -> None:
    size = int(site.rng.integers(26, 44))
    for y in range(10, site.horizon - size, size + 18):
        for x in range(int(site.rng.integers(20)), site.w, size + 16):
            site.draw.rectangle(
                (x, y, x + size, y + size),
                fill=_rgb(site.base + site.rng.uniform(-70, 50)),
                outline=_rgb(site.base - 50),
            )


def _fence(site: Site) -> None:
    for x in range(0, site.w, int(site.rng.integers(10, 18))):
        site.draw.line((x, site.horizon - 70, x, site.horizon + 20), fill=_rgb(site.base - 45), width=4)
    site.draw.line((0, site.horizon - 60, site.w, site.horizon - 60), fill=_rgb(site.base - 45), width=5)


def _asphalt(site: Site) -> None:
    for _ in range(60):
        x, y, r = site.rng.uniform(0, site.w), site.rng.uniform(site.horizon, site.h), site.rng.uniform(3, 14)
        site.draw.ellipse(
            (x - 2 * r, y - r / 2, x + 2 * r, y + r / 2), fill=_rgb(site.ground + site.rng.uniform(-14, 14))
        )
    for x in range(0, site.w, 90):
        site.draw.polygon(
            [(x, site.h), (x + 26, site.h), (x + 50, site.horizon), (x + 40, site.horizon)],
            fill=(220, 220, 214),
        )


def _shop(site: Site) -> None:
    for x in range(0, site.w, int(site.rng.integers(50, 90))):
        colour = _rgb(site.rng.uniform(60, 230, 3))
        site.draw.rectangle((x, 20, x + 40, site.horizon - 30), fill=_rgb(site.base + 40))
        site.draw.rectangle((x, 4, x + 46, 20), fill=colour)
        site.draw.rectangle((x + 8, 60, x + 22, site.horizon - 34), fill=_rgb(site.rng.uniform(40, 220, 3)))


def _brick(site: Site) -> None:
    site.draw.rectangle((0, 0, site.w, site.horizon), fill=_rgb(np.array((150, 82, 64)) + site.rng.uniform(-16, 16)))
    _grid(site, np.array((192, 176, 160)), 0, site.horizon, 14, 14)


def _grass(site: Site) -> None:
    site.draw.rectangle((0, site.horizon, site.w, site.h), fill=(84, 128, 62))
    for _ in range(420):
        x, y = site.rng.uniform(0, site.w), site.rng.uniform(site.horizon, site.h)
        site.draw.line((x, y, x + 2, y - 9), fill=_rgb(np.array((84, 128, 62)) + site.rng.uniform(-34, 34)), width=2)
    for _ in range(26):
        x, y, r = (
            site.rng.uniform(0, site.w),
            site.rng.uniform(0, site.horizon * 0.7),
            site.rng.uniform(12, 34),
        )
        site.draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(np.array((58, 102, 54)) + site.rng.uniform(-26, 26)))


def _snow(site: Site) -> None:
    site.draw.rectangle((0, site.horizon, site.w, site.h), fill=(226, 230, 238))
    for _ in range(240):
        x, y, r = site.rng.uniform(0, site.w), site.rng.uniform(0, site.h), site.rng.uniform(1, 3)
        site.draw.ellipse((x - r, y - r, x + r, y + r), fill=(246, 248, 252))


def _planks(site: Site) -> None:
    for i, y in enumerate(range(0, site.horizon, 18)):
        site.draw.rectangle((0, y, site.w, y + 17), fill=_rgb(np.array((168, 130, 86)) + 22 * (i % 3) - 20))


def _stairs(site: Site) -> None:
    for i, y in enumerate(range(site.horizon, site.h, 16)):
        site.draw.rectangle((0, y, site.w, y + 16), fill=_rgb(site.ground + (20 if i % 2 else -20)))


def _night(site: Site) -> None:
    site.draw.rectangle((0, 0, site.w, site.h), fill=(38, 40, 58))
    site.draw.rectangle((0, site.horizon, site.w, site.h), fill=(56, 54, 62))
    for _ in range(22):
        x, y, r = site.rng.uniform(0, site.w), site.rng.uniform(0, site.horizon), site.rng.uniform(3, 9)
        site.draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 214, 140))


def _gradient(site: Site) -> None:
    for y in range(0, site.h, 4):
        site.draw.rectangle((0, y, site.w, y + 4), fill=_rgb(site.base + (site.ground - site.base) * y / site.h))


def _blobs(site: Site) -> None:
    for _ in range(16):
        x, y, r = site.rng.uniform(0, site.w), site.rng.uniform(0, site.h), site.rng.uniform(14, 60)
        site.draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(site.rng.uniform(40, 220, 3)))


def _plain(site: Site) -> None:
    site.draw.rectangle((0, 0, site.w, site.h), fill=_rgb(site.base))


Painter = Callable[[Site], None]
HOME_SCENES: dict[str, Painter] = {
    "wall": _wall,
    "tiles": _tiles,
    "windows": _windows,
    "fence": _fence,
    "asphalt": _asphalt,
    "shop": _shop,
}
NEW_SCENES: dict[str, Painter] = {
    "brick": _brick,
    "grass": _grass,
    "snow": _snow,
    "planks": _planks,
    "stairs": _stairs,
    "night": _night,
}
PRETRAIN_SCENES: dict[str, Painter] = {"plain": _plain, "gradient": _gradient, "blobs": _blobs}
_ALL = HOME_SCENES | NEW_SCENES | PRETRAIN_SCENES


@lru_cache(maxsize=64)
def scene(name: str, seed: int) -> Image.Image:
    """The fixed view of one camera, wider and taller than a crop so that every crop shows another part."""
    rng = np.random.default_rng([11, seed])
    w, h = 3 * CANVAS[1], CANVAS[0] + 64
    base = rng.uniform(70, 200) + rng.uniform(-24, 24, 3)
    ground = np.clip(base + rng.uniform(-60, 60) + rng.uniform(-24, 24, 3), 20, 235)
    horizon = int(h * rng.uniform(0.35, 0.7))
    image = Image.new("RGB", (w, h), _rgb(base))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, w, h), fill=_rgb(ground))
    _ALL[name](Site(draw, rng, base, ground, w, h, horizon))
    return image
