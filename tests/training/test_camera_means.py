"""`--camera-means`: what a run keeps of its training cameras, and only where it was asked."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import paint_street

import clipreid
from clipreid.config import configure
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.hub.files import CAMERA_MEANS
from clipreid.methods import clip_reid
from clipreid.search.means import load_means
from clipreid.training.launch import run_method

GIVEN = {"prompts": "none", "epochs": 1, "identities_per_batch": 4, "images_per_identity": 2, "threads": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("street") / "crops", train=6, test=3)


def train(weights: Path, output: Path, *data: str, **given: Any) -> Path:
    flags = {"backbone": f"hf:{weights}", "data": data, "output": output} | GIVEN | given
    run_method(clip_reid, *configure(clip_reid, **flags))
    return output


def test_means_are_those_of_the_finished_model_and_of_nobody_else(
    tiny_folder: Callable[[str], Path], street: Path, tmp_path: Path
) -> None:
    data = f"folder:{street}"
    run = train(tiny_folder("clip"), tmp_path / "run", data, camera_means=True)
    model = clipreid.load(run)
    means, name = load_means(run, model)
    assert (name, means.images, means.cameras.tolist()) == (data, 24, [1, 2, 3, 4])
    split = load_data(data).splits["train"]
    x = model.embed([split.image(row) for row in range(len(split))])
    for row, camera in enumerate((1, 2, 3, 4)):
        mine = torch.from_numpy(split.cameras == camera)
        torch.testing.assert_close(means.means["concat"][row], x[mine].mean(0), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"camera_means.safetensors is of another model or strength: make it again"):
        load_means(run, clipreid.load("tiny-clip"))
    (run / CAMERA_MEANS).write_bytes(b"x")
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_means(run, model)
    train(tiny_folder("clip"), run, data, overwrite=True)
    assert not (run / CAMERA_MEANS).exists()  # they belonged to the run that was replaced
    with pytest.raises(UserError, match="holds no camera means; take --centre-cameras gallery, or make them"):
        load_means(run, model)


def test_what_has_no_such_means_is_refused_before_training(
    tiny_folder: Callable[[str], Path], street: Path, tmp_path: Path
) -> None:
    blind = tmp_path / "blind.csv"
    with blind.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "identity", "split"])
        for split in ("train", "test"):
            for image in sorted((street / split).iterdir()):
                rows.writerow([image, image.name[:4], "train" if split == "train" else "query"])
                rows.writerows([[image, image.name[:4], "gallery"]] * (split == "test"))
    with pytest.raises(UserError, match=r"--camera-means: the training images of csv:.* have no cameras"):
        train(tiny_folder("clip"), tmp_path / "a", f"csv:{blind}", camera_means=True)
    other = paint_street(tmp_path / "other", train=4, test=2)
    both = [f"folder:{street}", f"folder:{other}"]
    with pytest.raises(UserError, match=r"--camera-means: the cameras of folder:.* and folder:.* share numbers"):
        train(tiny_folder("clip"), tmp_path / "b", *both, camera_means=True)
    assert not (tmp_path / "b" / "heads.safetensors").exists()
