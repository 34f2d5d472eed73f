"""SAGA: every formula against loops over patches, anchors and heads; every option changes what comes out."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clipreid.aggregation import Taps
from clipreid.aggregation.anchor_block import AnchorBlock
from clipreid.aggregation.saga import SAGA, FixedAnchors, SagaAggregator, default_layer
from clipreid.backbones.transformer import Block, Encoder, quick_gelu
from clipreid.losses.regularisers import anchor_diversity_loss
from clipreid.prompts.anchors import FreeAnchors

B, N, C, E, K, HEADS = 3, 6, 8, 5, 4, 2


def saga(seed: int = 0, **options: Any) -> SAGA:
    torch.manual_seed(seed)
    found = SAGA(C, E, HEADS, 16, quick_gelu, **options)
    return randomise(found).eval()


@torch.no_grad()
def randomise(module: nn.Module) -> Any:
    """Norms and biases away from one and zero, and attention that is not almost even."""
    for name, parameter in module.named_parameters():
        parameter.add_((0.5 if "q_proj" in name or "k_proj" in name else 0.2) * torch.randn_like(parameter))
    return module


def inputs(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, N, C, generator=generator) + 1, 3 * torch.randn(K, E, generator=generator) + 2


# Formulas ---------------------------------------------------------------------------------------------------------


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """[C]"""
    deviation = x - x.mean()
    return deviation / (deviation.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def looped(module: SAGA, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Feature [C], patch weights [N] and attention [N, K+M] of one image [N, C], one number at a time."""
    anchors = [module.map.weight @ (t - text.mean(0) if module.centre else t) for t in text]
    if module.domain:
        first, _, last = module.domain_mlp
        hidden = first.weight @ patches.mean(0) + first.bias
        own = last.weight @ torch.tensor([h * 0.5 * (1 + math.erf(h / 2**0.5)) for h in hidden.tolist()]) + last.bias
        anchors += [own[m * C : (m + 1) * C] for m in range(module.domain)]
    x, size = [row.clone() for row in patches], C // HEADS
    for block in module.blocks:
        seen = [norm(a, block.norm_anchors) for a in anchors]
        keys = [block.k_proj(a) for a in seen]
        values = [block.v_proj(a) for a in seen]
        attention = torch.zeros(HEADS, len(x), len(anchors))
        for n, row in enumerate(x):
            query, mixed = block.q_proj(norm(row, block.norm_patches)), torch.zeros(C)
            for h in range(HEADS):
                part = slice(h * size, (h + 1) * size)
                raw = [math.exp(float(query[part] @ key[part]) / math.sqrt(size)) for key in keys]
                for k, value in enumerate(values):
                    attention[h, n, k] = raw[k] / sum(raw)
                    mixed[part] += attention[h, n, k] * value[part]
            x[n] = row + block.out_proj(mixed)
            if block.has_mlp:
                hidden = block.fc1(norm(x[n], block.norm_mlp))
                x[n] = x[n] + block.fc2(hidden / (1 + torch.exp(-1.702 * hidden)))
    mean = attention.mean(0)
    scores = []
    for row in mean.tolist():
        concentration = math.exp(sum(a * math.log(a) for a in row))
        scores.append({"max": max(row), "entropy": concentration, "uniform": 1.0}[module.score])
    weights = torch.tensor([s / sum(scores) for s in scores])
    return sum(w * row for w, row in zip(weights, x, strict=True)), weights, mean  # type: ignore[return-value]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blocks": 1},
        {"domain": 0},
        {"feed_forward": False},
        {"score": "entropy"},
        {"score": "uniform"},
        {"centre": True},
    ],
)
@torch.no_grad()
def test_everything_equals_loops_over_patches_anchors_and_heads(options: dict[str, Any]) -> None:
    module, (patches, text) = saga(**options), inputs()
    found = module(patches, text)
    assert found.attention is not None
    for b in range(B):
        feature, weights, attention = looped(module, patches[b], text)
        torch.testing.assert_close(found.feature[b], feature, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.weights[b], weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.attention[b], attention, atol=1e-6, rtol=1e-5)
        assert found.assignment is not None
        assert found.assignment[b].tolist() == [row.index(max(row)) for row in attention.tolist()]
    wanted = text - text.mean(0) if module.centre else text
    torch.testing.assert_close(found.anchors, wanted @ module.map.weight.T)


