"""Files of attributes: MATLAB files as published for Market-1501 and DukeMTMC-reID, and tables of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipreid.data.attributes import clean, plain_identity
from clipreid.data.crops import Attributes
from clipreid.data.tables import csv_table
from clipreid.errors import UserError

NO_YES = ("no", "yes")
# What the numbers 1, 2, ... of a field mean, and what the attribute is called here (the readme files of
# Market-1501_Attribute and DukeMTMC-attribute). 0 is nobody's value: unknown.
MARKET: dict[str, tuple[str, tuple[str, ...]]] = {
    "gender": ("gender", ("male", "female")), "hair": ("hair", ("short", "long")),
    "age": ("age", ("young", "teenager", "adult", "old")), "up": ("sleeves", ("long", "short")),
    "down": ("bottom_length", ("long", "short")), "clothes": ("bottom", ("dress", "pants")),
    "hat": ("hat", NO_YES), "backpack": ("backpack", NO_YES), "bag": ("bag", NO_YES), "handbag": ("handbag", NO_YES),
}  # fmt: skip
DUKE: dict[str, tuple[str, tuple[str, ...]]] = {
    "gender": ("gender", ("male", "female")), "top": ("top_length", ("short", "long")),
    "boots": ("boots", NO_YES), "hat": ("hat", NO_YES), "backpack": ("backpack", NO_YES), "bag": ("bag", NO_YES),
    "handbag": ("handbag", NO_YES), "shoes": ("shoes", ("dark", "light")),
}  # fmt: skip
MATLAB = {"market_attribute.mat": MARKET, "duke_attribute.mat": DUKE}
COLOURS = {"up": "top_colour", "down": "bottom_colour"}  # fields such as upblack: 2 where it is of that colour


def read_matlab(file: Path) -> dict[str, Attributes]:
    """market_attribute.mat or duke_attribute.mat: {identity without zeros in front: its attributes}.

    The parts train and test have their fields in different orders, so fields are read by name. The colours of a garment
    are one attribute: none is unknown, several are separated by `|`.

    Raises:
        UserError: no scipy; no such file; fields or values that there are not.
    """
    try:
        from scipy.io import loadmat  # of the extra `analysis`
    except ImportError as error:
        raise UserError(f"{file} is a MATLAB file, which scipy reads: pip install 'clipreid[analysis]'") from error
    meaning = MATLAB[file.name]
    try:
        contents = loadmat(file, struct_as_record=False, squeeze_me=True)
        (whole,) = (value for key, value in contents.items() if not key.startswith("__"))
        parts = {part: _fields(getattr(whole, part)) for part in ("train", "test")}
    except Exception as error:  # scipy raises several kinds on a broken file
        raise UserError(f"{file} cannot be read as attributes with the parts train and test ({error})") from error
    found: dict[str, Attributes] = {}
    for part, fields in parts.items():
        where = f"{file}, {part}"
        if "image_index" not in fields:
            raise UserError(f"{where} has no image_index: {', '.join(fields)}")
        names = [plain_identity(str(name).strip()) for name in fields.pop("image_index")]
        if uneven := [field for field, values in fields.items() if len(values) != len(names)]:
            raise UserError(f"{where}: {uneven[0]} has {len(fields[uneven[0]])} values for {len(names)} identities")
        found |= {name: _attributes(fields, nth, meaning, where) for nth, name in enumerate(names)}
    return found


def _fields(part: Any) -> dict[str, np.ndarray]:
    return {name: np.atleast_1d(getattr(part, name)) for name in part._fieldnames}


def _attributes(
    fields: Mapping[str, np.ndarray], nth: int, meaning: Mapping[str, tuple[str, tuple[str, ...]]], where: str
) -> Attributes:
    values: dict[str, str] = {}
    colours: dict[str, list[str]] = {name: [] for name in COLOURS.values()}
    for field, numbers in fields.items():
        number = int(numbers[nth])
        if field in meaning:
            name, words = meaning[field]
        elif garment := next((each for each in COLOURS if field.startswith(each)), None):
            name, words = COLOURS[garment], ("", field.removeprefix(garment))
        else:
            raise UserError(f"{where}: unknown field {field!r}; known are {', '.join(meaning)}, upCOLOUR, downCOLOUR")
        if not 0 <= number <= len(words):
            raise UserError(f"{where}: {field} is {number}, and may be 0 (unknown) to {len(words)}")
        if name in colours:
            colours[name] += [words[1]] * (number == 2)
        elif number:
            values[name] = words[number - 1]
    return clean(values | {name: "|".join(found) for name, found in colours.items()})


def read_table(file: Path) -> tuple[str, dict[str, Attributes]]:
    """attributes.csv: what its rows are of ("identity" or "image"), and {that: its attributes}.

    Raises:
        UserError: neither column or both, no attribute, or a row that is there twice.
    """
    table = csv_table(file)
    keys = [column for column in table.columns if column in ("identity", "image")]
    others = [column for column in table.columns if column not in keys]
    if len(keys) != 1 or not others:
        raise UserError(
            f"{file}: one column identity, or one column image, and further ones for the attributes are needed; it has "
            f"{', '.join(table.columns)}"
        )
    found: dict[str, Attributes] = {}
    for line in table.lines:
        key = str(line.cells[keys[0]]).strip()
        key = plain_identity(key) if keys[0] == "identity" else key.replace("\\", "/")
        if key in found:
            raise UserError(f"{line.where}: {keys[0]} {key!r} is there twice")
        found[key] = clean({column.removeprefix("attribute."): line.cells[column] for column in others})
    return keys[0], found
