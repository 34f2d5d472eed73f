"""Boxes of individuals in larger images: each is cut out once, without loss, and is a file from then on.

Boxes are in pixels of the image as it is shown: turned upright by its EXIF orientation. The files lie in
$CLIPREID_CACHE/crops, else ~/.cache/clipreid/crops, in a folder for each image and its state (size and time; the bytes
themselves where the table holds them), so an image that changes is cut again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from tqdm import tqdm

from clipreid.data.cache import file_state
from clipreid.data.columns import BBOX, CORNER, CORNERS
from clipreid.data.crops import SCHEMA
from clipreid.data.images import MIN_SIDE
from clipreid.data.parallel import cores
from clipreid.data.values import is_unknown, text_of
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data.mapping import Rows

VERSION = 1  # of the cutting; raise it when pixels change
ENOUGH = 20  # boxes from which on their form is doubted
PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # modes that PNG keeps; the others become TIFF
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Frame:
    """An image that boxes are cut out of."""

    source: str | pa.Buffer
    folder: Path  # of its crops
    stem: str
    size: tuple[int, int]  # width, height, upright

    def file(self, box: Box) -> Path:
        left, top, right, bottom = box
        return self.folder / f"{self.stem}_{left}_{top}_{right - left}_{bottom - top}"


def read_boxes(rows: Rows, found: Mapping[str, str], spec: str) -> np.ndarray | None:
    """Left, top, right, bottom in pixels, float [N, 4], NaN where rows have none (these are dropped); None = no boxes.

    Raises `UserError` for cells that are no numbers, for fractions of the image, and for a column `bbox` that must be
    corners.
    """
    form = next((form for form in (CORNER, CORNERS, BBOX) if found.keys() >= {*form}), None)
    if form is None:
        return None
    boxes = np.full((len(rows), 4), np.nan)
    columns = [rows.cells(found[field]) for field in form]
    for row, cells in enumerate(zip(*columns, strict=True)):
        if not rows.kept[row] or all(not isinstance(cell, list | tuple) and is_unknown(cell) for cell in cells):
            continue
        numbers = _numbers(cells)
        if len(numbers) == 4:
            boxes[row] = numbers
        else:
            rows.refuse(row, f"the box {', '.join(map(str, cells))!r} is not four numbers ({', '.join(form)})")
    rows.drop(np.flatnonzero(np.isnan(boxes[:, 0])), "without a box")
    known = boxes[rows.kept]
    if len(known) and np.abs(known).max() <= 1:
        raise UserError(
            f"{spec}: all boxes lie between 0 and 1. Boxes of a table are in pixels: multiply {', '.join(form)} by the "
            "width and height of the images (label files of YOLO, which are such fractions, are read by yolo:ROOT)"
        )
    corners = len(known) >= ENOUGH and bool((known[:, 2:] > known[:, :2]).all())
    if form == BBOX and corners and not found["bbox"].lower().endswith("xywh"):
        raise UserError(
            f"{spec}: the column {found['bbox']!r} means x, y, width, height, but its numbers look like corners (the "
            "third is always larger than the first, and the fourth than the second). Write corners as columns "
            "x1,y1,x2,y2; if they are x, y, width, height, call the column bbox_xywh"
        )
    if form != CORNERS:
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def cut_out(images: pa.ChunkedArray, boxes: np.ndarray, rows: Rows, spec: str) -> tuple[pa.ChunkedArray, list[str]]:
    """The crops of all rows as {"bytes": None, "path"} (null where rows are dropped), and notes.

    boxes: [N, 4] in pixels. Boxes that reach outside are clipped, those under `MIN_SIDE` pixels dropped. Raises
    `UserError` for images that cannot be decoded, where most boxes lie outside of them, and a cache that cannot be
    written.
    """
    frames = _frames(images, rows)
    clipped, outside, crops = 0, 0, {}
    for row, frame in frames.items():
        wide, high = frame.size
        left, top, right, bottom = wanted = np.round(boxes[row]).astype(int).tolist()
        inside = max(left, 0), max(top, 0), min(right, wide), min(bottom, high)
        area, visible = ((b[2] - b[0]) * (b[3] - b[1]) for b in (wanted, inside))
        outside += area > 0 and (2 * visible < area or inside[0] >= inside[2] or inside[1] >= inside[3])
        if min(inside[2] - inside[0], inside[3] - inside[1]) < MIN_SIDE:
            rows.drop([row], f"with a box that is empty or under {MIN_SIDE} pixels in its image")
        else:
            clipped += list(inside) != wanted
            crops[row] = (frame, inside)
    if 2 * outside > len(frames):
        raise UserError(
            f"{spec}: {outside:,d} of {len(frames):,d} boxes lie outside of their images for the most part. Are they "
            "in pixels of these very files, and in this form? If the images are crops already: --columns bbox=none"
        )
    files, failed = _cut_all(crops)
    for row, why in failed.items():
        rows.refuse(row, why)
    paths = [files.get(row) for row in range(len(rows))]
    notes = [f"{len(files):,d} crops are cut out of {len({id(frame) for frame, _ in crops.values()}):,d} images"]
    notes += [f"{clipped:,d} boxes reach outside of their image and were clipped"] if clipped else []
    table = pa.StructArray.from_arrays(
        [pa.nulls(len(rows), pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )
    return pa.chunked_array([table], SCHEMA.arrow_schema.field("image").type), notes


def upright_size(source: str | pa.Buffer) -> tuple[int, int]:
    """Width and height of an image as it is shown; nothing is decoded. Raises what Pillow raises."""
    with Image.open(_opened(source)) as image:
        if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look behind the pixels
            return image.size
        return image.size[::-1] if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else image.size


def _opened(source: str | pa.Buffer) -> Any:
    """What Pillow opens."""
    return source if isinstance(source, str) else io.BytesIO(source)


def _numbers(cells: Sequence[Any]) -> list[float]:
    """Four numbers: of four cells, or of one that holds a list or text such as [1, 2, 3, 4]; else another number."""
    if len(cells) == 1:
        cells = cells[0] if isinstance(cells[0], list | tuple) else NUMBER.findall(str(cells[0]))
    try:
        return [number for number in (float(text_of(cell)) for cell in cells) if np.isfinite(number)]
    except ValueError:
        return []


def _frames(images: pa.ChunkedArray, rows: Rows) -> dict[int, Frame]:
    """The image of every row that is kept; of each file one."""
    home = Path(os.environ.get("CLIPREID_CACHE") or "~/.cache/clipreid").expanduser() / "crops"
    known: dict[str, Frame] = {}
    found: dict[int, Frame] = {}
    entries = ((data, path) for chunk in images.chunks for data, path in zip(*chunk.flatten(), strict=True))
    for row, (data, path) in enumerate(entries):
        if not rows.kept[row]:
            continue
        name, source = path.as_py(), data.as_buffer() if data.is_valid else path.as_py()  # bytes are not copied
        key = name if isinstance(source, str) else hashlib.sha256(source).hexdigest()
        if key not in known:
            try:
                size = upright_size(source)
            except Exception as error:  # Pillow's plugins raise nearly everything on a broken file
                rows.refuse(row, f"{name} cannot be decoded ({error})")
                continue
            state = file_state(source) if isinstance(source, str) else b""
            folder = f"{_digest(f'{VERSION} {key}'.encode())}-{_digest(state)[:8]}"
            known[key] = Frame(source, home / folder, re.sub(r"[^\w.-]", "_", Path(name).stem)[:60], size)
        found[row] = known[key]
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _cut_all(crops: Mapping[int, tuple[Frame, Box]]) -> tuple[dict[int, str], dict[int, str]]:
    """Row -> file of its crop, and row -> why there is none. What is not there yet is cut, each frame decoded once."""
    found: dict[int, str] = {}
    failed: dict[int, str] = {}
    wanted: dict[int, tuple[Frame, dict[int, Box]]] = {}  # by frame
    for row, (frame, box) in crops.items():
        there = [path for ending in (".png", ".tif") if os.path.isfile(path := f"{frame.file(box)}{ending}")]
        if there:
            found[row] = there[0]
        else:
            wanted.setdefault(id(frame), (frame, {}))[1][row] = box
    bar = tqdm(total=sum(len(each) for _, each in wanted.values()), desc="cutting out boxes", unit=" crops", delay=1)
    try:
        _remove_stale([frame for frame, _ in wanted.values()])
        with ThreadPoolExecutor(cores()) as pool, bar:
            for files, why in pool.map(lambda job: _cut(*job), wanted.values()):
                (failed if why else found).update(dict.fromkeys(files, why) if why else files)
                bar.update(len(files))
    except OSError as error:
        raise UserError(
            f"the crops of boxes cannot be written ({error.strerror or error}): set CLIPREID_CACHE to a folder that can"
        ) from error
    return found, failed


def _remove_stale(frames: Sequence[Frame]) -> None:
    """Removes the crops of earlier states of these images."""
    there: dict[str, list[Path]] = {}
    home = frames[0].folder.parent if frames else None
    for folder in home.iterdir() if home and home.is_dir() else ():
        there.setdefault(folder.name.partition("-")[0], []).append(folder)
    for frame in frames:
        for folder in there.get(frame.folder.name.partition("-")[0], ()):
            if folder != frame.folder:
                shutil.rmtree(folder, ignore_errors=True)


def _cut(frame: Frame, boxes: Mapping[int, Box]) -> tuple[dict[int, str], str]:
    """Cuts some boxes out of one image: row -> file, and why that failed (""). Each file appears whole."""
    try:
        with Image.open(_opened(frame.source)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow's plugins raise nearly everything on a broken file
        return dict.fromkeys(boxes, ""), f"its image {frame.stem} cannot be decoded ({error})"
    if image.size != frame.size:
        return dict.fromkeys(boxes, ""), f"its image {frame.stem} is to be turned, which its head does not say"
    frame.folder.mkdir(parents=True, exist_ok=True)
    kind, ending = ("PNG", ".png") if image.mode in PNG else ("TIFF", ".tif")
    found = {}
    for row, box in boxes.items():
        target = Path(f"{frame.file(box)}{ending}")
        scratch = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            image.crop(box).save(scratch, kind, **({"compress_level": 1} if kind == "PNG" else {}))
            scratch.replace(target)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()
        found[row] = str(target)
    return found, ""
