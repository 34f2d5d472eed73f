"""Several data sets trained on at once: identities kept apart, cameras renumbered, images left where they are.

N images of all sets, one set after the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clipreid.data.cache import PixelCache
from clipreid.data.crops import ReIDData, Split, sentences


class ConcatPixels:
    """Several uint8 tensors [n, 3, H, W], say memory-mapped ones, read as if they were one after the other."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((int(self.starts[-1]), *self.parts[0].shape[1:]))

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def __len__(self) -> int:
        return int(self.starts[-1])

    def numel(self) -> int:
        return sum(part.numel() for part in self.parts)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """As the tensor's own, along dimension 0: rows [B] -> uint8 [B, 3, H, W]."""
        if dim != 0:
            raise ValueError(f"only images (dimension 0) can be selected, not dimension {dim}")
        found = torch.empty((len(index), *self.shape[1:]), dtype=self.dtype, device=self.device)
        owner = np.searchsorted(self.starts, index.cpu().numpy(), side="right") - 1  # [B]
        for nth in np.unique(owner).tolist():
            rows = torch.from_numpy(np.flatnonzero(owner == nth)).to(self.device)
            found[rows] = self.parts[nth].index_select(0, index.to(self.device)[rows] - int(self.starts[nth]))
        return found

    def to(self, device: torch.device | str) -> Tensor:
        """One tensor on that device."""
        return torch.cat([part.to(device) for part in self.parts])


Pixels = Tensor | ConcatPixels


@dataclass(frozen=True, eq=False)
class Mixture:
    """The training images of one or several data sets.

    With one set everything is as in the data. With several, identities become "SET/IDENTITY", so that the same
    name in two sets is two individuals, and known cameras and views are raised by the set's offset, so that no
    number is used twice.
    """

    sets: tuple[ReIDData, ...]

    @property
    def splits(self) -> list[Split]:
        return [data.splits["train"] for data in self.sets]

    @cached_property
    def names(self) -> list[str]:
        """Short names of the sets, all different."""
        return short_names([data.name for data in self.sets])

    @cached_property
    def identities(self) -> np.ndarray:
        """str [N]."""
        if len(self.sets) == 1:
            return self.splits[0].identities
        named = zip(self.names, self.splits, strict=True)
        return np.concatenate([np.char.add(f"{name}/", split.identities) for name, split in named])

    @cached_property
    def groups(self) -> np.ndarray:
        """int64 [N]: which set an image is of."""
        return np.repeat(np.arange(len(self.sets)), [len(split) for split in self.splits])

    @cached_property
    def cameras(self) -> np.ndarray:
        """int32 [N], -1 = unknown."""
        raised = zip(self.splits, self.offsets.values(), strict=True)
        return np.concatenate([raise_known(split.cameras, camera) for split, (camera, _) in raised])

    @cached_property
    def views(self) -> np.ndarray:
        """int32 [N], -1 = unknown."""
        raised = zip(self.splits, self.offsets.values(), strict=True)
        return np.concatenate([raise_known(split.views, view) for split, (_, view) in raised])

    @cached_property
    def captions(self) -> list[list[str]]:
        """The sentences of each image, [N]; none where it has no caption."""
        return [sentences(caption) for split in self.splits for caption in split.captions.tolist()]

    @cached_property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """What the known cameras and views of each set, by its data name, are raised by; (0, 0) for the first."""
        found, camera, view = {}, 0, 0
        for data in self.sets:
            found[data.name] = camera, view
            parts = [part for part in data.splits.values() if len(part)]  # a test split may know further cameras
            camera += max((int(part.cameras.max()) for part in parts), default=-1) + 1
            view += max((int(part.views.max()) for part in parts), default=-1) + 1
        return found

    @property
    def counts(self) -> list[int]:
        """How many identities each set has."""
        return [len(np.unique(split.identities)) for split in self.splits]

    @property
    def noun(self) -> str:
        """What the individuals are; several nouns are separated by commas."""
        return ", ".join(dict.fromkeys(data.noun for data in self.sets))

    def nouns(self, names: Sequence[str]) -> list[str]:
        """The noun of each of these identities."""
        place = dict(zip(self.identities.tolist(), self.groups.tolist(), strict=True))
        return [self.sets[place[name]].noun for name in names]

    def keep(self, caches: Sequence[PixelCache]) -> Mixture:
        """Only the training images that each set's cache holds."""
        sets = []
        for data, cache in zip(self.sets, caches, strict=True):
            split = data.splits["train"]
            kept = split.select(cache.kept) if cache.bad else split
            sets.append(replace(data, splits={**data.splits, "train": kept}))
        return Mixture(tuple(sets))

    def summary(self, shares: Sequence[int] | None = None) -> str:
        """Every set's own summary, and what the sets are called in the mixture."""
        lines = [data.summary() for data in self.sets]
        if len(self.sets) > 1:
            parts = [f"{name} ({data.noun})" for name, data in zip(self.names, self.sets, strict=True)]
            if shares is not None:
                parts = [f"{share} x {part}" for share, part in zip(shares, parts, strict=True)]
            lines.append(f"{len(self.sets)} data sets together; identities in a batch: {', '.join(parts)}")
        return "\n".join(lines)


def join_pixels(caches: Sequence[PixelCache]) -> Pixels:
    """The images of several caches one after the other, nothing copied."""
    return caches[0].pixels if len(caches) == 1 else ConcatPixels([cache.pixels for cache in caches])


def short_names(specs: Sequence[str]) -> list[str]:
    """Data names as short as they stay different: `market1501:/data/Market` -> `market1501`.

    `folder:`, `csv:` and the like do not name the data, so the last part of the path is used: `folder:/my/crops`
    -> `crops`. Names that would be equal get more of their path; `synthetic:large` stays whole, and so does a remark
    behind a name, `market1501:/data/Market (val)`. The same name twice stays the same.
    """
    depths = dict.fromkeys(specs, 0)
    for _ in range(max((spec.count("/") for spec in specs), default=0) + 2):
        short = {spec: _short(spec, depth) for spec, depth in depths.items()}
        found = list(short.values())
        equal = [spec for spec, name in short.items() if found.count(name) > 1]
        if not equal:
            return [short[spec] for spec in specs]
        depths |= {spec: depths[spec] + 1 for spec in equal}
    return list(specs)


def _short(spec: str, depth: int) -> str:
    """A data name with the last `depth` parts of its place, one more where the reader's name says nothing."""
    name, mark, remark = spec.rpartition(" (")
    if not mark or "/" in remark:
        name, mark, remark = spec, "", ""
    reader, colon, place = name.partition(":")
    silent = reader in ("folder", "csv", "hub", "parquet")
    if reader == "synthetic" or not colon:
        return spec
    parts = [part for part in place.removesuffix(".csv").replace(os.sep, "/").split("/") if part]
    depth += silent
    shown = "/".join(parts[-depth:]) if depth else ""
    return (shown if silent else ":".join(filter(None, (reader, shown)))) + mark + remark


def raise_known(numbers: np.ndarray, offset: int) -> np.ndarray:
    """Cameras or views [n] raised by a set's offset, int32; -1 stays unknown."""
    return np.where(numbers >= 0, numbers + offset, -1).astype(np.int32)
