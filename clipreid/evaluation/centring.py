"""Camera centring: the mean feature of a camera is subtracted from the features of its images.

What all images of a camera have in common (light, colours, background, angle) says nothing of who is on them, and makes
images of one camera similar. Subtracting the camera's mean takes the constant part of that away; features are
L2-normalised again. Identities are not looked at. (Song et al., *Exploring the camera bias of person
re-identification*, ICLR 2025, arXiv 2502.10195, section 4, who also divide by the standard deviations.)

N images, K cameras, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.data import ReIDData, Split, pixel_cache
from clipreid.errors import UserError
from clipreid.evaluation.protocols import get_protocol
from clipreid.evaluation.score import Scored, embed_decoded
from clipreid.metric import needs_cosine

if TYPE_CHECKING:
    from clipreid.model import ReIDModel

Centring = Literal["train", "gallery"]
FLAG = "--centre-cameras"
LEAST = 5  # images of a camera: the mean of fewer would be little else than these images themselves


@dataclass(frozen=True)
class CameraMeans:
    """The mean feature of each of K cameras.

    cameras: int64 [K], ascending, known ones only. means: [K, D] for each kind of feature. images: how many they are
    made of.
    """

    cameras: Tensor
    means: dict[str, Tensor]
    images: int

    @classmethod
    def of(cls, features: Mapping[str, Tensor], cameras: Any) -> CameraMeans:
        """Of features [N, D] each and their cameras [N], -1 = unknown; as `CameraSums.means`."""
        sums = CameraSums()
        sums.add(features, cameras)
        return sums.means()

    def rows(self, cameras: Any) -> Tensor:
        """The row of each image's camera, int64 [N]; K where there is none: the camera is unknown, or has no mean."""
        numbers = _numbers(cameras)
        found = torch.searchsorted(self.cameras, numbers).clamp_max(len(self.cameras) - 1)
        return torch.where(self.cameras[found] == numbers, found, len(self.cameras))

    def table(self, name: str) -> Tensor:
        """What is subtracted by row, [K + 1, D]: last, for images without a camera here, the mean of all K means."""
        return torch.cat([self.means[name], self.means[name].mean(0, keepdim=True)])

    def subtract(self, features: Mapping[str, Tensor], cameras: Any) -> dict[str, Tensor]:
        """Features [N, D] of images of these cameras, centred, and L2-normalised again."""
        rows = self.rows(cameras)
        return {name: F.normalize(x - self.table(name)[rows], dim=1) for name, x in features.items()}


