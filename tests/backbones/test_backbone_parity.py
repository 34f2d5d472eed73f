"""Random models of both libraries against ours, as deep as the published ones and with their grids: features, patches,
texts within 1e-4 in fp32. open_clip's have the full width too, transformers' half of it, which takes a quarter of the
time."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from tiny_models import randomise
from torch import Tensor, nn

from clipreid.backbones import Backbone, load_backbone
from clipreid.backbones.build import build
from clipreid.backbones.openclip import convert

TOLERANCE = 1e-4
HALF = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}  # of ViT-B, heads of 64 as there


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1  # features worth comparing
    return (ours - theirs).abs().max().item()


def check(record: Any, case: str, **pairs: tuple[Tensor, Tensor]) -> None:
    """Every pair within the tolerance; the figures go into the report (`pytest -rP`, junit properties)."""
    for name, (ours, theirs) in pairs.items():
        found = difference(ours, theirs)
        record(f"{case}: {name}", found)
        print(f"{case}: {name} {found:.1e}")
        assert found <= TOLERANCE, f"{case}: {name} differs by {found}"


@pytest.fixture(scope="module")
def hf_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[nn.Module, Path]]]:
    """CLIP (sharded) and SigLIP2-256 with 12 layers and patches of 16, the latter with a vocabulary of 1000, saved by
    transformers."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("full-size")
    vision, text = {**HALF, "patch_size": 16}, {**HALF, "eos_token_id": 49407}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    vision, text = {**HALF, "image_size": 256}, {**HALF, "vocab_size": 1000}
    siglip = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    randomise(clip).save_pretrained(folder / "clip", max_shard_size="100MB")
    randomise(siglip).save_pretrained(folder / "siglip")
    yield {"clip": (clip, folder / "clip"), "siglip": (siglip, folder / "siglip")}
    shutil.rmtree(folder)


