"""The towers themselves: taps, hooks, checkpointing, initialisation, refusals."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from clipreid.backbones import Backbone, TextConfig, TextTower, VisionConfig, VisionTower
from clipreid.hooks import TokenHook

VISION = {
    "clip": VisionConfig((64, 32), 8, width=32, depth=3, heads=4, mlp_width=64, embed_dim=24),
    "siglip": VisionConfig((64, 32), 8, width=32, depth=3, heads=4, mlp_width=64, embed_dim=32, pooling="attention"),
}
TEXT = TextConfig(vocab_size=50, context_length=12, width=32, depth=2, heads=4, mlp_width=64, embed_dim=24)
BIDIRECTIONAL = TextConfig(
    vocab_size=50, context_length=12, width=32, depth=2, heads=4, mlp_width=64, embed_dim=32, causal=False
)
families = pytest.mark.parametrize("family", ["clip", "siglip"])


@families
def test_tokens_and_taps(family: str) -> None:
    tower = VisionTower(VISION[family])
    cls = family == "clip"
    tokens = tower(torch.randn(2, 3, 64, 32), taps=(1, 3))
    assert tokens.grid == tower.grid == (8, 4)
    assert tokens.patches.shape == (2, 32, 32)
    assert tokens.pooled.shape == (2, tower.embed_dim)
    assert (tokens.cls is not None) == cls
    assert {layer: tap.shape for layer, tap in tokens.taps.items()} == dict.fromkeys((1, 3), (2, 32 + cls, 32))
    # The last tap is the raw block output: the final norm turns it into the tokens.
    normed = tower.post_layernorm(tokens.taps[3])
    torch.testing.assert_close(normed[:, cls:], tokens.patches)
    if tokens.cls is not None:
        torch.testing.assert_close(tower.visual_projection(normed[:, 0]), tokens.pooled)


@families
def test_hooks_see_and_change_tokens(family: str) -> None:
    tower, cls = VisionTower(VISION[family]), family == "clip"
    pixels = torch.randn(2, 3, 64, 32)
    seen: dict[tuple[str, int], Tensor] = {}

    class Watch(TokenHook):
        def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
            return seen.setdefault(("before", layer), x)

        def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
            return seen.setdefault(("after", layer), x)

    plain = tower(pixels, taps=(1, 2, 3))
    watched = tower(pixels, taps=(1, 2, 3), hooks=(Watch(),))
    torch.testing.assert_close(watched.pooled, plain.pooled)
    embedded = tower.embeddings(pixels)
    torch.testing.assert_close(seen["before", 0], embedded)  # before CLIP's pre-norm
    torch.testing.assert_close(seen["before", 1], tower.pre_layrnorm(embedded) if cls else embedded)  # and behind it
    for layer in (1, 2, 3):
        torch.testing.assert_close(seen["after", layer], plain.taps[layer])
        if layer < 3:
            assert seen["before", layer + 1] is seen["after", layer]
    assert seen.keys() == {("before", layer) for layer in range(4)} | {("after", layer) for layer in (1, 2, 3)}

    class Drop(TokenHook):
        def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
            return x[:, :-5] if layer == 1 else x

    class Add(TokenHook):
        def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
            return torch.cat([x, x[:, -2:]], dim=1) if layer == 0 else x

    dropped = tower(pixels, taps=(1, 2), hooks=(Drop(),))
    assert dropped.taps[1].shape[1] == 27 + cls  # taps are read behind the hooks of their layer
    assert dropped.taps[2].shape[1] == dropped.patches.shape[1] + cls == 27 + cls
    added = tower(pixels, hooks=(Add(),))
    assert added.patches.shape[1] == 34
    assert not torch.allclose(added.pooled, plain.pooled)


@families
def test_gradient_checkpointing_gives_equal_gradients(family: str) -> None:
    pixels, gradients = torch.randn(2, 3, 64, 32), []
    plain = VisionTower(VISION[family])
    saving = VisionTower(VISION[family], gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    saving.encoder.layers[0].register_forward_pre_hook(count)
    for tower in (plain, saving):
        tower(pixels).pooled.square().sum().backward()
        gradients.append({name: p.grad for name, p in tower.named_parameters()})
    assert calls == 2  # once forward, once more in the backward pass
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name])
    with torch.no_grad():
        saving(pixels)
    assert calls == 3


def test_text_checkpointing_gives_equal_gradients() -> None:
    plain, saving = TextTower(TEXT), TextTower(TEXT, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    prompts, gradients = torch.randn(3, 6, 32), []
    for tower in (plain, saving):
        leaf = prompts.clone().requires_grad_()
        tower(leaf, torch.tensor([5, 4, 3])).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0] is not None
    assert gradients[0][1, 5].abs().max() == 0  # behind its EOT: cannot matter


def test_causal_prompt_may_be_cut_and_bidirectional_may_not() -> None:
    causal, both = TextTower(TEXT), TextTower(BIDIRECTIONAL)
    ids = torch.randint(0, 48, (3, 12))
    ids[torch.arange(3), torch.tensor([4, 7, 2])] = 49
    whole = causal(causal.embed(ids), causal.pool_index(ids))
    torch.testing.assert_close(causal.encode(ids), whole)
    torch.testing.assert_close(causal(causal.embed(ids[:, :8]), torch.tensor([4, 7, 2])), whole)
    rows = torch.arange(3)
    torch.testing.assert_close(causal(causal.embed(ids), None)[rows, causal.pool_index(ids)], whole)  # every token
    torch.testing.assert_close(both(both.embed(ids), None)[:, 11], both.encode(ids))
    assert both.pool_index(ids).tolist() == [11, 11, 11]
    torch.testing.assert_close(both.encode(ids), both(both.embed(ids), torch.tensor([11, 11, 11])))
    with pytest.raises(ValueError, match="8 tokens given, this text tower takes exactly 12"):
        both(both.embed(ids[:, :8]), torch.tensor([7, 7, 7]))
    with pytest.raises(ValueError, match="13 tokens given, this text tower takes at most 12"):
        causal(torch.zeros(1, 13, 32), torch.tensor([12]))


def test_pool_index_takes_the_first_eot() -> None:
    ids = torch.tensor([[1, 9, 9, 3], [9, 5, 3, 40]])
    by_id = TextTower(TextConfig(50, 4, 32, 1, 4, 64, 24, eot_id=9))
    assert by_id.pool_index(ids).tolist() == [1, 0]
    assert TextTower(TextConfig(50, 4, 32, 1, 4, 64, 24)).pool_index(ids).tolist() == [1, 3]


@families
def test_fresh_towers_are_ready_for_training(family: str) -> None:
    """Every parameter initialised, features of order one, every parameter reached by the gradient."""
    torch.manual_seed(1)
    text = TEXT if family == "clip" else BIDIRECTIONAL
    backbone = Backbone.from_configs(VISION[family], text, name="fresh")
    image = backbone.encode_image(torch.randn(64, 3, 64, 32))
    words = backbone.text.encode(torch.randint(0, 50, (64, 12)))
    for features in (image, words):
        assert 0.3 < features.std() < 3
    (image.square().sum() + words.square().sum()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name
    again = Backbone.from_configs(VISION[family], text)
    std = backbone.image.encoder.layers[0].self_attn.q_proj.weight.std().item()
    assert std == pytest.approx(32**-0.5, rel=0.1)
    assert not torch.equal(
        again.image.encoder.layers[0].mlp.fc1.weight, backbone.image.encoder.layers[0].mlp.fc1.weight
    )
    assert backbone.family == family
    assert backbone.image_size == (64, 32)
    assert backbone.mean == ((0.5, 0.5, 0.5) if family == "siglip" else (0.48145466, 0.4578275, 0.40821073))


def test_module_names_are_those_of_transformers() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    size |= {"image_size": 64, "patch_size": 8}
    clip = set(CLIPVisionModel(CLIPVisionConfig(**size)).state_dict())
    siglip = set(SiglipVisionModel(SiglipVisionConfig(**size)).state_dict())
    assert set(VisionTower(VISION["clip"]).state_dict()) == clip | {"visual_projection.weight"}
    assert set(VisionTower(VISION["siglip"]).state_dict()) == siglip


def test_refusals() -> None:
    tower = VisionTower(VISION["clip"])
    with pytest.raises(ValueError, match=r"pixels have shape \[1, 3, 32, 64\], this tower takes \[B, 3, 64, 32\]"):
        tower(torch.zeros(1, 3, 32, 64))
    pixels = torch.zeros(1, 3, 64, 32)
    with pytest.raises(ValueError, match=r"no layer \[0, 4\]: taps go from 1 to 3"):
        tower(pixels, taps=(0, 2, 4))
    with pytest.raises(ValueError, match=r"image size \(4, 32\) is smaller than one 8 patch"):
        VisionTower(VisionConfig((4, 32), 8))
    with pytest.raises(ValueError, match="attention pooling gives width 32, not 24"):
        VisionTower(VisionConfig((64, 32), 8, width=32, heads=4, embed_dim=24, pooling="attention"))
    with pytest.raises(ValueError, match="width 32 is not a multiple of the number of heads 5"):
        VisionTower(VisionConfig((64, 32), 8, width=32, heads=5))
    with pytest.raises(ValueError, match="unknown activation 'relu'; choose from quick_gelu, gelu, gelu_tanh"):
        VisionTower(VisionConfig((64, 32), 8, width=32, heads=4, activation="relu"))
    with pytest.raises(ValueError, match=r"the towers' embeddings differ: 32 \(image\), 24 \(text\)"):
        Backbone.from_configs(VISION["siglip"], TEXT)
    with pytest.raises(ValueError, match="backbone 'bare' has no tokenizer"):
        Backbone.from_configs(VISION["clip"], TEXT, name="bare").encode_text(["a"])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_differ_and_are_used(activation: str) -> None:
    from transformers.activations import ACT2FN

    from clipreid.backbones.hf import ACTIVATION_NAMES
    from clipreid.backbones.transformer import ACTIVATIONS

    x = torch.linspace(-5, 5, 101)
    theirs = [name for name, ours in ACTIVATION_NAMES.items() if ours == activation]
    for name in theirs:
        torch.testing.assert_close(ACT2FN[name](x), ACTIVATIONS[activation](x))
    for other, function in ACTIVATIONS.items():
        if other != activation:
            assert not torch.allclose(function(x), ACTIVATIONS[activation](x), atol=1e-5)
