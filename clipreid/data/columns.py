"""Which column of a table is which: by --columns, by its name, by the names that are usual in this field."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clipreid.data.attributes import COLUMN
from clipreid.data.crops import SCHEMA
from clipreid.errors import UserError

CORNER, CORNERS, BBOX = ("x", "y", "w", "h"), ("x1", "y1", "x2", "y2"), ("bbox",)
FIELDS = (*SCHEMA, *CORNER, *CORNERS, *BBOX)
USUAL = {  # understood, and said in a note; without capitals, spaces and underscores
    "image": (
        "filename", "path", "filepath", "file", "img", "imagepath", "imgpath", "imagefile", "imagename", "imgname",
        "picture", "photo", "crop",
    ),
    "identity": (
        "pid", "personid", "vehicleid", "identityid", "individualid", "individual", "animalid", "person", "label",
    ),
    "camera": ("camid", "cam", "cameraid"),
    "view": ("viewid", "viewpoint"),
    "split": ("subset", "partition"),
    "caption": ("captions", "text", "description"),
    "clothes": ("clothesid", "clothid", "outfit"),
    "tracklet": ("trackletid", "trackid", "track"),
    "session": ("sessionid", "encounter", "encounterid", "date", "day"),
    "attributes": (),
    "x": ("left", "bboxx", "bboxleft", "boxx"),
    "y": ("top", "bboxy", "bboxtop", "boxy"),
    "w": ("width", "bboxw", "bboxwidth", "boxw"),
    "h": ("height", "bboxh", "bboxheight", "boxh"),
    "x1": ("xmin", "left", "bboxx1"),
    "y1": ("ymin", "top", "bboxy1"),
    "x2": ("xmax", "right", "bboxx2"),
    "y2": ("ymax", "bottom", "bboxy2"),
    "bbox": ("boundingbox", "box", "bboxxywh"),
}  # fmt: skip
POSSIBLE = {  # only advised: each of these often means something else
    "image": ("jpg", "png"),
    "identity": ("name", "id", "trackid", "class", "target"),
    "view": ("orientation",),
    "split": ("fold", "set"),
}
CHOSEN = ("image", "identity", "camera", "split")  # two columns for one of these are not chosen between
Columns = str | Mapping[str, str] | None


def parse_columns(columns: Columns) -> dict[str, str]:
    """`identity=pid,camera=camid` (or a dict) as {"identity": "pid", ...}. Raises `UserError` for anything else."""
    if isinstance(columns, str):
        parts = (pair.partition("=") for pair in columns.split(","))
        pairs = [(field.strip(), name.strip()) for field, _, name in parts]
    else:
        pairs = list((columns or {}).items())
    for field, name in pairs:
        known = field in FIELDS or (field.startswith(COLUMN) and field != COLUMN)
        if not known or not name:
            raise UserError(
                f"--columns {columns}: cannot read {field!r}; write FIELD=COLUMN,FIELD=COLUMN, such as "
                f"identity=pid,camera=camid (FIELD=none: not to be read); the fields are {', '.join(FIELDS)}, "
                f"and {COLUMN}NAME for an attribute"
            )
    if len(dict(pairs)) < len(pairs):
        raise UserError(f"--columns {columns}: a field is given twice")
    return dict(pairs)


def find_columns(
    kinds: Mapping[str, str], columns: Columns, spec: str, needed: tuple[str, ...] = ("image", "identity")
) -> dict[str, str]:
    """{field: column}: what was asked for, then columns that bear a field's name, then one that is usual for it.

    kinds: column -> what it holds ("Image", "text", "int64", ...). Of boxes all the fields of one form, or none. Raises
    `UserError` listing the columns, and the mapping that is needed.
    """
    asked = parse_columns(columns)
    for field, name in asked.items():
        if name not in kinds and name != "none":
            raise UserError(
                f"{spec}: --columns {field}={name}: no such column. {_advice(kinds, {})}. One --columns is for all "
                "tables of a command: where their columns have different names, convert one of them first with "
                "`clipreid data convert`"
            )
    found, off = {k: v for k, v in asked.items() if v in kinds}, {k for k, v in asked.items() if v not in kinds}
    for field in SCHEMA:
        if field in kinds and field not in found and field not in off and field not in found.values():
            found[field] = field
    for field in SCHEMA:
        if field not in found and field not in off and (usual := _usual(field, kinds, found, spec)):
            found[field] = usual
    found |= _boxes(kinds, found, off, spec)
    taken = {*found, *off, *found.values()}
    found |= {name: name for name in kinds if name.startswith(COLUMN) and name not in taken}
    lacking = [repr(field) for field in needed if field not in found]
    if lacking:
        raise UserError(f"{spec}: no column {' and no '.join(lacking)}. {_advice(kinds, found)}")
    return found


def is_known(name: str) -> bool:
    """Whether a column of this name would be read."""
    return (
        name in FIELDS
        or name.startswith(COLUMN)
        or any(plain(name) in (field, *USUAL.get(field, ())) for field in FIELDS)
    )


def column_notes(kinds: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Sentences: which columns were read under another name, and which were not read."""
    renamed = [f"{field} is {name!r}" for field, name in found.items() if field != name]
    unused = [name for name in kinds if name not in found.values()]
    notes = [f"columns: {', '.join(renamed)}"] if renamed else []
    if unused:
        likely = _likely(kinds, found)
        hint = f" (if wanted: --columns {likely})" if likely else ""
        notes.append(f"columns not read: {', '.join(unused)}{hint}")
    return notes


