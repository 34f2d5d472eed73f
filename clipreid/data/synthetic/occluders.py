"""Things and people that get between a camera and the person it should see."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .figure import Figure, Pose, Style
from .painter import paint
from .people import COLOURS, draw_person

OBJECTS = ("bin", "car", "pillar", "bush", "umbrella")


def cover(canvas: Image.Image, rng: np.random.Generator, share: float, style: Style) -> str:
    """Hide about `share` (0..0.7) of `canvas` behind an object or, one time in three, a person; returns which.

    Objects hide the share to within a tenth of the crop. A passing person is no wider than a person: it hides 27 to
    58 %, 41 % on average, when more is asked.
    """
    if rng.random() < 1 / 3:
        return _passer_by(canvas, rng, share, style)
    kind = OBJECTS[int(rng.integers(len(OBJECTS)))]
    w, h = canvas.size
    colour = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
    dark = tuple(max(0, c - 50) for c in colour)
    draw, left = ImageDraw.Draw(canvas), rng.random() < 0.5
    if kind in ("bin", "car"):  # from below
        top = h * (1 - share)
        draw.rounded_rectangle(
            (-8, top, w + 8, h + 20), radius=14 if kind == "bin" else 34, fill=colour, outline=dark, width=4
        )
        for x in range(6, w, 30) if kind == "bin" else (w * 0.2, w * 0.8):
            draw.ellipse((x - 8, top + 16, x + 8, top + 32), fill=dark if kind == "bin" else (240, 236, 200))
    elif kind == "pillar":
        x0 = 0 if left else w * (1 - share)
        draw.rectangle((x0, 0, x0 + w * share, h), fill=colour, outline=dark, width=4)
    elif kind == "bush":
        for _ in range(90):
            x, y, r = rng.uniform(0, w), h * (1 - share) + rng.uniform(0, h * share), rng.uniform(10, 20)
            leaf = (int(rng.uniform(30, 70)), int(rng.uniform(84, 140)), int(rng.uniform(34, 66)))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=leaf)
    else:  # umbrella, from above
        draw.ellipse((-14, -h * share, w + 14, h * share), fill=colour, outline=dark, width=4)
    return kind


def _passer_by(canvas: Image.Image, rng: np.random.Generator, share: float, style: Style) -> str:
    w, h = canvas.size
    side = -1 if rng.random() < 0.5 else 1
    pose = Pose(
        angle=float(rng.uniform(-np.pi, np.pi)),
        stride=float(rng.uniform(0, 6.28)),
        swing=0.3,
        x=w * (0.5 + side * max(0.05, 0.62 - share)),
        feet=h * 1.06,
        height=h * 1.08,
    )
    paint(Figure(canvas, draw_person(rng), pose, style))
    return "person"