@torch.no_grad()
def test_repeated_keys_are_the_mapped_mean_patch() -> None:
    """As if it were one text anchor: the attention divided by K, the same mixture."""
    module, (patches, _) = saga(kind="repeated", count=K, domain=0), inputs()
    found = module(patches)
    torch.testing.assert_close(found.attention, torch.full((B, N, K), 1 / K))
    torch.testing.assert_close(found.weights, torch.full((B, N), 1 / N))
    single = saga(kind="repeated", count=1, domain=0)
    single.load_state_dict(module.state_dict())
    torch.testing.assert_close(single(patches).feature, found.feature)
    assert found.anchors is None
    x = patches
    keys = module.map(patches.mean(1, keepdim=True))
    for block in module.blocks:
        x, _ = block(x, keys)
    torch.testing.assert_close(found.feature, x.mean(1))


@torch.no_grad()
def test_mean_and_cls_put_one_token_in_the_place_of_the_patches() -> None:
    """The size of `repeated`, and what `repeated` makes of an image that has this token as its only patch."""
    patches, text = inputs()
    cls, repeated = torch.randn(B, C), saga(kind="repeated")
    for kind, token in (("mean", patches.mean(1)), ("cls", cls)):
        module = saga(kind=kind)
        module.load_state_dict(repeated.state_dict())
        found = module(patches, text, cls)
        torch.testing.assert_close(found.feature, repeated(token[:, None]).feature)
        assert torch.equal(found.weights, torch.full((B, N), 1 / N))
        assert found.attention is found.assignment is found.anchors is None


# Options ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_option_changes_the_feature() -> None:
    """With the same weights wherever two modules share a name and a shape."""
    patches, text = inputs()
    first = saga()
    features = [first(patches, text).feature]
    for options in (
        {"blocks": 1},
        {"blocks": 3},
        {"domain": 0},
        {"domain": 2},
        {"score": "entropy"},
        {"score": "uniform"},
        {"kind": "repeated"},
        {"kind": "mean"},
        {"kind": "cls"},
        {"feed_forward": False},
        {"centre": True},
    ):
        other = saga(1, **options)
        shared = {k: v for k, v in first.state_dict().items() if k in other.state_dict()}
        shared = {k: v for k, v in shared.items() if v.shape == other.state_dict()[k].shape}
        other.load_state_dict(shared, strict=False)
        features.append(other(patches, text, torch.ones(B, C)).feature)
    features.append(first(patches, text + torch.randn(K, E)).feature)  # other anchors: free ones, for example
    features.append(saga(count=9, kind="repeated")(patches).feature)
    for i, one in enumerate(features):
        for other_feature in features[:i]:
            assert (one - other_feature).abs().max() > 1e-4
    activation = SAGA(C, E, HEADS, 16, F.gelu).eval()
    activation.load_state_dict(first.state_dict())
    assert (activation(patches, text).feature - features[0]).abs().max() > 1e-4
    eps = SAGA(C, E, HEADS, 16, quick_gelu, 0.1).eval()
    eps.load_state_dict(first.state_dict())
    assert (eps(patches, text).feature - features[0]).abs().max() > 1e-4
    heads = SAGA(C, E, 4, 16, quick_gelu).eval()
    heads.load_state_dict(first.state_dict())
    assert (heads(patches, text).feature - features[0]).abs().max() > 1e-4


@torch.no_grad()
def test_the_scale_of_the_text_does_not_matter_and_its_cone_does() -> None:
    """Why there is `centre`, and no option that normalises texts."""
    patches, text = inputs()
    module = saga(domain=0)
    torch.testing.assert_close(module(patches, 100 * text).feature, module(patches, text).feature, atol=1e-3, rtol=1e-3)
    cone = text + 300 * torch.ones(E)  # nearly one direction
    attention = module(patches, cone).attention
    centred = saga(domain=0, centre=True)(patches, cone).attention
    assert (attention - 1 / K).abs().max() < 0.05
    assert (centred - 1 / K).abs().max() > 0.2


