"""Attention rollout: equal to one computed head by head, true to adapters, and pointing where attention points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipreid.backbones import (
    ImageBackbone,
    ImageTower,
    Tokens,
    VisionConfig,
    VisionTower,
    attention_rollout,
    load_backbone,
)
from clipreid.hooks import TokenHook
from clipreid.model import ReIDModel

FAMILIES = ("clip", "siglip")
POOLING = {"clip": "cls", "siglip": "attention"}


def make(family: str, depth: int = 3) -> VisionTower:
    """Patches of 4 pixels in a 4 x 2 grid, weights far from uniform attention."""
    width = 16
    config = VisionConfig((16, 8), 4, None, width, depth, 2, 32, width, POOLING[family])  # type: ignore[arg-type]
    tower = VisionTower(config)
    for name, parameter in tower.named_parameters():
        if "proj" in name or "position" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return tower.eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def slow_rollout(tower: VisionTower, image: Tensor) -> Tensor:
    """[3, H, W] -> [h, w]: the blocks one by one, head by head, token by token."""
    x = tower.embeddings(image[None])
    x = tower.pre_layrnorm(x) if tower.has_cls else x
    rolled = torch.eye(x.shape[1])
    for block in tower.encoder.layers:
        normed, heads = block.layer_norm1(x)[0], block.self_attn.heads
        q, k = block.self_attn.q_proj(normed).chunk(heads, 1), block.self_attn.k_proj(normed).chunk(heads, 1)
        mean = sum(torch.stack([row @ k[h].T / k[h].shape[1] ** 0.5 for row in q[h]]).softmax(1) for h in range(heads))
        rolled = (0.5 * mean / heads + 0.5 * torch.eye(len(normed))) @ rolled
        x = block(x)
    if tower.has_cls:
        seen = rolled[0, 1:]
    else:
        x = tower.post_layernorm(x)
        _, probe = tower.head.attention(tower.head.probe, x, x, need_weights=True)  # torch's own, mean over heads
        seen = probe[0, 0] @ rolled
    return (seen / seen.sum()).view(tower.grid)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_rollout_by_hand_and_leaves_the_tower_alone(family: str) -> None:
    tower, pixels = make(family), images()
    before = tower(pixels).pooled
    maps = attention_rollout(tower, pixels)
    torch.testing.assert_close(maps, torch.stack([slow_rollout(tower, image) for image in pixels]))
    assert maps.shape == (3, 4, 2)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))
    assert maps.std((1, 2)).min() > 0.005  # not the same everywhere, or equality would say little
    assert not any(m._forward_pre_hooks for m in tower.modules())
    assert torch.equal(tower(pixels).pooled, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("patch", [0, 5])
def test_attention_forced_onto_one_patch_shows_that_patch(family: str, patch: int) -> None:
    tower = make(family, depth=2)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.zero_()
        tower.embeddings.position_embedding.weight[patch + tower.has_cls, 0] = 1e3  # stands out in channel 0
        for block in tower.encoder.layers:
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                projection.weight.zero_()
                projection.bias.zero_()
            block.self_attn.q_proj.bias.fill_(50.0)
            block.self_attn.k_proj.weight[:, 0] = 1.0
    for image in attention_rollout(tower, images()):
        assert image.argmax() == patch
        assert image.flatten()[patch] > (0.99 if family == "clip" else 0.6)  # SigLIP's probe looks at others, too


class Shift(TokenHook):
    """Adds what it is told of the images to every channel of the embedded tokens."""

    def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        return x + about["shift"][:, None] if layer == 0 else x


class Drop(TokenHook):
    def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        return x[:, :-1] if layer == 1 else x


def test_a_hook_may_change_tokens_but_not_their_number() -> None:
    tower, pixels = make("clip"), images()
    plain = attention_rollout(tower, pixels)
    shift = torch.arange(16.0) * torch.tensor([[0.0], [1.0], [2.0]])
    changed = attention_rollout(tower, pixels, (Shift(),), {"shift": shift})
    torch.testing.assert_close(plain[0], changed[0])
    assert not torch.allclose(plain[1], changed[1])
    assert not torch.allclose(plain[2], changed[2])
    with pytest.raises(ValueError, match="saw 8 tokens instead of 9"):
        attention_rollout(tower, pixels, (Drop(),))
    assert not any(m._forward_pre_hooks for m in tower.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_looks_through_its_adapters(family: str, tiny_folder: Callable[[str], Path]) -> None:
    model = ReIDModel(load_backbone(f"hf:{tiny_folder(family)}"), "lora").eval()
    crops = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8)
    before = model.attention_maps(crops)
    assert before is not None
    torch.testing.assert_close(before, attention_rollout(model.tower, model.normalise(crops)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "q_proj" in name:
            parameter.data.normal_()
    after = model.attention_maps(crops)
    assert after is not None
    assert not torch.allclose(before, after)


def test_a_wrapped_tower_has_none() -> None:
    class Flat(ImageTower):
        image_size, stride, embed_dim, pooling = (8, 4), 4, 3, "mean"

        def tokens(self, pixels: Tensor) -> Tokens:
            return Tokens(None, pixels.flatten(2).mT, (8, 4), {}, pixels.mean((2, 3)))

    backbone = ImageBackbone(Flat(), name="flat", mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")
    assert ReIDModel(backbone, "head").attention_maps(torch.zeros(1, 3, 8, 4, dtype=torch.uint8)) is None
