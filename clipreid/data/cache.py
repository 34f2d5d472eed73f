"""Decode once: the images of a split as one memory-mapped uint8 file, shared by runs and processes."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import UnidentifiedImageError
from tqdm import tqdm

from clipreid.data.crops import Split
from clipreid.data.images import Crop, check_interpolation, to_crop
from clipreid.data.parallel import BLOCK, in_blocks
from clipreid.disk import parse_json, read_json
from clipreid.errors import UserError

VERSION = 2  # of the decoding and of the file; raise it when pixels change
CHECKED = 40  # blocks whose checksum is verified when a cache is opened (all of them in small caches)
PATIENCE = 2.0  # seconds of waiting for another process before a message is printed
SHOWN = 10  # bad images that an error names
PIXELS, RECORD, JOURNAL = "pixels.u8", "cache.json", "journal.jsonl"


@dataclass(frozen=True, eq=False)
class PixelCache:
    """Decoded crops: `pixels[j]` is image `kept[j]` of the split, so `split.select(cache.kept)` matches.

    pixels: uint8 [n, 3, H, W], memory-mapped. kept: int64 [n]. bad: (path, reason) of the images left out. digests:
    int64 [n], equal for copies (`pixel_digest`). blank: bool [n], of one flat colour. digest: a hash of pixels and
    kept, made of the checksums.
    """

    pixels: torch.Tensor
    kept: torch.Tensor
    bad: list[tuple[str, str]]
    digests: np.ndarray
    blank: np.ndarray
    digest: str = ""


def pixel_cache(
    split: Split,
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> PixelCache:
    """All images of a split, the whole crop resized to size = (H, W), decoded once and then read from disk.

    The file lies in `cache_dir`, else $CLIPREID_CACHE, else ~/.cache/clipreid, under a name made of the
    images (paths, sizes and times of files; the bytes themselves when the table holds them), size and
    interpolation: when a file changes, it is made anew and the stale one removed. Of several processes one
    decodes, with all cores, and the others wait. What a killed process has decoded is checked and kept, and the
    next one continues there. Memory use does not grow with the number of images.

    Raises `UserError` naming the images that cannot be decoded or have a side under 8 pixels, unless
    `skip_bad`; when no image is left; and when the folder is full or not writable.
    """
    check_interpolation(interpolation)
    if not len(split):
        raise UserError(f"the split {split.name!r} has no images")
    home = Path(cache_dir or os.environ.get("CLIPREID_CACHE") or "~/.cache/clipreid").expanduser()
    source, content = _keys(split, size, interpolation)
    folder = home / "pixels" / f"{source}-{content}"
    cache = _open(folder, size, len(split))
    if cache is None or _mended(split, cache, size, interpolation):
        with _writing(home), _lock(folder.with_name(f"{source}.lock"), progress):
            cache = _open(folder, size, len(split))  # another process may have made it meanwhile
            if cache is None or _mended(split, cache, size, interpolation):
                _build(split, size, interpolation, folder, progress)
                cache = _open(folder, size, len(split))
                for stale in set(folder.parent.glob(f"{source}-*")) - {folder}:
                    shutil.rmtree(stale, ignore_errors=True)
    if cache is None:
        raise UserError(f"the cache {folder} cannot be read back after writing it: is the disk failing?")
    if cache.bad and (not skip_bad or not len(cache.kept)):
        raise UserError(_explain_bad(split, cache))
    return cache


def _keys(split: Split, size: tuple[int, int], interpolation: str) -> tuple[str, str]:
    """Hash of which images these are (of files only the path), and hash of what is in them."""
    start = f"{size[0]} {size[1]} {interpolation}"
    source = hashlib.sha256(f"1 {start}".encode())  # stays, so that what earlier versions decoded is removed
    content = hashlib.sha256(f"{VERSION} {start}".encode())
    for images in split.encoded_batches(BLOCK):
        for image in images:
            name = f"{image['path'] or ''}\n".encode(errors="surrogateescape")
            if image["bytes"] is not None:
                name += hashlib.sha256(image["bytes"]).digest()
            source.update(name)
            content.update(name if image["bytes"] is not None else name + file_state(image["path"]))
    return source.hexdigest()[:12], content.hexdigest()[:20]


def file_state(path: str) -> bytes:
    """Size and time of a file: what changes when somebody writes it."""
    try:
        status = os.stat(path)
    except OSError:
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _open(folder: Path, size: tuple[int, int], count: int) -> PixelCache | None:
    """The finished cache of a split of `count` images in a folder; None when there is none or it is damaged."""
    try:
        record = read_json(folder / RECORD)
        kept, blocks = record["kept"], record["blocks"]
        bad = [(str(path), str(reason)) for path, reason in record["bad"]]
        digests, blank = np.array(record["digests"], np.int64), np.isin(kept, record["blank"])
        shape = (len(kept), 3, *size)
        rows_fit = kept == sorted(set(kept) & set(range(count))) and len(kept) + len(bad) == count
        if not rows_fit or len(digests) != len(kept) or sum(length for length, _ in blocks) != int(np.prod(shape)):
            return None
        if (folder / PIXELS).stat().st_size != int(np.prod(shape)) or not _intact(folder / PIXELS, blocks):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digest = hashlib.sha256(json.dumps([kept, blocks]).encode()).hexdigest()[:16]
    if not kept:
        nothing = torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        return PixelCache(*nothing, bad, digests, blank, digest)
    # private mapping: the file is read page by page on demand, and cannot be changed through the tensor
    flat = torch.from_file(str(folder / PIXELS), shared=False, size=int(np.prod(shape)), dtype=torch.uint8)
    return PixelCache(flat.view(shape), torch.tensor(kept, dtype=torch.int64), bad, digests, blank, digest)


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
    """Whether an image that was bad can be decoded by now (permissions leave no trace in size and time)."""
    left_out = sorted(set(range(len(split))) - set(cache.kept.tolist())) if cache.bad else []
    return _any_usable(split, left_out, size, interpolation)


def _any_usable(split: Split, rows: list[int], size: tuple[int, int], interpolation: str) -> bool:
    """Whether one of these images can be decoded."""
    images = (image for batch in split.select(rows).encoded_batches(BLOCK) for image in batch) if rows else ()
    return any(isinstance(decode(image, size, interpolation), np.ndarray) for image in images)


@dataclass(frozen=True)
class _Block:
    """Up to BLOCK images of a build, one line of its journal."""

    rows: tuple[int, int]  # the images of the split that it covers: first, and one after the last
    bad: list[tuple[int, str, str]]  # (row, path, reason)
    bytes: int  # in the file of pixels
    crc: int
    digests: list[int]  # of the images in it
    blank: list[int]  # rows

    def kept(self) -> list[int]:
        return sorted(set(range(*self.rows)) - {row for row, _, _ in self.bad})


def _build(split: Split, size: tuple[int, int], interpolation: str, folder: Path, progress: bool) -> None:
    """Decodes everything into a folder of another name, then renames it: what has the name is complete.

    A build that was killed is continued behind its last whole block; one of files that have changed since is removed.
    """
    scratch = folder.with_name(f"{folder.name}.building")
    source = folder.name.partition("-")[0]
    for remains in {folder, *folder.parent.glob(f"{source}-*.building")} - {scratch}:
        shutil.rmtree(remains, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    blocks = _resume(split, size, interpolation, scratch)
    done = blocks[-1].rows[1] if blocks else 0
    needed, free = (len(split) - done) * 3 * size[0] * size[1], shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"decoding {split.name!r} needs {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} "
            "GB are free: make room, or set CLIPREID_CACHE to a folder on another disk"
        )
    try:
        blocks += _write(split, size, interpolation, scratch, done, progress)
        record = {
            "kept": [row for block in blocks for row in block.kept()],
            "bad": [(path, reason) for block in blocks for _, path, reason in block.bad],
            "blocks": [(block.bytes, block.crc) for block in blocks if block.bytes],
            "digests": [digest for block in blocks for digest in block.digests],
            "blank": [row for block in blocks for row in block.blank],
        }
        (scratch / RECORD).write_text(json.dumps(record), encoding="utf-8")
        (scratch / JOURNAL).unlink()
        scratch.rename(folder)
    except OSError:  # a full disk, say: nothing is left in the way
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _resume(split: Split, size: tuple[int, int], interpolation: str, scratch: Path) -> list[_Block]:
    """The whole blocks of an interrupted build; what lies behind them is cut off.

    A block is whole when its line stands in the journal, its pixels have their checksum, and the images that were
    bad still are.
    """
    blocks: list[_Block] = []
    journal, pixels = scratch / JOURNAL, scratch / PIXELS
    pixels.touch()
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.exists() else []
    with open(pixels, "r+b") as handle:
        for line in lines:
            try:
                block = _Block(**parse_json(line))
                data = handle.read(block.bytes)
                whole = (len(data), zlib.crc32(data)) == (block.bytes, block.crc)
                if not whole or _any_usable(split, [row for row, _, _ in block.bad], size, interpolation):
                    break
            except (ValueError, TypeError):
                break
            blocks.append(block)
        handle.truncate(sum(block.bytes for block in blocks))
    journal.write_text("".join(line + "\n" for line in lines[: len(blocks)]), encoding="utf-8")
    return blocks


def _write(
    split: Split, size: tuple[int, int], interpolation: str, scratch: Path, done: int, progress: bool
) -> list[_Block]:
    """Decodes the images from row `done` on, block after block: first the pixels, then the journal's line."""
    blocks: list[_Block] = []
    title, total = f"decoding {split.name}", len(split)
    bar = tqdm(total=total, initial=done, desc=title, unit=" images", disable=not progress, delay=1)

    def work(image: dict[str, Any]) -> tuple[str, Crop | str]:
        return image["path"] or "", _crop(image, size, interpolation)

    rest = split.select(np.arange(done, total)) if done else split
    with open(scratch / PIXELS, "ab") as pixels, open(scratch / JOURNAL, "a", encoding="utf-8") as journal, bar:
        for found in in_blocks(rest, work):
            named = [(row, path or f"image {row}", result) for row, (path, result) in enumerate(found, start=done)]
            bad = [(row, path, result) for row, path, result in named if isinstance(result, str)]
            good = [(row, result) for row, _, result in named if not isinstance(result, str)]
            data = b"".join(crop.pixels.tobytes() for _, crop in good)
            digests, blank = [crop.digest for _, crop in good], [row for row, crop in good if crop.blank]
            block = _Block((done, done + len(found)), bad, len(data), zlib.crc32(data), digests, blank)
            pixels.write(data)
            pixels.flush()
            journal.write(json.dumps(asdict(block)) + "\n")
            journal.flush()
            blocks.append(block)
            done += len(found)
            bar.update(len(found))
        os.fsync(pixels.fileno())
    return blocks