@torch.no_grad()
def test_dropout_never_touches_pooling_weights() -> None:
    patches, text = inputs()
    module = saga(blocks=1, dropout=0.5)
    calm = module(patches, text)
    module.train()
    wild = module(patches, text)
    assert torch.equal(wild.weights, calm.weights)
    assert torch.equal(wild.attention, calm.attention)
    assert (wild.feature - calm.feature).abs().max() > 1e-3
    torch.testing.assert_close(wild.attention.sum(2), torch.ones(B, N))
    module.blocks[0].dropout = 0.0
    assert torch.equal(module(patches, text).feature, calm.feature)


def test_everything_is_trained() -> None:
    patches, text = inputs()
    for options in ({}, {"score": "entropy"}, {"score": "uniform"}, {"domain": 0}, {"feed_forward": False}):
        module, text = saga(**options).train(), text.detach().requires_grad_()
        found = module(patches, text)
        (found.feature.square().sum() + anchor_diversity_loss(found.anchors)).backward()
        for name, parameter in [*module.named_parameters(), ("text", text)]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            if "k_proj.bias" not in name:  # which moves all logits of a patch alike
                assert parameter.grad.abs().max() > 1e-6, name


# A tower's weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_copied_block_attends_as_the_tower_does() -> None:
    """With the patches themselves as anchors, it is the tower's own block."""
    torch.manual_seed(0)
    block: Block = randomise(Block(C, HEADS, 24, "gelu_tanh", 1e-6))
    module = SAGA.like(block, E, domain=0)
    x = torch.randn(B, N, C)
    for mine in module.blocks:
        assert isinstance(mine, AnchorBlock)
        torch.testing.assert_close(mine(x, x)[0], block(x), atol=1e-5, rtol=1e-5)
    fresh = SAGA.like(block, E, copy=False)
    assert [b.heads for b in fresh.blocks] == [HEADS, HEADS]  # type: ignore[union-attr]
    assert not torch.equal(fresh.blocks[0].q_proj.weight, block.self_attn.q_proj.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(SAGA.like(block, E, feed_forward=False).blocks[1].k_proj.bias, block.self_attn.k_proj.bias)  # type: ignore[union-attr, arg-type]
    block.self_attn.q_proj.weight.zero_()
    assert module.blocks[0].q_proj.weight.abs().max() > 0  # a copy  # type: ignore[union-attr, operator]


@torch.no_grad()
def test_adapters_of_the_tower_are_copied_too() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder(2, C, HEADS, 24, "quick_gelu", 1e-5)

    tower = Tower()
    targets = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    wrapped = get_peft_model(tower, LoraConfig(r=2, lora_alpha=8, target_modules=targets))  # type: ignore[arg-type]
    randomise(wrapped)
    x, block = torch.randn(B, N, C), wrapped.get_base_model().encoder.layers[1]
    wrapped.eval()
    expected = block(x)
    for merged in (False, True):
        if merged:
            wrapped.merge_adapter()
        (mine, _) = SAGA.like(block, E, domain=0).blocks
        torch.testing.assert_close(mine(x, x)[0], expected, atol=1e-5, rtol=1e-5)
    wrapped.unmerge_adapter()
    with wrapped.disable_adapter():
        (plain, _) = SAGA.like(block, E, domain=0).blocks
        torch.testing.assert_close(plain(x, x)[0], block(x), atol=1e-5, rtol=1e-5)
    assert (plain(x, x)[0] - expected).abs().max() > 1e-2


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="has 4 heads, this one 2"):
        AnchorBlock(C, 2, 16, quick_gelu, 1e-5, 0.0).copy_from(Block(C, 4, 16, "gelu", 1e-5))
    with pytest.raises(ValueError, match=r"has weights \[24, 8\] where \[16, 8\] are"):
        AnchorBlock(C, 2, 16, quick_gelu, 1e-5, 0.0).copy_from(Block(C, 2, 24, "gelu", 1e-5))
    with pytest.raises(ValueError, match="width 8 is not a multiple of the number of heads 3"):
        SAGA(C, E, 3, 16)


