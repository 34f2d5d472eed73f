"""The data sets of a run: read and checked before anything slow, then decoded. N training images, I identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clipreid.backbones import is_image_only
from clipreid.config import RunConfig
from clipreid.data import (
    Mixture,
    Pixels,
    ReIDData,
    check_trainable,
    data_place,
    join_pixels,
    load_data,
    pixel_cache,
    reader_flags,
    relabel,
    set_shares,
)
from clipreid.data.layouts import same_people
from clipreid.data.opening import Opened, check_apart, check_images, opened
from clipreid.errors import UserError
from clipreid.evaluation import get_protocol
from clipreid.evaluation.results import VAL


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run: N training images of I identities, and what is scored.

    Attributes:
        read: every --data, as it was read.
        mixture: the same without the images left out (--skip-bad).
        tests: what is scored.
        bad: (path, reason) of the images left out.
        notes: what is odd about the images (`clipreid.data.opening`).
        digest: a hash of the decoded training images.
    """

    read: Mixture
    mixture: Mixture
    tests: list[ReIDData]
    bad: list[tuple[str, str]]
    notes: Sequence[str] = ()
    digest: str = ""

    @cached_property
    def _labelled(self) -> tuple[Tensor, list[str]]:
        return relabel(self.mixture.identities)

    @property
    def labels(self) -> Tensor:
        """[N] long, 0..I-1."""
        return self._labelled[0]

    @property
    def names(self) -> list[str]:
        """[I] what the identities are called in the data; "SET/IDENTITY" with several sets."""
        return self._labelled[1]

    @property
    def groups(self) -> Tensor:
        """The data set of each training image, [N] long, 0 where there is one."""
        return torch.from_numpy(self.mixture.groups)

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Cameras [N] and views [N] of the training images, -1 = unknown; no number twice in several sets."""
        return torch.from_numpy(self.mixture.cameras), torch.from_numpy(self.mixture.views)

    @property
    def captions(self) -> list[list[str]]:
        """The sentences of each training image, [N]; none where it has no caption."""
        return self.mixture.captions

    def paths(self, rows: Sequence[int]) -> list[str]:
        """The files of these training images, or the names given to encoded ones."""
        found = np.concatenate([split.paths for split in self.mixture.splits])
        return [str(found[row]) for row in rows]

    def crops(self, size: tuple[int, int], interpolation: str, skip_bad: bool) -> Pixels:
        """The training images, uint8 [N, 3, H, W], memory-mapped; decoded once for each interpolation.

        Raises:
            UserError: they have changed since the data was opened.
        """
        mixture, pixels, _, _ = decode(self.read, size, interpolation, skip_bad)
        if not np.array_equal(mixture.identities, self.mixture.identities):
            raise UserError("the training images changed while the run was being prepared: start it again")
        return pixels


def read_sets(config: RunConfig) -> tuple[RunConfig, Mixture, list[ReIDData]]:
    """The flags with defaults filled in, every --data to train on, and what is scored.

    Scored are the sets' own query and gallery where they have them, then every --test; with --validate the sets' val
    splits alone.

    Raises:
        UserError: data that cannot be read, trained on or tested on.
    """
    specs = config.data or ("synthetic",)
    further = config.test or (("synthetic:new-cameras",) if specs == ("synthetic",) else ())
    config = replace(config, data=specs, test=further)
    _check_apart(specs)
    flags = reader_flags((*specs, *further), config.pattern, config.columns, config.unknown)
    sets = [load_data(spec, noun=config.noun, **flags[spec]) for spec in specs]
    others = {data_place(spec): spec for spec in reversed(further)}  # each once, by its first name
    home = {data_place(spec) for spec in specs}
    tests = [load_data(spec, **flags[spec]) for at, spec in reversed(others.items()) if at not in home]
    for test in tests:
        if not {"query", "gallery"} <= test.splits.keys():
            raise UserError(f"--test {test.name} has no query and gallery, only {', '.join(test.splits)}")
    own = [data for data in sets if {"query", "gallery"} <= data.splits.keys()]
    scored = [val_as_test(data) for data in sets if "val" in data.splits] if config.validate else own + tests
    for test in scored:
        if get_protocol(test.protocol).captions and is_image_only(config.backbone):
            raise UserError(
                f"{test.name} is scored with captions ({test.protocol}), and --backbone {config.backbone} has no text "
                "tower: take a backbone with text (tiny-clip, open_clip:..., hf:...), or other data"
            )
    for data in sets:
        if config.validate and "val" not in data.splits:
            raise UserError(f"--validate: {data.name} has no val split, only {', '.join(data.splits)}")
        check_trainable(data, 1, 2)
    return config, Mixture(tuple(sets)), scored


def shared_people(mixture: Mixture, tests: Sequence[ReIDData]) -> list[str]:
    """A sentence for each training set and test set that differ and yet show the same people."""
    notes = []
    for test in tests:
        name = test.name.removesuffix(VAL)
        for trained in (data.name for data in mixture.sets):
            family = same_people(trained, name)
            if family and trained.partition(":")[0] != name.partition(":")[0]:  # its own test, or that of a copy
                notes.append(
                    f"{trained} and {name} show the same people ({family}): people of the test may have been trained "
                    "on, and its figures flatter"
                )
    return notes


def _check_apart(specs: Sequence[str]) -> None:
    """Refuses to train on the same data, or on the same people, twice."""
    for nth, spec in enumerate(specs):
        for before in specs[:nth]:
            if data_place(spec) == data_place(before):
                also = "" if spec == before else f" (also as {before})"
                raise UserError(f"--data {spec} is given twice{also}: name every data set once")
            if family := same_people(before, spec):
                raise UserError(
                    f"--data {before} and --data {spec} show the same people ({family}): each would be two "
                    "identities; train on one"
                )


def check_batch(mixture: Mixture, P: int, K: int, balance: str) -> list[int]:
    """How many of the P identities of a batch each set gives. Raises UserError where they cannot be drawn."""
    if len(mixture.sets) > 1:
        return set_shares(mixture.counts, P, balance)
    check_trainable(mixture.sets[0], P, K)
    return [P]


def decode(
    mixture: Mixture, size: tuple[int, int], interpolation: str, skip_bad: bool
) -> tuple[Mixture, Pixels, list[tuple[str, str]], str]:
    """The usable training images, their pixels uint8 [N, 3, H, W], (path, reason) of those left out, and a hash of the
    pixels.

    Each set keeps its own memory-mapped cache, decoded once; nothing is copied.
    """
    caches = [pixel_cache(s, size, interpolation=interpolation, skip_bad=skip_bad) for s in mixture.splits]
    bad, digest = [entry for cache in caches for entry in cache.bad], "-".join(cache.digest for cache in caches)
    return mixture.keep(caches), join_pixels(caches), bad, digest


def check_opened(
    mixture: Mixture, tests: Sequence[ReIDData], size: tuple[int, int], interpolations: tuple[str, str], skip_bad: bool
) -> list[str]:
    """Warnings about blank images, images under two identities, and test images that are trained on.

    All images are decoded for it, where that has not been done; interpolations: of training and of test.

    Raises:
        UserError: there are too many of them (`clipreid.data.opening`); images that cannot be decoded.
    """

    def opens(data: ReIDData, part: str, names: Sequence[str], interpolation: str) -> list[Opened]:
        splits = [data.splits[name] for name in names]
        caches = [pixel_cache(s, size, interpolation=interpolation, skip_bad=skip_bad) for s in splits]
        return opened(data.name, part, splits, caches)

    train = [opens(data, "training", ["train"], interpolations[0]) for data in mixture.sets]
    notes = [note for parts in train for note in check_images(parts)]
    for data in tests:
        named = ["gallery"] if get_protocol(data.protocol).captions else ["query", "gallery"]
        parts = opens(data, "test", named, interpolations[1])
        notes += check_apart([part for parts in train for part in parts], parts)
    return notes


def val_as_test(data: ReIDData) -> ReIDData:
    val = data.splits["val"]
    return replace(data, name=f"{data.name}{VAL}", splits={"query": val, "gallery": val})
