"""A data set in a few numbers and a hash, to see whether two runs used the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from clipreid.data.crops import ReIDData, Split
from clipreid.data.readers import data_place

LABELS = ("identity", "camera", "view", "clothes", "tracklet", "session")  # of `Split.metadata`


def fingerprint(split: Split) -> dict[str, Any]:
    """Counts of a split, and a hash of who is where: {"images", "identities", "cameras", "hash"}.

    The hash is SHA-256, 16 hex digits, over the sorted rows (file name without folders, identity, camera, view): the
    same wherever the data lies and in whatever order it was read, another one when an image, name or label differs.
    Pixels are not looked at, and neither names nor identities can be read from it.
    """
    rows = zip(
        split.paths.tolist(), split.identities.tolist(), split.cameras.tolist(), split.views.tolist(), strict=True
    )
    digest = hashlib.sha256()
    for row in sorted(repr((PurePath(path).name, *labels)) for path, *labels in rows):
        digest.update(row.encode() + b"\n")
    cameras = split.cameras
    return {
        "images": len(split),
        "identities": len(set(split.identities.tolist())),
        "cameras": len(set(cameras[cameras >= 0].tolist())),
        "hash": digest.hexdigest()[:16],
    }


def pair_fingerprint(query: Split, gallery: Split) -> str:
    """One hash, 16 hex digits, of a query and a gallery split: equal where the same images have the same labels.

    As `fingerprint`, with everything that a protocol may look at: clothes, tracklets and sessions too.
    """
    digest = hashlib.sha256()
    for split in (query, gallery):
        table = split.metadata()
        names = [PurePath(path).name for path in split.paths.tolist()]
        rows = sorted(map(repr, zip(names, *(table[label].tolist() for label in LABELS), strict=True)))
        digest.update("\n".join(rows).encode() + b"\0")
    return digest.hexdigest()[:16]


def fingerprints(trained: Sequence[ReIDData], tested: Sequence[ReIDData]) -> dict[str, dict[str, Any]]:
    """Of every data set its splits that are used: `train` of what is trained on, `query` and `gallery` of the tests."""
    found: dict[str, dict[str, Any]] = {}
    for names, sets in ((("train",), trained), (("query", "gallery"), tested)):
        for data in sets:
            found.setdefault(data.name, {}).update({n: fingerprint(data.splits[n]) for n in names if n in data.splits})
    return found


def local_places(specs: Sequence[str]) -> list[str]:
    """The data names that mean files on this machine; called early, before the working folder could change."""
    return [spec for spec in specs if data_place(spec) != spec]
