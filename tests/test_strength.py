"""The strength dial: zero-shot at 0, the run at 1, both exactly, and a straight way between."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hub import make_run, shake, write_run

import clipreid
from clipreid.backbones import load_backbone
from clipreid.backbones.record import backbone_record, load_recorded
from clipreid.errors import UserError
from clipreid.hub import save_model
from clipreid.hub.checks import read_settings
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel, untrained_model
from clipreid.strength import parse_strengths, set_strength

Folder = Callable[[str], Path]


def crops() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (4, 3, 64, 32), generator=generator, dtype=torch.uint8)


def untrained(run: Path) -> ReIDModel:
    """The backbone of a run before training, with the images prepared in the same way."""
    return untrained_model(load_recorded(read_settings(run).backbone))


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_both_ends_are_exact(tiny_folder: Folder, tmp_path: Path, family: str, tuning: str) -> None:
    trained = make_run(tiny_folder(family), tmp_path / "run", tuning).embed(crops())
    before = untrained(tmp_path / "run").embed(crops())
    found = {s: clipreid.load(tmp_path / "run", strength=s).embed(crops()) for s in (0, 0.5, 1)}
    assert torch.equal(found[0], before)
    assert torch.equal(found[1], trained)
    assert min((found[0.5] - found[end]).abs().max() for end in (0, 1)) > 1e-3
    model = clipreid.load(tmp_path / "run", strength=0.5)
    for strength in (1.0, 0.0, 0.5):  # turned back and forth: the same as freshly loaded
        assert torch.equal(set_strength(model, strength).embed(crops()), found[strength])
        assert model.strength == strength


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_side_information_is_turned_too(tiny_folder: Folder, tmp_path: Path, tuning: Any) -> None:
    name = f"hf:{tiny_folder('clip')}"
    backbone = load_backbone(name, positions="bilinear")
    record = backbone_record(backbone, "bilinear")
    config = clip_reid.Config(tuning=tuning, sie="camera", sie_coefficient=2.0, cameras=(1, 2))
    model = build(clip_reid, backbone, config)
    shake(model)
    write_run(model, tmp_path / "run", record)
    cameras = [1, 2, 2, -1]
    found = clipreid.load(tmp_path / "run", strength=0).embed(crops(), cameras=cameras)
    assert torch.equal(found, untrained(tmp_path / "run").embed(crops()))
    half = clipreid.load(tmp_path / "run", strength=0.5)
    side = half.hooks["side"]
    assert (side.strength, side.coefficient) == (0.5, 2.0)
    known = {"cameras": torch.tensor([1])}
    torch.testing.assert_close(side.before(0, torch.zeros(1, 1, 32), known)[0, 0], side.table[0])  # 0.5 x 2
    whole = set_strength(half, 1).embed(crops(), cameras=cameras)
    assert torch.equal(whole, model.eval().embed(crops(), cameras=cameras))


@given(strength=st.floats(0, 1))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_way_between_is_straight_in_the_weights(tiny_folder: Folder, strength: float) -> None:
    """LoRA: merged weights W + s dW; full tuning: (1 - s) W0 + s W."""
    name = f"hf:{tiny_folder('clip')}"
    base = load_backbone(name).image.encoder.layers[0].mlp.fc1.weight
    ends = []
    for tuning in ("lora", "full"):
        model = ReIDModel(load_backbone(name), tuning, rank=4)  # type: ignore[arg-type]
        shake(model)
        layer: Any = model.tower.encoder.layers[0].mlp.fc1  # type: ignore[union-attr]
        trained = base + layer.get_delta_weight("default") if tuning == "lora" else layer.weight.clone()
        set_strength(model, strength)
        now = base + layer.get_delta_weight("default") if tuning == "lora" else layer.weight
        torch.testing.assert_close(now, base + strength * (trained - base), rtol=1e-5, atol=1e-6)
        ends.append(trained)
    assert not torch.allclose(ends[0], base)
    assert not torch.allclose(ends[1], base)


@pytest.mark.parametrize("wrong", [-0.1, 1.01, math.nan, math.inf, "1", None, True])
def test_no_such_strength(tiny_folder: Folder, tmp_path: Path, wrong: Any) -> None:
    model = make_run(tiny_folder("clip"), tmp_path / "run")
    for turn in (lambda: set_strength(model, wrong), lambda: clipreid.load(tmp_path / "run", strength=wrong)):
        with pytest.raises(UserError, match=r"strength .*: give a number from 0 \(zero-shot\) to 1 \(as trained\)"):
            turn()


def test_an_imported_run_has_no_base(tmp_path: Path) -> None:
    from clipreid.backbones import VisionConfig
    from clipreid.backbones.imported import ImportedBackbone

    shape = VisionConfig((32, 16), 8, width=64, depth=2, heads=1, mlp_width=64, embed_dim=16)
    model = ReIDModel(ImportedBackbone(shape), "full")
    set_strength(model, 1)
    with pytest.raises(UserError, match="an imported run holds no backbone from before its training"):
        set_strength(model, 0.5)


def test_what_is_saved_is_the_whole_run(tiny_folder: Folder, tmp_path: Path) -> None:
    model = make_run(tiny_folder("clip"), tmp_path / "run", "full")
    set_strength(model, 0.5)
    with pytest.raises(ValueError, match=r"a model of strength 0.5 is not saved"):
        save_model(model, tmp_path / "run")


def test_strengths_as_typed() -> None:
    assert parse_strengths("0,0.25,.5, 1,0.50") == (0, 0.25, 0.5, 1)
    for wrong in ("", "0,,1", "half", "1.5", "nan", "-1"):
        with pytest.raises(UserError, match=r"--strength .* is no number from 0 \(zero-shot\) to 1"):
            parse_strengths(wrong)
