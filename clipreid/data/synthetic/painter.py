"""A whole person on a canvas: body parts, bag and head in the order in which they cover each other."""

from __future__ import annotations

from .bags import backpack, handbag, shoulder_bag
from .figure import Figure
from .head import neck_and_head


def paint(f: Figure) -> None:
    """Draw the whole person, far parts first."""
    left_near = -f.side >= 0
    back = f.facing < 0
    bag = f.person.bag
    if bag == "backpack" and not back:
        backpack(f)
    f.leg(left=not left_near, near=False)
    f.leg(left=left_near, near=True)
    far_hand = f.arm(left=not left_near, near=False) if abs(f.side) > 0.35 else None
    if bag == "handbag" and far_hand and not left_near:
        handbag(f, far_hand)
    f.torso()
    if bag == "shoulder bag":
        shoulder_bag(f)
    if bag == "backpack" and (back or f.facing > 0.45):
        backpack(f)
    neck_and_head(f)
    hands = {left_near: f.arm(left=left_near, near=True)}
    if far_hand is None:
        hands[not left_near] = f.arm(left=not left_near, near=True)
    if bag == "handbag" and True in hands:
        handbag(f, hands[True])