def decode(image: dict[str, Any], size: tuple[int, int], interpolation: str) -> np.ndarray | str:
    """uint8 [3, H, W], or the reason why there is none."""
    found = _crop(image, size, interpolation)
    return found if isinstance(found, str) else found.pixels


def _crop(image: dict[str, Any], size: tuple[int, int], interpolation: str) -> Crop | str:
    """The crop, or the reason why there is none."""
    try:
        return to_crop(image["path"] if image["bytes"] is None else image["bytes"], size, interpolation)
    except UnidentifiedImageError:
        return "not an image, or of an unknown format"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # on a broken file Pillow's plugins raise nearly everything
        return str(error) or type(error).__name__


def _explain_bad(split: Split, cache: PixelCache) -> str:
    lines = [f"  {path}: {reason}" for path, reason in cache.bad[:SHOWN]]
    if len(cache.bad) > SHOWN:
        lines.append(f"  ... and {len(cache.bad) - SHOWN:,d} more")
    remedy = "Fix or remove them, or continue without them: --skip-bad"
    count = f"{len(cache.bad):,d} of {len(split):,d} images of the split {split.name!r} cannot be used"
    return "\n".join([f"{count}:", *lines, remedy if len(cache.kept) else "None is left."])


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        (home / "pixels").mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"the image cache in {home} cannot be written ({error.strerror or error}): "
            "set CLIPREID_CACHE to a folder that can"
        ) from error


@contextlib.contextmanager
def _lock(file: Path, progress: bool) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        if progress:
            print("waiting for another process that decodes the same images", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