def _usual(field: str, kinds: Mapping[str, str], found: Mapping[str, str], spec: str) -> str | None:
    """The one column whose name is usual for the field."""
    free = [name for name in kinds if name not in found.values()]
    if field == "image":
        images = [name for name in free if kinds[name] == "Image"]
        if len(images) == 1 or "file_name" in free:  # the name that the Hub's image folders give it
            return images[0] if len(images) == 1 else "file_name"
    names = (field, *USUAL.get(field, ()))
    fit = sorted((name for name in free if plain(name) in names), key=lambda name: names.index(plain(name)))
    if len(fit) > 1 and field in CHOSEN:
        choices = " or ".join(f"--columns {field}={name}" for name in fit)
        raise UserError(f"{spec}: the columns {' and '.join(map(repr, fit))} could each be the {field}: give {choices}")
    return fit[0] if fit else None


def _boxes(kinds: Mapping[str, str], found: Mapping[str, str], off: set[str], spec: str) -> dict[str, str]:
    """The columns of one form of boxes; those asked for first. Raises `UserError` for half a box that was asked for."""
    if "bbox" in off:
        return {}
    for form in sorted((CORNER, CORNERS, BBOX), key=lambda form: not found.keys() & {*form}):
        asked = {field: found[field] for field in form if field in found}
        whole = asked | {
            field: name
            for field in form
            if field not in asked and (name := field if field in kinds else _usual(field, kinds, found, spec))
        }
        if len(whole) == len(form):
            return whole
        if asked:
            lacking = ", ".join(field for field in form if field not in whole)
            raise UserError(f"{spec}: --columns says where {', '.join(asked)} of the boxes is, but not {lacking}")
    return {}


def plain(name: str) -> str:
    """The name without capitals, spaces and underscores, as in `USUAL`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _likely(kinds: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The mapping that the names of unused columns suggest."""
    unused = {plain(name): name for name in kinds if name not in found.values()}
    pairs = [
        (field, next((unused[n] for n in (*USUAL[field], *POSSIBLE.get(field, ())) if n in unused), None))
        for field in SCHEMA
    ]
    return ",".join(f"{field}={name}" for field, name in pairs if name and field not in found)


def _advice(kinds: Mapping[str, str], found: Mapping[str, str]) -> str:
    lacking = ",".join(f"{field}=COLUMN" for field in ("image", "identity", "camera") if field not in found)
    example = _likely(kinds, found) or lacking or "identity=COLUMN"
    listed = ", ".join(name if kind == "text" else f"{name} ({kind})" for name, kind in kinds.items())
    return f"Columns found: {listed or 'none'}. Say which is which, such as --columns {example}"
