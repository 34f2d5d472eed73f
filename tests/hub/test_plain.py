"""Without clipreid: the adapter on transformers' own towers gives the same features, by the lines that a card shows."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_hub import shake
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.backbones.load import WEIGHTS
from clipreid.hub import CONFIG, backbone_record, model_record, save_model
from clipreid.hub.plain import OPENAI, plain_base, plain_lines
from clipreid.model import ModelConfig, ReIDModel

Folder = Callable[[str], Path]


def make_plain(name: str, folder: Path, aggregation: str = "cls", raw: bool = False, **backbone: Any) -> ReIDModel:
    """A finished LoRA run that plain peft can express, unless `backbone` asks for what it cannot."""
    source = load_backbone(name, **backbone)
    source.raw_logits = raw
    record = backbone_record(source, source.positions)
    settings = ModelConfig("lora", aggregation, 4, 6.0, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
    model = ReIDModel(source, settings)
    shake(model)
    folder.mkdir()
    save_model(model, folder)
    config = {"clipreid": clipreid.__version__, "backbone": record, "model": model_record(settings)}
    (folder / CONFIG).write_text(json.dumps(config))
    return model.eval()


def image(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (90, 40, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def run_lines(lines: str) -> Tensor:
    assert "clipreid." not in lines
    found: dict[str, Any] = {}
    exec(lines, found)
    return found["feature"]


CASES = {
    "tiny-clip": ("tiny-clip", {}),
    "tiny-siglip2": ("tiny-siglip2", {}),
    "clip folder": ("clip", {}),
    "siglip folder": ("siglip", {}),
    "mean of CLIP's patches": ("clip", {"aggregation": "mean"}),
    "OpenAI's logits": ("clip", {"raw": True}),
    "the backbone's own square": ("clip", {"image_size": 64}),
    "a crop with a rest": ("siglip", {"image_size": (70, 35)}),
    "stride that is the patch": ("clip", {"stride": 8}),
}


@pytest.mark.parametrize("where", ["adapter", "root"])
@pytest.mark.parametrize("case", CASES)
def test_the_lines_of_the_card_give_the_features_of_embed(
    tiny_folder: Folder, tmp_path: Path, case: str, where: str
) -> None:
    which, how = CASES[case]
    name = which if which.startswith("tiny-") else f"hf:{tiny_folder(which)}"
    model = make_plain(name, tmp_path / "run", **how)
    adapter = tmp_path / "run" / "adapter"
    if where == "root":  # as published
        for file in adapter.iterdir():
            file.rename(tmp_path / "run" / file.name)
        adapter = tmp_path / "run"
    base, reason = plain_base(json.loads((tmp_path / "run" / CONFIG).read_text()))
    assert reason is None
    assert base is not None
    found = run_lines(plain_lines(model, base, str(adapter), image(tmp_path)))
    expected = model.embed([image(tmp_path)])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4
    untuned = ReIDModel(load_backbone(name, image_size=model.image_size), model.config).eval()
    assert (untuned.embed([image(tmp_path)]) - expected).abs().max() > 1e-3


def test_the_lines_need_no_clipreid(tiny_folder: Folder, tmp_path: Path) -> None:
    """In a process that cannot import it."""
    model = make_plain(f"hf:{tiny_folder('clip')}", tmp_path / "run")
    lines = plain_lines(model, str(tiny_folder("clip")), str(tmp_path / "run" / "adapter"), image(tmp_path))
    program = f"import sys; sys.modules['clipreid'] = None\n{lines}print(feature.tolist())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    assert (found - model.embed([image(tmp_path)])).abs().max() <= 1e-4


@pytest.mark.parametrize(("name", "kind"), [("tiny-clip", "CLIPVisionModel"), ("tiny-siglip2", "SiglipVisionModel")])
def test_the_embedded_weights_load_into_one_tower(tmp_path: Path, name: str, kind: str) -> None:
    import transformers
    from peft import PeftModel

    model = make_plain(name, tmp_path / "run")
    bare = getattr(transformers, kind).from_pretrained(WEIGHTS / name)
    theirs = PeftModel.from_pretrained(bare, tmp_path / "run" / "adapter").eval()
    pixels = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        found = theirs(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        expected = model.features(pixels)["final" if name == "tiny-clip" else "projection"]
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_auto_peft_finds_the_tower(tiny_folder: Folder, tmp_path: Path, family: str) -> None:
    from peft import AutoPeftModel

    model = make_plain(f"hf:{tiny_folder(family)}", tmp_path / "run")
    theirs: Any = AutoPeftModel.from_pretrained(str(tmp_path / "run" / "adapter"))
    assert type(theirs.get_base_model()).__name__ == {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}[family]
    pixels = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found = theirs.eval()(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        expected = model.features(pixels)["final" if family == "clip" else "projection"]
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("how", [{"positions": "bilinear"}, {"stride": 6}])
def test_auto_peft_finds_no_tower_with_other_features(tiny_folder: Folder, tmp_path: Path, how: dict[str, Any]) -> None:
    make_plain(f"hf:{tiny_folder('clip')}", tmp_path / "run", **how)
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["auto_mapping"] is None
    assert settings["base_model_name_or_path"] == str(tiny_folder("clip"))


def config_of(backbone: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    source = {"name": "hf:openai/clip-vit-base-patch16", "positions": "bicubic", "stride": None}
    return {"backbone": source | (backbone or {}), "model": {"tuning": "lora", "sie": "none"} | model}


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "overlapping": (config_of({"stride": 12}), "patches overlap (stride 12)"),
    "sie": (config_of(sie="camera"), "side information (sie camera)"),
    "bilinear": (config_of({"positions": "bilinear"}), "resized bilinearly"),
    "full": (config_of(tuning="full"), "all weights of the image tower were trained"),
    "head": (config_of(tuning="head"), "a linear map on the frozen features"),
    "timm": (config_of({"name": "timm:vit_small_patch14_dinov2.lvd142m"}), "image-only tower"),
    "osnet": (config_of({"name": "osnet:x1_0/w.pth"}, tuning="full"), "image-only tower"),
    "imported": ({"backbone": {"name": "imported", "vision": {}}, "model": {"tuning": "full"}}, "it was imported"),
    "another tag": (config_of({"name": "open_clip:ViT-B-16-SigLIP2-256/webli"}), "no repository in transformers'"),
}


@pytest.mark.parametrize("how", REASONS)
def test_reasons_why_plain_peft_cannot(how: str) -> None:
    config, words = REASONS[how]
    reason = plain_base(config)[1]
    assert reason is not None
    assert words in reason


def test_where_the_same_weights_lie_for_transformers() -> None:
    assert plain_base(config_of()) == ("openai/clip-vit-base-patch16", None)
    assert plain_base(config_of(tuning="full"))[0] == "openai/clip-vit-base-patch16"
    assert plain_base(config_of({"name": "tiny-siglip2"})) == ("tiny-siglip2", None)
    for name, repository in OPENAI.items():
        assert plain_base(config_of({"name": name})) == (repository, None)


def test_the_names_of_openai_weights_are_open_clips() -> None:
    from clipreid.backbones.openclip_checks import check_name

    for name in OPENAI:
        check_name(*name.removeprefix("open_clip:").split("/"))  # refuses what does not exist, or has another GELU
