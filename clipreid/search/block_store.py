"""The unfinished work of `embed`: one small parquet file for each block of images, joined into one at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from clipreid.data import Split
from clipreid.data.cache import file_state
from clipreid.disk import parse_json
from clipreid.errors import UserError
from clipreid.evaluation.centring import CameraMeans
from clipreid.evaluation.score import TEST
from clipreid.hub.package import shown_size
from clipreid.search.format import FEATURE, schema_of, writer

GROUP = 32  # blocks that become one row group of the gallery
BAD = "bad"  # in a block's metadata: the images left out
AT_WORK = ".at-work"  # ends the name of a file that a process holds locked while it uses the folder


def contents(images: Split, about: Mapping[str, Any], size: int) -> list[str]:
    """A hash for each block of `size` images: of the model (in `about`) and of the images' names and states."""
    found: list[str] = []
    start = 0
    model = json.dumps([about[key] for key in ("gallery", "model", "dimension")]).encode()
    identities, cameras = images.identities, images.cameras
    for batch in images.encoded_batches(size):
        digest = hashlib.sha256(model)
        for row, image in enumerate(batch, start):
            known = [image["path"], str(identities[row]), int(cameras[row])]
            data = image["bytes"]
            state = file_state(image["path"]) if data is None else hashlib.sha256(data).digest()
            digest.update(json.dumps(known).encode() + state)
        found.append(digest.hexdigest())
        start += len(batch)
    return found


def to_table(images: Split, kept: dict[int, str], features: np.ndarray) -> pa.Table:
    """Rows of a gallery: what is unknown is null. kept: row of the split -> path."""
    rows = list(kept)
    cameras = images.cameras[rows]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    return pa.table(
        {
            "path": pa.array(kept.values(), pa.string()),
            "identity": pa.array([name or None for name in images.identities[rows].tolist()], pa.string()),
            "camera": pa.array(cameras, pa.int32(), mask=cameras < 0),
            FEATURE: lists,
        }
    )


@dataclass(frozen=True)
class BlockStore:
    """A folder of finished blocks, by name; a file appears at once and whole, or not at all.

    Jobs for the same output share the folder, even those of other images: the last one at work removes it.
    """

    folder: Path
    about: Mapping[str, Any]  # of the gallery

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def has(self, name: str) -> bool:
        return self.file(name).exists()

    def done(self) -> set[str]:
        """The names of all blocks that are there."""
        try:
            return {entry.name[:-8] for entry in os.scandir(self.folder) if entry.name.endswith(".parquet")}
        except FileNotFoundError:
            return set()

    def lock(self, name: str, timeout: float = -1) -> FileLock:
        """A lock that at most one process holds; the system releases it when the process ends."""
        self.folder.mkdir(exist_ok=True)
        return FileLock(self.folder / f"{name}.lock", timeout=timeout)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """As long as this lasts, no other process removes the folder."""
        self.folder.mkdir(exist_ok=True)
        file = self.folder / f"{uuid.uuid4().hex}{AT_WORK}"
        try:
            with FileLock(file):
                yield
        finally:
            file.unlink(missing_ok=True)

    def busy(self) -> bool:
        """Whether a running process of any job uses the folder."""
        for file in self.folder.glob(f"*{AT_WORK}"):
            try:
                with FileLock(file, timeout=0):
                    pass
            except Timeout:
                return True
            except FileNotFoundError:  # another process has just removed the folder
                return False
        return False

    def clear(self) -> None:
        """Removes the folder, unless a process is at work in it."""
        if not self.busy():
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name: str, table: pa.Table, bad: Sequence[tuple[str, str]]) -> None:
        """Keeps a block: its rows, and (path, reason) of its images that cannot be used."""
        scratch = self.folder / f"{name}.{os.getpid()}"
        with writer(scratch, self.about) as out:
            out.write_table(table.cast(schema_of(self.about)))
            out.add_key_value_metadata({BAD: json.dumps(bad)})
        scratch.replace(self.file(name))

    def bad(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """(path, reason) of all images that cannot be used."""
        found: list[tuple[str, str]] = []
        for name in names:
            with self._intact(name) as file:
                found += [(path, reason) for path, reason in parse_json(pq.read_metadata(file).metadata[BAD.encode()])]
        return found

    def features(self, names: Sequence[str]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Features [n, D] and cameras [n] (-1 = unknown) of each block that has images."""
        for table in filter(len, map(self._read, names)):
            yield _features(table), _cameras(table)

    def join(
        self, names: Sequence[str], output: Path, about: Mapping[str, Any], means: CameraMeans | None = None
    ) -> None:
        """Writes the blocks, in this order, as one gallery, of which `about` is kept; a few of them are in memory.

        means: subtracted from the features, by camera.
        """
        scratch = self.folder / "joined"
        with writer(scratch, about) as out:
            for start in range(0, len(names), GROUP):
                table = pa.concat_tables([self._read(name) for name in names[start : start + GROUP]])
                if len(table) and means is not None:
                    table = _centred(table, means)
                if len(table):
                    out.write_table(table.combine_chunks().cast(schema_of(about)))
        scratch.replace(output)

    def _read(self, name: str) -> pa.Table:
        with self._intact(name) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            return parquet.read().replace_schema_metadata(None)

    @contextlib.contextmanager
    def _intact(self, name: str) -> Iterator[Path]:
        """Removes a block that cannot be read (after a power cut, say), so that it is done again."""
        file = self.file(name)
        try:
            yield file
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            file.unlink(missing_ok=True)
            raise UserError(f"{file} was damaged ({error}) and is removed: repeat the command") from error


def _features(table: pa.Table) -> Tensor:  # [n, D]
    column = table.column(FEATURE).combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().reshape(len(table), -1).copy())


def _cameras(table: pa.Table) -> np.ndarray:  # [n]
    return table.column("camera").fill_null(-1).to_numpy()


def _centred(table: pa.Table, means: CameraMeans) -> pa.Table:
    """The same rows with centred features."""
    found = means.subtract({TEST: _features(table)}, _cameras(table))[TEST].numpy()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), found.shape[1])
    return table.set_column(table.schema.get_field_index(FEATURE), FEATURE, lists)


def check_space(folder: Path, images: int, needed: int) -> None:
    """Refuses, with `UserError`, to embed so many images where the bytes that are needed for them are not free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"embedding {images:,} images needs {shown_size(needed)} in {folder}, where "
            f"{shown_size(free)} are free: make room"
        )


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """An error that prevents writing the output, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}); what is done is kept: "
            "repeat the command when there is room"
        ) from error
