"""Captioned images for pretraining the tiny backbones: none of them could come from a named set.

Every image has its own camera (random colours, scenes that no named set uses) and its own painting style; the
people are drawn from seeds that no named set uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context

import numpy as np

from .camera import CROP, draw_pose, make_camera, render
from .figure import Style
from .people import Person, caption, draw_person
from .scenes import PRETRAIN_SCENES


@dataclass
class Captioned:
    """N images with people and captions."""

    pixels: np.ndarray  # uint8 [N, 3, 128, 64]
    people: list[Person]
    angles: np.ndarray  # float [N], viewing angle

    def captions(self, rng: np.random.Generator | None = None, index: np.ndarray | None = None) -> list[str]:
        """A caption for every image, or for those in `index`: the full one, or with `rng` a witness's own words."""
        rows = range(len(self.people)) if index is None else index
        return [caption(self.people[i], self.angles[i], rng) for i in rows]


def _one(seed: int, index: int) -> tuple[np.ndarray, Person, float]:
    rng = np.random.default_rng([5, seed, index])
    style = Style(
        shading=float(rng.uniform(0.0, 0.8)),
        outline=int(rng.choice((0, 0, 2))),
        detail=bool(rng.random() < 0.6),
    )
    scene = str(rng.choice(list(PRETRAIN_SCENES)))
    camera = make_camera(scene, int(rng.integers(2**31)) + 10**6, harshness=0.9, style=style)
    person, pose = draw_person(rng), draw_pose(camera, rng)
    return render(person, camera, rng, pose).transpose(2, 0, 1), person, pose.angle


def _painted(count: int, seed: int, processes: int) -> Iterator[tuple[np.ndarray, Person, float]]:
    if processes == 1:
        yield from map(_one, repeat(seed), range(count))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_one, repeat(seed), range(count), chunksize=256)


def captioned_images(count: int, seed: int, processes: int = 1) -> Captioned:
    """`count` captioned images, the same for the same seed.

    Args:
        count: how many.
        seed: even seeds are pretraining sets, odd ones held out.
        processes: how many to paint with. More than one are started anew, not forked (a fork of a process that has
            threads can hang), so a script that asks for them keeps its own start under `if __name__ == "__main__"`.
    """
    pixels = np.empty((count, 3, *CROP), dtype=np.uint8)
    people: list[Person] = []
    angles = np.empty(count)
    for i, (image, person, angle) in enumerate(_painted(count, seed, processes)):
        pixels[i], angles[i] = image, angle
        people.append(person)
    return Captioned(pixels, people, angles)
