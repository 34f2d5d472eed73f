"""Which images are the same, exactly or nearly, without comparing each with each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipreid.data.scan import Seen

BITS = 7  # two dHashes of 64 bits may differ in so many (eight bands of eight bits: at least one is then equal)
LEVELS = 4.0  # and the 16 x 8 thumbnails by so much on average, of 255
MANY = 200_000  # pairs after which the search ends


def exact_groups(seen: Sequence[Seen], usable: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more images with the same size and pixels, however they are encoded. usable: bool [U]."""
    rows = np.flatnonzero(usable)
    values = np.array([seen[row].exact for row in rows.tolist()], np.uint64)
    order = np.argsort(values, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(values[order])) + 1)
    return [np.sort(group) for group in groups if len(group) > 1]


def near_pairs(seen: Sequence[Seen], usable: np.ndarray) -> np.ndarray:
    """int64 [n, 2]: pairs, the lower number first, of images that are nearly the same; at most about MANY.

    Near is a dHash that differs in at most BITS bits and a thumbnail that differs by at most LEVELS on average. That
    finds at least 95 of 100 copies compressed again (JPEG, quality 50 and better) or resized by 3/4 to 3/2, and 9 of 10
    halved ones; it misses copies cropped by 3 % or brightened by 5 %, and takes no two of 1,134 photographs of vehicles
    for the same (of those with such a hash, the nearest two thumbnails differ by 10). Candidates share one of eight
    bands of the hash and nearly their mean brightness: the work grows with images times such neighbours.
    """
    rows = np.flatnonzero(usable)
    hashes = np.array([seen[row].dhash for row in rows.tolist()], np.uint64)
    thumbs = _thumbs([seen[row] for row in rows.tolist()])  # [n, 384]
    means = thumbs.mean(1) if len(rows) else np.zeros(0)
    found: list[np.ndarray] = []
    for band in range(8):
        key = (hashes >> np.uint64(8 * band)) & np.uint64(255)
        order = np.lexsort((means, key))
        found += _pairs_in_order(order, key, hashes, means, thumbs, MANY - sum(map(len, found)))
    pairs = np.unique(np.sort(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=1), axis=0)
    return rows[pairs]


def _pairs_in_order(
    order: np.ndarray, key: np.ndarray, hashes: np.ndarray, means: np.ndarray, thumbs: np.ndarray, room: int
) -> list[np.ndarray]:
    """Near pairs among neighbours in an order by key, then by mean brightness: first at distance 1, then 2, ..."""
    found: list[np.ndarray] = []
    left = np.arange(len(order))
    distance = 0
    while len(left) and room > 0:
        distance += 1
        left = left[left + distance < len(order)]
        a, b = order[left], order[left + distance]
        neighbours = (key[a] == key[b]) & (means[b] - means[a] <= LEVELS)  # means differ by less than thumbnails do
        left, a, b = left[neighbours], a[neighbours], b[neighbours]
        close = np.bitwise_count(hashes[a] ^ hashes[b]) <= BITS
        a, b = a[close], b[close]
        for start in range(0, len(a), 4096):  # [4096, 384] at a time
            one, two = a[start : start + 4096], b[start : start + 4096]
            alike = np.abs(thumbs[one].astype(np.int16) - thumbs[two]).mean(1) <= LEVELS
            found.append(np.stack([one[alike], two[alike]], 1))
            room -= int(alike.sum())
    return found


def _thumbs(seen: Sequence[Seen]) -> np.ndarray:
    """uint8 [n, 384]; zeros where there is none."""
    empty = bytes(384)
    return np.frombuffer(b"".join(s.thumb or empty for s in seen), np.uint8).reshape(len(seen), 384)
