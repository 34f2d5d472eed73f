"""A LoRA adapter trained on our tower is a plain peft adapter of transformers' model, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipreid.backbones import load_backbone

TARGETS = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def train_adapter(tower: nn.Module, folder: Path) -> Any:
    """A few steps that push the features about; saves the adapter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tower, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    pixels, target = torch.randn(4, 3, 64, 32), torch.randn(4, 1)
    for _ in range(4):
        optimizer.zero_grad()
        (model(pixels).pooled - target).square().mean().backward()
        optimizer.step()
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_adapter_loads_on_transformers_and_gives_the_same_features(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import CLIPVisionModel, SiglipVisionModel

    folder, _ = request.getfixturevalue(f"{family}_folder")
    backbone = load_backbone(f"hf:{folder}", image_size=(64, 32))
    pixels = torch.randn(3, 3, 64, 32)
    with torch.no_grad():
        before = backbone.tokens(pixels)
    ours = train_adapter(backbone.image, tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 2 * 6 * 3  # lora_A and lora_B of six linears in three blocks
    for key, weight in saved.items():
        assert weight.abs().max() > 0, f"dead adapter: {key}"

    theirs: Any = (CLIPVisionModel if family == "clip" else SiglipVisionModel).from_pretrained(folder)
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    loaded = {key: w for key, w in theirs.named_parameters() if "lora_" in key}
    assert len(loaded) == len(saved)
    with torch.no_grad():
        tokens = ours(pixels)
        out = theirs(pixels, interpolate_pos_encoding=True)
    assert (tokens.pooled - before.pooled).abs().max() > 0.1  # the adapter does something
    if family == "clip":
        assert (tokens.cls - out.pooler_output).abs().max() <= 1e-4
        normed = theirs.base_model.model.post_layernorm(out.last_hidden_state)
        assert (tokens.patches - normed[:, 1:]).abs().max() <= 1e-4
    else:
        assert (tokens.pooled - out.pooler_output).abs().max() <= 1e-4
        assert (tokens.patches - out.last_hidden_state).abs().max() <= 1e-4


def test_adapter_loads_again_on_our_tower(clip_folder: tuple[Path, nn.Module], tmp_path: Path) -> None:
    from peft import PeftModel

    name = f"hf:{clip_folder[0]}"
    trained = train_adapter(load_backbone(name, image_size=(64, 32)).image, tmp_path / "adapter")
    fresh: Any = PeftModel.from_pretrained(load_backbone(name, image_size=(64, 32)).image, tmp_path / "adapter").eval()
    pixels = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(fresh(pixels).pooled, trained(pixels).pooled)
        merged = fresh.merge_and_unload()
        torch.testing.assert_close(merged(pixels).pooled, trained(pixels).pooled, atol=1e-5, rtol=1e-4)
