"""Annotations of a detector or tracker: the boxes in larger images, as COCO files and YOLO label folders write them.

coco:FILE.json, coco:FILE.json:FOLDER   one row for each annotation; its keys are the columns of a table
yolo:ROOT                               ROOT/images/NAME.jpg and ROOT/labels/NAME.txt, or the same below ROOT/SPLIT

Identity is what a column says; else the track, numbered within its sequence. Without either, the crops can be embedded
and searched, not trained on or scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clipreid.data.boxes import upright_size
from clipreid.data.columns import Columns, find_columns, parse_columns, plain
from clipreid.data.crops import ReIDData
from clipreid.data.custom import custom_data
from clipreid.data.folders import describe_folder
from clipreid.data.mapping import split_of, to_splits
from clipreid.data.problems import tolerate
from clipreid.data.tables import Line, TextTable, find_image, merged
from clipreid.data.values import is_unknown
from clipreid.data.walk import list_images
from clipreid.disk import parse_json
from clipreid.errors import UserError

SEQUENCE = ("videoid", "video", "sequence", "sequenceid", "seq", "seqid")
UNREAD = {  # keys of COCO that say nothing about the individual
    "id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints",
    "attributes", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured",
}  # fmt: skip
ANONYMOUS = "no identities: the crops can be embedded and searched (they are the gallery), not trained on or scored"


def read_coco(
    file: Path,
    folder: Path | None,
    spec: str,
    noun: str | None = None,
    columns: Columns = None,
    unknown: Collection[str] = (),
) -> ReIDData:
    """The boxes of a COCO file, cut out of their images, which lie in `folder` (default: near the file).

    columns, unknown: as for tables. The split is a column, else in the file's name, else train. Raises `UserError`.
    """
    lines, notes = _coco_lines(file, folder, spec)
    table = TextTable(lines, list(dict.fromkeys(name for line in lines for name in line.cells)), notes)
    found = find_columns(table.kinds, columns, spec, ("image",))
    tracks = found.get("tracklet")
    if "identity" not in found and tracks is not None:
        sequence = next((name for name in table.columns if plain(name) in SEQUENCE), None)
        table = _by_track(table, tracks, sequence)
        columns = {field: name for field, name in parse_columns(columns).items() if field != "tracklet"}
    anonymous = "identity" not in found and tracks is None
    return _read({split_of(file.stem) or "train": table}, spec, noun, columns, unknown, anonymous)


def read_yolo(root: Path, spec: str, noun: str | None = None, unknown: Collection[str] = ()) -> ReIDData:
    """The boxes of label files beside images, cut out. Each line: class, centre x, y, width, height, all as fractions
    of the image, then maybe a confidence, then maybe a track.

    The split is the name of the folder below images/ (or above it), else all is train. Raises `UserError`.
    """
    pairs = [(home / "images", home / "labels") for home in (root, *sorted(root.iterdir())) if home.is_dir()]
    pairs = [(images, labels) for images, labels in pairs if images.is_dir() and labels.is_dir()]
    if not pairs:
        raise UserError(
            f"{spec}: {root} holds no images/ beside labels/. Found: {describe_folder(root)}. Images go to "
            "images/NAME.jpg (or images/SPLIT/...), label files to labels/NAME.txt"
        )
    boxes = [box for images, labels in pairs for box in _labelled(images, labels)]
    if not boxes:
        raise UserError(f"{spec}: the label files have no lines: no boxes")
    tracked = _tracked(boxes, spec)
    named = {box.image: split_of(_folder_of_split(box, root)) for box in boxes}
    lines = [line for box in boxes if (line := _yolo_line(box, tracked)) is not None]
    empty = sum(len(list_images(images)) for images, _ in pairs) - len(named)
    classes = Counter(box.numbers[0] for box in boxes)
    notes = [f"classes: {', '.join(f'{name} ({count:,d})' for name, count in classes.most_common(6))}; all are read"]
    notes += [f"{empty:,d} images have no boxes"] if empty else []
    table = TextTable(lines, ["image", "x", "y", "w", "h", *(["track"] if tracked else [])], notes)
    if tracked:
        table = _by_track(table, "track", None, "images")
    return _read(
        merged([table], lambda line: named[line.cells["image"]] or "train"), spec, noun, None, unknown, not tracked
    )


def _read(
    raw: Mapping[str, TextTable],
    spec: str,
    noun: str | None,
    columns: Columns,
    unknown: Collection[str],
    anonymous: bool,
) -> ReIDData:
    splits, doubled, notes = to_splits(raw, spec, columns, unknown, anonymous=anonymous)
    if anonymous:
        return ReIDData(spec, splits, "no-cameras", noun or "person", (*notes, ANONYMOUS))
    return custom_data(spec, splits, doubled, noun, notes)


def _by_track(table: TextTable, track: str, sequence: str | None, top: str = "") -> TextTable:
    """The table with the columns identity and tracklet: the track, numbered within its sequence.

    sequence: its column; None: the folder of the image, where there are several. top: the folder above sequences.
    """

    def place(line: Line) -> str:
        if sequence is not None:
            return str(line.cells.get(sequence, ""))
        parts = PurePosixPath(str(line.cells["image"]).replace("\\", "/")).parts[:-1]
        return "/".join(parts[parts.index(top) + 1 :] if top in parts else parts)

    places = [place(line) for line in table.lines]
    several = len(set(places)) > 1
    lines = []
    for line, home in zip(table.lines, places, strict=True):
        number = line.cells.get(track)
        name = None if is_unknown(number) else f"{home}/{number}" if several else str(number)
        lines.append(replace(line, cells={**line.cells, "identity": name, "tracklet": name}))
    how = f"{sequence or 'folder'}/{track}" if several else f"{track} (of one sequence; several need folders)"
    also = f" (if {track} is the same individual in all of them: --columns identity={track})" if several else ""
    note = f"identities are tracks: {how}{also if not top else ''}"
    columns = dict.fromkeys(["identity", "tracklet", *table.columns])
    columns.pop(track)  # it is read
    return TextTable(lines, list(columns), [*table.notes, note])


# COCO -----------------------------------------------------------------------------------------------------


def _coco_lines(file: Path, folder: Path | None, spec: str) -> tuple[list[Line], list[str]]:
    try:
        record = parse_json(file.read_text(encoding="utf-8-sig"))
        images = {image["id"]: image for image in record["images"]}
        annotations = record["annotations"]
        categories = {entry["id"]: entry.get("name", entry["id"]) for entry in record.get("categories", ())}
        names = [str(image["file_name"]) for image in images.values()]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{spec}: {file} is not a COCO file ({type(error).__name__}: {error}): an object with images (id, "
            "file_name) and annotations (image_id, bbox) is needed"
        ) from error
    home = folder or _near(file, names, spec)
    crowds = [each for each in annotations if each.get("iscrowd")]
    lines = []
    for number, each in enumerate(annotations):
        if each.get("iscrowd"):
            continue
        where = f"{file}, annotation {number}"
        image = images.get(each.get("image_id"))
        if image is None:
            raise UserError(f"{where}: there is no image of id {each.get('image_id')!r}")
        cells = {key: value for source in (image, each) for key, value in source.items() if key not in UNREAD}
        cells |= each["attributes"] if isinstance(each.get("attributes"), dict) else {}
        box = each.get("bbox") or [None] * 4
        if len(box) != 4:
            raise UserError(f"{where}: bbox {box} is not x, y, width, height")
        cells |= {"category": categories.get(each.get("category_id")), "image": str(image["file_name"])}
        lines.append(Line(where, home, cells | dict(zip("xywh", box, strict=True))))
    if not lines:
        raise UserError(f"{spec}: {file} has no annotations: no boxes")
    _check_sizes(images.values(), home)
    kinds = Counter(str(line.cells["category"]) for line in lines)
    empty = len(images) - len({line.cells["image"] for line in lines})
    notes = [f"images are read below {home}"] if folder is None else []
    notes += [f"categories: {', '.join(f'{name} ({count:,d})' for name, count in kinds.most_common(6))}; all are read"]
    notes += [f"{len(crowds):,d} boxes of crowds are left out"] if crowds else []
    return lines, notes + ([f"{empty:,d} images have no boxes"] if empty else [])


def _near(file: Path, names: Sequence[str], spec: str) -> Path:
    """The folder near the file that the names of images are relative to."""
    near = [
        home for above in (file.parent, file.parent.parent) for home in (above, above / "images", above / file.stem)
    ]
    for home in near:
        if any((home / name).is_file() for name in names[:20]):
            return home
    raise UserError(
        f"{spec}: the images (such as {names[0] if names else '?'}) lie in none of {', '.join(map(str, near))}: give "
        f"their folder as coco:{file}:FOLDER"
    )


def _check_sizes(images: Collection[Mapping[str, Any]], home: Path) -> None:
    """Raises `UserError` for images that have not the size that the annotations are for."""
    for image in images:
        said = image.get("width"), image.get("height")
        try:
            size = upright_size(find_image(str(image["file_name"]), home)[0])
        except Exception:  # said where its boxes are read
            continue
        if None not in said and said != size:
            raise UserError(
                f"{home / image['file_name']} has {size[0]}x{size[1]} pixels (as it is shown), its annotations are for "
                f"{said[0]}x{said[1]}: give the images that were annotated"
            )


# YOLO -----------------------------------------------------------------------------------------------------


class _Label(NamedTuple):
    """One line of a label file."""

    image: str
    below: str  # the image's path below images/
    where: str
    numbers: list[str]


def _labelled(images: Path, labels: Path) -> Iterator[_Label]:
    """The lines of all label files. Raises `UserError` for what is no box, and for labels without an image."""
    known = set()
    for name in list_images(images):
        file = labels / Path(name).with_suffix(".txt")
        known.add(file)
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error})") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield _Label(str(images / name), name, f"{file}, line {number}", _box(line.split(), file, number))
    if lost := sorted({file for file in labels.rglob("*.txt") if file.name != "classes.txt"} - known):
        refusal = UserError(f"{len(lost):,d} label files have no image, such as {lost[0]} (looked for below {images})")
        tolerate(refusal, "unusable line", list(map(str, lost)))


def _box(numbers: list[str], file: Path, line: int) -> list[str]:
    where = f"{file}, line {line}"
    if not 5 <= len(numbers) <= 7:
        raise UserError(
            f"{where} has {len(numbers)} numbers: boxes have 5 to 7 (class, centre x, y, width, height, then maybe "
            "confidence and track); polygons, rotated boxes and poses are not read"
        )
    try:
        values = [float(number) for number in numbers[1:]]
    except ValueError as error:
        raise UserError(f"{where} is not numbers ({error})") from error
    if not all(-0.5 <= value <= 1.5 for value in values[:4]):
        raise UserError(
            f"{where}: the box {' '.join(numbers[1:5])} is no fraction of the image (0 to 1), as YOLO has it"
        )
    return numbers


def _tracked(boxes: Sequence[_Label], spec: str) -> bool:
    """Whether the last number of all lines is a track. Of six numbers the last is one if whole, else a confidence."""
    lengths = Counter(len(box.numbers) for box in boxes)
    if len(lengths) > 1:
        last, first = (next(box.where for box in boxes if len(box.numbers) == n) for n in (max(lengths), min(lengths)))
        raise UserError(f"{spec}: {first} has {min(lengths)} numbers, {last} has {max(lengths)}: write all lines alike")
    if set(lengths) != {6}:
        return set(lengths) == {7}
    sixth = [box.numbers[5] for box in boxes]
    whole = all(number.isdecimal() for number in sixth)
    if whole and max(map(int, sixth)) <= 1:
        raise UserError(
            f"{spec}: the sixth number of all lines is 0 or 1, which may be a confidence or a track: leave it out, or "
            "write both (confidence, then track)"
        )
    return whole


def _folder_of_split(box: _Label, root: Path) -> str:
    """The folder whose name may be that of a split: above images/, else the first one below."""
    above = Path(box.image).relative_to(root).parts[0]
    return above if above != "images" else next(iter(Path(box.below).parts[:-1]), "")


def _yolo_line(box: _Label, tracked: bool) -> Line | None:
    try:
        wide, high = upright_size(box.image)
    except Exception as error:  # Pillow's plugins raise nearly everything on a broken file
        refusal = UserError(f"{box.image} cannot be decoded ({error})")
        tolerate(refusal, "unusable line", [str(refusal)])
        return None
    x, y, w, h = map(float, box.numbers[1:5])
    cells = {"image": box.image, "x": (x - w / 2) * wide, "y": (y - h / 2) * high, "w": w * wide, "h": h * high}
    return Line(box.where, Path(box.image).parent, cells | ({"track": box.numbers[-1]} if tracked else {}))
