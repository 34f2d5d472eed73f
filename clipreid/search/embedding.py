"""Images to a gallery, block by block: a killed process can be continued, several share the work.

Each block of images becomes a file in a hidden folder beside the output, named for what is in it: which model, which
images, their state (size and time, or the bytes themselves), and the size of batches. So a block is done exactly
where its file lies there, and an image that changes makes its block a new one. Processes claim blocks by file locks,
which the system releases when a process dies; whoever finds all blocks done joins them, in order, into the output.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import Timeout

from clipreid.data import Split
from clipreid.data.cache import decode
from clipreid.data.parallel import in_blocks
from clipreid.disk import check_place
from clipreid.errors import UserError
from clipreid.evaluation.centring import CameraMeans, CameraSums, Centring, check_known
from clipreid.evaluation.score import TEST
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel, check_finite
from clipreid.search.block_store import BlockStore, check_space, contents, to_table, writing
from clipreid.search.find import absolute_entry
from clipreid.search.format import CENTRED_VERSION, describe, read_about
from clipreid.search.means import CENTRED, means_print, means_to_json

BLOCK = 256  # images: what a killed process loses at most
LARGEST = 256  # batch; a block is not embedded across its end
PASSES = 5  # over images that change meanwhile
PAUSE = 0.2  # seconds between looks at what other processes have done
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What `embed` has done."""

    images: int  # in the gallery
    bad: int  # images left out because they could not be decoded
    listing: Path  # names them, with the reasons; not there where there are none
    found: int = 0  # images that were done already, by an earlier attempt
    stale: int = 0  # images done earlier and again now: they, or others of their block, have changed
    complete: bool = False  # the output was there already, made by this model of these images


