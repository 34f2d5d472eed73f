"""Draw one walking person on a canvas: a jointed figure whose clothes wrap around the body.

Coordinates are pixels of a canvas twice as large as the finished crop. The viewing angle is 0 when the person
faces the camera, pi from behind, +pi/2 when walking to the right. A point of the body at body angle b (0 = chest,
pi/2 = the person's left) appears at x = r sin(b + angle) and is seen when cos(b + angle) > 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .people import RGB, Person
from .wardrobe import TEXTURE_ANGLES, TEXTURE_HEIGHT, appearance, box, shift

Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """How a person stands in a crop."""

    angle: float  # viewing angle in radians
    stride: float  # phase of the walk in radians
    swing: float  # how far the legs swing, radians
    x: float  # middle of the body, pixels
    feet: float  # ground, pixels
    height: float  # from ground to crown for a standard person, pixels


@dataclass(frozen=True)
class Style:
    """How the painter works: `shading` of round forms, dark `outline`, and whether fabric detail is drawn."""

    shading: float = 0.5
    outline: int = 0
    detail: bool = True


class Figure:
    """Lengths and directions of one person in one pose, and the drawing of each part."""

    def __init__(self, canvas: Image.Image, person: Person, pose: Pose, style: Style) -> None:
        self.canvas, self.draw = canvas, ImageDraw.Draw(canvas)
        self.person, self.pose, self.style, self.appearance = person, pose, style, appearance(person)
        self.side, self.facing = float(np.sin(pose.angle)), float(np.cos(pose.angle))
        h = pose.height * self.appearance.height
        self.h, self.x = h, pose.x
        self.head_radius = 0.062 * h * self.appearance.head
        self.hip_y = pose.feet - h * self.appearance.legs
        self.crown_y = pose.feet - h
        self.shoulder_y = self.crown_y + 2.35 * self.head_radius
        wide, deep = 0.134 * h * self.appearance.width, 0.092 * h * self.appearance.width
        self.half = float(np.hypot(wide * self.facing, deep * self.side))  # half width of the torso as seen
        self.wide = wide

    def limb(self, points: list[Point], width: float, colour: RGB, dim: float = 0.0) -> None:
        """A round limb through `points`: a darker edge below, a lighter core towards the light."""
        edge = shift(colour, -dim - 60 * self.style.shading)
        w = max(2, round(width))
        if self.style.outline:
            self.draw.line(points, fill=(24, 24, 26), width=w + 2 * self.style.outline, joint="curve")
        self.draw.line(points, fill=edge, width=w, joint="curve")
        core = [(x - 0.1 * width, y) for x, y in points]
        self.draw.line(core, fill=shift(colour, -dim), width=max(1, round(0.62 * width)), joint="curve")

    def wrap(self, polygon: list[Point], texture: np.ndarray, half: float) -> None:
        """Fill `polygon` with the part of `texture` [96, 144, 3] that faces the camera, shaded as a cylinder."""
        xs, ys = [p[0] for p in polygon], [p[1] for p in polygon]
        x0, x1, y0, y1 = int(min(xs)), int(max(xs)) + 1, int(min(ys)), int(max(ys)) + 1
        u = np.clip((np.arange(x0, x1) + 0.5 - self.x) / max(half, 1.0), -0.999, 0.999)  # [w]
        body = np.arcsin(u) - self.pose.angle  # body angle seen at each column
        columns = ((body / (2 * np.pi) + 0.5) * TEXTURE_ANGLES).astype(int) % TEXTURE_ANGLES
        rows = np.linspace(0, TEXTURE_HEIGHT - 1, y1 - y0).astype(int)
        patch = texture[rows[:, None], columns[None]].astype(np.float32)  # [h, w, 3]
        light = np.sqrt(1 - u * u) * 0.8 + 0.2 - 0.25 * u
        patch *= (1 - self.style.shading * (1 - np.clip(light, 0, 1.1)))[None, :, None]
        cloth = Image.fromarray(np.clip(patch, 0, 255).astype(np.uint8))
        mask = Image.new("L", cloth.size)
        ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in polygon], fill=255)
        self.canvas.paste(cloth, (x0, y0), mask)
        if self.style.outline:
            self.draw.line([*polygon, polygon[0]], fill=(24, 24, 26), width=self.style.outline)

    def leg(self, left: bool, near: bool) -> None:
        """One leg with knee, shoe and, where worn, a side stripe."""
        sign = 1.0 if left else -1.0
        pose, person, outfit = self.pose, self.person, self.appearance
        thigh = shin = (pose.feet - self.hip_y) / 2 * 0.97
        swing = pose.swing * np.sin(pose.stride + (0 if left else np.pi))
        bend = max(0.0, 0.9 * pose.swing * np.cos(pose.stride + (0 if left else np.pi))) * 0.8
        hip_x = self.x + sign * 0.42 * self.wide * self.facing
        knee = (hip_x + thigh * np.sin(swing) * self.side, self.hip_y + thigh * np.cos(swing))
        ankle_y = knee[1] + shin * np.cos(swing - bend) + 4 * np.sin(swing) * self.facing
        ankle = (knee[0] + shin * np.sin(swing - bend) * self.side, ankle_y)
        hip = (hip_x, self.hip_y - 0.02 * self.h)
        dim = 0.0 if near else 18.0
        width = 0.078 * self.h * outfit.width**0.7
        bare = {"trousers": None, "shorts": 1.0, "skirt": 1.0}[person.bottom]
        if bare is None:
            self.limb([hip, knee, ankle], width, outfit.bottom_colour, dim)
            if outfit.side_stripe and self.style.detail and abs(sign * self.facing - 0) > 0.25:
                off = sign * self.facing * 0.34 * width
                line = [(p[0] + off, p[1]) for p in (hip, knee, ankle)]
                self.draw.line(line, fill=outfit.side_stripe, width=max(2, round(0.2 * width)))
            elif outfit.side_stripe and self.style.detail and near:
                self.draw.line([hip, knee, ankle], fill=outfit.side_stripe, width=max(2, round(0.2 * width)))
        else:
            self.limb([hip, knee, ankle], 0.72 * width, outfit.skin, dim)
            if person.bottom == "shorts":
                self.limb([hip, knee], 1.2 * width, outfit.bottom_colour, dim)
        self.shoe(ankle, width)

    def shoe(self, ankle: Point, width: float) -> None:
        length = 0.05 * self.h
        toe = self.side * length
        x0, x1 = (
            sorted((ankle[0] - 0.42 * width, ankle[0] + 0.42 * width + toe))
            if toe >= 0
            else (ankle[0] - 0.42 * width + toe, ankle[0] + 0.42 * width)
        )
        y = ankle[1]
        drop = 0.028 * self.h + (0.012 * self.h if self.facing > 0.5 else 0)
        self.draw.rounded_rectangle((x0, y - 0.022 * self.h, x1, y + drop), radius=4, fill=self.appearance.shoes)
        self.draw.line((x0 + 1, y + drop, x1 - 1, y + drop), fill=self.appearance.sole, width=3)

    def arm(self, left: bool, near: bool) -> Point:
        """One arm with sleeve and hand; returns where the hand is."""
        sign = 1.0 if left else -1.0
        pose, outfit = self.pose, self.appearance
        swing = 0.8 * pose.swing * np.sin(pose.stride + (np.pi if left else 0))
        length = 0.165 * self.h
        shoulder = (self.x + sign * 0.93 * self.wide * self.facing, self.shoulder_y + 0.035 * self.h)
        spread = sign * 0.025 * self.h * self.facing
        elbow = (
            shoulder[0] + length * np.sin(swing) * self.side + spread,
            shoulder[1] + length * np.cos(swing),
        )
        fore = swing + 0.35
        hand = (
            elbow[0] + 0.9 * length * np.sin(fore) * self.side + 0.3 * spread,
            elbow[1] + 0.9 * length * np.cos(fore),
        )
        width, dim = 0.054 * self.h * outfit.width**0.6, 6.0 if near else 26.0
        self.draw.ellipse(box(hand, 0.42 * width), fill=outfit.skin)
        if self.person.top == "t-shirt":
            self.limb([elbow, hand], 0.66 * width, outfit.skin, dim)
            middle = ((shoulder[0] + elbow[0]) / 2, (shoulder[1] + elbow[1]) / 2 + 4)
            self.limb([shoulder, middle], 1.1 * width, outfit.top_colour, dim)
        else:
            self.limb([shoulder, elbow, hand], width, outfit.top_colour, dim)
            if outfit.cuff and self.style.detail:
                cuff = (hand[0] * 0.82 + elbow[0] * 0.18, hand[1] * 0.82 + elbow[1] * 0.18)
                self.draw.line([cuff, hand], fill=outfit.cuff, width=round(width))
        return hand

    def torso(self) -> None:
        """Top, and the skirt or coat tails that hang from it."""
        coat = self.person.top == "coat"
        hem = self.hip_y + (0.15 * self.h if coat else 0.015 * self.h)
        waist = self.hip_y - 0.07 * self.h
        flare = 1.08 if coat else 0.9
        if self.person.bottom == "skirt":
            low = self.hip_y + 0.19 * self.h
            skirt = [
                (self.x - 0.8 * self.half, waist),
                (self.x + 0.8 * self.half, waist),
                (self.x + 1.2 * self.half, low),
                (self.x - 1.2 * self.half, low),
            ]
            self.wrap(skirt, self.appearance.bottom, 1.25 * self.half)
        else:
            s, low = self.half, self.hip_y + 12
            seat = [
                (self.x - 0.88 * s, waist),
                (self.x + 0.88 * s, waist),
                (self.x + 0.84 * s, low),
                (self.x - 0.84 * s, low),
            ]
            self.wrap(seat, self.appearance.bottom, s)
        s, y = self.half, self.shoulder_y
        right = [
            (self.x + 0.35 * s, y - 3),
            (self.x + 0.92 * s, y + 6),
            (self.x + s, y + 18),
            (self.x + 0.86 * s, waist),
            (self.x + flare * s, hem),
        ]
        shape = right + [(2 * self.x - px, py) for px, py in reversed(right)]
        self.wrap(shape, self.appearance.top, 1.02 * s)
        if self.appearance.belt and self.style.detail and self.person.top in ("t-shirt", "coat", "sweater"):
            self.draw.line(
                (self.x - 0.86 * s, waist + 2, self.x + 0.86 * s, waist + 2), fill=self.appearance.belt, width=5
            )
