"""Validation from training images alone: identities and cameras that a training does not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipreid.data.crops import ReIDData, Split

OUT = 3  # a third of the identities is left out
PROTOCOL = "market1501"  # matches at other cameras count


def camera_fold(data: ReIDData, cameras: Sequence[int], third: int = 0) -> tuple[ReIDData, dict[str, ReIDData]]:
    """The training images of a data set without these cameras and a third of the identities, and what was left out.

    Leaving out one camera, whose images then look among the others, does not show what new cameras cost: its matches
    were taken by cameras that were trained on. So several are left out, and look among themselves. The identities are
    neighbours in the order of their names: those who are alike are often numbered together, and are left out together.

    Args:
        data: has a train split.
        cameras: numbers of the cameras to leave out.
        third: 0, 1 or 2: which third of the identities is left out.

    Returns:
        What is trained on (a train split), and by name what is measured, with query (one image of each identity and
        camera) and gallery: "seen", the left-out identities at cameras that are trained on; "unseen", the same
        identities at the cameras left out. Images without a camera are in none of them.
    """
    split = data.splits["train"]
    out = np.isin(split.identities, np.array_split(np.unique(split.identities), OUT)[third % OUT])
    there, known = np.isin(split.cameras, list(cameras)), split.cameras >= 0
    ask = np.zeros(len(split), bool)
    pairs = np.array([f"{camera}/{name}" for camera, name in zip(split.cameras, split.identities, strict=True)])
    ask[np.unique(pairs, return_index=True)[1]] = True

    def part(name: str, rows: np.ndarray) -> Split:
        return Split(name, split.select(rows.nonzero()[0]).table)

    def test(name: str, rows: np.ndarray) -> ReIDData:
        splits = {"query": part("query", rows & ask), "gallery": part("gallery", rows)}
        return ReIDData(f"{data.name} ({name})", splits, PROTOCOL, data.noun)

    trained = ReIDData(data.name, {"train": part("train", known & ~out & ~there)}, data.protocol, data.noun)
    return trained, {name: test(name, known & out & at) for name, at in (("seen", ~there), ("unseen", there))}
