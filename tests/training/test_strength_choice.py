"""`--strength auto`: chosen on what a training has not seen, and from then on part of the weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from launching import paint_street

import clipreid
from clipreid.config import configure
from clipreid.data import ReIDData, Split
from clipreid.data.folds import camera_fold
from clipreid.errors import UserError
from clipreid.hub.card import _strength
from clipreid.methods import clip_reid
from clipreid.training import strength_choice
from clipreid.training.launch import run_method


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("auto") / "crops", train=9, test=2)


def trained(street: Path, output: Path, **given: object) -> Path:
    base = {
        "prompts": "none",
        "epochs": 1,
        "identities_per_batch": 6,
        "rate": 5e-3,
        "image_size": (64, 32),
        "threads": 1,
    }
    flags, config = configure(clip_reid, **{"data": (f"folder:{street}",), "output": output, **base, **given})
    run_method(clip_reid, flags, config)
    return output


def features(run: Path, street: Path, strength: float = 1.0) -> torch.Tensor:
    return clipreid.load(run, strength=strength).embed(sorted((street / "test").glob("*.jpg")))


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_the_chosen_strength_is_part_of_the_weights(
    tuning: str, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(street, tmp_path / "whole", tuning=tuning)
    monkeypatch.setattr(strength_choice, "STRENGTHS", (0.5,))
    half = trained(street, tmp_path / "half", tuning=tuning, strength="auto")
    assert "strength 0.5 is chosen" in capsys.readouterr().out
    torch.testing.assert_close(features(half, street), features(whole, street, 0.5), atol=1e-6, rtol=0)
    torch.testing.assert_close(features(half, street, 0.5), features(whole, street, 0.25), atol=1e-6, rtol=0)
    assert (features(half, street) - features(whole, street)).abs().max() > 1e-4
    config = json.loads((half / "config.json").read_text())
    assert config["strength"] == {"chosen": 0.5, "mAP_50": config["strength"]["mAP_50"]}
    assert 0 < config["strength"]["mAP_50"] <= 1
    assert not (half / "trial").exists()
    figures = [json.loads((run / "metrics.json").read_text())[f"folder:{street}"]["stage2"] for run in (half, whole)]
    assert figures[0] != figures[1]


def test_the_best_mean_is_chosen_and_told(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(street, tmp_path / "run", prompts="identity", prompt_epochs=1, strength="auto")
    found = json.loads((run / "config.json").read_text())["strength"]
    tried = {int(name.removeprefix("mAP_")) / 100: mAP for name, mAP in found.items() if name.startswith("mAP_")}
    assert sorted(tried) == [0.25, 0.5, 0.75, 1.0]
    assert tried[found["chosen"]] == max(tried.values())
    said = capsys.readouterr().out
    assert "(seen)" in said
    assert "(unseen)" in said

    facts: Any = SimpleNamespace(config={"strength": found})
    assert f"a part of {found['chosen']:g} is kept" in _strength(facts)


def test_without_cameras_it_is_off(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = tmp_path / "two"
    for file in street.rglob("*.jpg"):
        if "c1" in file.name or "c2" in file.name:
            (two / file.relative_to(street)).parent.mkdir(parents=True, exist_ok=True)
            (two / file.relative_to(street)).write_bytes(file.read_bytes())
    run = trained(two, tmp_path / "run", strength="auto")
    assert "off, the strength stays 1" in capsys.readouterr().out
    assert "strength" not in json.loads((run / "config.json").read_text())


def test_side_information_is_refused(street: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--strength auto: .*\(side\)"):
        trained(street, tmp_path / "run", strength="auto", sie="camera")


def test_a_run_that_has_seen_everything_is_refused(street: Path, tmp_path: Path) -> None:
    seen = trained(street, tmp_path / "seen")
    with pytest.raises(UserError, match=r"--strength auto: the run of --init has seen"):
        trained(street, tmp_path / "run", strength="auto", init=seen)


def test_identities_of_one_camera_decide_nothing(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of nine people each is seen by one of four cameras, twice: nobody can be found elsewhere."""
    alone = tmp_path / "alone"
    shutil.copytree(street / "test", alone / "test")
    (alone / "train").mkdir()
    for number, file in enumerate(sorted((street / "train").glob("*_c1s1_*.jpg"))):
        for shot in (1, 2):
            name = file.name.replace("_c1s1_000001", f"_c{number % 4 + 1}s1_00000{shot}")
            shutil.copy(file, alone / "train" / name)
    trained(alone, tmp_path / "run", strength="auto")
    assert "off, the strength stays 1" in capsys.readouterr().out


def test_folds_share_neither_identities_nor_cameras() -> None:
    draw = np.random.default_rng(0)
    identity, camera = draw.integers(0, 20, 400), draw.integers(-1, 6, 400)
    images = [{"path": f"{i}.png", "bytes": b""} for i in range(400)]
    data = ReIDData(
        "x", {"train": Split.from_columns("train", images, [str(i) for i in identity], camera)}, "market1501"
    )
    kept, tests = camera_fold(data, [1, 3, 5])
    trained = kept.splits["train"]
    assert set(trained.cameras) == {0, 2, 4}
    for name, cameras in (("seen", {0, 2, 4}), ("unseen", {1, 3, 5})):
        query, gallery = tests[name].splits["query"], tests[name].splits["gallery"]
        assert set(gallery.cameras) == cameras
        assert not set(gallery.identities) & set(trained.identities)
        assert set(query.paths) <= set(gallery.paths)
        pairs = list(zip(query.identities, query.cameras, strict=True))
        assert len(pairs) == len(set(pairs)) == len(set(zip(gallery.identities, gallery.cameras, strict=True)))
    parts = [trained, tests["seen"].splits["gallery"], tests["unseen"].splits["gallery"]]
    paths = [path for part in parts for path in part.paths]
    assert len(paths) == len(set(paths))
    known_and_trained_elsewhere = (camera >= 0).sum() - len(paths)
    assert known_and_trained_elsewhere == sum(
        str(i) in set(trained.identities) and c in (1, 3, 5) for i, c in zip(identity, camera, strict=True)
    )