def embed(
    model: ReIDModel,
    images: Split,
    output: str | Path,
    *,
    run: str = "",
    sources: Sequence[str] = (),
    pattern: str | None = None,
    columns: str | None = None,
    unknown: Sequence[str] = (),
    batch_size: int = 32,
    overwrite: bool = False,
    centring: Centring | None = None,
    means: CameraMeans | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Writes the features of N images, on the model's device, into a gallery (`clipreid.search.format`).

    Images that cannot be decoded are left out and listed in OUTPUT.unusable.txt; when some of them can be later on,
    `overwrite` makes the gallery anew. Repeated after it was killed it continues, and the file is the same, bit for
    bit, on the same machine; several processes that make the same call share the work; those for other images
    leave it alone. Memory: a block of images, and some 1.5 kB an image for paths and names.

    Args:
        run: kept in the file, for people.
        sources, pattern, columns, unknown: what `find_images` was given; kept, to find images that are no files again.
        batch_size: images at a time, up to `LARGEST`. An output that is there may have been made with another.
        overwrite: replace an output made by another model, of other images, with other centring, or without some that
            can be decoded now.
        centring: write features from which the mean of their camera is subtracted, L2-normalised again; the means stay
            in the file, for queries. "train": `means`; "gallery": those of these images.
        threads: that decode; default all cores.
        progress: called as progress(images done, N), those of all processes.

    Returns:
        In every process the same, but for what it found.

    Raises:
        UserError: a model that compares features by another metric than their cosine; centring without a camera of
            enough images; no image can be decoded; an
            output that is in the way, lacks images that can be decoded by now, or cannot be written; images that keep
            changing.
    """
    needs_cosine(model.metric, "a gallery")
    output = Path(os.path.abspath(Path(output).expanduser()))
    check_request(output, batch_size)
    about = describe(model, run) | {"sources": [absolute_entry(entry) for entry in sources], "split": images.name}
    about |= {"pattern": pattern, "columns": columns} | ({"unknown": list(unknown)} if unknown else {})
    if centring == "gallery":
        check_known(images.cameras)
    job = _Job(model.eval(), images, output, about, batch_size, overwrite, centring, means, threads, progress)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        return job.run()


def check_request(output: Path, batch_size: int) -> None:
    """Raises `UserError` for a size of batches that cannot be, and for an output that cannot be written."""
    if not 1 <= batch_size <= LARGEST:
        raise UserError(f"--batch-size {batch_size}: give 1 to {LARGEST}")
    check_place("--output", output, "file")


@dataclass
class _Job:
    """The work of one process."""

    model: ReIDModel
    images: Split
    output: Path
    about: dict[str, Any]
    batch_size: int
    overwrite: bool
    centring: Centring | None
    means: CameraMeans | None
    threads: int | None
    progress: Progress | None
    names: list[str] = field(default_factory=list)  # of the blocks, in order
    key: str = ""  # of the gallery: this model, these images
    outdated: int | None = None  # inode of an output that is made anew

    @property
    def blocks(self) -> BlockStore:
        return BlockStore(self.output.with_name(f".{self.output.name}.embedding"), self.about)

    @property
    def listing(self) -> Path:
        return self.output.with_name(f"{self.output.name}.unusable.txt")

    def run(self) -> Embedded:
        self._name_blocks()
        if self._finished() and not self._mended():
            return self._result(complete=True)
        self._check_output()
        self._forget_mended()
        done = self.blocks.done()
        left = set() if self.blocks.busy() else done - set(self.names)  # blocks of running processes are no leftovers
        stale = {name[:7] for name in left} & {name[:7] for name in set(self.names) - done}
        found = sum(self._size(number) for number, name in enumerate(self.names) if name in done)
        left_to_do = len(self.images) - found
        check_space(self.output.parent, left_to_do, 4 * self.about["dimension"] * (left_to_do + len(self.images)))
        try:
            with self.blocks.used():
                self._make()
        except OSError:
            if not self._finished():  # else another process has, and removed the blocks
                raise
        self.blocks.clear()
        return self._result(found=found, stale=sum(self._size(int(number)) for number in stale))

    def _check_output(self) -> None:
        if self.output.exists() and not self.overwrite:
            raise UserError(
                f"--output {self.output} is there already, made by another model, from other images or centred "
                "otherwise: --overwrite, or another name"
            )

    def _mended(self) -> bool:
        """Whether the finished output lacks images that can be decoded now: then the file is not valid any more."""
        lines = self.listing.read_text(encoding="utf-8").splitlines() if self.listing.is_file() else []
        mended = self._usable([line.partition("\t")[0] for line in lines])
        if mended and not self.overwrite:
            raise UserError(
                f"--output {self.output} was made without {mended:,} images that can be decoded by now: "
                "--overwrite makes it anew with them"
            )
        self.outdated = self.output.stat().st_ino if mended else None
        return mended > 0

    def _forget_mended(self) -> None:
        """Removes blocks that were done without images that can be decoded now, unless other processes are at work."""
        for name in set() if self.blocks.busy() else self.blocks.done() & set(self.names):
            if self._usable([path for path, _ in self.blocks.bad([name])]):
                self.blocks.file(name).unlink()

    def _usable(self, paths: Sequence[str]) -> int:
        """How many of these images can be decoded."""
        if not paths:
            return 0
        size, interpolation = self.model.image_size, self.model.interpolation
        rows = np.flatnonzero(np.isin(self.images.paths, paths))
        images = (image for block in self.images.select(rows).encoded_batches(BLOCK) for image in block)
        return sum(not isinstance(decode(image, size, interpolation), str) for image in images)

    def _name_blocks(self) -> None:
        """Names the blocks by number and by a hash of their images as they are now."""
        found = contents(self.images, self.about, BLOCK)
        how = "" if self.centring is None else self.centring + (means_print(self.means) if self.means else "")
        self.key = hashlib.sha256(("".join(found) + how).encode()).hexdigest()[:24]
        hashes = [hashlib.sha256(f"{each} {self.batch_size}".encode()).hexdigest()[:24] for each in found]
        self.names = [f"{number:07d}-{each}" for number, each in enumerate(hashes)]

    def _make(self) -> None:
        changed = 0
        while True:
            self._do_all()
            names = self.names
            self._name_blocks()  # images may have changed meanwhile
            if names == self.names:
                if self._join():
                    return
            elif (changed := changed + 1) == PASSES:
                raise UserError("the images keep changing while they are embedded: wait until they are all there")

    def _join(self) -> bool:
        """Whether the output is made now."""
        with self.blocks.lock("join"):
            if self._finished():
                return True
            if self._missing():
                return False
            self._check_output()  # a job for other images may have been faster
            bad = self.blocks.bad(self.names)
            usable = len(self.images) - len(bad)
            self.listing.unlink(missing_ok=True)
            if bad:
                lines = [f"{path}\t{' '.join(reason.split())}\n" for path, reason in bad]
                self.listing.write_text("".join(lines), encoding="utf-8")
            if not usable:
                raise UserError(f"none of the {len(self.images):,} images can be decoded: see {self.listing}")
            about = self.about | {"key": self.key, "bad": len(bad), "images": usable}
            means = self._means()
            if means is not None:
                about |= {"gallery": CENTRED_VERSION, CENTRED: means_to_json(means) | {"by": self.centring}}
            self.blocks.join(self.names, self.output, about, means)
            return True

    def _means(self) -> CameraMeans | None:
        """What is subtracted from the features, where they are centred."""
        if self.centring is None or self.means is not None:
            return self.means
        sums = CameraSums()
        for features, cameras in self.blocks.features(self.names):
            sums.add({TEST: features}, cameras)
        return sums.means()

    def _size(self, number: int) -> int:
        return max(0, min(BLOCK, len(self.images) - number * BLOCK))

    def _finished(self) -> bool:
        """Whether the output is complete: another process may have joined the blocks."""
        try:
            if not self.output.exists() or self.output.stat().st_ino == self.outdated:
                return False
            about = read_about(self.output)
            return about.get("key") == self.key and pq.read_metadata(self.output).num_rows == _count(about)
        except UserError:
            return False

    def _result(self, complete: bool = False, found: int = 0, stale: int = 0) -> Embedded:
        about = read_about(self.output)
        return Embedded(_count(about), about["bad"], self.listing, found, stale, complete)

    def _do_all(self) -> None:
        """Until every block is done, by this process or by another."""
        while missing := self._missing():
            if self._finished():
                return
            claimed = [self._claim(number) for number in missing]
            if not any(claimed):
                time.sleep(PAUSE)  # other processes work on them

    def _missing(self) -> list[int]:
        done = self.blocks.done()
        missing = [number for number, name in enumerate(self.names) if name not in done]
        self._tell(len(self.images) - sum(map(self._size, missing)))
        return missing

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.images))

    def _claim(self, number: int) -> bool:
        """Does one block, unless another process has done it or works on it."""
        name = self.names[number]
        if self.blocks.has(name):
            return False
        try:
            with self.blocks.lock(name, timeout=0):
                if self.blocks.has(name) or self._finished():
                    return False
                done = self.blocks.done()
                before = sum(self._size(n) for n, other in enumerate(self.names) if other in done)
                self.blocks.write(name, *self._embed_block(number, before))
        except Timeout:
            return False
        return True

    def _embed_block(self, number: int, done: int) -> tuple[pa.Table, list[tuple[str, str]]]:
        """The rows of one block, and (path, reason) of its bad images; `done` images were done before."""
        rows = np.arange(number * BLOCK, number * BLOCK + self._size(number))
        size, interpolation = self.model.image_size, self.model.interpolation

        def work(image: dict[str, Any]) -> tuple[str | None, np.ndarray | str]:
            return image["path"], decode(image, size, interpolation)

        kept: dict[int, str] = {}  # row -> path
        bad: list[tuple[str, str]] = []
        features = [np.empty((0, self.about["dimension"]), np.float32)]
        waiting: list[np.ndarray] = []
        found = (each for block in in_blocks(self.images.select(rows), work, self.threads) for each in block)
        for row, (path, pixels) in zip(rows.tolist(), found, strict=True):
            if isinstance(pixels, str):
                bad.append((path or f"image {row}", pixels))
                continue
            kept[row] = path or f"image {row}"
            waiting.append(pixels)
            if len(waiting) == self.batch_size:
                features.append(self._features(waiting))
                waiting = []
                self._tell(done + len(kept) + len(bad))
        if waiting:
            features.append(self._features(waiting))
        self._tell(done + len(rows))
        return to_table(self.images, kept, np.concatenate(features)), bad

    def _features(self, pixels: list[np.ndarray]) -> np.ndarray:
        return check_finite(self.model.embed_parts(torch.from_numpy(np.stack(pixels)))["concat"].cpu()).numpy()


def _count(about: dict[str, Any]) -> int:
    """How many images a gallery says that it has; clipreid 0.1.0 wrote this under another key."""
    return int(about["images"] if "images" in about else about["pictures"])
