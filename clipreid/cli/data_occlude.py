"""`clipreid data occlude`: the flags and what is printed; the work is in `clipreid.data.occluded`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.scoring import check_numbers
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data import ReIDData
    from clipreid.data.occluded import Hide, Written
    from clipreid.data.occluders import Library

FILL = (123, 117, 104)  # the mean that CLIP subtracts, times 255
CONDITIONS = ("mask", "object", "person")


@dataclass(frozen=True)
class Occlude:
    """Write a copy of a data set in which something hides a part of the individuals; by default of the queries only.

    mask: a box of one colour. object: cut-outs, of --occluders or of the synthetic street. person: another individual;
    cut-outs of --occluders, people of the street before synthetic data, else crops of other identities of the data.
    """

    data: Annotated[Positional[str], arg(metavar="NAME[:ROOT]")]
    """market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:OWNER/NAME, hub:FOLDER, synthetic, ..."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to make; read it with --data folder:DIR, or csv:DIR/data.csv"""
    severity: Annotated[float, arg(metavar="SHARE")] = 0.4
    """Share of each image that is hidden, 0 <= SHARE < 1"""
    condition: Literal["mask", "object", "person"] = "object"
    """What hides it"""
    occluders: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Your own cut-outs: PNG or WebP with transparency, sorted by class (FOLDER/bicycle/1.png)"""
    part: Annotated[Literal["train", "test"] | None, arg(help_behavior_hint="(default: test)")] = None
    """Those for training, or the others, of other classes. Of --occluders by default: all but train/"""
    fill: Annotated[tuple[int, int, int] | None, arg(metavar="R G B", help_behavior_hint="")] = None
    """With --condition mask: the colour, three values 0..255 (default: the mean that CLIP subtracts)"""
    splits: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="SPLIT", help_behavior_hint="(default: query)")
    ] = ()
    """What is occluded: train, val, query, gallery; other splits are copied as they are; repeatable"""
    seed: int = 0
    """Decides what hides which image, and where"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names, such as identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""

    def __call__(self) -> None:
        occlude(self)


def occlude(flags: Occlude) -> None:
    """`clipreid data occlude`.

    Raises:
        UserError: flags that contradict each other, data, occluders or a folder that cannot be used.
    """
    from clipreid.data import load_data
    from clipreid.data.occluded import check_folder, write_occluded

    _check_flags(flags)
    check_folder(flags.output)
    data = load_data(flags.data, pattern=flags.pattern, columns=flags.columns, unknown=flags.unknown)
    print(f"{data.summary()}\n", flush=True)
    splits = flags.splits or ("query",)
    _check_test(data, splits)
    hide, kinds, about = _hide(flags, data)
    print(f"occluders {about}", flush=True)
    progress = sys.stderr.isatty()
    written = write_occluded(data, flags.output, hide, kinds, flags.severity, splits, flags.seed, progress)
    print(_counts(written, flags.severity))
    print(_how_to_read(data, flags.output))


def _check_flags(flags: Occlude) -> None:
    """Raises UserError for values and flags that mean nothing together."""
    check_numbers(flags, seed=(0, 2**63 - 1))
    if not 0 <= flags.severity < 1:
        raise UserError(f"--severity {flags.severity:g}: a share of the image, at least 0 and less than 1, such as 0.4")
    if flags.condition == "mask":
        for name, value in (("--occluders", flags.occluders), ("--part", flags.part)):
            if value is not None:
                raise UserError(f"{name} {value}: --condition mask hides with one colour, not with occluders")
    elif flags.fill is not None:
        raise UserError(f"--fill is the colour of --condition mask: leave it out with --condition {flags.condition}")
    if flags.fill is not None and not all(0 <= value <= 255 for value in flags.fill):
        raise UserError(f"--fill {' '.join(map(str, flags.fill))}: three values from 0 to 255")


def _hide(flags: Occlude, data: ReIDData) -> tuple[Hide, Sequence[str], str]:
    """What occludes one image; the names of its kinds; and words for the user."""
    from clipreid.data.occluded import bank_of_others
    from clipreid.data.occluders import MASKS, distract, mask_out, read_library, street_library
    from clipreid.data.occluders import occlude as paste

    severity = flags.severity
    if flags.condition == "mask":
        fill = flags.fill or FILL
        return lambda images, _, draws: mask_out(images, severity, fill, draws), MASKS, f"one colour, {fill}"
    part = flags.part or "test"
    library: Library | None = None
    if flags.occluders is not None:
        parted = (flags.occluders / "train").is_dir() and (flags.occluders / "test").is_dir()
        library = read_library(flags.occluders, part if parted else flags.part)
    elif flags.condition == "object":
        library = street_library(part)
    elif data.name.partition(":")[0] == "synthetic":
        library = street_library(part, persons=True).only("person")
    if library is not None:
        found = library
        return lambda images, _, draws: paste(images, found, severity, draws), found.kinds, _said(found, flags, part)
    if flags.part is not None:
        raise UserError(
            f"--part {flags.part} chooses among cut-outs, and {data.name} is occluded by crops of its own identities: "
            "leave it out, or give --occluders FOLDER"
        )
    bank, about = bank_of_others(data, flags.splits or ("query",), flags.seed)
    return lambda images, who, draws: distract(images, [who], bank, severity, draws), (data.noun,), about


