"""An occluded copy of a data set, as a folder of files: `clipreid data occlude`."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipreid.data.crops import ReIDData, Split
from clipreid.data.images import SUFFIXES, to_pixels
from clipreid.data.occluders import Bank, Occluded
from clipreid.data.seeds import seed_for
from clipreid.data.sheet import Shown, draw_occluded
from clipreid.disk import check_place
from clipreid.errors import UserError
from clipreid.names import folder_name

TABLE, RECORD, SHEET = "data.csv", "occlusion.csv", "occlusion.png"
SHOWN = 16  # images on the sheet
HEIGHT = 192  # rows of the crops of a bank, pixels
BANK = 512  # crops of a bank at most
OPTIONAL = ("view", "caption", "clothes", "tracklet", "session", "attributes")

# one image uint8 [1, 3, H, W], its identity, its generator -> the occluded one
Hide = Callable[[Tensor, str, torch.Generator], Occluded]


@dataclass(frozen=True)
class Written:
    """One occluded image. split, file: where it was written (below the folder). kind: the class of what hides it, ""
    where nothing does. asked, reached: the share that is hidden."""

    split: str
    file: str
    identity: str
    kind: str
    asked: float
    reached: float


def write_occluded(
    data: ReIDData,
    folder: Path,
    hide: Hide,
    kinds: Sequence[str],
    severity: float,
    splits: Sequence[str] = ("query",),
    seed: int = 0,
    progress: bool = True,
) -> list[Written]:
    """Writes FOLDER/SPLIT/IDENTITY/camCAMERA_NUMBER.png for the splits to be occluded, other images as they are.

    Beside them: data.csv, the same images with all that is known of them (for `csv:FOLDER/data.csv`), occlusion.csv (a
    line for each occluded image: what hides it, the severity that was asked for and reached), and occlusion.png (some
    images: clean, occluded, what is hidden). Each image is occluded at its own size, by draws that depend on seed,
    split and row alone: at another severity the same things come from the same sides. FOLDER is there when all is
    written.

    Raises:
        UserError: a folder that holds something, a split that is not there, images that cannot be read, no space.
    """
    if lacking := [name for name in splits if name not in data.splits]:
        raise UserError(f"--splits {lacking[0]}: {data.name} has {', '.join(data.splits)}")
    check_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as half:
            whole = Path(half, "whole")
            written = _write(data, whole, _Occluder(hide, tuple(kinds), severity, seed, tuple(splits)), progress)
            if folder.exists():
                folder.rmdir()
            whole.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}): give another --output") from error
    return written


def check_folder(folder: Path) -> None:
    """Raises `UserError` where a folder holds something, or cannot be written."""
    check_place("--output", folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output {folder} holds something already: give an empty or a new folder")


def make_bank(split: Split, seed: int) -> Bank:
    """Crops of a split for `distract`, BANK at most, all of the same size (the median shape)."""
    rows = np.random.default_rng(seed_for(seed)).permutation(len(split))[:BANK]
    images = [split.image(int(row)) for row in rows]
    shape = float(np.median([image.width / image.height for image in images]))
    size = (HEIGHT, max(8, round(HEIGHT * shape)))
    pixels = torch.stack([torch.from_numpy(to_pixels(image, size)) for image in images])
    return Bank(pixels, split.identities[rows])


def bank_of_others(data: ReIDData, splits: Sequence[str] = ("query",), seed: int = 0) -> tuple[Bank, str]:
    """Crops to stand in front of the images of these splits, and what they are, in words: of identities that are not
    among these, where there are some, else of the gallery.

    Raises:
        UserError: the data have no other identities.
    """
    hidden = {name for split in splits for name in data.splits[split].identities.tolist()}
    for source in ("train", "val", "gallery"):
        if source not in data.splits or source in splits:
            continue
        split = data.splits[source]
        apart = [row for row, name in enumerate(split.identities.tolist()) if name not in hidden]
        if len({str(split.identities[row]) for row in apart}) > 1:
            bank = make_bank(split.select(apart), seed)
            return bank, f"crops of {len(set(bank.names.tolist()))} identities of {source}, none of which is occluded"
    if "gallery" in data.splits and len(set(data.splits["gallery"].identities.tolist())) > 1 and len(hidden) > 1:
        return make_bank(data.splits["gallery"], seed), (
            "crops of other identities of the gallery: it holds the distractors as well, so that a query may be ranked "
            "by them"
        )
    raise UserError(
        f"--condition person: {data.name} has no other identities to distract with: give cut-outs, --occluders FOLDER"
    )


@dataclass(frozen=True)
class _Occluder:
    """What is asked for, as in `write_occluded`."""

    hide: Hide
    kinds: tuple[str, ...]
    severity: float
    seed: int
    splits: tuple[str, ...]


def _write(data: ReIDData, whole: Path, occluder: _Occluder, progress: bool) -> list[Written]:
    """Everything, into the new folder `whole`."""
    whole.mkdir()
    written: list[Written] = []
    shown: list[Shown] = []
    total = sum(map(len, data.splits.values()))
    known = [name for name in OPTIONAL if any(_known(split, name) for split in data.splits.values())]
    with (
        open(whole / TABLE, "w", encoding="utf-8", newline="") as table,
        tqdm(total=total, desc="writing", unit=" images", disable=not progress, delay=1) as bar,
    ):
        lines = csv.writer(table, lineterminator="\n")
        lines.writerow(["image", "identity", "camera", "split", *known])
        for number, (name, split) in enumerate(data.splits.items()):
            occluded = name in occluder.splits
            picked = set(np.linspace(0, len(split) - 1, SHOWN).astype(int).tolist())
            for row, (file, encoded) in enumerate(_files(split, occluded)):
                (whole / file).parent.mkdir(parents=True, exist_ok=True)
                if occluded:
                    one, images = _occlude(split, number, row, occluder, whole, file)
                    written.append(one)
                    shown += [(*images, f"{one.kind} {100 * one.reached:.0f}%")] if row in picked else []
                else:
                    (whole / file).write_bytes(encoded)
                lines.writerow(_cells(split, row, file, known))
                bar.update()
    _write_record(written, whole / RECORD)
    draw_occluded(shown[:: max(1, len(shown) // SHOWN)][:SHOWN], whole / SHEET)
    return written


def _occlude(
    split: Split, number: int, row: int, occluder: _Occluder, whole: Path, file: str
) -> tuple[Written, tuple[Image.Image, Image.Image, Image.Image]]:
    """Writes one image of the split of that number; returns it with its clean image, the occluded one, the mask."""
    clean, identity = split.image(row), str(split.identities[row])
    generator = torch.Generator().manual_seed(seed_for(occluder.seed, epoch=number, step=row))
    found = occluder.hide(torch.from_numpy(np.array(clean)).permute(2, 0, 1)[None], identity, generator)
    image = Image.fromarray(found.pixels[0].permute(1, 2, 0).contiguous().numpy())
    image.save(whole / file)
    kind = occluder.kinds[int(found.kinds)] if int(found.kinds) >= 0 else ""
    one = Written(split.name, file, identity, kind, occluder.severity, float(found.severity))
    return one, (clean, image, Image.fromarray(found.masks[0].numpy()).convert("RGB"))


def _files(split: Split, occluded: bool) -> Iterator[tuple[str, bytes]]:
    """Where each image is to be written, below the folder, and its bytes (none where it is occluded)."""
    camera_known = bool((split.cameras >= 0).all())  # one way of naming for all
    row = 0
    for batch in split.encoded_batches(64):
        for image in batch:
            encoded = b"" if occluded else _bytes(image)
            suffix = ".png" if occluded else _suffix(image["path"] or "", encoded)
            camera = f"cam{split.cameras[row]}_" if camera_known else ""
            yield f"{split.name}/{folder_name(str(split.identities[row]))}/{camera}{row:05d}{suffix}", encoded
            row += 1


def _bytes(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        found: bytes = image["bytes"]
        return found
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"{image['path']} cannot be read ({error.strerror}): see `clipreid data check`") from error


def _suffix(path: str, encoded: bytes) -> str:
    """That of the path, else what the bytes are, else .png."""
    suffix = PurePath(path).suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            suffix = f".{image.format}".lower()
    except OSError:
        pass  # copied as it is: who reads it says that it cannot be decoded
    return suffix if suffix in SUFFIXES else ".png"


def _known(split: Split, column: str) -> bool:
    return any(value not in ("", -1) for value in _column(split, column).tolist())


def _column(split: Split, column: str) -> np.ndarray:
    texts = {"caption": lambda: split.captions, "attributes": lambda: split.packed_attributes}
    found: np.ndarray = texts[column]() if column in texts else split.metadata()[column]
    return found


def _cells(split: Split, row: int, file: str, known: Sequence[str]) -> list[str]:
    camera = int(split.cameras[row])
    values = [_column(split, name)[row] for name in known]
    cells = ["" if value in ("", -1) else str(value) for value in values]
    return [file, str(split.identities[row]), str(camera) if camera >= 0 else "", split.name, *cells]


def _write_record(written: Sequence[Written], file: Path) -> None:
    with open(file, "w", encoding="utf-8", newline="") as record:
        lines = csv.writer(record, lineterminator="\n")
        lines.writerow(["split", "image", "identity", "kind", "asked", "reached"])
        for one in written:
            lines.writerow([one.split, one.file, one.identity, one.kind, f"{one.asked:g}", f"{one.reached:.4f}"])
