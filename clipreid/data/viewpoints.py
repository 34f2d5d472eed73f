"""The views of VeRi's images: from the keypoint files that the released code of CLIP-ReID reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clipreid.data.crops import Split
from clipreid.data.folders import find_places
from clipreid.data.listings import read_text
from clipreid.data.patterns import Place
from clipreid.errors import UserError


@dataclass(frozen=True)
class Viewpoints:
    """A listing of whole folders, in which every image has the view that a keypoint file says.

    A line of these files (Wang et al., "Orientation Invariant Feature Embedding", ICCV 2017) is the image's path, the
    coordinates of 20 keypoints, and the view, a number from 0 to 7. They lie in the root or in the folder above it;
    each may be missing. The pattern reads the image's path, with ` view N` behind it where that is known.
    """

    files: tuple[str, ...]
    needed: tuple[str, ...] = ()

    def read(self, root: Path, folders: Mapping[str, str]) -> dict[str, list[Place]]:
        """All images of each split. Raises `UserError` naming file and line of what is no view."""
        views: dict[str, str] = {}
        for file in reversed(self._found(root)):  # where both name an image, the first one counts
            views |= read_views(file)
        found, _ = find_places(root, folders)
        return {split: [_with_view(place, views.get(_name(place.path))) for place in found[split]] for split in found}

    def notes(self, root: Path, splits: Mapping[str, Split]) -> list[str]:
        """What was found, and how many images no file names."""
        found = self._found(root)
        if not found:
            return [f"no views: none of {', '.join(self.files)} lies in {root} or above it (--sie view needs them)"]
        unknown = {name: int((split.views < 0).sum()) for name, split in splits.items()}
        counts = ", ".join(f"{number:,d} of {name}" for name, number in unknown.items() if number)
        left = f"; not named there, view unknown: {counts}" if counts else ""
        return [f"views from {' and '.join(map(str, found))}{left}"]

    def _found(self, root: Path) -> list[Path]:
        places = ([root / name, root.parent / name] for name in self.files)
        return [file for each in places if (file := next((path for path in each if path.is_file()), None))]


def read_views(file: Path) -> dict[str, str]:
    """File name -> view, of a keypoint file; raises `UserError` with file and line."""
    views: dict[str, str] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not (words := line.split()):
            continue
        name, view = _name(words[0]), words[-1]
        if len(words) < 2 or not view.isdecimal() or len(view) > 2:
            raise UserError(
                f"{file}, line {number} ends with {view[:40]!r}, which is no view: a line is the image's path, 20 "
                "keypoints, and a number from 0 to 7"
            )
        if views.setdefault(name, view) != view:
            raise UserError(f"{file}, line {number}: {name} has view {view}, and {views[name]} above: keep one line")
    return views


def _with_view(place: Place, view: str | None) -> Place:
    return place if view is None else place._replace(text=f"{place.path} view {view}")


def _name(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]