# Odd images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["max", "entropy", "uniform"])
@pytest.mark.parametrize("kind", ["saga", "repeated", "mean", "cls"])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.zeros(2, n, C),
        lambda n: torch.full((2, n, C), 3.0),
        lambda n: 1e4 * torch.randn(2, n, C),
        lambda n: torch.randn(0, n, C),
    ],
)
def test_constant_images_one_patch_and_any_grid_give_finite_numbers(
    kind: Any, score: Any, make: Callable[[int], Tensor]
) -> None:
    for patches in (make(1), make(3 * 7), make(21 * 10)):
        module, (_, text) = saga(kind=kind, score=score), inputs()
        patches.requires_grad_()
        found = module(patches, text, patches.mean(1))
        found.feature.square().sum().backward()
        assert found.feature.shape == (len(patches), C)
        assert found.feature.isfinite().all()
        assert patches.grad is not None
        assert patches.grad.isfinite().all()
        torch.testing.assert_close(found.weights.sum(1), torch.ones(len(patches)))
        if len(patches) and bool((patches == patches[:, :1]).all()):  # constant, or one patch
            torch.testing.assert_close(found.weights, torch.full_like(found.weights, 1 / patches.shape[1]))


def test_anchors_that_are_all_zero_or_alone() -> None:
    patches, text = inputs()
    for anchors in (torch.zeros(K, E), text[:1]):
        for score in ("max", "entropy"):
            module = saga(score=score, centre=True, domain=0).train()
            found = module(patches, anchors.requires_grad_())
            found.feature.sum().backward()
            assert found.feature.isfinite().all()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_low_precision_keeps_weights_in_float32() -> None:
    patches, text = inputs()
    module = saga()
    exact = module(patches, text)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(patches, text)
    assert rough.weights.dtype == rough.attention.dtype == torch.float32  # type: ignore[union-attr]
    assert (rough.feature - exact.feature).abs().max() < 0.05 * exact.feature.abs().max()


def test_what_is_missing_or_unknown_is_refused() -> None:
    patches, text = inputs()
    with pytest.raises(ValueError, match=r"text anchors \[K, 5\] are needed, and none given"):
        saga()(patches)
    with pytest.raises(ValueError, match=r"and \[4, 3\] given"):
        saga()(patches, text[:, :3])
    with pytest.raises(ValueError, match="needs the CLS token"):
        saga(kind="cls")(patches)
    for wrong in ({"kind": "sum"}, {"score": "min"}, {"blocks": 0}, {"domain": -1}, {"count": 0}):
        with pytest.raises(ValueError, match=r"choose one of|are needed"):
            saga(**wrong)


# In the model -----------------------------------------------------------------------------------------------------


def tokens(has_cls: bool = True) -> Any:
    patches, _ = inputs()
    taps = {2: patches, 3: patches + 1}
    if has_cls:
        taps = {layer: torch.cat([torch.randn(B, 1, C), x], 1) for layer, x in taps.items()}
    cls = torch.randn(B, C) if has_cls else None
    return SimpleNamespace(cls=cls, patches=torch.randn(B, N, C), taps=taps, pooled=torch.randn(B, E))


def beside(kind: str = "cls") -> Taps:
    """CLIP-ReID's features of a tower of four blocks: it reads layer 3."""
    return Taps(kind, 4, C, E)


