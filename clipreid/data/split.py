"""Data without splits of its own -> train, val and test by identity, as tables for `csv:`; no image is copied.

An identity is in one part only. Which part follows from its name, the seed and the shares: identities are put into an
order by a hash of seed and name, and the first ones are tested on. Every test image is in the gallery, and is a query
too where the gallery holds a match for it. There are three kinds of identities; the first two are shared out, each by
itself:

    matching    images at two cameras (an unknown one may be another one); where cameras say nothing, two images
    one camera  the other ones with several images: trained on, or distractors of the gallery
    single      one image: distractors of every gallery, never trained on
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import datasets
import numpy as np

from clipreid.data.crops import ReIDData, Split
from clipreid.data.custom import custom_protocol
from clipreid.data.layouts import LAYOUTS
from clipreid.disk import write_whole
from clipreid.errors import UserError

LEAST = 2  # identities with a match that a part is made of: an interval over identities needs two
IMAGES = "images"  # below the output: what was encoded inside of a data set


@dataclass(frozen=True, eq=False)
class Pool:
    """All images of a data set, each once: N images, whatever split they were in.

    images: the split "all".  notes: what was put together, for the user.
    """

    images: Split
    notes: tuple[str, ...] = ()

    @cached_property
    def by_camera(self) -> bool:
        """Whether matches may have to come from another camera: several are known."""
        return len(set(self.images.cameras.tolist()) - {-1}) > 1

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """The identities that are "matching", of "one camera", and "single" (top of this file), each list sorted."""
        names = self.images.identities.tolist()
        count = Counter(names)
        places = [camera if camera >= 0 else -1 - row for row, camera in enumerate(self.images.cameras.tolist())]
        cameras = Counter(name for name, _ in set(zip(names, places, strict=True)))
        kinds: dict[str, list[str]] = {"matching": [], "one camera": [], "single": []}
        for name in sorted(count):
            matching = (cameras if self.by_camera else count)[name] > 1
            kinds["single" if count[name] == 1 else "matching" if matching else "one camera"].append(name)
        return kinds


def pool_images(data: ReIDData) -> Pool:
    """The images of all splits of `data`. The same file (or the same bytes) is taken once, its captions together.

    Raises:
        UserError: a public set, whose own splits published figures are made with; one image under two identities.
    """
    reader = data.name.partition(":")[0]
    if reader in LAYOUTS:
        raise UserError(
            f"{data.name} has its own splits, and figures on other ones cannot be compared with published ones. "
            "To split such images all the same, name them as your own: folder:ROOT or csv:FILE.csv"
        )
    table = datasets.concatenate_datasets([split.table for split in data.splits.values()])
    everything = Split("all", table)
    first: dict[str, int] = {}
    rows = [first.setdefault(key, row) for row, key in enumerate(_keys(everything))]  # of each image its first row
    names, captions = everything.identities, everything.captions
    merged: dict[int, dict[str, None]] = {}  # captions of each first row, as an ordered set
    for row, own in enumerate(rows):
        if names[own] != names[row]:
            where = everything.path(row) or f"row {row}"
            raise UserError(
                f"{data.name}: {where} is under two identities, {str(names[own])!r} and {str(names[row])!r}: "
                "correct one of them"
            )
        merged.setdefault(own, {}).update(dict.fromkeys(filter(None, captions[row].split("\n"))))
    kept = everything.select(list(first.values()))
    texts: Any = ["\n".join(own) for own in merged.values()]
    if texts != kept.captions.tolist():
        bare = kept.table.remove_columns("caption")
        kept = Split("all", bare.add_column("caption", texts, feature=table.features["caption"]))
    return Pool(kept, _notes(data, repeated=len(rows) - len(first)))


def _keys(split: Split) -> Iterable[str]:
    """What is equal for the same image: its real path, or a hash of its bytes."""
    for batch in split.encoded_batches(64):
        for image in batch:
            inside = image["bytes"] is not None
            yield hashlib.sha256(image["bytes"]).hexdigest() if inside else os.path.realpath(image["path"])


def _notes(data: ReIDData, repeated: int) -> tuple[str, ...]:
    notes = []
    if len(data.splits) > 1:
        notes.append(f"the splits of {data.name} ({', '.join(data.splits)}) are put together and shared out anew")
    owners = Counter(name for part in _parts(data) for name in part)
    if common := sorted(name for name, times in owners.items() if times > 1):
        such = f"{len(common):,d} identities are in several of its splits (such as {common[0]!r})"
        notes.append(f"{such}: one name is taken for one individual")
    if repeated:
        notes.append(f"{repeated:,d} images were listed more than once, and are taken once")
    return tuple(notes)


def _parts(data: ReIDData) -> list[set[str]]:
    """The identities of train, val and the test set."""
    groups = (("train",), ("val",), ("query", "gallery"))
    return [{n for s in group if s in data.splits for n in data.splits[s].identities.tolist()} for group in groups]


# Who is where -------------------------------------------------------------------------------------------------


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on nothing but seed and names: by SHA-256 of both."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}\n{name}".encode()).digest(), name))


def check_shares(test: float | None, val: float) -> None:
    """Raises `UserError` for shares of the identities that are none; test: None of folds."""
    if test is None and not 0 <= val < 1:
        raise UserError(f"--val {val:g}: a share lies between 0 and 1")
    if test is not None and not (0 < test < 1 and 0 <= val < 1 and test + val < 1):
        raise UserError(f"--test {test:g} --val {val:g}: shares lie between 0 and 1, and must leave a part to train on")


def split_once(pool: Pool, test: float, val: float = 0.0, seed: int = 0) -> np.ndarray:
    """The part of each image, str [N]: "train", "val" or "test". Shares are those of the identities, 0..1.

    Raises:
        UserError: shares that are none, or that leave a part without enough identities.
    """
    check_shares(test, val)
    parts: dict[str, str] = {}
    for kind in ("matching", "one camera"):
        order = shuffled(pool.kinds[kind], seed)
        tested = _rounded(test * len(order))
        parts |= dict.fromkeys(order[:tested], "test")
        parts |= dict.fromkeys(order[tested : tested + _rounded(val * len(order))], "val")
    return _checked(pool, parts, {"test": test, "val": val})


def split_folds(pool: Pool, folds: int, val: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    """As `split_once`, `folds` times, every identity being tested on once; val: a share of what is not tested on.

    Raises:
        UserError: fewer than two folds, or so many that one has too few identities; shares that leave nothing.
    """
    count = len(pool.kinds["matching"])
    if folds < 2 or folds * LEAST > count:
        most = f"at most {count // LEAST}" if count >= 2 * LEAST else f"at least {2 * LEAST} of them are needed"
        raise UserError(
            f"--cross-validate {folds}: give at least 2 folds, of at least {LEAST} identities each; of the {count} "
            f"identities with {_condition(pool)} {most}"
        )
    check_shares(None, val)
    found = []
    for fold in range(folds):
        parts: dict[str, str] = {}
        for kind in ("matching", "one camera"):
            order = shuffled(pool.kinds[kind], seed)
            start, stop = (len(order) * (fold + k) // folds for k in (0, 1))
            rest = order[stop:] + order[:start]
            parts |= dict.fromkeys(order[start:stop], "test")
            parts |= dict.fromkeys(rest[: _rounded(val * len(rest))], "val")
        found.append(_checked(pool, parts, {"val": val}))
    return found


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _condition(pool: Pool) -> str:
    return "images at two cameras" if pool.by_camera else "two images"


def _checked(pool: Pool, parts: dict[str, str], shares: dict[str, float]) -> np.ndarray:
    """The part of each image [N]; raises UserError where a part has too few identities with a match."""
    matching, trained = pool.kinds["matching"], [*pool.kinds["matching"], *pool.kinds["one camera"]]
    for part, share in shares.items():
        found = sum(parts.get(name) == part for name in matching)
        if share and found < LEAST:
            raise UserError(
                f"--{part} {share:g} of {len(matching)} identities with {_condition(pool)} is {found}, and {LEAST} are "
                f"needed: give a larger share" + ("" if len(matching) >= 3 * LEAST else ", or more images")
            )
    if sum(name not in parts for name in trained) < LEAST:
        raise UserError(f"fewer than {LEAST} of {len(trained)} identities are left to train on: give smaller shares")
    single = set(pool.kinds["single"])
    return np.array([parts.get(n, "test" if n in single else "train") for n in pool.images.identities.tolist()])


def find_queries(pool: Pool, parts: np.ndarray) -> np.ndarray:
    """Which images are queries, bool [N]: those of the test part with another image of their identity there, from
    another camera where `custom_protocol` will ask for that."""
    rows = np.flatnonzero(parts == "test")
    tested = pool.images.select(rows)
    protocol, _ = custom_protocol({"query": tested, "gallery": tested}, doubled=False)
    names, cameras = tested.identities.tolist(), tested.cameras.tolist()
    images = Counter(names)
    inside = Counter(zip(names, cameras, strict=True)) if protocol != "no-cameras" else Counter()
    found = [images[n] > max(inside[n, c], 1) for n, c in zip(names, cameras, strict=True)]
    queries = np.zeros(len(parts), bool)
    queries[rows] = found
    return queries


# Tables -------------------------------------------------------------------------------------------------------


def write_table(pool: Pool, parts: np.ndarray, queries: np.ndarray, files: Sequence[str], table: Path) -> None:
    """Writes a table for `csv:`: image (relative to the table), identity, camera, split, and the columns that the data
    has besides. Queries have two lines, one as query and one as gallery.

    files: of each image [N], as `image_files` gives them.

    Raises:
        UserError: the file cannot be written, or has a name that is no text.
    """
    every = pool.images.table.remove_columns("image")[:]
    known = [name for name in every if name not in ("identity", "camera", "split") and _is_known(every[name])]
    columns = ["identity", "camera", "split", *known]
    places = {"train": parts == "train", "val": parts == "val", "query": queries, "gallery": parts == "test"}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for part, chosen in places.items():
        for row in np.flatnonzero(chosen).tolist():
            cells = [part if name == "split" else _cell(every[name][row]) for name in columns]
            writer.writerow([os.path.relpath(files[row], table.parent), *cells])
    try:
        write_whole(table, text.getvalue())
    except UnicodeEncodeError as error:
        raise UserError(f"a file name is no UTF-8 text ({error.object!r}): rename the file") from error


def image_files(images: Split, output: Path) -> list[str]:
    """The file of each image [N]. What is encoded inside of a data set is written below OUTPUT/images, byte by byte.

    Raises:
        UserError: the folder cannot be written.
    """
    found: list[str] = []
    for batch in images.encoded_batches(64):
        for image in batch:
            if image["bytes"] is None:
                found.append(os.path.abspath(image["path"]))
                continue
            file = output.absolute() / IMAGES / f"{len(found):06d}{PurePath(image['path'] or '').suffix}"
            write_whole(file, image["bytes"])
            found.append(str(file))
    return found


def _is_known(column: Sequence[Any]) -> bool:
    return any(_cell(value) for value in column)


def _cell(value: Any) -> str:
    """A value as text; unknown (-1, None) is empty."""
    return "" if value in (None, -1) else str(value)
