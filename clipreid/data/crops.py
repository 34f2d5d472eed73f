"""Crops of individuals: one table schema, a split, and a data set made of splits.

Every reader and the synthetic street give these, and everything else in the toolkit takes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from clipreid.data.images import read_image
from clipreid.errors import UserError

SCHEMA = datasets.Features(
    image=datasets.Image(decode=False),  # {"path": str | None, "bytes": bytes | None}: encoded, never pixels
    identity=datasets.Value("string"),
    camera=datasets.Value("int32"),  # -1 = unknown
    view=datasets.Value("int32"),  # -1 = unknown
    split=datasets.Value("string"),
    caption=datasets.Value("string"),  # "" = none; several are separated by line breaks
    clothes=datasets.Value("string"),  # which outfit, different for different people; "" = unknown
    tracklet=datasets.Value("string"),  # images that follow each other in one video; "" = unknown
    session=datasets.Value("string"),  # a day or encounter, as of animals; "" = unknown
    attributes=datasets.Value("string"),  # a JSON object such as {"hat": "cap"}; "" = none is known
)
Attributes = dict[str, str]  # of one image: what is not there is unknown (`clipreid.data.attributes`)


@dataclass(frozen=True, eq=False)
class Split:
    """One part (train, val, query, gallery) of a data set: a table of crops, decoded only on demand.

    digests: int64 [N], equal for copies of an image, -1 = unlike every other; None before the images were decoded.
    """

    name: str
    table: datasets.Dataset
    digests: np.ndarray | None = None

    @classmethod
    def from_columns(
        cls,
        name: str,
        image: Sequence[Mapping[str, Any]],
        identity: Sequence[str],
        camera: Sequence[int] | None = None,
        view: Sequence[int] | None = None,
        caption: Sequence[str] | None = None,
        clothes: Sequence[str] | None = None,
        tracklet: Sequence[str] | None = None,
        session: Sequence[str] | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> "Split":
        """Builds a split from columns of equal length N.

        image: dicts with "path" (str or None) and "bytes" (an encoded image or None, then the path is
        read). attributes: {name: value} of each image.
        """
        from clipreid.data.attributes import pack  # it reads splits

        count = len(identity)
        columns = {
            "image": [{"path": entry.get("path"), "bytes": entry.get("bytes")} for entry in image],
            "identity": [str(value) for value in identity],
            "camera": [-1] * count if camera is None else [int(value) for value in camera],
            "view": [-1] * count if view is None else [int(value) for value in view],
            "split": [name] * count,
            "caption": [""] * count if caption is None else list(caption),
        }
        for field, values in {"clothes": clothes, "tracklet": tracklet, "session": session}.items():
            columns[field] = [""] * count if values is None else [str(value) for value in values]
        columns["attributes"] = [""] * count if attributes is None else [pack(each) for each in attributes]
        return cls(name, datasets.Dataset.from_dict(columns, features=SCHEMA))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def identities(self) -> np.ndarray:
        """str [N]."""
        return np.array(self._column("identity").tolist(), dtype=str)

    @cached_property
    def cameras(self) -> np.ndarray:
        """int32 [N], -1 = unknown."""
        return self._column("camera").astype(np.int32)

    @cached_property
    def views(self) -> np.ndarray:
        """int32 [N], -1 = unknown."""
        return self._column("view").astype(np.int32)

    @cached_property
    def captions(self) -> np.ndarray:
        """str [N], "" = none; a query has one caption, other images may have several, separated by line breaks."""
        return np.array(self._column("caption").tolist(), dtype=str)

    @cached_property
    def clothes(self) -> np.ndarray:
        """str [N], "" = unknown."""
        return np.array(self._column("clothes").tolist(), dtype=str)

    @cached_property
    def tracklets(self) -> np.ndarray:
        """str [N], "" = unknown."""
        return np.array(self._column("tracklet").tolist(), dtype=str)

    @cached_property
    def sessions(self) -> np.ndarray:
        """str [N], "" = unknown."""
        return np.array(self._column("session").tolist(), dtype=str)

    @cached_property
    def attributes(self) -> tuple[Attributes, ...]:
        """What is known of each image [N], such as {"hat": "cap"}. Raises `UserError` for what is no JSON object."""
        from clipreid.data.attributes import unpack

        return tuple(unpack(text) for text in self.packed_attributes.tolist())

    @cached_property
    def packed_attributes(self) -> np.ndarray:
        """str [N]: the same as the table keeps them (`clipreid.data.attributes.pack`), "" = none."""
        return np.array(self._column("attributes").tolist(), dtype=str)

    @cached_property
    def paths(self) -> np.ndarray:
        """str [N]: the file, or the name given to encoded bytes; "" = nameless."""
        batches = self.table.select_columns(["image"]).with_format("arrow").iter(1024) if len(self) else ()
        return np.array([path or "" for batch in batches for path in batch.flatten()["image.path"].to_pylist()], str)

    def path(self, index: int) -> str:
        """The file of one image (or the name given to its bytes), "" where it has none."""
        return str(self.paths[index])

    def image(self, index: int) -> Image.Image:
        """One image, decoded to RGB. Raises `UserError` naming it when it cannot be decoded."""
        file = self.table[int(index)]["image"]
        try:
            return read_image(file["path"] if file["bytes"] is None else file["bytes"])
        except Exception as error:  # Pillow's plugins raise nearly everything on a broken file
            raise UserError(f"{file['path'] or f'image {index}'} cannot be decoded ({error})") from error

    def encoded_batches(self, batch_size: int) -> Iterator[list[dict[str, Any]]]:
        """The encoded images in order, as lists of {"path", "bytes"}; only one batch is in memory."""
        if len(self):  # an empty table cannot be iterated
            for batch in self.table.select_columns(["image"]).with_format("arrow").iter(batch_size):
                yield batch["image"].to_pylist()

    def select(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> "Split":
        """These images only, in this order; after `skip_bad`: `split.select(cache.kept)`."""
        rows = np.asarray(indices, dtype=np.int64)
        digests = None if self.digests is None else self.digests[rows]
        return Split(self.name, self.table.select(rows, keep_in_memory=True), digests)

    def with_digests(self, digests: np.ndarray) -> "Split":
        """The same split, of which is now known what are copies: digests int64 [N] (`pixel_digest`)."""
        return replace(self, digests=digests)

    def metadata(self) -> dict[str, np.ndarray]:
        """identity [N] str, camera, view [N] int32, clothes, tracklet, session, path [N] str: for protocols, `--by`.

        And digest int64 [N], once the images were decoded.
        """
        return {
            "identity": self.identities,
            "camera": self.cameras,
            "view": self.views,
            "clothes": self.clothes,
            "tracklet": self.tracklets,
            "session": self.sessions,
            "path": self.paths,
            **({} if self.digests is None else {"digest": self.digests}),
        }

    def _column(self, name: str) -> np.ndarray:
        if not len(self):
            return np.array([])
        column = self.table.select_columns([name]).with_format("arrow")[:][name]
        return np.asarray(column.to_numpy())


@dataclass(frozen=True, eq=False)
class ReIDData:
    """A data set: its splits, the protocol, what to call the individuals, and what the reader noticed.

    splits: those of train, val, query, gallery that exist. protocol: one of `clipreid.evaluation`, by name. noun: for
    the prompt template. notes: sentences for the user, not errors. pattern: what read the file names, as --pattern
    takes it; "" where nothing did.
    """

    name: str
    splits: Mapping[str, Split]
    protocol: str
    noun: str = "person"
    notes: tuple[str, ...] = ()
    pattern: str = ""

    def summary(self) -> str:
        """Splits with their numbers of images, identities and cameras, then the notes; for printing."""
        lines = [f"{self.name}: protocol {self.protocol}, noun {self.noun!r}"]
        for name, split in self.splits.items():
            cameras = len(set(split.cameras[split.cameras >= 0].tolist()))
            lines.append(
                f"  {name:8s}{len(split):8,d} images{len(set(split.identities)):7,d} identities{cameras:5d} cameras"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def sentences(caption: str) -> list[str]:
    """The captions of one image, which line breaks separate; blank lines are none."""
    return [line.strip() for line in caption.splitlines() if line.strip()]


def relabel(identities: Sequence[Any] | np.ndarray) -> tuple[torch.Tensor, list[str]]:
    """Numbers identities 0..n-1 in sorted order, whatever they are called: strings, numbers, with gaps.

    Returns (labels [N] int64, names [n]) with `names[labels[i]] == str(identities[i])`.
    """
    names, labels = np.unique(np.asarray(identities), return_inverse=True)
    return torch.from_numpy(labels.astype(np.int64).reshape(-1)), [str(name) for name in names.tolist()]


def check_trainable(data: ReIDData, P: int, K: int) -> None:
    """Raises `UserError` when batches of P identities x K images cannot be drawn from the train split."""
    if P < 1 or K < 2:
        raise UserError(
            f"P={P} identities x K={K} images: P (-P / --identities-per-batch) must be at least 1 and "
            "K (-K / --images-per-identity) at least 2"
        )
    if "train" not in data.splits or not len(data.splits["train"]):
        raise UserError(f"{data.name} has no train split, only {', '.join(data.splits)}: nothing to train on")
    names = sorted(set(data.splits["train"].identities.tolist()))
    if len(names) == 1:
        raise UserError(
            f"the train split of {data.name} has one identity only ({names[0]!r}): nothing to tell apart. "
            "If there should be more, check how identities are read from the paths (--pattern)"
        )
    if len(names) < P:
        raise UserError(
            f"the train split of {data.name} has {len(names)} identities ({', '.join(names[:3])}, ...), fewer than the "
            f"P={P} of a batch. If there should be more, they were misread: give a --pattern or --columns."
            + (f" If not, choose a P of at most {len(names)} (-P / --identities-per-batch)" if len(names) > 2 else "")
        )
