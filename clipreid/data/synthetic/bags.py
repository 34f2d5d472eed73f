"""What a figure carries: how a bag looks depends on the side it is seen from."""

from __future__ import annotations

import numpy as np

from .figure import Figure, Point
from .wardrobe import box, shift


def backpack(f: Figure) -> None:
    """Broad from behind, a bulge from the side, two straps from the front."""
    s, top, low = f.half, f.shoulder_y + 6, f.hip_y - 0.03 * f.h
    colour, dark, draw = f.appearance.bag, shift(f.appearance.bag, -44), f.draw
    if f.facing > 0.45:
        for sign in (-1, 1):
            draw.line(
                (f.x + sign * 0.55 * s, top - 6, f.x + sign * 0.62 * s, low - 14),
                fill=colour,
                width=7,
            )
        return
    half = 0.8 * f.wide * abs(f.facing) + 0.5 * f.wide * abs(f.side)
    x = f.x - f.side * (f.half + 0.25 * f.wide)
    shape = (x - half, top, x + half, low)
    draw.rounded_rectangle(shape, radius=10, fill=colour, outline=dark, width=3)
    draw.rounded_rectangle((x - 0.6 * half, low - 0.09 * f.h, x + 0.6 * half, low - 6), radius=5, fill=dark)
    if f.style.detail:
        draw.ellipse(box((x, top + 0.05 * f.h), 0.25 * half), fill=f.appearance.bag_patch)


def handbag(f: Figure, hand: Point) -> None:
    w, colour = 0.062 * f.h, f.appearance.bag
    y = hand[1] + 0.02 * f.h
    f.draw.arc(
        (hand[0] - 0.6 * w, hand[1] - 0.4 * w, hand[0] + 0.6 * w, y + w),
        180,
        360,
        fill=shift(colour, -40),
        width=4,
    )
    f.draw.rounded_rectangle(
        (hand[0] - w, y, hand[0] + w, y + 1.5 * w),
        radius=5,
        fill=colour,
        outline=shift(colour, -46),
        width=3,
    )


def shoulder_bag(f: Figure) -> None:
    """A strap across the body and a bag on the person's left hip."""
    colour, dark = f.appearance.bag, shift(f.appearance.bag, -44)
    visible = np.sin(np.pi / 2 + f.pose.angle)  # x of the left hip, in half widths
    hip = (f.x + f.half * visible + 4 * np.sign(visible), f.hip_y + 0.02 * f.h)
    if np.cos(np.pi / 2 + f.pose.angle) > -0.75:
        w = 0.07 * f.h
        f.draw.rounded_rectangle(
            (hip[0] - 0.8 * w, hip[1] - 0.6 * w, hip[0] + 0.8 * w, hip[1] + 0.8 * w),
            radius=6,
            fill=colour,
            outline=dark,
            width=3,
        )
    f.draw.line(
        (f.x - 0.7 * f.half * visible, f.shoulder_y + 2, hip[0], hip[1] - 6),
        fill=colour,
        width=6,
    )
