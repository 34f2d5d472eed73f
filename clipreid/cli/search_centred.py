"""`--centre-cameras` of `clipreid embed` and `clipreid search`; the work is in `clipreid.search`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.cli.search import Loading, Search
    from clipreid.evaluation.centring import CameraMeans
    from clipreid.model import ReIDModel
    from clipreid.search import Gallery


def check_centring(flags: Search, gallery: Gallery) -> None:
    """Raises UserError for --centre-cameras and --query-camera that cannot be, before a model is loaded."""
    if flags.centre_cameras is not None and flags.text:
        raise UserError("--centre-cameras: no camera took a sentence: leave it out, or ask with --image")
    if len(flags.query_camera) not in (0, 1, len(flags.image)):
        given = f"{len(flags.query_camera)} cameras for {len(flags.image)} images"
        raise UserError(f"--query-camera: {given}: give one for all, or one for each")
    means = gallery.centred
    if means is not None and (flags.centre_cameras is not None or flags.text):
        does = "no sentence can be compared with them" if flags.text else "leave --centre-cameras out"
        raise UserError(f"{flags.gallery} was embedded with --centre-cameras, its features are centred: {does}")
    if flags.query_camera and means is None and flags.centre_cameras is None:
        raise UserError("--query-camera says which mean --centre-cameras subtracts: give that flag too")
    if flags.centre_cameras == "train":
        check_kept(flags)


def centring(flags: Search, gallery: Gallery, model: ReIDModel) -> dict[str, Any]:
    """What `Gallery.search` is told for --centre-cameras, or for a centred gallery; says on stderr what it is."""
    means, how = gallery.centred, {}
    if means is not None:
        whence = "kept in the gallery"
    elif flags.centre_cameras == "gallery":
        means = how["means"] = gallery.camera_means()
        whence = "of the gallery (transductive)"
    elif flags.centre_cameras == "train":
        means, data = kept_means(flags, model)
        how, whence = {"means": means}, f"of {data}, whose cameras are taken to be those of the gallery"
    else:
        return {}
    cameras = list(flags.query_camera) * (len(flags.image) if len(flags.query_camera) == 1 else 1)
    cameras = cameras or [-1] * len(flags.image)
    counted = {"queries": cameras, "images of the gallery": gallery.cameras}
    print(about_means(means, whence, counted), file=sys.stderr, flush=True)
    return how | {"query_cameras": cameras}


def kept_means(flags: Loading, model: ReIDModel) -> tuple[CameraMeans, str]:
    """The means that are kept in RUN, and the data whose cameras they are of."""
    from clipreid.search.means import load_means

    return load_means(check_kept(flags), model)


def check_kept(flags: Loading) -> Path:
    """The run folder; raises UserError where no means are kept in it."""
    from clipreid.hub import find_model
    from clipreid.search.means import check_means

    folder = find_model(flags.run, flags.revision)
    if isinstance(folder, str):
        raise UserError(f"--centre-cameras train: {folder} is untrained: take --centre-cameras gallery")
    check_means(folder)
    return folder


def about_means(means: CameraMeans, whence: str, counted: Mapping[str, Any]) -> str:
    """Where the means come from, and how many of the counted images ({name: cameras}) have no camera among them."""
    said = f"camera centring: means of {len(means.cameras)} cameras, from {means.images:,} images {whence}"
    for name, cameras in counted.items():
        if lone := int((means.rows(cameras) == len(means.cameras)).sum()):
            said += f"; {lone:,} of {len(cameras):,} {name} are of an unknown or another camera: "
            said += "the mean over the cameras is subtracted from them"
    return said
