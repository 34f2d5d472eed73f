"""Attributes of individuals, such as `hat: cap`: how one column keeps them, what models are told, and files of them.

An image has any number of attributes by name, each with a value; what is not there is unknown. Several values of one
attribute (trousers of two colours) are separated by `|`. `none`, `no` and `0` are values: that there is none.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreid.data.crops import SCHEMA, Attributes, ReIDData, Split
from clipreid.data.values import UNKNOWN, text_of
from clipreid.errors import UserError

COLUMN = "attribute."  # what the name of a table's column begins with, where it holds one attribute
ABSENT = frozenset({"none", "no", "false", "0"})  # values that say that there is no such thing
TABLE = "attributes.csv"
ORACLE = (
    "oracle: the model was told the true attributes of the test images. They are the same for all images of an "
    "individual, so they leak its identity: an analysis, not to be compared with models that see images alone"
)


# One image ----------------------------------------------------------------------------------------------------------


def clean(values: Mapping[str, Any]) -> Attributes:
    """Attributes as text, without those that are unknown (empty, unknown, NaN, ...; `none` is a value)."""
    texts = {str(name): text_of(value) for name, value in values.items()}
    return {name: text for name, text in texts.items() if text.lower() not in UNKNOWN - ABSENT}


def several(value: str) -> list[str]:
    """The values that one cell holds: `black|blue` is two."""
    return [part.strip() for part in value.split("|") if part.strip()]


def pack(values: Mapping[str, Any]) -> str:
    """Attributes as the text that tables keep: a JSON object; "" where none is known."""
    known = clean(values)
    return json.dumps(known, ensure_ascii=False, sort_keys=True) if known else ""


def unpack(text: str) -> Attributes:
    """What `pack` made. Raises `UserError` for anything else."""
    if not text:
        return {}
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or any(isinstance(value, dict | list) for value in found.values()):
            raise ValueError("it is no object of names and values")
    except ValueError as error:
        raise UserError(
            f'attributes are {text[:60]!r}: write a JSON object such as {{"hat": "cap"}}, or one column for each '
            f"attribute (--columns {COLUMN}hat=COLUMN; --columns attributes=none: not to be read)"
        ) from error
    return clean(found)


# What models are told ------------------------------------------------------------------------------------------------


def code(name: str, value: str | None = None) -> int:
    """A number for an attribute, or for one of its values: the same in every data set, and no text that a run would
    have to keep (CRC-32 of `name` or `name=value`)."""
    return zlib.crc32((name if value is None else f"{name}={value}").encode())


def attribute_codes(attributes: Sequence[Mapping[str, str]]) -> Tensor:
    """Attributes of N images to numbers, [N, A, 2] long, A: the most that one image has; -1 fills what it has less.

    [..., 0] is the `code` of the attribute, -1 where its value says that there is none; [..., 1] is that of its value.
    """
    rows = [_codes(each) for each in attributes]
    most = max(map(len, rows), default=0)
    found = torch.full((len(rows), most, 2), -1, dtype=torch.long)
    for nth, row in enumerate(rows):
        if row:
            found[nth, : len(row)] = torch.tensor(row)
    return found


def _codes(values: Mapping[str, str]) -> list[tuple[int, int]]:
    return [
        (-1 if part.lower() in ABSENT else code(name), code(name, part))
        for name, value in values.items()
        for part in several(value)
    ]


def attribute_values(attributes: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The attributes that are known of some image, and the values of each; both sorted."""
    pairs = {(name, part) for each in attributes for name, value in each.items() for part in several(value)}
    return {name: sorted(v for n, v in pairs if n == name) for name in sorted({name for name, _ in pairs})}


def unknown_counts(attributes: Sequence[Mapping[str, str]]) -> str:
    """How many images lack each attribute, in words; "" where nothing is lacking. A thing that is not there (no hat)
    has no colour: that counts as lacking."""
    lacking = Counter({name: sum(name not in each for each in attributes) for name in attribute_values(attributes)})
    return ", ".join(f"{name} {count:,d}" for name, count in sorted(lacking.items()) if count)


def attribute_note(attributes: Sequence[Mapping[str, str]], source: str) -> str:
    """A sentence on how much is known."""
    known, names = sum(map(bool, attributes)), attribute_values(attributes)
    lacking = unknown_counts([each for each in attributes if each])
    return f"{len(names)} attributes ({source}) are known of {known:,d} of {len(attributes):,d} images" + (
        f"; of these without a value: {lacking}" if lacking else ""
    )


# Files beside a data set ---------------------------------------------------------------------------------------------


def with_attributes(data: ReIDData, root: Path) -> ReIDData:
    """The data with the attributes of the file in its folder that has some; without one as it is.

    market_attribute.mat, duke_attribute.mat: as Lin et al. (arXiv 1703.07220) publish them, by identity.
    attributes.csv: a column `identity` or `image` (a path below the folder, or its last part), and one for each
    attribute.

    Raises:
        UserError: two such files; a file that cannot be read, or that is about nobody in the data.
    """
    from clipreid.data.attribute_files import MATLAB, read_matlab, read_table

    there = [root / name for name in (*MATLAB, TABLE) if (root / name).is_file()]
    if not there:
        return data
    if len(there) > 1:
        raise UserError(f"{there[0]} and {there[1]} both hold attributes: keep one of them in {root}")
    by, known = read_table(there[0]) if there[0].name == TABLE else ("identity", read_matlab(there[0]))
    splits, everyone = {}, []
    for name, split in data.splits.items():
        keys = split.identities.tolist() if by == "identity" else split.paths.tolist()
        found = [_of(known, key, by, root) for key in keys]
        splits[name] = split_with(split, found)
        everyone += found
    if not any(everyone):
        raise UserError(
            f"{there[0]} knows no {by} of {data.name}: the file has {', '.join(list(known)[:3])}, ..., the data "
            f"{', '.join(next(iter(data.splits.values())).identities.tolist()[:3])}, ..."
        )
    return replace(data, splits=splits, notes=(*data.notes, attribute_note(everyone, there[0].name)))


def _of(known: Mapping[str, Attributes], key: str, by: str, root: Path) -> Attributes:
    if by == "identity":
        return known.get(plain_identity(key), {})
    path = Path(key)
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return known.get(below) or known.get(path.name, {})


def plain_identity(name: str) -> str:
    """An identity without the zeros in front, which such files write or leave out."""
    return str(int(name)) if name.isascii() and name.isdecimal() else name


def split_with(split: Split, attributes: Sequence[Mapping[str, Any]]) -> Split:
    """The split with these attributes [N] instead of its own."""
    table, packed = split.table.remove_columns("attributes"), [pack(each) for each in attributes]
    table = table.add_column("attributes", packed, feature=SCHEMA["attributes"])
    return replace(split, table=table.select_columns(list(SCHEMA)))
