"""Head, hair, face and hat of a figure. `y` is the middle of the head, `r` its radius, in canvas pixels."""

from __future__ import annotations

import numpy as np

from .figure import Figure
from .wardrobe import box, shift


def neck_and_head(f: Figure) -> None:
    r, y = f.head_radius, f.crown_y + 1.08 * f.head_radius
    outfit, person, draw = f.appearance, f.person, f.draw
    behind = f.facing < -0.3
    draw.rectangle(
        (f.x - 0.42 * r, y + 0.6 * r, f.x + 0.42 * r, f.shoulder_y + 5),
        fill=shift(outfit.skin, -22),
    )
    if person.hair == "long" and not behind:
        draw.rounded_rectangle(
            (
                f.x - 1.1 * r - 0.2 * r * f.side,
                y - 0.4 * r,
                f.x + 1.1 * r - 0.2 * r * f.side,
                y + 2.1 * r,
            ),
            radius=8,
            fill=shift(outfit.hair, -14),
        )
    if person.hair == "ponytail" and not behind and abs(f.side) > 0.3:
        back = f.x - np.sign(f.side) * 1.15 * r
        f.limb(
            [(back, y - 0.5 * r), (back - np.sign(f.side) * 0.5 * r, y + 1.1 * r)],
            0.6 * r,
            outfit.hair,
        )
    draw.ellipse((f.x - 0.92 * r, y - 1.08 * r, f.x + 0.92 * r, y + 1.12 * r), fill=outfit.skin)
    if person.hair != "bald":
        _hair(f, y, r)
    _face(f, y, r)
    if person.hair != "bald" and behind:
        _hair_behind(f, y, r)
    if person.hat != "none":
        _hat(f, y, r)
    if person.top == "hoodie":
        colour = shift(outfit.top_colour, -24)
        if behind:
            draw.ellipse(
                (
                    f.x - 0.95 * r,
                    f.shoulder_y - 0.5 * r,
                    f.x + 0.95 * r,
                    f.shoulder_y + 1.3 * r,
                ),
                fill=colour,
            )
        else:
            draw.arc(
                (
                    f.x - 1.05 * r,
                    f.shoulder_y - 1.1 * r,
                    f.x + 1.05 * r,
                    f.shoulder_y + 0.7 * r,
                ),
                10,
                170,
                fill=colour,
                width=6,
            )


def _hair(f: Figure, y: float, r: float) -> None:
    """The cap of hair, which sits towards the back of the head."""
    x, low = f.x - 0.3 * r * f.side, y - (0.15 - 0.35 * f.appearance.fringe * (f.facing > 0)) * r
    f.draw.chord((x - 1.0 * r, y - 1.2 * r, x + 1.0 * r, y + 0.95 * r), 180, 360, fill=f.appearance.hair)
    if abs(f.side) > 0.35:
        back = f.x - np.sign(f.side) * 0.55 * r
        f.draw.ellipse((back - 0.5 * r, y - 0.9 * r, back + 0.5 * r, y + 0.65 * r), fill=f.appearance.hair)
    if f.facing > 0.3:
        f.draw.rectangle((x - 0.85 * r, y - 0.3 * r, x + 0.85 * r, low), fill=f.appearance.hair)
    _strands(f, y, r)


def _strands(f: Figure, y: float, r: float) -> None:
    if not f.style.detail:
        return
    for sx, sy, length, offset in f.appearance.hair_strands:
        p = (f.x + 0.8 * sx * r, y + (0.45 * sy - 0.6) * r)
        f.draw.line((p, (p[0] + 2, p[1] + 0.55 * length * r)), fill=shift(f.appearance.hair, offset), width=3)


def _hair_behind(f: Figure, y: float, r: float) -> None:
    hair, draw, x = f.appearance.hair, f.draw, f.x
    draw.ellipse((x - 0.98 * r, y - 1.16 * r, x + 0.98 * r, y + 0.85 * r), fill=hair)
    if f.person.hair == "long":
        draw.rounded_rectangle((x - 1.0 * r, y - 0.3 * r, x + 1.0 * r, y + 2.3 * r), radius=9, fill=hair)
    if f.person.hair == "ponytail":
        draw.ellipse(box((x, y + 0.2 * r), 0.3 * r), fill=shift(hair, 46))
        f.limb([(x, y + 0.3 * r), (x + 0.1 * r, y + 2.0 * r)], 0.62 * r, hair)
    _strands(f, y + 0.5 * r, r)


def _face(f: Figure, y: float, r: float) -> None:
    """Eyes, glasses, mouth and beard, each at its body angle: turned away they disappear."""
    outfit, draw = f.appearance, f.draw
    if outfit.beard and f.facing > -0.2:
        x = f.x + 0.55 * r * f.side
        draw.chord((x - 0.72 * r, y - 0.1 * r, x + 0.72 * r, y + 1.12 * r), 20, 160, fill=shift(outfit.hair, -10))
    for body in (-0.42, 0.42):
        if np.cos(body + f.pose.angle) > 0.15:
            eye = (f.x + 0.85 * r * np.sin(body + f.pose.angle), y - 0.02 * r)
            if outfit.glasses and f.style.detail:
                draw.ellipse(box(eye, 0.3 * r), outline=(20, 20, 24), width=2)
            draw.ellipse(box(eye, 0.13 * r), fill=(26, 22, 22))
    if f.facing > 0:
        mouth = f.x + 0.7 * r * f.side
        draw.line((mouth - 0.25 * r, y + 0.55 * r, mouth + 0.25 * r, y + 0.55 * r), fill=(140, 60, 56), width=2)


def _hat(f: Figure, y: float, r: float) -> None:
    colour, dark, x = f.appearance.hat, shift(f.appearance.hat, -40), f.x
    crown = (x - 1.08 * r, y - 1.5 * r, x + 1.08 * r, y + 0.7 * r)
    f.draw.chord(crown, 180, 360, fill=colour)
    line = y - 0.4 * r
    if f.person.hat == "beanie":
        f.draw.rectangle((x - 1.08 * r, line - 0.3 * r, x + 1.08 * r, line + 0.15 * r), fill=dark)
        f.draw.ellipse(box((x, y - 1.5 * r), 0.3 * r), fill=dark)
    elif f.person.hat == "cap" and f.facing > -0.3:
        reach = 1.15 * r * f.side
        f.draw.rounded_rectangle(
            (x + min(reach, 0) - 0.8 * r, line - 0.1 * r, x + max(reach, 0) + 0.8 * r, line + 0.22 * r),
            radius=3,
            fill=dark,
        )
    elif f.person.hat == "brimmed hat":
        f.draw.ellipse((x - 1.9 * r, line - 0.22 * r, x + 1.9 * r, line + 0.24 * r), fill=dark)
