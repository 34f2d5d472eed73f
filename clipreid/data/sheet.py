"""A contact sheet: the splits side by side, in each some individuals, one a row, as the cameras saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from clipreid.data.crops import ReIDData, Split
from clipreid.data.seeds import seed_for
from clipreid.errors import UserError

CELL = (64, 128)  # width, height in pixels; narrower images have a margin
CAPTION = 14
COLUMNS, ROWS = 8, 8  # most images of an individual, individuals of a split
GAP = 12  # between splits


def check_sheet(file: Path) -> None:
    """Raises `UserError` where the name says no format that a sheet can be written in."""
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise UserError(f"the sheet {file} cannot be written (its name says no format): give a name such as sheet.png")


def draw_sheet(data: ReIDData, file: Path, seed: int = 0) -> None:
    """Draws up to ROWS random individuals of every split, those with several images first.

    Below each image stands its camera; a cross marks those that cannot be decoded. A gallery of the query's own
    images is not drawn again. Raises `UserError` when the file cannot be written.
    """
    blocks = [(name, split, _chosen(split, seed)) for name, split in data.splits.items() if not _repeats(data, name)]
    widths = [max((len(numbers) for _, numbers in rows), default=1) * CELL[0] + GAP for _, _, rows in blocks]
    height = max(len(rows) for _, _, rows in blocks) * (CELL[1] + 2 * CAPTION)
    sheet, start = Image.new("RGB", (sum(widths), height), "white"), 0
    for (name, split, rows), width in zip(blocks, widths, strict=True):
        _draw_block(sheet, start, name, split, rows)
        start += width
    try:
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise UserError(f"the sheet {file} cannot be written ({error}): give a name such as sheet.png") from error


def _draw_block(sheet: Image.Image, start: int, name: str, split: Split, rows: list[tuple[str, list[int]]]) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for row, (who, numbers) in enumerate(rows):
        top = row * (CELL[1] + 2 * CAPTION)
        pen.text((start + 2, top), f"{name}: {who}", "black", font)
        for column, number in enumerate(numbers):
            left, camera = start + column * CELL[0], int(split.cameras[number])
            sheet.paste(_cell(split, number), (left, top + CAPTION))
            pen.text((left + 2, top + CAPTION + CELL[1]), f"c{camera}" if camera >= 0 else "c?", "black", font)


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


def _cell(split: Split, row: int) -> Image.Image:
    try:
        return ImageOps.pad(split.image(row), CELL, color="white")
    except UserError:
        cell = Image.new("RGB", CELL, "lightgrey")
        pen = ImageDraw.Draw(cell)
        pen.line((0, 0, *CELL), "red", 2)
        pen.line((0, CELL[1], CELL[0], 0), "red", 2)
        return cell