@pytest.mark.parametrize("kind", ["cls", "mean"])
@pytest.mark.parametrize("has_cls", [True, False])
@torch.no_grad()
def test_the_aggregator_reads_its_layer_without_cls_and_replaces_nothing(has_cls: bool, kind: str) -> None:
    _, text = inputs()
    given, module = tokens(has_cls), saga()
    found = SagaAggregator(module, FixedAnchors(text), 2, beside(kind), (2.0, 0.2, 0.05))
    patches = given.taps[2][:, 1:] if has_cls else given.taps[2]
    features = found(given, {})
    assert torch.equal(features.pop("saga"), module(patches, text).feature)
    own = beside(kind)(given, {})
    assert list(features) == list(own) == ["penultimate", "final", "projection"]
    assert all(torch.equal(features[name], own[name]) for name in own)
    assert {name: x.shape[1] for name, x in features.items()} | {"saga": C} == found.widths
    assert (found.taps, found.necks) == ((3, 2), ("final", "projection", "saga"))
    assert (found.test, found.weights) == (("saga", "final", "projection"), (2.0, 0.2, 0.05))
    aligned = found.align(patches, own["final"])
    assert torch.equal(aligned.weights, module(patches, text).weights)
    assert torch.equal(aligned.feature, module(patches, text).feature)


@torch.no_grad()
def test_features_without_weight_are_no_test_feature_but_are_computed_all_the_same() -> None:
    _, text = inputs()
    alone = SagaAggregator(saga(), FixedAnchors(text), 2, beside())
    assert (alone.test, alone.weights) == (("saga",), (1.0,))
    control = SagaAggregator(saga(), FixedAnchors(text), 3, beside(), (0.0, 1.0, 0.0))
    assert (control.test, control.weights, control.taps) == (("final",), (1.0,), (3,))
    for aggregator in (alone, control):
        assert set(aggregator(tokens(), {})) == set(aggregator.widths) == {"penultimate", "final", "projection", "saga"}


@torch.no_grad()
def test_the_controls_cls_and_mean_read_the_final_cls_and_the_patches_of_the_layer() -> None:
    given = tokens()
    for kind, token in (("cls", given.cls), ("mean", given.taps[2][:, 1:].mean(1))):
        module = saga(kind=kind)
        found = SagaAggregator(module, None, 2, beside())(given, {})["saga"]
        torch.testing.assert_close(found, saga(kind="repeated")(token[:, None]).feature)


def test_what_losses_need_is_kept_in_training_only() -> None:
    """Else copies would fail on its graph, and its memory would stay."""
    _, text = inputs()
    aggregator = SagaAggregator(saga(), FixedAnchors(text), 2, beside())
    feature = aggregator.train()(tokens(), {})["saga"]
    assert aggregator.aligned is not None
    assert aggregator.aligned.feature is feature
    assert aggregator.aligned.anchors is not None
    assert aggregator.aligned.anchors.requires_grad
    aggregator.eval()(tokens(), {})
    assert aggregator.aligned is None


def test_the_aggregator_holds_anchors_only_where_they_are_read() -> None:
    free = FreeAnchors(K, E)
    assert any(p is free.context for p in SagaAggregator(saga(), free, 2, beside()).parameters())
    for kind in ("repeated", "mean", "cls"):
        aggregator = SagaAggregator(saga(kind=kind), free, 2, beside())
        assert not any(p is free.context for p in aggregator.parameters())
        assert aggregator(tokens(), {})["saga"].shape == (B, C)
    with pytest.raises(ValueError, match="needs anchors"):
        SagaAggregator(saga(), None, 2, beside())
    for wrong in ((0.0, 0.0, 0.0), (1.0, -1.0, 0.0)):
        with pytest.raises(ValueError, match="weights of 0 or more"):
            SagaAggregator(saga(), free, 2, beside(), wrong)


@torch.no_grad()
def test_baked_it_keeps_the_anchors_as_they_are() -> None:
    free = FreeAnchors(K, E)
    aggregator, given = SagaAggregator(saga(), free, 2, beside()).eval(), tokens()
    before = aggregator(given, {})["saga"]
    aggregator.bake()
    assert torch.equal(aggregator(given, {})["saga"], before)
    fixed = aggregator.anchors
    assert isinstance(fixed, FixedAnchors)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"anchors"}
    free.context.zero_()
    assert torch.equal(aggregator(given, {})["saga"], before)  # a copy


def test_default_layer() -> None:
    assert [default_layer(depth) for depth in (12, 24, 6, 3, 1)] == [9, 18, 4, 2, 1]
