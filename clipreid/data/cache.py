"""Decode once: the pictures of a split as one memory-mapped uint8 file, shared by runs and processes."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import UnidentifiedImageError
from tqdm import tqdm

from clipreid.data.crops import Split
from clipreid.data.pictures import check_interpolation, to_pixels
from clipreid.errors import UserError

VERSION = 1  # of the decoding and of the file; raise it when pixels change
BLOCK = 64  # pictures decoded together, and checked together
CHECKED = 40  # blocks whose checksum is verified when a cache is opened (all of them in small caches)
PATIENCE = 2.0  # seconds of waiting for another process before saying so
SHOWN = 10  # bad pictures that an error names
PIXELS, RECORD = "pixels.u8", "cache.json"


@dataclass(frozen=True, eq=False)
class PixelCache:
    """Decoded crops: `pixels[j]` is picture `kept[j]` of the split, so `split.select(cache.kept)` matches.

    pixels: uint8 [n, 3, H, W], memory-mapped. kept: int64 [n]. bad: (path, reason) of the pictures left out.
    """

    pixels: torch.Tensor
    kept: torch.Tensor
    bad: list[tuple[str, str]]

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] of the rows, int64 [B], of `pixels`; ten times as fast as `pixels[rows]`."""
        return self.pixels.index_select(0, rows)


