"""Finds the images below a folder, by their endings or, where those say nothing, by their first bytes."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from clipreid.data.images import SUFFIXES
from clipreid.data.problems import notice, tolerate
from clipreid.errors import UserError

NO_IMAGE = (  # not opened to look; each with its dot and a space behind
    ".txt .csv .json .jsonl .xml .yaml .yml .md .pdf .html .log .db .ini .zip .tar .gz .tgz .rar .7z .mp4 .avi .mov "
    ".mkv .webm .mpg .wav .mp3 .py .sh .ipynb .m .mat .npy .npz .pkl .pt .pth .parquet .arrow .safetensors .h5 "
)
STARTS = (  # what files of these formats begin with
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6", b"P2", b"P3",
)  # fmt: skip


class Found(NamedTuple):
    """Paths below a folder, with forward slashes, sorted; others: files that are no images."""

    images: list[str]
    others: list[str]


def find_files(folder: Path) -> Found:
    """All files below a folder, images and others. Hidden files are passed over, links followed (not in circles).

    Raises `UserError` for a folder that cannot be read or holds no image.
    """
    found = Found([], [])

    def walk(here: Path, below: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(here)
        if real in above:
            notice("symlink loop", [str(here)])
            return
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            refusal = UserError(f"the folder {here} cannot be read ({error.strerror})")
            return tolerate(refusal, f"unreadable folder ({error.strerror})", [str(here)])
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                walk(here / entry.name, f"{below}{entry.name}/", (*above, real))
            else:
                (found.images if is_image(entry.path) else found.others).append(f"{below}{entry.name}")

    walk(folder, "", ())
    if not found.images:
        instead = f"; other files there: {', '.join(found.others[:5])}" if found.others else ""
        raise UserError(f"no images below {folder} ({', '.join(sorted(SUFFIXES))}){instead}")
    return Found(sorted(found.images), sorted(found.others))


def list_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, with forward slashes, sorted (`find_files`)."""
    return find_files(folder).images


def is_image(path: str) -> bool:
    """Whether a file is an image: by its ending; where the ending is not known, by its first bytes (.jfif, none)."""
    ending = os.path.splitext(path)[1].lower()
    if ending in SUFFIXES:
        return True
    if f"{ending} " in NO_IMAGE and ending:
        return False
    try:
        with open(path, "rb") as handle:
            start = handle.read(16)
    except OSError:
        return False
    if start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return True
    return start[4:12] in (b"ftypavif", b"ftypavis") and _reads_avif()


@cache
def _reads_avif() -> bool:
    Image.init()
    return bool(features.check("avif")) or "AVIF" in Image.OPEN


def not_read(others: Sequence[str], images: int) -> list[str]:
    """A note that counts the files that are no images, by their endings; none where there are none."""
    if not others:
        return []
    endings = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in others)
    shown = ", ".join(f"{number:,d} {ending}" for ending, number in endings.most_common(6))
    rest = len(others) - sum(number for _, number in endings.most_common(6))
    more = f", {rest:,d} of other kinds" if rest else ""
    return [f"{len(others):,d} of {len(others) + images:,d} files were not read: {shown}{more}"]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        notice("symlink loop", [entry.path])
        return False
