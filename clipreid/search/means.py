"""Camera means in files: beside a run, for `--centre-cameras train`, and in galleries of centred features.

Both are written only where they are asked for. They are means over many images of a camera, and say nothing of single
identities. K cameras, D feature width.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clipreid.disk import whole_file
from clipreid.errors import UserError
from clipreid.evaluation.centring import FLAG, CameraMeans
from clipreid.evaluation.score import TEST
from clipreid.hub.checks import read_tensors
from clipreid.hub.files import CAMERA_MEANS, share
from clipreid.model import ReIDModel
from clipreid.search.format import model_print

CAMERAS, CENTRED = "cameras", "centred"  # the second: what the metadata of a gallery calls them


def save_means(folder: Path, means: CameraMeans, model: ReIDModel, data: str) -> Path:
    """Writes the means of the cameras of `data` (its name) by this model into a run folder; returns the file."""
    about = {"data": data, "images": str(means.images), "model": model_print(model)}
    tensors = {CAMERAS: means.cameras, **{name: x.contiguous() for name, x in means.means.items()}}
    with whole_file(folder / CAMERA_MEANS) as scratch:
        save_file(tensors, scratch, metadata=about)
        share(scratch)
    return folder / CAMERA_MEANS


def check_means(folder: Path) -> str:
    """The command that makes the means of a run folder anew; raises `UserError` where there are none."""
    again = f"clipreid evaluate {folder} {FLAG} train --keep-means"
    if not (folder / CAMERA_MEANS).exists():
        raise UserError(f"{FLAG} train: {folder} holds no camera means; take {FLAG} gallery, or make them: {again}")
    return again


def load_means(folder: Path, model: ReIDModel) -> tuple[CameraMeans, str]:
    """The means that are kept in a run folder, and the name of the data whose cameras they are of.

    Raises:
        UserError: there are none, they are damaged, or of another model.
    """
    again = check_means(folder)
    tensors = read_tensors(folder / CAMERA_MEANS, folder)
    with safe_open(folder / CAMERA_MEANS, "pt") as handle:
        about = handle.metadata() or {}
    if about.get("model") != model_print(model):
        raise UserError(f"{folder / CAMERA_MEANS} is of another model or strength: make it again: {again}")
    cameras, parts = tensors.pop(CAMERAS, None), set(tensors)
    if cameras is None or TEST not in parts or any(len(x) != len(cameras) for x in tensors.values()):
        raise UserError(f"{folder / CAMERA_MEANS} is damaged: make it again: {again}")
    return CameraMeans(cameras, tensors, int(about["images"])), about["data"]


def means_to_json(means: CameraMeans) -> dict[str, Any]:
    """The means of the test feature as JSON has them: float32 [K, D] in base64, little-endian."""
    values = means.means[TEST].numpy().astype("<f4").tobytes()
    return {
        "cameras": means.cameras.tolist(),
        "images": means.images,
        "means": base64.b64encode(values).decode(),
    }


def means_of(about: Mapping[str, Any]) -> CameraMeans | None:
    """The means that were subtracted from the features of a gallery, by its metadata; None: none were.

    Raises:
        ValueError, KeyError, TypeError: they are damaged.
    """
    kept = about.get(CENTRED)
    if kept is None:
        return None
    values = np.frombuffer(base64.b64decode(kept["means"], validate=True), "<f4")
    table = torch.from_numpy(values.reshape(len(kept["cameras"]), about["dimension"]).astype(np.float32))
    return CameraMeans(torch.tensor(kept["cameras"], dtype=torch.int64), {TEST: table}, int(kept["images"]))


def means_print(means: CameraMeans) -> str:
    """A hash of the means of the test feature."""
    digest = hashlib.sha256(means.cameras.numpy().tobytes() + means.means[TEST].numpy().tobytes())
    return digest.hexdigest()[:24]
