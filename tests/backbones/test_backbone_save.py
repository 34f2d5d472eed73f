"""`save_backbone`: a folder that transformers and we read alike; square position tables."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_tokenizer

from clipreid.backbones import (
    Backbone,
    FastTokenizer,
    TextConfig,
    VisionConfig,
    load_backbone,
    resize_positions,
    save_backbone,
    square_backbone,
    square_positions,
)

EOT = tiny_tokenizer().token_to_id("<eot>")


def tiny_backbone(family: str, image_size: tuple[int, int] = (64, 64), **changes: Any) -> Backbone:
    clip = family == "clip"
    size = {"width": 32, "heads": 4, "mlp_width": 48, "embed_dim": 24 if clip else 32}
    vision = VisionConfig(
        image_size, 8, depth=3, pooling="cls" if clip else "attention", activation="gelu", eps=1e-4, **size
    )
    text = TextConfig(EOT + 1, 16, depth=2, causal=clip, activation="gelu_tanh", eot_id=EOT if clip else None, **size)
    tokenizer = FastTokenizer(tiny_tokenizer(), 16, causal=clip, eot_id=EOT, lower=not clip)
    options = {"tokenizer": tokenizer, "logit_scale": 17.0, "logit_bias": 0.0 if clip else -3.0, **changes}
    backbone = Backbone.from_configs(vision, text, **options)
    randomise(backbone)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_and_we_read_it_alike(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, CLIPModel, SiglipModel

    backbone = tiny_backbone(family, mean=(0.3, 0.4, 0.5), raw_logits=True, interpolation="bilinear")
    save_backbone(backbone, tmp_path / "out", dtype=dtype, image_size=(64, 32))
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    stored = copy.deepcopy(backbone).to(dtype).float()  # what the stored weights can still say

    model: Any = (CLIPModel if family == "clip" else SiglipModel).from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    pixels, texts = torch.randn(2, 3, 64, 64), ["a photo of a red hat", "person with bag"]
    theirs = model.eval().get_image_features(pixels).pooler_output
    assert (stored.encode_image(pixels) - theirs).abs().max() <= 1e-5
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    ids = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert (stored.encode_text(texts) - model.get_text_features(ids).pooler_output).abs().max() <= 1e-5
    assert model.logit_scale.exp().item() == pytest.approx(17.0, rel=1e-3)

    again = load_backbone(f"hf:{tmp_path / 'out'}", image_size=64)
    assert load_backbone(f"hf:{tmp_path / 'out'}").image_size == (64, 32)
    assert again.image.config == backbone.image.config
    assert again.text.config == backbone.text.config
    assert (again.mean, again.std, again.raw_logits) == (backbone.mean, backbone.std, True)
    assert again.logit_bias == backbone.logit_bias
    assert again.interpolation == "bilinear"
    torch.testing.assert_close(again.encode_image(pixels), stored.encode_image(pixels))
    torch.testing.assert_close(again.encode_text(texts), stored.encode_text(texts))


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_tower_trained_on_a_tall_grid_is_saved_square(family: str, tmp_path: Path) -> None:
    """The tiny backbones' way: trained at 16x8 patches, published at 16x16, read back at 16x8."""
    trained = tiny_backbone(family, (128, 64))
    with pytest.raises(ValueError, match=r"square images .* has 128x64, stride 8: pass it through square_back"):
        save_backbone(trained, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    save_backbone(square_backbone(trained, 128), tmp_path / "out", image_size=(128, 64))
    again = load_backbone(f"hf:{tmp_path / 'out'}")
    assert again.image_size == trained.image_size == (128, 64)
    pixels = torch.randn(2, 3, 128, 64)
    torch.testing.assert_close(again.encode_image(pixels), trained.encode_image(pixels), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", [0, 1])
def test_square_positions_is_the_exact_way_back(cls: int) -> None:
    table = torch.randn(cls + 16 * 8, 24)
    square = square_positions(table, (16, 8), (16, 16))
    assert square.shape == (cls + 256, 24)
    assert square.dtype == torch.float32
    assert (resize_positions(square, (16, 16), (16, 8)) - table).abs().max() <= 1e-5
    assert torch.equal(square[:cls], table[:cls])
    # A smooth table stays smooth: neighbours in the square differ no more than in the table.
    ramp = torch.linspace(-1, 1, 8).repeat(16)[:, None]
    steps = square_positions(ramp, (16, 8), (16, 16)).reshape(16, 16).diff(dim=1)
    assert steps.abs().max() <= 2 / 7


def test_square_positions_refusals() -> None:
    with pytest.raises(ValueError, match=r"no 8x8 position table resizes to this 16x8 one \(best residual .*at least"):
        square_positions(torch.randn(128, 4), (16, 8), (8, 8))
    with pytest.raises(ValueError, match="a position table with 100 rows does not fit a 16x8 grid"):
        square_positions(torch.randn(100, 4), (16, 8), (16, 16))


def test_resize_positions() -> None:
    """Native grid untouched; CLS row kept; bicubic equals transformers, bilinear averages neighbours."""
    table = torch.randn(1 + 16, 3)
    assert resize_positions(table, (4, 4), (4, 4)) is table
    resized = resize_positions(table, (4, 4), (6, 3))
    assert resized.shape == (19, 3)
    assert torch.equal(resized[0], table[0])
    halved = resize_positions(table, (4, 4), (4, 2), "bilinear")[1:].reshape(4, 2, 3)
    torch.testing.assert_close(halved, table[1:].reshape(4, 2, 2, 3).mean(dim=2))


def test_what_the_format_cannot_express(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    strided = Backbone.from_configs(
        VisionConfig((64, 64), 8, stride=4, width=32, depth=1, heads=4, mlp_width=32, embed_dim=24),
        TextConfig(20, 16, 32, 1, 4, 32, 24),
    )
    adapted = tiny_backbone("clip")
    get_peft_model(adapted.image, LoraConfig(target_modules=["q_proj"]))
    mixed = tiny_backbone("clip")
    mixed.text = Backbone.from_configs(mixed.image.config, TextConfig(20, 16, 32, 1, 4, 32, 24, causal=False)).text
    misread = tiny_backbone("clip")
    misread.text.config = TextConfig(20, 16, 32, 1, 4, 32, 24, eot_id=2)
    foreign = tiny_backbone("clip")
    foreign.tokenizer = lambda texts: torch.zeros(1)
    for backbone, message in (
        (strided, "has 64x64, stride 4: pass it through square_backbone first"),
        (adapted, "the towers carry an adapter: merge_and_unload it first"),
        (mixed, "transformers pairs a CLS image tower with a causal text tower"),
        (misread, "transformers misreads eos_token_id 2"),
        (foreign, "a function cannot be stored: set backbone.tokenizer to a FastTokenizer or None"),
    ):
        with pytest.raises(ValueError, match=message):
            save_backbone(backbone, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_largest_id_rule_survives(tmp_path: Path) -> None:
    """OpenAI's own checkpoints pool at the largest id; config.json says so with eos_token_id 2."""
    backbone = tiny_backbone("clip", tokenizer=None)
    backbone.text.config = TextConfig(**{**vars(backbone.text.config), "eot_id": None})
    save_backbone(backbone, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == 2
    assert load_backbone(f"hf:{tmp_path}").text.config.eot_id is None
