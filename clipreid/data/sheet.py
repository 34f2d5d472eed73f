"""A contact sheet: the splits side by side, in each some individuals, one a row, as the cameras saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from clipreid.data.crops import ReIDData, Split
from clipreid.data.seeds import seed_for
from clipreid.disk import whole_file
from clipreid.errors import UserError
from clipreid.names import shortened

AREA = 64 * 128  # square pixels of a cell; its shape is the median one of the images, others have a margin
SHAPES = (0.33, 3.0)  # width over height of a cell, at least and at most
CAPTION = 14
COLUMNS, ROWS = 8, 8  # most images of an individual, individuals of a split
GAP = 12  # between splits

Shown = tuple[Image.Image, Image.Image, Image.Image, str]  # clean, occluded, what is hidden, words


def check_sheet(file: Path) -> None:
    """Raises `UserError` where the name says no format that a sheet can be written in."""
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise UserError(f"the sheet {file} cannot be written (its name says no format): give a name such as sheet.png")


def draw_sheet(data: ReIDData, file: Path, seed: int = 0) -> None:
    """Draws up to ROWS random individuals of every split, those with several images first.

    Below each image stands its camera; a cross marks those that cannot be decoded. A gallery of the query's own
    images is not drawn again. Raises `UserError` when the file cannot be written.
    """
    check_sheet(file)
    blocks = [_Block(name, split, seed) for name, split in data.splits.items() if not _repeats(data, name)]
    cell = _cell_size([image for block in blocks for image in block.images.values() if image is not None])
    widths = [max((len(numbers) for _, numbers in block.rows), default=1) * cell[0] + GAP for block in blocks]
    height = max(len(block.rows) for block in blocks) * (cell[1] + 2 * CAPTION)
    sheet, start = Image.new("RGB", (sum(widths), height), "white"), 0
    for block, width in zip(blocks, widths, strict=True):
        block.draw(sheet, start, width, cell)
        start += width
    with whole_file(file) as scratch:
        sheet.save(scratch)


def draw_occluded(shown: Sequence[Shown], file: Path) -> None:
    """Draws images (clean, occluded, what is hidden, words) in rows of COLUMNS, the three above each other.

    Raises `UserError` when the file cannot be written.
    """
    cell = _cell_size([clean for clean, *_ in shown])
    font, high = ImageFont.load_default(10), 3 * cell[1] + 2 * CAPTION
    rows = max(1, -(-len(shown) // COLUMNS))
    sheet = Image.new("RGB", (max(1, min(len(shown), COLUMNS)) * (cell[0] + 2), rows * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (*images, words) in enumerate(shown):
        left, top = number % COLUMNS * (cell[0] + 2), number // COLUMNS * high
        for place, image in enumerate(images):
            sheet.paste(_cell(image, cell), (left, top + place * cell[1]))
        pen.text((left + 2, top + 3 * cell[1]), _fitting(words, font, cell[0]), "black", font)
    with whole_file(file) as scratch:
        sheet.save(scratch)


class _Block:
    """One split: which individuals are drawn, and their images, small; None for one that cannot be decoded."""

    def __init__(self, name: str, split: Split, seed: int) -> None:
        self.name, self.split, self.rows = name, split, _chosen(split, seed)
        self.images = {number: _small(split, number) for _, numbers in self.rows for number in numbers}

    def draw(self, sheet: Image.Image, start: int, width: int, cell: tuple[int, int]) -> None:
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
        for row, (who, numbers) in enumerate(self.rows):
            top = row * (cell[1] + 2 * CAPTION)
            pen.text((start + 2, top), _fitting(f"{self.name}: {who}", font, width - GAP), "black", font)
            for column, number in enumerate(numbers):
                left, camera = start + column * cell[0], int(self.split.cameras[number])
                sheet.paste(_cell(self.images[number], cell), (left, top + CAPTION))
                pen.text((left + 2, top + CAPTION + cell[1]), f"c{camera}" if camera >= 0 else "c?", "black", font)


def _small(split: Split, row: int) -> Image.Image | None:
    try:
        image = split.image(row)
    except UserError:
        return None
    image.thumbnail((512, 512))
    return image


def _cell_size(images: list[Image.Image]) -> tuple[int, int]:
    """Width and height in pixels."""
    shape = float(np.median([image.width / image.height for image in images])) if images else 0.5
    shape = min(max(shape, SHAPES[0]), SHAPES[1])
    width = round((AREA * shape) ** 0.5)
    return width, round(width / shape)


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, its middle left out where it is wider than that many pixels."""
    most = len(text)
    while most > 3 and font.getlength(shortened(text, most)) > width:
        most -= 1
    return shortened(text, most)


def _repeats(data: ReIDData, name: str) -> bool:
    query = data.splits.get("query")
    return name == "gallery" and query is not None and data.splits[name].paths.tolist() == query.paths.tolist()


def _chosen(split: Split, seed: int) -> list[tuple[str, list[int]]]:
    """Some identities, each with rows spread over its cameras."""
    names, counts = np.unique(split.identities, return_counts=True)
    drawn = np.random.default_rng(seed_for(seed)).permutation(len(names))
    several = [i for i in drawn if counts[i] > 1] + [i for i in drawn if counts[i] == 1]
    found = []
    for i in several[:ROWS]:
        rows = np.flatnonzero(split.identities == names[i])
        rows = rows[np.argsort(split.cameras[rows], kind="stable")]
        found.append((str(names[i]), rows[np.unique(np.linspace(0, len(rows) - 1, COLUMNS).astype(int))].tolist()))
    return found


def _cell(image: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """The image in its cell; a cross stands for None."""
    if image is not None:
        return ImageOps.pad(image, size, color="white")
    cell = Image.new("RGB", size, "lightgrey")
    pen = ImageDraw.Draw(cell)
    pen.line((0, 0, *size), "red", 2)
    pen.line((0, size[1], size[0], 0), "red", 2)
    return cell