def pixel_cache(
    split: Split,
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> PixelCache:
    """All pictures of a split, the whole crop resized to size = (H, W), decoded once and then read from disk.

    The file lies in `cache_dir`, else $CLIPREID_CACHE, else ~/.cache/clipreid, under a name made of the
    pictures (paths, sizes and times of files; the bytes themselves when the table holds them), size and
    interpolation: when a file changes, it is made anew and the stale one removed. Of several processes one
    decodes, with all cores, and the others wait. Memory use does not grow with the number of pictures.

    Raises `UserError` naming the pictures that cannot be decoded or have a side under 8 pixels, unless
    `skip_bad`; when no picture is left; and when the folder is full or not writable.
    """
    check_interpolation(interpolation)
    if not len(split):
        raise UserError(f"the split {split.name!r} has no pictures")
    home = Path(cache_dir or os.environ.get("CLIPREID_CACHE") or "~/.cache/clipreid").expanduser()
    source, content = _keys(split, size, interpolation)
    folder = home / "pixels" / f"{source}-{content}"
    cache = _open(folder, size)
    if cache is None or _mended(split, cache, size, interpolation):
        with _writing(home), _lock(folder.with_name(f"{source}.lock"), progress):
            cache = _open(folder, size)  # another process may have made it meanwhile
            if cache is None or _mended(split, cache, size, interpolation):
                _build(split, size, interpolation, folder, progress)
                cache = _open(folder, size)
                for stale in set(folder.parent.glob(f"{source}-*")) - {folder}:
                    shutil.rmtree(stale, ignore_errors=True)
    if cache is None:
        raise UserError(f"the cache {folder} cannot be read back after writing it: is the disk failing?")
    if cache.bad and (not skip_bad or not len(cache.kept)):
        raise UserError(_explain_bad(split, cache))
    return cache


def _keys(split: Split, size: tuple[int, int], interpolation: str) -> tuple[str, str]:
    """Hash of which pictures these are (of files only the path), and hash of what is in them."""
    start = f"{VERSION} {size[0]} {size[1]} {interpolation}".encode()
    source, content = hashlib.sha256(start), hashlib.sha256(start)
    for images in split.images(BLOCK):
        for image in images:
            name = f"{image['path'] or ''}\n".encode(errors="surrogateescape")
            if image["bytes"] is not None:
                name += hashlib.sha256(image["bytes"]).digest()
            source.update(name)
            content.update(name if image["bytes"] is not None else name + _state(image["path"]))
    return source.hexdigest()[:12], content.hexdigest()[:20]


def _state(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _open(folder: Path, size: tuple[int, int]) -> PixelCache | None:
    """The finished cache in a folder; None when there is none or it is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text())
        kept, blocks = record["kept"], record["blocks"]
        bad = [(str(path), str(reason)) for path, reason in record["bad"]]
        shape = (len(kept), 3, *size)
        if (folder / PIXELS).stat().st_size != int(np.prod(shape)) or not _intact(folder / PIXELS, blocks):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not kept:
        return PixelCache(torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), bad)
    # private mapping: the file is read page by page on demand, and cannot be changed through the tensor
    flat = torch.from_file(str(folder / PIXELS), shared=False, size=int(np.prod(shape)), dtype=torch.uint8)
    return PixelCache(flat.view(shape), torch.tensor(kept, dtype=torch.int64), bad)


def _intact(file: Path, blocks: list[tuple[int, int]]) -> bool:
    """Compares the checksums of up to CHECKED evenly spaced blocks, each (bytes, crc32)."""
    offsets = np.concatenate([[0], np.cumsum([length for length, _ in blocks], dtype=np.int64)]).tolist()
    with open(file, "rb") as handle:
        for nth in np.unique(np.linspace(0, len(blocks) - 1, min(CHECKED, len(blocks))).astype(int)).tolist():
            handle.seek(offsets[nth])
            if zlib.crc32(handle.read(blocks[nth][0])) != blocks[nth][1]:
                return False
    return True


def _mended(split: Split, cache: PixelCache, size: tuple[int, int], interpolation: str) -> bool:
    """Whether a picture that was bad can be decoded by now (permissions leave no trace in size and time)."""
    if not cache.bad:
        return False
    left_out = sorted(set(range(len(split))) - set(cache.kept.tolist()))
    images = [image for batch in split.select(left_out).images(BLOCK) for image in batch]
    return any(isinstance(_decode(image, size, interpolation), np.ndarray) for image in images)


def _build(split: Split, size: tuple[int, int], interpolation: str, folder: Path, progress: bool) -> None:
    """Decodes everything into a folder of another name, then renames it: what has the name is complete."""
    scratch = folder.with_name(f"{folder.name}.building")
    for remains in (scratch, folder):
        shutil.rmtree(remains, ignore_errors=True)
    needed, free = len(split) * 3 * size[0] * size[1], shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"decoding {split.name!r} needs {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} "
            "GB are free: make room, or set CLIPREID_CACHE to a folder on another disk"
        )
    scratch.mkdir()
    try:
        record = _write(split, size, interpolation, scratch / PIXELS, progress)
        (scratch / RECORD).write_text(json.dumps({"split": split.name, "size": size, **record}))
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(split: Split, size: tuple[int, int], interpolation: str, file: Path, progress: bool) -> dict[str, Any]:
    """Decodes the split into a file, block after block; returns what is in it, and its checksums."""
    kept: list[int] = []
    bad: list[tuple[str, str]] = []
    blocks: list[tuple[int, int]] = []
    done = 0
    title = f"decoding {split.name}"
    bar = tqdm(total=len(split), desc=title, unit=" pictures", disable=not progress, delay=1)
    with open(file, "wb") as handle, bar:
        for block in _decode_blocks(split, size, interpolation):
            good = []
            for row, (path, result) in enumerate(block, start=done):
                if isinstance(result, str):
                    bad.append((path or f"picture {row}", result))
                else:
                    good.append(result)
                    kept.append(row)
            done += len(block)
            if good:
                data = np.stack(good).tobytes()
                blocks.append((len(data), zlib.crc32(data)))
                handle.write(data)
            bar.update(len(block))
        handle.flush()
        os.fsync(handle.fileno())
    return {"kept": kept, "bad": bad, "blocks": blocks}


def _decode_blocks(
    split: Split, size: tuple[int, int], interpolation: str
) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Blocks of (path, pixels or the reason why there are none), in order; a few per core are in memory."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def work(images: list[dict[str, Any]]) -> list[tuple[str, np.ndarray | str]]:
        return [(image["path"] or "", _decode(image, size, interpolation)) for image in images]

    waiting: deque[Future[list[tuple[str, np.ndarray | str]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes without the interpreter lock
        for images in split.images(BLOCK):
            waiting.append(pool.submit(work, images))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(image: dict[str, Any], size: tuple[int, int], interpolation: str) -> np.ndarray | str:
    """uint8 [3, H, W], or the reason why there is none."""
    try:
        return to_pixels(image["path"] if image["bytes"] is None else image["bytes"], size, interpolation)
    except UnidentifiedImageError:
        return "not a picture, or of an unknown format"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # on a broken file Pillow's plugins raise nearly everything
        return str(error) or type(error).__name__


def _explain_bad(split: Split, cache: PixelCache) -> str:
    lines = [f"  {path}: {reason}" for path, reason in cache.bad[:SHOWN]]
    if len(cache.bad) > SHOWN:
        lines.append(f"  ... and {len(cache.bad) - SHOWN:,d} more")
    remedy = "Mend or remove them, or continue without them: --skip-bad"
    count = f"{len(cache.bad):,d} of {len(split):,d} pictures of the split {split.name!r} cannot be used"
    return "\n".join([f"{count}:", *lines, remedy if len(cache.kept) else "None is left."])


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        (home / "pixels").mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"the picture cache in {home} cannot be written ({error.strerror or error}): "
            "set CLIPREID_CACHE to a folder that can"
        ) from error


@contextlib.contextmanager
def _lock(file: Path, progress: bool) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        if progress:
            print("waiting for another process that decodes the same pictures", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
