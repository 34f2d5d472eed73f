"""`--init RUN`: a new model starts from the weights of a trained one, and says what it took."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_hub import crops, edit_config, edit_tensors, make_model, make_run, set_first
from test_import_checkpoint import published, save
from test_text_tower import TEXTS, make_toy

import clipreid
from clipreid.backbones import load_backbone
from clipreid.errors import UserError
from clipreid.hub import ADAPTER, HEADS, save_identities
from clipreid.hub.folder import head_state, identity_state
from clipreid.hub.import_checkpoint import import_checkpoint
from clipreid.hub.initial import inherited, load_initial
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel
from clipreid.training.launch import parse

Folder = Callable[[str], Path]
PEOPLE = ["anna", "bert", "carl"]
OLD = Path(__file__).parent / "runs-0.1.0" / "clip-sie"


def trained(weights: Path | str, folder: Path, tuning: Any = "lora") -> ReIDModel:
    """A finished run with its classifiers, and its model."""
    model = make_run(weights, folder, tuning)
    save_identities(folder, identity_state(model), PEOPLE)
    return model


def started(model: ReIDModel, run: Path, names: list[str] = PEOPLE) -> str:
    return load_initial(model, run, names).removeprefix(f"started from {run}: ")


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_all_weights_are_taken_by_a_model_of_the_same_form(tiny_folder: Folder, tmp_path: Path, tuning: str) -> None:
    old = trained(tiny_folder("clip"), tmp_path / "run", tuning)
    new = make_model(f"hf:{tiny_folder('clip')}", tuning).eval()
    assert (new.embed(crops()) - old.embed(crops())).abs().max() > 1e-3
    count = {"lora": 12, "full": 12, "head": 14}[tuning]  # two necks of five and a classifier; two linear maps
    assert started(new, tmp_path / "run") == f"its image tower and {count} tensors of its heads"
    assert torch.equal(new.embed(crops()), old.embed(crops()))
    assert all(torch.equal(x, old.state_dict()[name]) for name, x in new.state_dict().items())


def test_of_other_identities_only_the_classifiers_are_new(tiny_folder: Folder, tmp_path: Path) -> None:
    old = trained(tiny_folder("clip"), tmp_path / "run")
    for names in (["anna", "bert", "dora"], ["bert", "anna", "carl"]):  # another order is another classifier
        new = make_model(f"hf:{tiny_folder('clip')}")
        drawn = {name: x.clone() for name, x in identity_state(new).items()}
        assert started(new, tmp_path / "run", names) == "its image tower and 10 tensors of its heads"
        assert all(torch.equal(x, drawn[name]) for name, x in identity_state(new).items())
        assert all(torch.equal(x, head_state(old)[name]) for name, x in head_state(new).items())
    (tmp_path / "run" / "identities.safetensors").unlink()  # as of a published run
    assert started(make_model(f"hf:{tiny_folder('clip')}"), tmp_path / "run") == (
        "its image tower and 10 tensors of its heads"
    )


def test_what_only_one_of_the_two_has_is_said(tiny_folder: Folder, tmp_path: Path) -> None:
    trained(tiny_folder("clip"), tmp_path / "run")
    settings = clip_reid.Config(lora_rank=4, sie="camera", cameras=(1, 2))
    with_side = build(clip_reid, load_backbone(f"hf:{tiny_folder('clip')}", positions="bilinear"), settings, 3)
    drawn = with_side.hooks["side"].table.clone()
    assert started(with_side, tmp_path / "run") == "its image tower and 12 tensors of its heads; new: hooks"
    assert torch.equal(with_side.hooks["side"].table, drawn)
    settings = clip_reid.Config(lora_rank=2)
    without = build(clip_reid, load_backbone("tiny-clip"), settings, 6)
    assert started(without, OLD, []) == (  # a run of 0.1.0 with cameras
        "its image tower and 10 tensors of its heads; not used: 1 tensors, such as side.table"
    )
    settings = clip_reid.Config(lora_rank=2, sie="camera", cameras=(1, 2, 3, 4), sie_coefficient=5.0)
    both = build(clip_reid, load_backbone("tiny-clip"), settings, 6).eval()
    assert started(both, OLD, []) == "its image tower and 11 tensors of its heads"
    assert torch.equal(both.embed(crops()), clipreid.load(OLD).embed(crops()))


def test_a_run_of_another_method_with_and_without_text(toy: ModuleType, tmp_path: Path) -> None:
    old = make_toy(toy, tmp_path / "run")
    new = build(toy, load_backbone("tiny-clip"), toy.Config(), 3)
    assert started(new, tmp_path / "run") == "its image tower, its text tower and 10 tensors of its heads"
    assert torch.equal(new.embed_text(TEXTS), old.embed_text(TEXTS))
    settings = clip_reid.Config(lora_rank=4)
    other = build(clip_reid, load_backbone("tiny-clip"), settings, 3).eval()
    assert started(other, tmp_path / "run") == ("its image tower and 10 tensors of its heads; not used: its text tower")
    assert torch.equal(other.embed(crops()), old.embed(crops()))
    whole = build(toy, load_backbone("tiny-clip"), toy.Config(text_tuning="full"), 3)
    assert "not used: its text tower" in started(whole, tmp_path / "run")


# Refusals ---------------------------------------------------------------------------------------------------------


def test_another_backbone_crop_or_tuning_is_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    trained(tiny_folder("clip"), run := tmp_path / "run")
    name = f"hf:{tiny_folder('clip')}"
    weights = shutil.copytree(tiny_folder("clip"), tmp_path / "weights")
    key = "vision_model.encoder.layers.1.mlp.fc2.weight"
    edit_tensors(weights / "model.safetensors", lambda t: t[key].mul_(1.01))
    square = build(clip_reid, load_backbone(name, image_size=64), clip_reid.Config(lora_rank=4))
    others = [make_model("tiny-clip"), make_model(name, stride=6), make_model(f"hf:{weights}"), square]
    for other in others:
        with pytest.raises(
            UserError,
            match=rf"^--init {run}: it was trained on other weights or another crop \({run}/config.json\): give its "
            rf"backbone, --backbone {name}, and its --image-size and --stride$",
        ):
            load_initial(other, run, PEOPLE)
    for tuning in ("full", "head"):
        with pytest.raises(
            UserError, match=rf"^--init {run}: it was trained with --tuning lora, this run has {tuning}$"
        ):
            load_initial(make_model(name, tuning), run, PEOPLE)
    rank = build(clip_reid, load_backbone(name, positions="bilinear"), clip_reid.Config(lora_rank=8))
    with pytest.raises(UserError, match=r"lora_A.weight is \[4, 32\], this backbone needs \[8, 32\]"):
        load_initial(rank, run, PEOPLE)


def test_runs_that_are_none_are_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    trained(tiny_folder("clip"), run := tmp_path / "run")
    model = make_model(f"hf:{tiny_folder('clip')}")
    import_checkpoint(save(published(), tmp_path), imported := tmp_path / "imported")
    for start in (lambda init: load_initial(model, init, PEOPLE), lambda init: inherited(clip_reid, init)):
        with pytest.raises(UserError, match=r"nowhere is not a folder: give a run folder"):
            start(tmp_path / "nowhere")
        with pytest.raises(
            UserError, match=rf"^--init {imported}: it was imported as a whole image tower, and says no"
        ):
            start(imported)
    spoiled = shutil.copytree(run, tmp_path / "spoiled")
    edit_tensors(spoiled / HEADS, lambda t: set_first(t, float("nan")))
    with pytest.raises(UserError, match="has values that are not finite"):
        load_initial(model, spoiled, PEOPLE)
    edit_tensors(run / ADAPTER, lambda t: t.pop(min(t)))
    with pytest.raises(UserError, match="does not fit this model: weights 1 missing"):
        load_initial(model, run, PEOPLE)
    edit_config(run, lambda config: config.update(finished=False))
    for start in (lambda init: load_initial(model, init, PEOPLE), lambda init: inherited(clip_reid, init)):
        with pytest.raises(UserError, match="holds no trained model yet"):
            start(run)


# Flags ------------------------------------------------------------------------------------------------------------


def test_flags_of_the_run_are_taken_over_where_nothing_else_is_asked_for(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tiny_folder("clip"), run := tmp_path / "run")
    kept = {"data": ["folder:crops"], "test": [], "image_size": [64, 32], "stride": None, "pixels": "half"}
    edit_config(
        run, lambda c: c.update(run=kept | {"positions": "bilinear", "noun": None, "seed": 7, "skip_bad": True})
    )
    monkeypatch.setattr(clip_reid, "INHERITED", ("tuning", "lora_rank", "no_setting"), raising=False)
    expected = {"backbone": f"hf:{tiny_folder('clip')}", "data": ("folder:crops",), "test": (), "image_size": (64, 32)}
    expected |= {"pixels": "half", "positions": "bilinear", "tuning": "lora", "lora_rank": 4}
    assert inherited(clip_reid, run) == expected  # neither seed nor what says how images are read
    flags, config = parse(clip_reid, "", ["--init", str(run), "--lora-rank", "2", "--pixels", "backbone"])
    assert (flags.init, flags.backbone, flags.image_size) == (run, expected["backbone"], (64, 32))
    assert (flags.data, flags.seed, flags.pixels, config.lora_rank) == (("folder:crops",), 0, "backbone", 2)