def hf_image(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """transformers' features [B, E], normed patches [B, N, C], normed CLS [B, C] for CLIP."""
    out = model.get_image_features(pixels, interpolate_pos_encoding=True)
    x = out.last_hidden_state
    if model.config.model_type == "siglip":  # already normed
        return out.pooler_output, x, None
    x = model.vision_model.post_layernorm(x)
    return out.pooler_output, x[:, 1:], x[:, 0]


@torch.no_grad()
@pytest.mark.parametrize(("family", "size"), [("clip", 224), ("clip", (256, 128)), ("siglip", 256)])
def test_transformers_image(hf_models: Any, record_property: Any, family: str, size: Any) -> None:
    model, folder = hf_models[family]
    backbone = load_backbone(f"hf:{folder}", image_size=size)
    pixels = torch.randn(2, 3, *backbone.image_size)
    tokens = backbone.tokens(pixels)
    pooled, patches, cls = hf_image(model, pixels)
    pairs = {"features": (tokens.pooled, pooled), "patches": (tokens.patches, patches)}
    if tokens.cls is not None and cls is not None:
        pairs["cls"] = (tokens.cls, cls)
    check(record_property, f"transformers {family} {size}", **pairs)


@torch.no_grad()
def test_transformers_siglip_non_square_and_text(hf_models: Any, record_property: Any) -> None:
    model, folder = hf_models["siglip"]
    backbone = load_backbone(f"hf:{folder}")
    assert backbone.image_size == (256, 128)
    pixels, ids = torch.randn(2, 3, 256, 128), torch.randint(0, 1000, (3, 64))
    pooled, patches, _ = hf_image(model, pixels)
    tokens = backbone.tokens(pixels)
    check(
        record_property,
        "transformers siglip (256, 128)",
        features=(tokens.pooled, pooled),
        patches=(tokens.patches, patches),
        text=(backbone.text.encode(ids), model.get_text_features(ids).pooler_output),
    )
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert backbone.logit_bias == pytest.approx(model.logit_bias.item())


@torch.no_grad()
def test_transformers_clip_text(hf_models: Any, record_property: Any) -> None:
    model, folder = hf_models["clip"]
    backbone = load_backbone(f"hf:{folder}")
    ids = clip_ids()
    check(
        record_property,
        "transformers clip",
        text=(backbone.text.encode(ids), model.get_text_features(ids).pooler_output),
    )
    check_prompt_path(backbone, ids)


@torch.no_grad()
def test_stride_12_against_transformers_encoder(hf_models: Any, record_property: Any) -> None:
    """Overlapping patches are ours alone, so transformers' own parts are put together with stride 12."""
    model, folder = hf_models["clip"]
    backbone = load_backbone(f"hf:{folder}", stride=12, positions="bilinear")
    assert backbone.image.grid == (21, 10)
    pixels = torch.randn(2, 3, 256, 128)
    tower = model.vision_model
    patches = nn.functional.conv2d(pixels, tower.embeddings.patch_embedding.weight, stride=12)
    cls = tower.embeddings.class_embedding.expand(2, 1, -1)
    x = torch.cat([cls, rearrange(patches, "b c h w -> b (h w) c")], dim=1)
    table = tower.embeddings.position_embedding.weight
    square = rearrange(table[1:], "(h w) c -> 1 c h w", h=14)
    resized = nn.functional.interpolate(square, (21, 10), mode="bilinear")
    x = x + torch.cat([table[:1], rearrange(resized, "1 c h w -> (h w) c")])
    x = tower.post_layernorm(tower.encoder(tower.pre_layrnorm(x)).last_hidden_state)
    tokens = backbone.tokens(pixels)
    check(
        record_property,
        "stride 12, bilinear",
        patches=(tokens.patches, x[:, 1:]),
        features=(tokens.pooled, model.visual_projection(x[:, 0])),
    )


def clip_ids() -> Tensor:
    """Three texts of different lengths, as CLIP tokenises: SOT, words, EOT, zeros."""
    ids = torch.zeros(3, 77, dtype=torch.long)
    for row, length in enumerate((3, 9, 75)):
        ids[row, 0] = 49406
        ids[row, 1 : 1 + length] = torch.randint(1, 49000, (length,))
        ids[row, 1 + length] = 49407
    return ids


def check_prompt_path(backbone: Backbone, ids: Tensor) -> None:
    """Embeddings in, cut behind EOT (causal) == token ids in, full length."""
    text = backbone.text
    pool = text.pool_index(ids)
    whole = text(text.embed(ids), pool)
    for row in range(len(ids)):
        end = int(pool[row]) + 1
        cut = text(text.embed(ids[row : row + 1, :end]), pool[row : row + 1])
        assert (cut[0] - whole[row]).abs().max() <= 1e-5
    assert (text.encode(ids) - whole).abs().max() <= 1e-5


@torch.no_grad()
def test_open_clip_vit_b_16(record_property: Any) -> None:
    import open_clip

    torch.manual_seed(0)
    model: Any = randomise(open_clip.create_model("ViT-B-16-quickgelu"))
    model.visual.output_tokens = True
    backbone = build(convert(model, "ViT-B-16-quickgelu"), "test", image_size=224)
    assert backbone.image.config.activation == backbone.text.config.activation == "quick_gelu"
    pixels, ids = torch.randn(2, 3, 224, 224), clip_ids()
    features, patches = model.visual(pixels)
    tokens = backbone.tokens(pixels)
    check(
        record_property,
        "open_clip ViT-B-16-quickgelu",
        features=(tokens.pooled, features),
        patches=(tokens.patches, patches),
        text=(backbone.text.encode(ids), model.encode_text(ids)),
    )
    texts = ["A photo of a X X X X person.", "dog"]
    their_ids = open_clip.get_tokenizer("ViT-B-16-quickgelu")(texts)
    assert (backbone.encode_text(texts) - model.encode_text(their_ids)).abs().max() <= TOLERANCE
    assert backbone.tokenizer is not None
    assert backbone.tokenizer.eot(their_ids).tolist() == [11, 2]
    check_prompt_path(backbone, ids)


@torch.no_grad()
def test_open_clip_siglip2(record_property: Any) -> None:
    """A vocabulary of 1000 for memory; token ids in, as its tokenizer is a download."""
    import open_clip

    torch.manual_seed(0)
    name = "ViT-B-16-SigLIP2-256"
    text_config = {**open_clip.get_model_config(name)["text_cfg"], "vocab_size": 1000}
    model: Any = randomise(open_clip.create_model(name, text_cfg=text_config))
    backbone = build(convert(model, name), "test", image_size=256)
    assert (backbone.image.config.activation, backbone.text.config.activation) == ("gelu", "gelu_tanh")
    assert backbone.image.config.eps == backbone.text.config.eps == 1e-6
    pixels, ids = torch.randn(2, 3, 256, 256), torch.randint(0, 1000, (3, 64))
    tokens = backbone.tokens(pixels)
    check(
        record_property,
        f"open_clip {name}",
        features=(tokens.pooled, model.visual(pixels)),
        patches=(tokens.patches, model.visual.trunk.forward_features(pixels)),
        text=(backbone.text.encode(ids), model.encode_text(ids)),
    )
    assert backbone.logit_bias == pytest.approx(model.logit_bias.item())