class CameraSums:
    """Features of any number of images, added up by camera, block by block."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sums: dict[int, dict[str, Tensor]] = {}  # [D] each, float64

    def add(self, features: Mapping[str, Tensor], cameras: Any) -> None:
        """Features [n, D] each, cameras [n]; unknown ones (-1) are left out."""
        numbers = _numbers(cameras)
        for camera in set(numbers.tolist()) - {-1}:
            mine = numbers == camera
            self.counts[camera] = self.counts.get(camera, 0) + int(mine.sum())
            before = self.sums.setdefault(camera, {})
            for name, x in features.items():
                before[name] = before.get(name, 0) + x[mine].double().sum(0)

    def means(self) -> CameraMeans:
        """Of the cameras with at least `LEAST` images.

        Raises:
            UserError: there is no such camera.
        """
        kept = _usable(self.counts)
        means = {
            name: torch.stack([self.sums[camera][name] / self.counts[camera] for camera in kept]).float()
            for name in self.sums[kept[0]]
        }
        return CameraMeans(torch.tensor(kept), means, sum(self.counts[camera] for camera in kept))


def _usable(counts: Mapping[int, int]) -> list[int]:
    """The cameras with enough images; raises `UserError` where there is none."""
    kept = sorted(camera for camera, count in counts.items() if camera >= 0 and count >= LEAST)
    if not kept:
        raise UserError(
            f"{FLAG}: no known camera has {LEAST} images or more, so there is no mean to subtract: name the cameras "
            "where the images are read (--pattern, --columns; for a gallery with `clipreid embed`), or leave it out"
        )
    return kept


def _numbers(cameras: Any) -> Tensor:
    """int64 [N], of a tensor, an array or a list."""
    return cameras.long() if isinstance(cameras, Tensor) else torch.from_numpy(np.array(cameras, dtype=np.int64))


def check_known(cameras: Any) -> None:
    """Raises `UserError`, before features are made, where none of these cameras [N] has enough images."""
    numbers, counts = _numbers(cameras).unique(return_counts=True)
    _usable(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


def check_centring(how: Centring, data: ReIDData, protocol: str | None) -> None:
    """Raises UserError, before anything is scored, for data or a protocol that cannot be centred in this way."""
    rules, what = get_protocol(protocol or data.protocol), f"{FLAG} {how}: {data.name}"
    if rules.captions:
        raise UserError(f"{what} has captions as queries, which no camera took: leave it out")
    if how == "gallery" and rules.draws:
        raise UserError(
            f"{what} is scored on random galleries ({rules.name}), and images that were not drawn would take part: "
            f"{FLAG} train, or another protocol"
        )
    if how == "train" and "train" not in data.splits:
        raise UserError(f"{what} has no train split to take the means from: {FLAG} gallery, or name other --data")
    for name in ("train", "query", "gallery") if how == "train" else ("query", "gallery"):
        if name in data.splits and not (data.splits[name].cameras >= 0).any():
            raise UserError(f"{what} has no cameras in {name}: name them (--pattern, --columns), or leave it out")


def camera_means(
    how: Centring,
    found: Scored,
    data: ReIDData,
    model: ReIDModel,
    *,
    skip_bad: bool = False,
    offsets: tuple[int, int] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CameraMeans:
    """The means that `centre` subtracts.

    Args:
        how: "train": of the train split of `data` (inductive: nothing of the test is used); "gallery": of gallery and
            queries together (transductive), of the gallery alone where the queries are the same images.
        found: what `score` returned for `data` and `model`.
        skip_bad, offsets, progress: as for `score`; of the train split.

    Raises:
        UserError: as `check_centring`; a model that does not compare by cosine; no camera with enough images.
    """
    check_centring(how, data, found.reports[found.feature].protocol)
    needs_cosine(found.metric, FLAG)
    if how == "train":
        return train_means(data.splits["train"], model, skip_bad, offsets, progress)
    features, cameras = found.gallery_features, torch.from_numpy(found.gallery.cameras)
    if found.query is not found.gallery:
        features = {name: torch.cat([x, found.query_features[name]]) for name, x in features.items()}
        cameras = torch.cat([cameras, torch.from_numpy(found.query.cameras)])
    return CameraMeans.of(features, cameras)


def centre(found: Scored, how: Centring, means: CameraMeans) -> Scored:
    """The same images scored once more, by centred features; notes in the reports say how they were centred.

    how, means: as for `camera_means`.
    """
    sides = (found.query_features, found.query), (found.gallery_features, found.gallery)
    query, gallery = (means.subtract(features, split.cameras) for features, split in sides)
    centred = replace(
        found,
        query_features=query,
        gallery_features=gallery,
        notes=(*found.notes, _note(how, means, found)),
        reports={},
        _health={},
    )
    centred.add_reports(found.reports[found.feature].protocol)
    return centred


def train_means(
    split: Split,
    model: ReIDModel,
    skip_bad: bool = False,
    offsets: tuple[int, int] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> CameraMeans:
    """Means over the images of a split that can be decoded, prepared as for test. Arguments as for `camera_means`."""
    cache = pixel_cache(split, model.image_size, interpolation=model.interpolation, skip_bad=skip_bad)
    kept = split.select(cache.kept)
    tell = partial(progress, split.name) if progress else None
    return CameraMeans.of(embed_decoded(kept, cache, model, offsets, progress=tell), kept.cameras)


def _note(how: Centring, means: CameraMeans, found: Scored) -> str:
    """Where the means come from, and how many images have none of their own."""
    whence = {
        "train": "of the train split; inductive: nothing of the test is used",
        "gallery": "of gallery and queries; transductive: each result depends on all test images and their cameras",
    }[how]
    note = f"camera centring: means of {len(means.cameras)} cameras, from {means.images:,} images {whence}"
    splits = [found.gallery] if found.query is found.gallery else [found.query, found.gallery]
    images = sum(len(split) for split in splits)
    if lone := sum(int((means.rows(split.cameras) == len(means.cameras)).sum()) for split in splits):
        note += (
            f"; {lone:,} of {images:,} test images are of a camera that is unknown or has fewer than {LEAST} images "
            "there: the mean over the cameras is subtracted from them"
        )
    return note
