"""A gallery of features, opened and searched without reading it into memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.centring import CameraMeans, CameraSums
from clipreid.evaluation.score import TEST
from clipreid.evaluation.similarity import unit_rows
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel
from clipreid.search.exact import Nearest
from clipreid.search.format import CENTRED_VERSION, FEATURE, model_print, print_of_0_1_0, read_about
from clipreid.search.means import means_of

TOP = 10  # images found for each query, where the gallery has as many
CHUNK = 2**13  # rows compared at a time; `embed` writes as many into a row group
QUERIES = 256  # searched for in one walk through the file
CHECKED = 4  # row groups whose checksums are verified when a gallery is opened (all of them in small ones)


@dataclass(frozen=True)
class Hit:
    """One image that was found."""

    rank: int  # from 1
    similarity: float  # cosine
    path: str
    identity: str | None
    camera: int | None
    row: int  # of the gallery
    itself: bool = False  # whether it is the query file itself
    probability: float | None = None  # that it shows the same individual; None without a calibration


def mark_itself(hits: Sequence[Hit], query: str | Path) -> list[Hit]:
    """The same hits; the one that is the file `query` is marked. A path that is not absolute is never marked."""
    asked = os.path.realpath(query)
    return [replace(hit, itself=os.path.isabs(hit.path) and os.path.realpath(hit.path) == asked) for hit in hits]


class Gallery:
    """Features of G images, opened for search. Use `Gallery.open`.

    Example:
        >>> gallery = Gallery.open("gallery.parquet")
        >>> model = clipreid.load("runs/demo")
        >>> gallery.check(model)
        >>> hits = gallery.search(model.embed(["query.jpg"]), top=5)[0]
        >>> hits = gallery.search(model.embed_text(["a person with a red backpack"]), part="projection")[0]

    Memory: the features of `CHUNK` images at a time, 4 bytes an image when cameras are asked for, and the paths of a
    row group in which something was found. `embed` writes row groups of 2^13; another program may write larger ones.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file, self.about = file, about
        self._parquet = pq.ParquetFile(file, memory_map=True)
        meta = self._parquet.metadata
        sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)  # [groups + 1]
        self._map = np.memmap(file, dtype=np.uint8, mode="c")  # private: read page by page, and never changed
        self._offsets = [self._offset(group) for group in range(len(sizes))]

    @classmethod
    def open(cls, file: str | Path) -> Gallery:
        """Raises `UserError`: missing, damaged, not a gallery, empty."""
        file = Path(file).expanduser()
        about = read_about(file)
        try:
            gallery = cls(file, about)
            gallery._check_pages()
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise UserError(f"{file} is damaged ({error}): embed the images again") from error
        if not len(gallery):
            raise UserError(f"{file} holds no images")
        return gallery

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, model: ReIDModel) -> None:
        """Raises `UserError` where the gallery was made by another model: its features could not be compared; and for a
        model that compares features by another metric than their cosine."""
        needs_cosine(model.metric, "search in a gallery")
        if self.about["model"] in (model_print(model), print_of_0_1_0(model)):
            return
        made, (backbone,) = self.about, model.source
        ours = {"backbone": backbone.name, "strength": model.strength, "crop": list(model.image_size)}
        theirs = {"backbone": made["backbone"], "strength": made["strength"], "crop": made["image_size"]}
        differ = [f"its {name} is {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name]]
        why = "; ".join(differ) or "other weights"
        raise UserError(
            f"{self.file} was made by another model ({made['run']}; {why}): "
            "search with that one, or embed the images again"
        )

    @cached_property
    def centred(self) -> CameraMeans | None:
        """The camera means that were subtracted from its features; None: none were. Raises `UserError`: damaged."""
        try:
            found = means_of(self.about)
            if (found is None) == (self.about["gallery"] == CENTRED_VERSION):
                raise ValueError("there are none")
            return found
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file} is damaged (camera means: {error}): embed the images again") from error

    @cached_property
    def cameras(self) -> np.ndarray:
        """int32 [G], -1 = unknown."""
        groups = (self._read(group, ["camera"]).column("camera") for group in range(len(self._offsets)))
        return np.concatenate([column.fill_null(-1).to_numpy() for column in groups])

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """path, identity and camera (None = unknown) of these rows; only their row groups are read."""
        numbers = np.asarray(numbers, dtype=np.int64)
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for group in np.unique(groups).tolist():
            mine = numbers[groups == group]
            table = self._read(group, ["path", "identity", "camera"]).take(mine - self._starts[group])
            found |= dict(zip(mine.tolist(), table.to_pylist(), strict=True))
        return [found[number] for number in numbers.tolist()]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, features float32 [c, D]), c <= `CHUNK`, in order; valid until the next one."""
        width = self.about["dimension"]
        for group, offset in enumerate(self._offsets):
            start, stop = self._starts[group : group + 2].tolist()
            if offset is None:
                for batch in self._parquet.iter_batches(CHUNK, row_groups=[group], columns=[FEATURE]):
                    values = batch.column(0).flatten().to_numpy().copy()
                    yield start, torch.from_numpy(values.reshape(-1, width))
                    start += len(batch)
                continue
            for first in range(start, stop, CHUNK):
                count, at = min(CHUNK, stop - first) * width, offset + (first - start) * width * 4
                yield first, torch.frombuffer(self._map, dtype=torch.float32, count=count, offset=at).view(-1, width)
                self._forget(at, count * 4)

    def camera_means(self) -> CameraMeans:
        """The mean test feature of each camera, for `nearest(means=...)`; the features are read once.

        Raises `UserError` where no camera is known of enough images.
        """
        sums = CameraSums()
        for start, block in self.blocks():
            sums.add({TEST: block}, self.cameras[start : start + len(block)])
        return sums.means()

    def nearest(
        self,
        features: Tensor | np.ndarray,
        top: int | None = None,
        *,
        part: str | None = None,
        cameras: Sequence[int] | None = None,
        not_cameras: Sequence[int] | None = None,
        means: CameraMeans | None = None,
        query_cameras: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Q features to (cosine similarity float64 [Q, top], rows int64 [Q, top]), the most similar first.

        Exact: the order is that of a full sort by the similarity of the float32 features computed in float64; of equals
        the lower row comes first. Where a filter leaves fewer than `top`, the last ones are -inf and row -1.

        Args:
            features: float [Q, D]; for a part [Q, width of the part]. Of any length but zero.
            top: how many; default `TOP`, or all where the gallery has fewer.
            part: compare with this part of the features only, made unit length again: "projection" for text.
            cameras, not_cameras: only images of these cameras; none of these (unknown cameras stay).
            means: compare features from which the mean of their camera is subtracted, the queries' too. A gallery of
                centred features (`centred`) has its own.
            query_cameras: [Q], the queries' own cameras then; without them, and for -1, the mean over the cameras is
                subtracted.

        Raises:
            ValueError: means together with a part, or for a centred gallery; not one camera for each query.
            UserError: another width than the gallery's; no finite numbers, or nothing but zeros; top under 1 or over G;
                an unknown part; cameras that the gallery does not have; nothing left.
        """
        columns = self._columns(part)
        queries = torch.as_tensor(features).detach().cpu().float()
        if queries.ndim != 2 or queries.shape[1] != columns.stop - columns.start:
            wanted = f"[Q, {columns.stop - columns.start}]"
            raise UserError(f"the queries are {list(queries.shape)}, this gallery needs {wanted}")
        allowed = self.allowed(top, cameras, not_cameras)
        top = min(TOP, len(self)) if top is None else top
        if means is not None and self.centred is not None:
            raise ValueError(f"{self.file} holds centred features: leave the means out")
        if (own := means or self.centred) is not None:
            known = [-1] * len(queries) if query_cameras is None else query_cameras
            if part is not None or len(known) != len(queries):
                raise ValueError(f"means centre whole features (part={part}), and need {len(queries)} query cameras")
            queries = own.subtract({TEST: queries}, known)[TEST]
        queries = unit_rows(queries, "the queries")[: len(queries)]
        if empty := (~queries.any(dim=1)).nonzero().flatten().tolist():
            raise UserError(f"query {empty[0]} is all zeros: nothing is similar to it")
        found = [self._walk(part_of, top, columns, allowed, means) for part_of in queries.split(QUERIES)]
        return np.concatenate([similarity for similarity, _ in found]), np.concatenate([rows for _, rows in found])

    def search(self, features: Tensor | np.ndarray, top: int | None = None, **how: Any) -> list[list[Hit]]:
        """As `nearest`, with what is known of the images: a list of hits for each query."""
        similarity, rows = self.nearest(features, top, **how)
        known = dict(zip(rows[rows >= 0].tolist(), self.rows(rows[rows >= 0]), strict=True))
        return [
            [
                Hit(rank, float(s), row=int(row), **known[int(row)])
                for rank, (s, row) in enumerate(zip(*pair, strict=True), 1)
                if row >= 0
            ]
            for pair in zip(similarity, rows, strict=True)
        ]

    def _walk(
        self, queries: Tensor, top: int, columns: slice, allowed: np.ndarray | None, means: CameraMeans | None
    ) -> tuple[Any, Any]:
        whole = columns == slice(0, self.about["dimension"])
        best = Nearest(queries, top, normalise=means is not None or not whole)
        for start, block in self.blocks():
            numbers = np.arange(start, start + len(block))
            if allowed is not None:
                numbers = numbers[allowed[numbers]]
                if not len(numbers):
                    continue
                block = block[torch.from_numpy(numbers - start)]
            block = block[:, columns]
            if means is not None:
                block = block - means.table(TEST)[means.rows(self.cameras[numbers])]
            try:
                best.add(block, numbers)
            except UserError as error:
                raise UserError(f"{self.file} is damaged: {error}; embed the images again") from error
        return best.similarity, best.rows

    def _columns(self, part: str | None) -> slice:
        parts = self.about["parts"]
        if part is None:
            return slice(0, self.about["dimension"])
        if part not in parts:
            raise UserError(f"no part {part!r} in {self.file}: there are {', '.join(parts)}")
        before = list(parts)[: list(parts).index(part)]
        start = sum(parts[name] for name in before)
        return slice(start, start + parts[part])

    def allowed(
        self, top: int | None, cameras: Sequence[int] | None = None, not_cameras: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """Which images pass a filter, bool [G], None = all; raises the `UserError` that `nearest` would."""
        if top is not None and not 1 <= top <= len(self):
            raise UserError(f"--top {top}: give 1 to {len(self):,}, the number of images in {self.file}")
        if not cameras and not not_cameras:
            return None
        have = sorted(set(self.cameras.tolist()) - {-1})
        if not have:
            raise UserError(f"{self.file} has no cameras: embed with --pattern, or leave the camera filter out")
        if strange := sorted(set(cameras or ()) - set(have)):
            raise UserError(f"no camera {strange[0]} in {self.file}: there are {', '.join(map(str, have))}")
        allowed = np.isin(self.cameras, list(cameras)) if cameras else np.ones(len(self), dtype=bool)
        allowed &= ~np.isin(self.cameras, list(not_cameras or ()))
        if not allowed.any():
            raise UserError(f"no image of {self.file} passes the camera filter")
        return allowed

    def without_effect(self, not_cameras: Sequence[int]) -> list[int]:
        """Those of the cameras to leave out that no image is of."""
        return sorted(set(not_cameras) - set(self.cameras.tolist()))

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        return self._parquet.read_row_group(group, columns=columns)

    def _offset(self, group: int) -> int | None:
        """Where the features of a row group lie in the file, one after the other; None: they must be decoded."""
        # read first: of a damaged file this raises, where the metadata of a column would end the whole process
        rows = self._parquet.iter_batches(1, row_groups=[group], columns=[FEATURE])
        first = next(rows).column(0).flatten().to_numpy().tobytes()
        meta = self._parquet.metadata.row_group(group)
        column = meta.column(meta.num_columns - 1)
        size = meta.num_rows * self.about["dimension"] * 4
        offset = column.data_page_offset + column.total_compressed_size - size  # values end a page
        plain = column.compression == "UNCOMPRESSED" and set(column.encodings) <= {"PLAIN", "RLE"}
        if not plain or offset < column.data_page_offset:
            return None
        # of several pages the first row would lie elsewhere
        return offset if self._map[offset : offset + len(first)].tobytes() == first else None

    def _check_pages(self) -> None:
        """Reads some row groups, evenly spaced, with their checksums. Raises OSError where one is damaged."""
        groups = len(self._offsets)
        if groups:
            chosen = np.unique(np.linspace(0, groups - 1, min(CHECKED, groups)).astype(int)).tolist()
            with pq.ParquetFile(self.file, memory_map=True, page_checksum_verification=True) as parquet:
                for group in chosen:
                    for _ in parquet.iter_batches(CHUNK, row_groups=[group]):
                        pass

    def _forget(self, offset: int, size: int) -> None:
        """Takes mapped pages out of this process's memory again; the system keeps them as long as it has room."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map._mmap.madvise(mmap.MADV_DONTNEED, start, offset + size - start)  # type: ignore[attr-defined]
