"""Libraries of cut-outs: things and people with transparency around them, from the street or from the user's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from clipreid.data.images import MIN_SIDE
from clipreid.errors import UserError

SUFFIXES = (".png", ".webp")
SIDE = "side"  # a folder, or the beginning of a file's name: what enters from a side
PARTS = ("train", "test")
NAMELESS = "object"  # the class of cut-outs that lie in no folder of a class
LARGEST = 512  # pixels of the longer side: larger images of a folder are reduced
SEEN = 128  # alpha from which a pixel hides what is behind it

Part = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Cutout:
    """One thing that can be in the way.

    pixels: uint8 [4, h, w], RGBA, without transparent margins. kind: its class. stands: its lower edge stands on the
    ground; else it enters from a side, and the left edge of the pixels is the end that lies outside of the crop.
    """

    pixels: Tensor
    kind: str
    stands: bool = True


@dataclass(frozen=True, eq=False)
class Library:
    """Cut-outs, ordered by class."""

    cutouts: tuple[Cutout, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutouts", tuple(sorted(self.cutouts, key=lambda one: one.kind)))

    def __len__(self) -> int:
        return len(self.cutouts)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The names of the classes, sorted."""
        return tuple(sorted({one.kind for one in self.cutouts}))

    def only(self, *kinds: str) -> Library:
        """The cut-outs of these classes. Raises `UserError` where there are none."""
        kept = tuple(one for one in self.cutouts if one.kind in kinds)
        if not kept:
            raise UserError(f"no cut-out is of the class {' or '.join(kinds)}: there are {', '.join(self.kinds)}")
        return Library(kept)

    @cached_property
    def shapes(self) -> Tensor:
        """float32 [3, N]: width over height, 1 where it stands on the ground, and the number of its class."""
        sizes = [(one.pixels.shape[2] / one.pixels.shape[1], one.stands) for one in self.cutouts]
        rows = [(*size, self.kinds.index(one.kind)) for size, one in zip(sizes, self.cutouts, strict=True)]
        return torch.tensor(rows, dtype=torch.float32).T

    @cached_property
    def _kept(self) -> dict[tuple[int, torch.device], tuple[Tensor, Tensor]]:
        return {}

    def textures(self, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The cut-outs, each stretched to a square, and where they hide what is behind them; kept on the device.

        uint8 [N, side, 4, side] (row, channel, column), colours multiplied by alpha; bool [N, side, side].
        """
        if (side, device) not in self._kept:
            textures = torch.stack([_texture(one.pixels, side) for one in self.cutouts])
            self._kept[side, device] = textures.to(device), (textures[:, :, 3] >= SEEN).to(device)
        return self._kept[side, device]


def _texture(pixels: Tensor, side: int) -> Tensor:
    """uint8 [4, h, w] -> [side, 4, side], premultiplied."""
    rgba = pixels.float() / 255
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    square = torch.nn.functional.interpolate(rgba[None], (side, side), mode="bilinear", antialias=True)[0]
    return square.mul_(255).round_().clamp_(0, 255).to(torch.uint8).transpose(0, 1).contiguous()


@dataclass(frozen=True, eq=False)
class Bank:
    """Crops of other individuals, for `distract`.

    pixels: uint8 [M, 3, h, w]. identities: str or int [M].
    """

    pixels: Tensor
    identities: Sequence[str] | Sequence[int] | np.ndarray

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"expected uint8 [M, 3, h, w], got {self.pixels.dtype} {list(self.pixels.shape)}")
        if len(self.pixels) != len(self.identities) or not len(self.pixels):
            raise ValueError(f"{len(self.pixels)} crops and {len(self.identities)} identities: a bank has one for each")

    @cached_property
    def order(self) -> np.ndarray:
        """The rows [M], sorted by identity."""
        return np.argsort(np.asarray(self.identities).astype(str), kind="stable")

    @cached_property
    def names(self) -> np.ndarray:
        """The identities as str [M], sorted."""
        return np.asarray(self.identities).astype(str)[self.order]

    def choose(self, own: str, uniform: float) -> int:
        """The row of a crop of somebody else than `own`, by a number in [0, 1). ValueError where there is nobody."""
        first, last = (int(np.searchsorted(self.names, own, side)) for side in ("left", "right"))
        others = len(self.names) - (last - first)
        if not others:
            raise ValueError(f"all crops of the bank are of {own!r} itself: it holds nobody else to distract with")
        place = min(int(uniform * others), others - 1)
        return int(self.order[place if place < first else place + last - first])


# The street's -------------------------------------------------------------------------------------------------------


@cache
def street_library(part: Part, persons: bool = False) -> Library:
    """Painted by the program that paints the synthetic street; kept in memory.

    Objects of the two parts are of different classes. Those of "test" are of the classes that also hide the queries of
    `synthetic:occluded`, so that what was trained with "train" has seen none of them. persons: people as well, as the
    class "person" of both parts; they are different individuals, none of whom is in a named set (`only("person")`:
    people alone).
    """
    from clipreid.data.synthetic.cutouts import paint_objects, paint_people

    if part not in PARTS:
        raise UserError(f"no part {part!r} of the street's occluders: choose train or test")
    painted = [*paint_objects(part), *(paint_people(part) if persons else ())]
    return Library(tuple(Cutout(_cut(rgba, kind), kind, stands) for rgba, kind, stands in painted))


# The user's ---------------------------------------------------------------------------------------------------------


def read_library(folder: Path, part: Part | None = None) -> Library:
    """The cut-outs of a folder of PNG and WebP images with transparency, each trimmed to what can be seen.

    The class of an image is the folder it lies in (FOLDER/bicycle/1.png), or "object" directly below FOLDER. It stands
    on the ground, unless a folder above it is called "side" (FOLDER/branch/side/1.png) or its name begins with "side"
    (side-1.png): then it enters from a side, with the left edge of the image outside of the crop.

    part: where FOLDER has the folders train and test, the one to read (none: both); where it has not, that part of
    `split_library(..., 0.5, 0)`.

    Raises:
        UserError: no images; one without transparency, or that cannot be seen or read; the same image in both parts.
    """
    if not folder.is_dir():
        raise UserError(f"the folder of occluders {folder} is not there: give a folder of PNG or WebP cut-outs")
    parted = all((folder / name).is_dir() for name in PARTS)
    if not parted:
        whole = Library(tuple(_read_part(folder)))
        return whole if part is None else split_library(whole, 0.5, 0)[PARTS.index(part)]
    found = {name: _read_part(folder / name) for name in PARTS}
    _check_apart(found["train"], found["test"], folder)
    return Library(tuple(found["train"] + found["test"] if part is None else found[part]))


def split_library(library: Library, share: float, seed: int) -> tuple[Library, Library]:
    """A train part and a test part without a common class, so without a common instance.

    share: of the classes that are for training, 0..1, rounded so that each part has one. Which ones follows from their
    names and the seed. Raises `UserError` where there are fewer than two classes, or for a share that is none.
    """
    if not 0 < share < 1:
        raise UserError(f"a share of {share:g} of the classes of occluders: it lies between 0 and 1")
    if len(library.kinds) < 2:
        raise UserError(
            f"all occluders are of one class ({library.kinds[0]!r}), and training and test must have different "
            "ones: sort them into one folder for each class (bicycle/, bin/, ...), or into train/ and test/"
        )
    order = sorted(library.kinds, key=lambda kind: hashlib.sha256(f"{seed}\n{kind}".encode()).digest())
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return library.only(*order[:count]), library.only(*order[count:])


def _read_part(folder: Path) -> list[Cutout]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise UserError(
            f"{folder} holds no occluders: put PNG or WebP images with transparency there, sorted by class "
            "(bicycle/1.png, bin/1.png, ...)"
        )
    return [_read_cutout(file, file.relative_to(folder)) for file in files]


def _read_cutout(file: Path, place: Path) -> Cutout:
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            upright.thumbnail((LARGEST, LARGEST))
            rgba = np.asarray(upright)
    except Exception as error:  # Pillow's plugins raise nearly everything on a broken file
        raise UserError(f"the occluder {file} cannot be read ({error}): save it again as PNG, or remove it") from error
    if rgba[..., 3].min() == 255:
        raise UserError(
            f"the occluder {file} is not cut out: no pixel of it is transparent. Remove its background, and save it as "
            "PNG or WebP with an alpha channel"
        )
    folders = [name for name in place.parent.parts if name.lower() != SIDE]
    stands = len(folders) == len(place.parent.parts) and not place.name.lower().startswith(SIDE)
    return Cutout(_cut(rgba, str(file)), folders[0] if folders else NAMELESS, stands)


def _cut(rgba: np.ndarray, name: str) -> Tensor:
    """uint8 [h, w, 4] -> [4, h, w] without the margins in which nothing is seen. Raises `UserError` for no content."""
    seen = rgba[..., 3] >= SEEN
    if not seen.any():
        raise UserError(f"the occluder {name} is transparent everywhere: there is nothing to hide something with")
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    cut = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if min(cut.shape[:2]) < MIN_SIDE:
        size = f"{cut.shape[1]}x{cut.shape[0]}"
        raise UserError(f"the occluder {name} shows {size} pixels, too small (each side needs {MIN_SIDE})")
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))


def _check_apart(train: Sequence[Cutout], test: Sequence[Cutout], folder: Path) -> None:
    """Raises UserError for a picture, or a class, that is in both parts."""
    if shared := sorted(_kinds(train) & _kinds(test)):
        raise UserError(
            f"{folder}: the class {shared[0]!r} is in train/ and in test/: occluders of training and test must be of "
            "different classes"
        )
    known = {(one.pixels.shape, one.pixels.numpy().tobytes()): one for one in train}
    for one in test:
        if twin := known.get((one.pixels.shape, one.pixels.numpy().tobytes())):
            raise UserError(
                f"{folder}: the same cut-out is in train/{twin.kind} and in test/{one.kind}: keep it in one of them"
            )


def _kinds(cutouts: Iterable[Cutout]) -> set[str]:
    return {one.kind for one in cutouts} - {NAMELESS}
