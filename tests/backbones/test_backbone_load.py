"""Names and folders: what loads, with which numbers, and what is said when it does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_hf_model, write_tiny_folder
from torch import nn

from clipreid.backbones import load as load_module
from clipreid.backbones import load_backbone
from clipreid.errors import UserError

Folder = tuple[Path, nn.Module]


def features(backbone: Any, ids: Any = None) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return backbone.encode_image(torch.randn(2, 3, *backbone.image_size))


def test_folder_gives_towers_tokenizer_and_numbers(clip_folder: Folder) -> None:
    folder, model = clip_folder
    edit_json(folder / "config.json", clipreid={"image_size": [64, 32], "raw_logits": True})
    backbone = load_backbone(f"hf:{folder}")
    assert backbone.name == f"hf:{folder}"
    assert (backbone.family, backbone.image_size, backbone.raw_logits) == ("clip", (64, 32), True)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert backbone.logit_bias == 0.0
    assert all(p.dtype == torch.float32 and p.requires_grad for p in backbone.parameters())
    storages = [p.untyped_storage().data_ptr() for p in backbone.parameters()]
    assert len(set(storages)) == len(storages)
    assert backbone.encode_text(["a red hat", "a photo of a person"]).shape == (2, 24)
    assert load_backbone(f"hf:{folder}", image_size=64).image_size == (64, 64)
    assert load_backbone(f"hf:{folder}", image_size=(48, 40)).image.grid == (6, 5)


def test_without_a_word_the_crop_is_256x128_and_logits_are_cosine(siglip_folder: Folder) -> None:
    backbone = load_backbone(f"hf:{siglip_folder[0]}")
    assert backbone.image_size == (256, 128)
    assert not backbone.raw_logits
    (siglip_folder[0] / "preprocessor_config.json").unlink()
    assert load_backbone(f"hf:{siglip_folder[0]}").mean == (0.5, 0.5, 0.5)


def test_openai_weights_in_a_folder(clip_folder: Folder, siglip_folder: Folder) -> None:
    assert not load_backbone(f"hf:{clip_folder[0]}").raw_logits
    assert load_backbone(f"hf:{clip_folder[0]}", raw_logits=True).raw_logits
    with pytest.raises(UserError, match=r"--raw-logits is for OpenAI's CLIP weights, hf:.* is a SigLIP: leave it out"):
        load_backbone(f"hf:{siglip_folder[0]}", raw_logits=True)
    with pytest.raises(UserError, match=r"--raw-logits .* timm:vit_small is an image-only tower"):
        load_backbone("timm:vit_small", raw_logits=True)


def test_activation_and_eps_come_from_the_config(tmp_path: Path) -> None:
    model: Any = tiny_hf_model("clip", hidden_act="gelu", layer_norm_eps=0.25)
    model.save_pretrained(tmp_path / "m")
    backbone = load_backbone(f"hf:{tmp_path / 'm'}", image_size=64)
    assert backbone.image.config.activation == "gelu"
    assert backbone.text.config.activation == "quick_gelu"  # transformers' default, not in the file
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(pixels), model.get_image_features(pixels).pooler_output)


@pytest.mark.parametrize("layout", ["transformers 4", "half precision", "sharded", "pytorch_model.bin"])
def test_layouts_of_weights(clip_folder: Folder, layout: str) -> None:
    folder, model = clip_folder
    expected = features(load_backbone(f"hf:{folder}"))
    state, tolerance = load_file(folder / "model.safetensors"), 1e-6
    if layout == "transformers 4":
        state["vision_model.embeddings.position_ids"] = torch.arange(65)[None]
        state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    if layout == "half precision":
        state, tolerance = {key: value.half() for key, value in state.items()}, 2e-2
    (folder / "model.safetensors").unlink()
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size="50KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif layout == "pytorch_model.bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    backbone = load_backbone(f"hf:{folder}")
    assert (features(backbone) - expected).abs().max() <= tolerance
    assert backbone.image.post_layernorm.weight.dtype == torch.float32
    if layout == "sharded":
        next(folder.glob("model-*.safetensors")).unlink()
        with pytest.raises(UserError, match=r"model-0000\d-of-\d+.safetensors is missing"):
            load_backbone(f"hf:{folder}")


def test_standalone_image_tower_is_recognised_and_refused(tmp_path: Path) -> None:
    from clipreid.backbones.hf import split_state

    model: Any = tiny_hf_model("clip")
    alone = model.vision_model.state_dict()
    version_4 = {f"vision_model.{key}": value for key, value in alone.items()}
    for state in (alone, version_4):
        image, text, rest = split_state(state)
        assert image.keys() == alone.keys()
        assert text == rest == {}
    model.save_pretrained(tmp_path)
    save_file({k: v.contiguous() for k, v in alone.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has no weights for the text tower; a folder with both is needed"):
        load_backbone(f"hf:{tmp_path}")


def break_folder(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how in ("missing weight", "extra weight", "shape"):
        state = load_file(weights)
        key = "vision_model.encoder.layers.1.mlp.fc1.bias"
        if how == "missing weight":
            del state[key]
        elif how == "extra weight":
            state["vision_model.encoder.layers.0.gamma"] = torch.zeros(3)
        else:
            state[key] = torch.zeros(5)
        save_file(state, weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "bad json":
        (folder / "config.json").write_text("{")
    elif how == "bad tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif how == "no eot":
        edit_json(folder / "tokenizer_config.json", eos_token=None)
        config = json.loads((folder / "config.json").read_text())
        edit_json(folder / "config.json", text_config={**config["text_config"], "eos_token_id": 2})
    else:
        edit_json(folder / "config.json", model_type=how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "missing weight",
            r"image tower: weights missing: encoder.layers.1.mlp.fc1.bias; this is not the plain",
        ),
        ("extra weight", r"image tower: weights not understood: encoder.layers.0.gamma"),
        ("shape", r"image tower: weights of another shape: encoder.layers.1.mlp.fc1.bias"),
        ("no weights", r"has no weights: model.safetensors \(or shards with model.safetensors.index.json\)"),
        ("no config", r"config.json is missing; a transformers-format folder is needed"),
        ("bad json", r"config.json is not valid JSON"),
        ("bad tokenizer", r"tokenizer.json is not a tokenizer of the `tokenizers` library"),
        ("no eot", r"no end-of-text token: set eos_token in tokenizer_config.json"),
        (
            "siglip2",
            r"is a NaFlex SigLIP2 .* take a fixed-resolution one such as hf:google/siglip2-base-patch16-256",
        ),
        ("bert", r"config.json has model_type 'bert'; supported: clip, siglip"),
    ],
)
def test_broken_folders(clip_folder: Folder, how: str, message: str) -> None:
    break_folder(clip_folder[0], how)
    with pytest.raises(UserError, match=message):
        load_backbone(f"hf:{clip_folder[0]}")


def test_unsupported_siglip_and_activation(tmp_path: Path) -> None:
    tiny_hf_model("siglip", vision_use_head=False).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match="this SigLIP has no pooling head"):
        load_backbone(f"hf:{tmp_path / 'headless'}")
    tiny_hf_model("clip", hidden_act="relu").save_pretrained(tmp_path / "relu")
    with pytest.raises(UserError, match="activation 'relu'; supported: quick_gelu, gelu, gelu_pytorch_tanh"):
        load_backbone(f"hf:{tmp_path / 'relu'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 9}, r"stride=9: choose 1 to 8, the patch size of hf:"),
        ({"stride": 0}, r"stride=0: choose 1 to 8"),
        ({"image_size": (64, 4)}, r"image_size 64x4 is smaller than one 8x8 patch"),
        ({"positions": "nearest"}, r"positions='nearest' is unknown; choose from bicubic, bilinear"),
    ],
)
def test_impossible_options(clip_folder: Folder, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(f"hf:{clip_folder[0]}", **options)


def test_options_reach_the_towers(clip_folder: Folder) -> None:
    backbone = load_backbone(f"hf:{clip_folder[0]}", image_size=(64, 32), stride=4, gradient_checkpointing=True)
    assert backbone.image.grid == (15, 7)
    assert backbone.image.stride == 4
    assert features(backbone).shape == (2, 24)
    assert backbone.image.gradient_checkpointing
    assert backbone.text.gradient_checkpointing
    bilinear = load_backbone(f"hf:{clip_folder[0]}", positions="bilinear")
    assert not torch.allclose(features(bilinear), features(load_backbone(f"hf:{clip_folder[0]}")))


def test_folder_can_be_moved(clip_folder: Folder, tmp_path: Path) -> None:
    expected = features(load_backbone(f"hf:{clip_folder[0]}"))
    shutil.move(clip_folder[0], tmp_path / "elsewhere")
    assert torch.equal(features(load_backbone(f"hf:{tmp_path / 'elsewhere'}")), expected)


def test_tiny_names_load_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=r"tiny-clip: .* is not there; reinstall clipreid, or make .*pretrain_tiny"):
        load_backbone("tiny-clip")
    write_tiny_folder(tmp_path / "tiny-clip", clipreid={"image_size": [64, 32], "raw_logits": False})
    write_tiny_folder(tmp_path / "tiny-siglip2", "siglip")
    assert load_backbone("tiny-clip").name == "tiny-clip"
    assert load_backbone("tiny-siglip2").family == "siglip"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("tiny_clip", "tiny-clip"),
        ("tiny-siglip", "tiny-siglip2"),
        ("openclip:ViT-B-16-quickgelu/openai", "open_clip:ViT-B-16-quickgelu/openai"),
        ("ViT-B-16", "open_clip:ViT-B-16/TAG"),
        ("openai/clip-vit-base-patch16", "hf:openai/clip-vit-base-patch16"),
        ("hf:", "hf:NAME"),
        ("zzz", None),
    ],
)
def test_unknown_names_list_the_valid_forms(name: str, suggestion: str | None) -> None:
    with pytest.raises(UserError) as caught:
        load_backbone(name)
    message = str(caught.value)
    assert message.startswith(f"unknown backbone {name!r}")
    for form in ("tiny-clip, tiny-siglip2 ", "open_clip:MODEL/TAG", "open_clip:FOLDER", "hf:OWNER/NAME or hf:FOLDER"):
        assert form in message
    assert ("did you mean" in message) == (suggestion is not None)
    if suggestion:
        assert f"(did you mean {suggestion}?)" in message
