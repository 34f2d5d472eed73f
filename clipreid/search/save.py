"""What was found, saved: the images themselves and a table of them."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath

from clipreid.disk import check_place, writing_to
from clipreid.errors import UserError
from clipreid.search.gallery import Gallery, Hit
from clipreid.search.page import Album

TABLE = "found.csv"
COLUMNS = ("query", "rank", "similarity", "probability", "path", "identity", "camera", "file")
KEPT = 60  # characters of a file's name, of its end


def check_save(folder: Path) -> None:
    """Raises `UserError` where `folder` cannot be written, or is there already with something in it."""
    check_place("--save", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--save {folder} is there already and not empty: name a new folder")


def save_found(
    folder: str | Path, gallery: Gallery, queries: Sequence[str | Path], found: Sequence[Sequence[Hit]]
) -> tuple[Path, int]:
    """Copies the images that were found, as RANK_NAME, and writes found.csv beside them.

    Of several queries each has a folder of its own, query-1, query-2, ... Files are copied as they are, images inside
    data sets become PNG files. The column `file` says where an image was saved; it is empty where the image can no
    longer be found or read.

    Returns:
        The table, and how many images could not be saved.

    Raises:
        CannotWrite: naming what cannot be written.
    """
    folder, album, lost = Path(folder), Album(gallery), 0
    rows = []
    for nth, (query, hits) in enumerate(zip(queries, found, strict=True), start=1):
        place = folder / f"query-{nth}" if len(queries) > 1 else folder
        for hit in hits:
            saved = _save(album, hit, place, digits=len(str(len(hits))))
            lost += saved is None
            file = "" if saved is None else saved.relative_to(folder).as_posix()
            about = (hit.rank, f"{hit.similarity:.6f}", hit.probability, hit.path, hit.identity, hit.camera)
            rows.append(["" if x is None else x for x in (query, *about, file)])
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / TABLE, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle:
            csv.writer(handle, lineterminator="\n").writerows([COLUMNS, *rows])
    return folder / TABLE, lost


def _save(album: Album, hit: Hit, place: Path, digits: int) -> Path | None:
    """The file that an image was saved to; None where it cannot be found or read."""
    is_file = os.path.isabs(hit.path) and os.path.isfile(hit.path)
    image = None if is_file else album.image(hit.path)
    if not is_file and image is None:
        return None
    name = PurePath(hit.path).name[-KEPT:] or "image"
    target = place / f"{hit.rank:0{digits}d}_{name if is_file else f'{PurePath(name).stem}.png'}"
    with writing_to(target):
        place.mkdir(parents=True, exist_ok=True)
        if image is None:
            shutil.copyfile(hit.path, target)
        else:
            image.save(target)
    return target
