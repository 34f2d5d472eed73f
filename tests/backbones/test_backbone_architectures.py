"""Published architectures with few blocks: each of open_clip's names, and transformers' published configs, in fp32."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from tiny_models import randomise
from torch import Tensor, nn

from clipreid.backbones import load_backbone
from clipreid.backbones.build import build
from clipreid.backbones.openclip import convert, try_out
from clipreid.errors import UserError

TOLERANCE = 1e-4
DEPTH = 1  # block, instead of 12 to 48; all widths, heads and activations as published
slow = pytest.mark.slow


def same(what: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1  # features worth comparing
    assert (ours - theirs).abs().max() <= TOLERANCE, what


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes open_clip's model of a name with `DEPTH` blocks and a small vocabulary, weights at random."""

    def make(name: str, vocabulary: int = 100) -> Any:
        config = open_clip.get_model_config(name)
        if "siglip" in config["vision_cfg"].get("timm_model_name", ""):
            monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=DEPTH))
        vision = {**config["vision_cfg"], "layers": DEPTH}
        text = {**config["text_cfg"], "layers": DEPTH, "vocab_size": vocabulary}
        return randomise(open_clip.create_model(name, vision_cfg=vision, text_cfg=text))

    return make


def is_plain(name: str) -> bool:
    return name.startswith("ViT-") and "CLIPA" not in name


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if is_plain(name)])
def test_open_clip_names_that_are_supported(name: str) -> None:
    """Full depth, on tensors without data: what the towers are is what open_clip's config says."""
    config = open_clip.get_model_config(name)
    vision, text = try_out(name, config)
    v, t = config["vision_cfg"], config["text_cfg"]
    siglip = "SigLIP" in name
    assert vision.pooling == ("attention" if siglip else "cls")
    assert vision.image_size == (v["image_size"], v["image_size"])
    assert f"-{vision.patch_size}" in name
    assert vision.embed_dim == text.embed_dim == config["embed_dim"]
    assert (text.vocab_size, text.context_length, text.width) == (t["vocab_size"], t["context_length"], t["width"])
    assert (text.depth, text.heads, text.causal) == (t["layers"], t["heads"], not siglip)
    assert vision.eps == text.eps == (1e-6 if siglip else 1e-5)
    if not siglip:
        assert (vision.depth, vision.width) == (v["layers"], v["width"])
        assert (vision.activation == "quick_gelu") == (text.activation == "quick_gelu") == ("quickgelu" in name)
    assert "SO400M" not in name or (vision.width, vision.mlp_width, vision.heads, vision.depth) == (1152, 4304, 16, 27)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coca_base", r"it is a captioning model \(CoCa\)"),
        ("coca_roberta-ViT-B-32", r"it is a captioning model \(CoCa\)"),
        ("roberta-ViT-B-32", "its text tower is roberta-base, not CLIP's or SigLIP's"),
        ("nllb-clip-base-siglip", "its text tower is facebook/nllb-200-distilled-600M, not"),
        ("EVA02-B-16", "its image tower is timm's Eva, not SigLIP's ViT"),
        ("PE-Core-bigG-14-448", "its image tower is timm's Eva, not SigLIP's ViT"),
        ("MobileCLIP2-S0", "its image tower is timm's FastVit, not SigLIP's ViT"),
        ("MobileCLIP-B", r"its timm ViT is not SigLIP's \(patch tokens with positions, attention pooling\)"),
        ("ViTamin-B", r"its timm ViT is not SigLIP's \(patch tokens with positions, attention pooling\)"),
        ("convnext_base", "its image tower is timm's ConvNeXt, not SigLIP's ViT"),
        ("swin_base_patch4_window7_224", "its image tower is timm's SwinTransformer, not SigLIP's ViT"),
        ("vit_medium_patch16_gap_256", "its timm ViT is not SigLIP's"),
        ("RN50-quickgelu", "its image tower is not a ViT that pools at the CLS token"),
        ("ViT-L-14-CLIPA", "its image tower is not a ViT that pools at the CLS token"),
    ],
)
def test_open_clip_names_that_are_refused(name: str, reason: str) -> None:
    """Before anything is downloaded, with what is supported."""
    with pytest.raises(UserError, match=f"open_clip model {name} cannot be converted: {reason}.*; supported are plain"):
        try_out(name, open_clip.get_model_config(name))


