"""Decodes every image of a data set once: its errors, its format, and two fingerprints for finding copies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipreid.data.crops import ReIDData
from clipreid.data.depths import full_scale
from clipreid.data.images import MIN_SIDE, is_blank, pixel_digest, read_image, thumbnail
from clipreid.data.parallel import in_blocks
from clipreid.errors import UserError

SAME = {("JPEG", "MPO"), ("PPM", "PGM")}  # formats of one family: (by its name, by its contents)


class Seen(NamedTuple):
    """What decoding one image has shown. kind: "" when it can be used, else what is wrong with it."""

    kind: str
    reason: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""  # Pillow's, or "16-bit"
    format: str = ""
    misnamed: str = ""  # "PNG named .jpg"
    exact: int = 0  # as `pixel_digest`
    dhash: int = 0  # 64 bits: is a point brighter than its left neighbour, 8 x 8
    thumb: bytes = b""  # uint8 [16, 8, 3]
    blank: bool = False  # of one flat colour
    top: int = 0  # the largest value, 0 to 255


@dataclass(frozen=True)
class Scan:
    """Every image once, whatever splits it is in. U images."""

    names: list[str]  # [U] below `root`, or the name of encoded bytes
    root: str  # the folder that holds all files, "" without files
    seen: list[Seen]  # [U]
    index: dict[str, np.ndarray]  # by split: the number of each row's image, int64 [N]
    rows: list[tuple[str, int]]  # [U] a split and row where the image is


def scan(data: ReIDData, threads: int | None = None, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Decodes every image of every split once, in threads. progress: called as progress(images done, U)."""
    number: dict[str, int] = {}
    index: dict[str, np.ndarray] = {}
    rows: list[tuple[str, int]] = []
    for name, split in data.splits.items():
        keys = [path or f"{name} {row}" for row, path in enumerate(split.paths.tolist())]  # the nameless all differ
        for row, key in enumerate(keys):
            if key not in number:
                number[key] = len(number)
                rows.append((name, row))
        index[name] = np.array([number[key] for key in keys], dtype=np.int64)
    seen: list[Seen] = []
    for name, split in data.splits.items():
        new = [row for part, row in rows if part == name]
        for block in in_blocks(split.select(new), inspect_image, threads) if new else ():
            seen += block
            if progress is not None:
                progress(len(seen), len(rows))
    files = [key for key in number if os.path.isabs(key)]
    root = os.path.commonpath(list({os.path.dirname(file) for file in files})) if files else ""
    names = [os.path.relpath(key, root) if os.path.isabs(key) else key for key in number]
    return Scan(names, root, seen, index, rows)


def inspect_image(image: dict[str, Any]) -> Seen:
    """Reads and decodes one {"path", "bytes"}."""
    try:
        data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    except OSError as error:
        return Seen("unreadable file", error.strerror or str(error))
    if not data:
        return Seen("zero-byte file", "nothing in it")
    try:
        return _examine(data, image["path"] or "")
    except UnidentifiedImageError:
        return Seen("not an image", "not an image, or of an unknown format")
    except UserError as error:
        return Seen("unknown range of values", str(error))
    except Exception as error:  # on a broken file Pillow's plugins raise nearly everything
        return Seen("truncated or damaged image", str(error) or type(error).__name__)


def _examine(data: bytes, path: str) -> Seen:
    with Image.open(io.BytesIO(data)) as image:
        kind, mode = image.format or "", _mode(image)
        rgb = read_image(image)
    suffix = os.path.splitext(path)[1].lower()
    expected = Image.registered_extensions().get(suffix, kind)
    misnamed = "" if expected == kind or (expected, kind) in SAME else f"{kind} named {suffix}"
    problem = f"{rgb.width}x{rgb.height} pixels, each side needs {MIN_SIDE}" if min(rgb.size) < MIN_SIDE else ""
    return Seen(
        "too small" if problem else "",
        problem,
        rgb.width,
        rgb.height,
        mode,
        kind,
        misnamed,
        pixel_digest(rgb),
        difference_hash(rgb),
        thumbnail(rgb).tobytes(),
        not problem and is_blank(rgb),
        max(high for _, high in rgb.getextrema()),  # type: ignore[misc]  # one pair for each colour
    )


def difference_hash(image: Image.Image) -> int:
    """The 64-bit "dHash": 9 x 8 grey points, each compared with its right neighbour, row by row."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))  # [8, 9]
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "little")


def _mode(image: Image.Image) -> str:
    """Pillow's mode; "16-bit" also where Pillow halves the bits of colour images while it reads them."""
    return "16-bit" if image.mode.startswith("I") or full_scale(image) else image.mode
