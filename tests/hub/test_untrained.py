"""What RUN stands for where it is no run: backbones by name, colour stripes, and what happens to names that clash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_hub import make_run

import clipreid
from clipreid.backbones import load_backbone
from clipreid.backbones.colour import SIZE, colour_stripes
from clipreid.errors import UserError
from clipreid.hub import find_model, find_run, load_untrained
from clipreid.model import untrained_model

Capture = pytest.CaptureFixture[str]


def test_a_backbone_by_name_is_itself_before_training() -> None:
    crops = torch.randint(0, 256, (3, 3, 128, 64), dtype=torch.uint8)
    model = clipreid.load("tiny-clip")
    assert torch.equal(model.embed(crops), untrained_model(load_backbone("tiny-clip")).embed(crops))
    assert model.embed_text(["a red coat"]).shape == (1, 128)
    assert load_untrained("tiny-clip", image_size=(64, 32)).image_size == (64, 32)


def test_colour_is_a_model_of_colour_stripes() -> None:
    crops = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)
    crops[0] = 0  # black: no hue and no saturation
    model = clipreid.load("colour")
    torch.testing.assert_close(model.embed(crops), colour_stripes(crops), atol=1e-6, rtol=0)
    assert (model.image_size, model.device.type) == (SIZE, "cpu")
    with pytest.raises(UserError, match=r"colour has no text tower: captions cannot be .*; ask with images, or take"):
        model.embed_text(["red"])
    with pytest.raises(UserError, match=r"colour has no revisions, and crops of 128x64 only"):
        load_untrained("colour", image_size=(256, 128))


def test_a_run_folder_comes_before_a_backbone_of_its_name_and_another_folder_does_not(
    tmp_path: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny-clip") == "tiny-clip"
    assert capsys.readouterr().err == ""
    Path("tiny-clip").mkdir()
    Path("tiny-clip/config.json").write_text(json.dumps({"clipreid": {"image_size": [64, 32]}, "model_type": "clip"}))
    assert find_model("tiny-clip") == "tiny-clip"  # weights that lie here are no run
    said = capsys.readouterr().err
    assert (
        "tiny-clip is a folder here, but no run: the untrained model of that name is taken; write ./tiny-clip" in said
    )
    make_run(tiny_folder("clip"), tmp_path / "tiny-siglip2")
    assert find_model("tiny-siglip2") == Path("tiny-siglip2")
    said = capsys.readouterr().err
    assert "is a run folder here: the run is taken; write backbone:tiny-siglip2 for the untrained model" in said
    assert find_model("backbone:tiny-siglip2") == "tiny-siglip2"
    assert find_model("./tiny-siglip2") == find_model(Path("tiny-siglip2")) == Path("tiny-siglip2")
    assert find_model("./tiny-clip") == find_model(Path("tiny-clip")) == Path("tiny-clip")
    assert capsys.readouterr().err == ""
    assert clipreid.load("tiny-siglip2").method == "clip_reid"
    assert clipreid.load("backbone:tiny-siglip2").method == ""


def test_names_that_mean_nothing_list_what_there_is() -> None:
    for name in ("tiny-clop", "backbone:nothing", "openclip:ViT-B-16/openai", "a/b/c"):
        with pytest.raises(
            UserError, match=r"is not a folder: give a run folder, .* OWNER/NAME; or an untrained"
        ) as why:
            find_model(name)
        assert all(word in str(why.value) for word in ("tiny-siglip2", "osnet:WIDTH/FILE", "colour"))
        meant = {"tiny-clop": "tiny-clip", "openclip:ViT-B-16/openai": "open_clip:ViT-B-16/openai"}.get(name)
        assert str(why.value).endswith(f"did you mean {meant}?") == (meant is not None)
    with pytest.raises(UserError, match="timm has no model 'vit_tinny"):
        clipreid.load("timm:vit_tinny_patch16_224")
    with pytest.raises(UserError, match="only hf:OWNER/NAME has revisions"):
        clipreid.load("tiny-clip", revision="v1")


def test_what_needs_a_run_says_so() -> None:
    with pytest.raises(UserError, match=r"tiny-clip is an untrained backbone, and a run is needed here: .* --backbone"):
        find_run("tiny-clip")
    with pytest.raises(UserError, match=r"strength 0.5: tiny-clip is untrained, there is no training to weaken"):
        clipreid.load("tiny-clip", strength=0.5)