def test_naflex_tower_of_open_clip_is_refused() -> None:
    config = open_clip.get_model_config("ViT-B-16-SigLIP2-256")
    model: Any = nn.Module()
    model.visual = nn.Module()
    with torch.device("meta"):
        model.visual.trunk = timm.create_model("naflexvit_base_patch16_siglip", depth=1)
    assert config["vision_cfg"]["timm_pool"] == "map"
    with pytest.raises(UserError, match="its image tower is timm's NaFlexVit, not SigLIP's ViT"):
        convert(model, "naflex")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("ViT-B-32-quickgelu", ("quick_gelu", "quick_gelu")),
        ("ViT-L-14-quickgelu", ("quick_gelu", "quick_gelu")),
        ("ViT-L-14-worldwide", ("gelu", "gelu")),
        ("ViT-B-16-SigLIP", ("gelu", "gelu")),
        ("ViT-B-16-SigLIP2-384", ("gelu", "gelu_tanh")),
        ("ViT-B-32-SigLIP2-256", ("gelu_tanh", "gelu_tanh")),
        pytest.param("ViT-L-16-SigLIP2-256", ("gelu", "gelu_tanh"), marks=slow),
        pytest.param("ViT-SO400M-14-SigLIP", ("gelu", "gelu"), marks=slow),
        ("ViT-SO400M-14-SigLIP-384", ("gelu", "gelu")),
        pytest.param("ViT-SO400M-14-SigLIP2-378", ("gelu", "gelu_tanh"), marks=slow),
        pytest.param("ViT-SO400M-16-SigLIP2-256", ("gelu_tanh", "gelu_tanh"), marks=slow),
        ("ViT-SO400M-16-SigLIP-i18n-256", ("gelu_tanh", "gelu")),
        pytest.param("ViT-gopt-16-SigLIP2-256", ("gelu_tanh", "gelu_tanh"), marks=slow),
    ],
)
def test_open_clip_features(shallow: Any, name: str, activations: tuple[str, str]) -> None:
    model = shallow(name)
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    backbone = build(convert(model, name), name, image_size=size)
    assert (backbone.image.config.activation, backbone.text.config.activation) == activations
    pixels = torch.randn(1, 3, size, size)
    ids = torch.randint(3, 98, (2, backbone.text.context_length))
    if backbone.family == "clip":
        ids[:, 9] = model.text_eos_id if backbone.text.config.eot_id is not None else 99
        model.visual.output_tokens = True
        features, patches = model.visual(pixels)
    else:
        features, patches = model.visual(pixels), model.visual.trunk.forward_features(pixels)
    tokens = backbone.tokens(pixels)
    same("image", tokens.pooled, features)
    same("patches", tokens.patches, patches)
    same("text", backbone.text.encode(ids), model.encode_text(ids))


# The fields in which the published config.json differ from the defaults of CLIPConfig and SiglipConfig.
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
GIANT = {"hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 16}
LARGE_CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
HF: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "openai/clip-vit-base-patch32": ("clip", {"patch_size": 32}, {}, {}),
    "laion/CLIP-ViT-B-32": ("clip", {"patch_size": 32, "hidden_act": "gelu"}, {"hidden_act": "gelu"}, {}),
    "openai/clip-vit-large-patch14": (
        "clip",
        {**LARGE, "patch_size": 14},
        LARGE_CLIP_TEXT,
        {"projection_dim": 768},
    ),
    "google/siglip-base-patch16-384": ("siglip", {"image_size": 384}, {}, {}),
    "google/siglip-large-patch16-256": ("siglip", {**LARGE, "image_size": 256}, LARGE, {}),
    "google/siglip-so400m-patch14-384": ("siglip", {**SO400M, "image_size": 384, "patch_size": 14}, SO400M, {}),
    "google/siglip2-base-patch32-256": ("siglip", {"image_size": 256, "patch_size": 32}, {}, {}),
    "google/siglip2-so400m-patch16-384": ("siglip", {**SO400M, "image_size": 384}, SO400M, {}),
    "google/siglip2-giant-opt-patch16-256": (
        "siglip",
        {**GIANT, "image_size": 256},
        {**SO400M, "projection_size": 1536},
        {},
    ),
}
RARE = ("google/siglip-large-patch16-256", "google/siglip2-so400m-patch16-384", "google/siglip2-giant-opt-patch16-256")


def write_hf(folder: Path, name: str) -> Any:
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    kind, vision, text, top = HF[name]
    vision = {**vision, "num_hidden_layers": DEPTH}
    text = {**text, "num_hidden_layers": DEPTH, "vocab_size": 100, "pad_token_id": 0}
    if kind == "clip":
        text |= {"eos_token_id": 99, "bos_token_id": 98}
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, **top))
    else:
        text |= {"eos_token_id": 1, "bos_token_id": None}
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text, **top))
    randomise(model).save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if name in RARE else name for name in HF])
def test_transformers_features(tmp_path: Path, name: str) -> None:
    model = write_hf(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    native = config["vision_config"]["image_size"]
    ids = torch.randint(2, 98, (2, config["text_config"]["max_position_embeddings"]))
    ids[:, 9] = 99
    for size in (native, None):
        backbone = load_backbone(f"hf:{tmp_path}", image_size=size)
        pixels = torch.randn(1, 3, *backbone.image_size)
        out = model.get_image_features(pixels, interpolate_pos_encoding=True)
        patches = out.last_hidden_state
        if backbone.family == "clip":
            patches = model.vision_model.post_layernorm(patches)[:, 1:]
        else:
            assert (backbone.image.config.activation, backbone.image.config.eps) == ("gelu_tanh", 1e-6)
        tokens = backbone.tokens(pixels)
        same("image", tokens.pooled, out.pooler_output)
        same("patches", tokens.patches, patches)
        same("text", backbone.text.encode(ids), model.get_text_features(ids).pooler_output)


def test_default_crop_is_made_of_whole_patches(tmp_path: Path) -> None:
    """256x128 would leave 4 rows and 2 columns that no patch of 14 pixels sees."""
    write_hf(tmp_path, "openai/clip-vit-large-patch14")
    backbone = load_backbone(f"hf:{tmp_path}")
    assert backbone.image_size == (252, 126)
    assert backbone.image.grid == (18, 9)
    assert load_backbone(f"hf:{tmp_path}", image_size=(256, 128)).image_size == (256, 128)