def _said(library: Library, flags: Occlude, part: str) -> str:
    counts = Counter(one.kind for one in library.cutouts)
    source = f"of {flags.occluders}" if flags.occluders else f"of the synthetic street, part {part}"
    return f"{len(library)} cut-outs {source}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}"


def _check_test(data: ReIDData, splits: Sequence[str]) -> None:
    """Raises UserError for queries that are texts, or would find their own clean image."""
    import torch

    from clipreid.evaluation import get_protocol
    from clipreid.evaluation.columns import Columns

    if lacking := [name for name in splits if name not in data.splits]:
        raise UserError(f"--splits {lacking[0]}: {data.name} has {', '.join(data.splits)}")
    protocol = get_protocol(data.protocol)
    if "query" not in splits or "gallery" not in data.splits:
        return
    if protocol.captions:
        raise UserError(f"the queries of {data.name} are captions: occlude the images with --splits gallery")
    query, there = data.splits["query"], set(data.splits["gallery"].paths.tolist()) - {""}
    both = [row for row, path in enumerate(query.paths.tolist()) if path in there]
    seen = zip(query.cameras[both].tolist(), query.views[both].tolist(), query.clothes[both].tolist(), strict=True)
    for row, (camera, view, clothes) in zip(both, seen, strict=True):
        values = {"camera": camera, "view": view, "clothes": 0 if clothes else -1, "identity": 0, "path": 0}
        own = Columns({name: torch.tensor([value]) for name, value in values.items()})
        if not bool(protocol.junk(own, own).all()):
            raise UserError(
                f"{query.path(row)} is query and gallery, and its clean image would be a match of the occluded one by "
                f"protocol {data.protocol}: use data with cameras, or with other images in query/ than in gallery/"
            )


def _counts(written: Sequence[Written], severity: float) -> str:
    """How many images each kind hides, and how much."""
    import numpy as np

    from clipreid.data.occluders import TOLERANCE
    from clipreid.evaluation import format_table

    rows: list[dict[str, object]] = []
    for kind in sorted({one.kind for one in written}):
        reached = np.array([one.reached for one in written if one.kind == kind])
        short = int((abs(reached - severity) > TOLERANCE).sum())
        cells = {"mean": f"{100 * reached.mean():.1f} %", f"off by over {100 * TOLERANCE:g} points": short}
        rows.append({"hidden by": kind or "nothing", "images": len(reached), **cells})
    return "\n" + format_table(rows) + "\n"


def _how_to_read(data: ReIDData, output: Path) -> str:
    """The names under which the copy is read, checked by reading it."""
    from clipreid.data import load_data

    table = load_data(f"csv:{output / 'data.csv'}")
    lines = [f"written   {output}: images, data.csv, occlusion.csv (what hides each), occlusion.png (some of them)"]
    names = [f"csv:{output / 'data.csv'}"]
    try:
        read = load_data(f"folder:{output}")
        same = all(
            read.splits[name].identities.tolist() == split.identities.tolist()
            and read.splits[name].cameras.tolist() == split.cameras.tolist()
            for name, split in data.splits.items()
        )
    except UserError:
        same = False
    if same:
        names.insert(0, f"folder:{output}")
        lost = [name for name in ("view", "clothes", "tracklet", "session") if _known(data, name)]
        lost += ["captions"] if any(split.captions.any() for split in data.splits.values()) else []
        if lost:
            lines.append(f"note      folder: reads identities and cameras; csv: reads {', '.join(lost)} as well")
    flags = "" if table.protocol == data.protocol else f" --protocol {data.protocol}"
    lines += [f"evaluate  clipreid evaluate RUN --data {name}{flags}" for name in names]
    return "\n".join(lines)


def _known(data: ReIDData, name: str) -> bool:
    unknown = (-1, "")
    return any(value not in unknown for split in data.splits.values() for value in split.metadata()[name].tolist())
