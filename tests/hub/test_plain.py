"""Without clipreid: the adapter on transformers' own towers gives the same features, by the lines that a card shows."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_hub import shake, write_run
from torch import Tensor

from clipreid.backbones import load_backbone
from clipreid.backbones.load import WEIGHTS
from clipreid.config import choices_of
from clipreid.data.images import read_image
from clipreid.errors import UserError
from clipreid.export import check_merged
from clipreid.hub import CONFIG, backbone_record
from clipreid.hub.plain import OPENAI, RGB_LINES, plain_base, plain_lines, plain_settings
from clipreid.methods import build, clip_reid, get_method, method_names
from clipreid.model import ReIDModel, untrained_model

Folder = Callable[[str], Path]


def make_plain(name: str, folder: Path, aggregation: Any = "cls", raw: bool = False, **backbone: Any) -> ReIDModel:
    """A finished LoRA run that plain peft can express, unless `backbone` asks for what it cannot."""
    source = load_backbone(name, **backbone)
    source.raw_logits, source.mean, source.std = raw, (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)
    record = backbone_record(source, source.positions)
    model = build(clip_reid, source, clip_reid.Config(aggregation=aggregation, lora_rank=4, lora_alpha=6.0))
    shake(model)
    write_run(model, folder, record)
    return model.eval()


def image(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (90, 40, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def odd_images(folder: Path) -> dict[str, Path]:
    """Images as people have them: turned by EXIF, transparent, of 16 bits, in other modes."""
    plain = Image.open(image(folder)).resize((24, 40))
    grey = np.asarray(plain.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = plain.convert("RGBA")
    cut.paste((255, 255, 255, 0), (0, 0, 24, 20))
    palette = plain.quantize(16)
    palette.info["transparency"] = 0
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "exif.jpg": (plain, {"exif": exif, "quality": 95}),
        "exif.png": (plain, {"exif": exif}),
        "cut.png": (cut, {}),
        "cut-exif.png": (cut.copy(), {"exif": exif}),
        "half.webp": (plain.convert("LA").convert("RGBA"), {"lossless": True}),
        "palette.png": (palette, {"transparency": 0}),
        "palette.gif": (palette, {"transparency": 0}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "deep.tiff": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "deeper.tiff": (Image.fromarray(grey.astype(np.int32) * 257), {}),
        "shallow.tiff": (Image.fromarray(grey.astype(np.int32)), {}),
        "grey.png": (plain.convert("L"), {}),
        "line.png": (plain.convert("1"), {}),
        "print.jpg": (plain.convert("CMYK"), {"quality": 95}),
    }
    for name, (each, how) in made.items():
        each.save(folder / name, **how)
    return {name: folder / name for name in made}


def test_the_printed_function_reads_every_image_as_embed_does(tmp_path: Path) -> None:
    found: dict[str, Any] = {"numpy": np, "Image": Image, "ImageOps": ImageOps}
    exec("\n".join(RGB_LINES), found)
    for name, file in odd_images(tmp_path).items():
        assert np.array_equal(np.asarray(found["rgb"](Image.open(file))), np.asarray(read_image(file))), name
    with pytest.raises(ValueError, match="8 bits first"):
        found["rgb"](Image.fromarray(np.ones((9, 9), np.float32)))


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
    bare = load_backbone(name, image_size=model.image_size)
    bare.raw_logits, bare.mean, bare.std = model.raw_logits, model.mean, model.std
    untuned = untrained_model(bare, how.get("aggregation", "cls"))
    assert (untuned.embed([image(tmp_path)]) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_lines_of_the_card_on_images_of_all_kinds(tiny_folder: Folder, tmp_path: Path, family: str) -> None:
    model = make_plain(f"hf:{tiny_folder(family)}", tmp_path / "run")
    for name in ("exif.jpg", "cut-exif.png", "palette.png", "deep.png"):
        file = odd_images(tmp_path)[name]
        found = run_lines(plain_lines(model, str(tiny_folder(family)), str(tmp_path / "run" / "adapter"), str(file)))
        assert float(found @ model.embed([file]).T) > 0.9999, name


def test_the_lines_need_no_clipreid(tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be imported; `test_whole_way.py` does it in a process that never did."""
    model = make_plain(f"hf:{tiny_folder('clip')}", tmp_path / "run")
    lines = plain_lines(model, str(tiny_folder("clip")), str(tmp_path / "run" / "adapter"), image(tmp_path))
    expected = model.embed([image(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "clipreid"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        exec("import clipreid.model")
    found = run_lines(lines)
    assert (found - expected).abs().max() <= 1e-4


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


def config_of(backbone: dict[str, Any] | None = None, method: str = "clip_reid", **config: Any) -> dict[str, Any]:
    source = {"name": "hf:openai/clip-vit-base-patch16", "positions": "bicubic", "stride": None}
    settings = {"tuning": "lora", "sie": "none"} | config
    return {"backbone": source | (backbone or {}), "method": method, "config": settings}


IMPORTED = config_of(tuning="full") | {"backbone": {"name": "imported", "vision": {}}}
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "overlapping": (config_of({"stride": 12}), "patches overlap (stride 12)"),
    "sie": (config_of(sie="camera"), "it has sie camera, which transformers' towers are not shown to do"),
    "bilinear": (config_of({"positions": "bilinear"}), "resized bilinearly"),
    "full": (config_of(tuning="full"), "all weights of the image tower were trained"),
    "head": (config_of(tuning="head"), "a linear map on the frozen features"),
    "timm": (config_of({"name": "timm:vit_small_patch14_dinov2.lvd142m"}), "image-only tower"),
    "osnet": (config_of({"name": "osnet:x1_0/w.pth"}, tuning="full"), "image-only tower"),
    "imported": (IMPORTED, "it was imported"),
    "another tag": (config_of({"name": "open_clip:ViT-B-16-SigLIP2-256/webli"}), "no repository in transformers'"),
    "another method": (config_of(method="magic"), "its method, magic, is not among those that are shown to work"),
    "another aggregation": (config_of(aggregation="max"), "it has aggregation max, which"),
    "another tuning": (config_of(tuning="dora"), "it has tuning dora, which"),
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


# The allow-list ---------------------------------------------------------------------------------------------------

# Settings of training: the same weights give the same features with any value. Rank and alpha of LoRA stand in
# adapter_config.json, where peft reads them; those of side information mean nothing without it (`sie` is in PLAIN).
OF_TRAINING = {
    "clip_reid": {
        "rate_factor", "layer_decay", "clip_norm", "sample_classes",
        "prompts", "prompt_tokens", "prompt_epochs", "prompt_rate", "prompt_batch", "prompt_warmup", "epochs",
        "least_steps", "rate", "head_rate", "bias_rate_factor", "optimiser", "weight_decay", "schedule", "warmup",
        "warmup_factor", "milestones", "identities_per_batch", "images_per_identity", "balance", "smoothing", "margin",
        "soft_margin", "triplet_features", "triplet_taps", "weight_id", "weight_triplet", "weight_i2t",
        "pad", "flip", "erase", "tint", "tint_share", "occluders", "occluder_folder", "occlude_probability",
        "severity_least", "severity_most", "checkpoint_every", "sie_coefficient", "cameras", "views",
    },
    "irra": {
        "weight_sdm", "weight_id", "weight_mlm", "weight_itc", "temperature", "smoothing", "mask_share",
        "interaction_depth", "sampler", "epochs", "least_steps", "rate", "head_rate", "bias_rate_factor", "optimiser",
        "adam_eps", "weight_decay", "warmup", "warmup_factor", "identities_per_batch", "images_per_identity", "balance",
        "pad", "flip", "erase", "tint", "tint_share", "checkpoint_every",
    },
}  # fmt: skip
OF_TRAINING["joint"] = OF_TRAINING["clip_reid"] | {
    "order", "compare", "weight_captions", "text_epochs", "text_rate", "text_batch", "text_warmup", "weight_sdm",
    "weight_itc", "temperature",
}  # fmt: skip
IN_ADAPTER_CONFIG = {"lora_rank", "lora_alpha"}
PLAIN = {name: shown for name in method_names() if (shown := plain_settings(name)) is not None}


def other(value: Any, hint: Any) -> Any:
    """Another value of a setting than this one."""
    if words := choices_of(hint):
        return next(word for word in words if word != value)
    if isinstance(value, tuple):
        return (*value, 3)
    return 2 if value is None else value + 1


@pytest.mark.parametrize("method", PLAIN)
def test_every_setting_of_a_plain_method_is_allowed_by_name_or_changes_no_feature(
    tiny_folder: Folder, method: str
) -> None:
    """A new setting is in one of the three, or its runs are not called plain."""
    config, hints = get_method(method).Config(), get_type_hints(get_method(method).Config)
    assert set(hints) == {*PLAIN[method], *OF_TRAINING[method], *IN_ADAPTER_CONFIG}
    for flag, allowed in PLAIN[method].items():
        assert getattr(config, flag) == allowed[0]  # what a config.json without it means
    crops = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)

    def made(**changed: Any) -> ReIDModel:
        return build(get_method(method), load_backbone(f"hf:{tiny_folder('clip')}"), replace(config, **changed)).eval()

    shake(model := made())
    expected = model.embed(crops)
    for flag in OF_TRAINING[method]:
        again = made(**{flag: other(getattr(config, flag), hints[flag])})
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.embed(crops), expected), flag


@pytest.mark.parametrize(
    ("flag", "value"), [(flag, v) for flag, allowed in PLAIN["clip_reid"].items() for v in allowed]
)
def test_every_entry_of_the_list_gives_the_features_of_embed(
    tiny_folder: Folder, tmp_path: Path, flag: str, value: Any
) -> None:
    for family in ("clip", "siglip"):
        folder = tmp_path / family
        model = make_plain(f"hf:{tiny_folder(family)}", folder, **({flag: value} if flag == "aggregation" else {}))
        config = json.loads((folder / CONFIG).read_text())
        assert config["config"][flag] == value
        base, reason = plain_base(config)
        assert base is not None
        assert reason is None
        found = run_lines(plain_lines(model, base, str(folder / "adapter"), image(tmp_path)))
        assert (found - model.embed([image(tmp_path)])).abs().max() <= 1e-4
    assert {flag for flag, allowed in PLAIN["clip_reid"].items() if len(allowed) > 1} == {"aggregation"}


def test_what_is_not_on_the_list_is_not_merged_either() -> None:
    with pytest.raises(UserError, match=r"--format merged: the method magic is not among those .*; take --format onnx"):
        check_merged(config_of(method="magic"))
