"""Folders that `save_pretrained` of transformers 4 and 5 wrote, whole and in part, and what is said of the others."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_json, tiny_hf_model, tiny_tokenizer
from torch import nn

from clipreid.backbones import Backbone, load_backbone
from clipreid.errors import UserError

Folder = tuple[Path, nn.Module]
EOT = tiny_tokenizer().token_to_id("<eot>")


def assert_same_features(backbone: Backbone, model: Any) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    ids = torch.randint(3, EOT, (2, 16))
    ids[:, 5] = EOT
    with torch.no_grad():
        image = model.get_image_features(pixels).pooler_output
        text = model.get_text_features(ids).pooler_output
        torch.testing.assert_close(backbone.encode_image(pixels), image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.text.encode(ids), text, atol=1e-5, rtol=1e-5)


def version_4(folder: Path) -> dict[str, Any]:
    """Rewrite config.json and the weights as transformers 4 wrote them."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    generation = {
        "bad_words_ids": None,
        "num_beams": 1,
        "is_decoder": False,
        "torchscript": False,
        "use_bfloat16": False,
    }
    for part in ("text_config", "vision_config"):
        config[part] |= {**generation, "torch_dtype": None, "transformers_version": "4.24.0", "dropout": 0.0}
    config["torch_dtype"] = config.pop("dtype")
    config |= {"transformers_version": None, "_commit_hash": None, "initializer_factor": 1.0}
    file.write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    save_file(state, folder / "model.safetensors")
    return config


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_version_4(family: str, request: pytest.FixtureRequest) -> None:
    folder, model = request.getfixturevalue(f"{family}_folder")
    config = version_4(folder)
    if family == "clip":  # what OpenAI's repositories have to this day: transformers then pools at the largest id
        config["text_config"]["eos_token_id"] = 2
        (folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(f"hf:{folder}", image_size=64)
    assert_same_features(backbone, model)
    assert backbone.text.config.eot_id is None


@pytest.mark.parametrize("short", [{}, None])
def test_version_4_with_config_dicts(clip_folder: Folder, short: Any) -> None:
    """Older still: `text_config_dict` and `vision_config_dict` count, beside nested configs that say less."""
    folder, model = clip_folder
    config = version_4(folder)
    for part in ("text_config", "vision_config"):
        config[f"{part}_dict"] = config[part]
        config[part] = short
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_features(load_backbone(f"hf:{folder}", image_size=64), model)


def test_processor_of_version_5(clip_folder: Folder) -> None:
    """Version 5 keeps the image's mean and std inside processor_config.json."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    folder, _ = clip_folder
    (folder / "preprocessor_config.json").unlink()
    images = CLIPImageProcessor(image_mean=[0.6, 0.5, 0.4], image_std=[0.3, 0.2, 0.1])
    CLIPProcessor(image_processor=images, tokenizer=CLIPTokenizer()).save_pretrained(folder / "processor")
    assert not (folder / "processor" / "preprocessor_config.json").exists()
    (folder / "processor" / "processor_config.json").rename(folder / "processor_config.json")
    backbone = load_backbone(f"hf:{folder}")
    assert (backbone.mean, backbone.std) == ((0.6, 0.5, 0.4), (0.3, 0.2, 0.1))
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert load_backbone(f"hf:{folder}").mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(("resample", "word"), [(2, "bilinear"), (3, "bicubic"), (None, "bicubic")])
def test_images_are_resized_as_the_folder_says(clip_folder: Folder, resample: int | None, word: str) -> None:
    folder, _ = clip_folder
    settings = {} if resample is None else {"resample": resample}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_backbone(f"hf:{folder}").interpolation == word


def test_resize_filter_that_nobody_knows(clip_folder: Folder) -> None:
    folder, _ = clip_folder
    (folder / "preprocessor_config.json").write_text('{"resample": 0}')
    with pytest.raises(UserError, match=r"resample is 0; known are 2 \(bilinear\) and 3 \(bicubic\)"):
        load_backbone(f"hf:{folder}")


@pytest.mark.parametrize(
    "name",
    ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPTextModel", "SiglipVisionModel", "SiglipTextModel"],
)
def test_one_tower_alone_is_refused(tmp_path: Path, name: str) -> None:
    import transformers

    family, part = ("clip" if name.startswith("CLIP") else "siglip"), ("vision" if "Vision" in name else "text")
    whole: Any = tiny_hf_model(family)
    getattr(transformers, name)(getattr(whole.config, f"{part}_config")).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"one tower alone \(model_type '{family}_{part}_model'\), and both are needed"
    ):
        load_backbone(f"hf:{tmp_path}")


def test_weights_that_could_run_code_are_refused(clip_folder: Folder) -> None:
    folder, model = clip_folder
    (folder / "model.safetensors").unlink()
    old = folder / "pytorch_model.bin"
    torch.save({"weights": model.state_dict(), "code": Path}, old)
    with pytest.raises(
        UserError, match=r"pytorch_model.bin holds more than tensors, .*; write it again with transform"
    ):
        load_backbone(f"hf:{folder}")
    old.write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model.bin holds more than tensors, or is damaged"):
        load_backbone(f"hf:{folder}")
    old.rename(folder / "pytorch_model.bin.index.json")
    with pytest.raises(UserError, match=r"weights in several pytorch_model-\*.bin files are not read; write it again"):
        load_backbone(f"hf:{folder}")


def test_folder_of_open_clip(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"is needed: this is a folder of open_clip's, open_clip:{tmp_path}"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_quickgelu_mismatch_of_openai_weights_is_refused(
    clip_folder: Folder, monkeypatch: pytest.MonkeyPatch, tower: str
) -> None:
    folder, _ = clip_folder
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", **{tower: {**config[tower], "hidden_act": "gelu"}})
    assert not load_backbone(f"hf:{folder}").raw_logits  # not known to be OpenAI's: the config is believed
    message = rf"{tower} in config.json says gelu, but the weights of openai/clip-tiny were trained with QuickGELU"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    with pytest.raises(UserError, match=rf"hf:openai/clip-tiny: {message}.*; set \"hidden_act\": \"quick_gelu\" there"):
        load_backbone("hf:openai/clip-tiny")
    edit_json(folder / "config.json", _name_or_path="openai/clip-tiny")  # as transformers 4 writes
    with pytest.raises(UserError, match=message):
        load_backbone(f"hf:{folder}")
    edit_json(folder / "config.json", **{tower: config[tower]})
    assert not load_backbone(f"hf:{folder}").raw_logits  # it may have been trained further
