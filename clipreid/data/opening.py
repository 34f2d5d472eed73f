"""The cheap checks of `clipreid data check`, made whenever images are opened for training or scoring.

They look at what the pixel cache keeps of every image, so they cost nothing once it is built. A few such images are
worth a warning; beyond a stated share of the images the data are not fit for use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipreid.data.cache import PixelCache
from clipreid.data.crops import Split
from clipreid.errors import UserError

# shares of the images beyond which a set is not fit; `clipreid data check` has the same bounds
BLANK = 0.1  # of one flat colour
CONFLICTS = 0.05  # that are there under another identity as well
LEAKS = 0.05  # of the test images that are training images, too
COPIES = 0.1  # of the queries that are copies of gallery images of their identity (`clipreid data check` only)


@dataclass(frozen=True, eq=False)
class Opened:
    """The images of one data set that are trained on, or that it is tested with. N images."""

    data: str  # its name
    part: str  # "training" or "test"
    split: Split
    blank: np.ndarray  # bool [N]

    @property
    def digests(self) -> np.ndarray:
        """int64 [N], equal for copies."""
        assert self.split.digests is not None
        return self.split.digests


def opened(data: str, part: str, splits: Sequence[Split], caches: Sequence[PixelCache]) -> list[Opened]:
    """The usable images of splits, with what their caches know of them."""
    found = []
    for split, cache in zip(splits, caches, strict=True):
        kept = split if len(cache.kept) == len(split) else split.select(cache.kept)
        found.append(Opened(data, part, kept.with_digests(cache.digests), cache.blank))
    return found


def check_images(parts: Sequence[Opened]) -> list[str]:
    """Warnings about the images that are trained on together, or that are the query and gallery of one test.

    Raises:
        UserError: more than BLANK of them are blank, or more than CONFLICTS are there under two identities.
    """
    if not parts:
        return []
    digests, blank = (np.concatenate([getattr(part, name) for part in parts]) for name in ("digests", "blank"))
    who = np.concatenate([part.split.identities for part in parts])
    notes = []
    if rows := np.flatnonzero(blank).tolist():
        why = f"{_share(rows, who, parts)} are of one flat colour ({_name(parts, rows[0])}): nobody is in them"
        notes.append(_judge(why, len(rows) / len(who), BLANK, parts))
    if pairs := conflicts(digests, who, ~blank):
        rows = sorted({row for pair in pairs for row in pair})
        one, other = pairs[0]
        pair = f"{_name(parts, one)} is {who[one]}, {_name(parts, other)} is {who[other]}"
        why = f"{_share(rows, who, parts)} are there under two identities, pixel for pixel ({pair}): one must be wrong"
        notes.append(_judge(why, len(rows) / len(who), CONFLICTS, parts))
    return notes


def check_apart(train: Sequence[Opened], test: Sequence[Opened]) -> list[str]:
    """Warnings about test images that are trained on, under whatever name.

    test: the query and gallery of one test set.

    Raises:
        UserError: they are more than LEAKS of the test images.
    """
    if not train or not test:
        return []
    trained = [np.where(part.blank, -1, part.digests) for part in train]
    where = {digest: (nth, row) for nth, part in enumerate(trained) for row, digest in enumerate(part.tolist())}
    digests = np.concatenate([part.digests for part in test])
    rows = np.flatnonzero(np.isin(digests, list(where))).tolist()
    if not rows:
        return []
    nth, row = where[int(digests[rows[0]])]
    pair = f"{_name(test, rows[0])} = {_name(train[nth : nth + 1], row)}"
    why = f"{_share(rows, digests, test)} are training images as well ({pair}): they are learned, then tested on"
    return [_judge(why, len(rows) / len(digests), LEAKS, test)]


def conflicts(digests: np.ndarray, identities: np.ndarray, usable: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows with the same digest and different identities: every such row with the first one of another
    identity. digests int64 [N], identities [N], usable bool [N]."""
    first: dict[int, dict[str, int]] = {}
    rows = np.flatnonzero(usable).tolist()
    for row in rows:
        first.setdefault(int(digests[row]), {}).setdefault(str(identities[row]), row)
    several = {digest: found for digest, found in first.items() if len(found) > 1}
    pairs = []
    for row in rows if several else ():
        for who, other in several.get(int(digests[row]), {}).items():
            if who != str(identities[row]):
                pairs.append((min(row, other), max(row, other)))
                break
    return sorted(set(pairs))


def _share(rows: Sequence[int], all_rows: np.ndarray, parts: Sequence[Opened]) -> str:
    return f"{parts[0].data}: {len(rows):,d} of {len(all_rows):,d} {parts[0].part} images"


def _name(parts: Sequence[Opened], row: int) -> str:
    for part in parts:
        if row < len(part.split):
            return part.split.path(row) or f"row {row} of {part.split.name}"
        row -= len(part.split)
    raise IndexError(row)


def _judge(why: str, share: float, bound: float, parts: Sequence[Opened]) -> str:
    """The warning; raises `UserError` where the share is beyond the bound."""
    see = f"`clipreid data check {parts[0].data}` names them all"
    if share > bound:
        raise UserError(f"{why}. With more than {100 * bound:g} % of such images the data are not fit for use: {see}")
    return f"{why}; {see}"
