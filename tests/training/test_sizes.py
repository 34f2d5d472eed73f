"""The size rule: nothing changes up to ViT-B's size, and larger towers move as far as that."""

import re
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipreid.backbones import Backbone, VisionConfig, load_backbone
from clipreid.backbones.text import TextConfig
from clipreid.config import configure
from clipreid.methods import clip_reid
from clipreid.model import usual_alpha
from clipreid.training import sizes
from clipreid.training.drift import lora_drift, weight_drift
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.sizes import about_size, rate_factors, size_rule, sized

BIG = "open_clip:ViT-B-16-quickgelu/openai"
NAMES = ["a.cls", "a.layers.0.w", "a.layers.1.w", "a.layers.2.w", "a.norm"]


def settled(preset: str = "default", **given: Any) -> clip_reid.Config:
    return configure(clip_reid, **{"preset": preset, "backbone": BIG, **given})[1]


def shape(width: int, depth: int) -> VisionConfig:
    return VisionConfig((16, 8), 4, None, width, depth, width // 16, 4 * width, 64)


def bare(width: int, depth: int) -> nn.Module:
    """Something with the width and the blocks of a tower."""
    tower: Any = nn.Module()
    tower.width, tower.layers = width, nn.ModuleList(nn.Linear(1, 1) for _ in range(depth))
    return tower


# The rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
@pytest.mark.parametrize(("width", "depth"), [(768, 12), (384, 12), (96, 4), (768, 0)])
def test_up_to_vit_b_nothing_changes(width: int, depth: int, tuning: str) -> None:
    assert size_rule(width, depth, tuning) == (1.0, 1.0)
    config = sized(settled(tuning=tuning), bare(width, depth))
    assert (config.rate_factor, config.layer_decay, config.lora_alpha) == (1.0, 1.0, 16.0)
    assert about_size(config) is None


@pytest.mark.parametrize(("width", "depth", "tuning", "last", "first"), [
    (1024, 24, "lora", 0.6124, 0.6124), (1024, 24, "full", 0.75, 0.75 / 2**0.5), (1024, 24, "head", 0.75, 0.75),
    (1152, 27, "lora", 0.6, 0.6), (1152, 27, "full", 0.6667, 0.4899), (1280, 32, "lora", 0.6, 0.6),
    (1280, 32, "full", 0.6, 0.6 * 0.6**0.5), (1024, 12, "full", 0.75, 0.75), (4096, 12, "full", 0.1875, 0.1875),
])  # fmt: skip
def test_larger_towers_get_lower_rates(width: int, depth: int, tuning: str, last: float, first: float) -> None:
    """By hand: 768 / width in the last block, and the roots of it and of 12 / depth, but at least 0.6."""
    factor, decay = size_rule(width, depth, tuning)
    assert factor == pytest.approx(last, abs=1e-4)
    assert factor * decay ** (depth - 1) == pytest.approx(first, abs=1e-4)
    config = sized(settled(tuning=tuning), bare(width, depth))
    assert (config.rate_factor, config.layer_decay) == (factor, decay)
    assert "--rate-factor" in (about_size(config) or "")


def test_what_is_given_and_the_other_presets_stay() -> None:
    large = bare(1280, 32)
    for config in (
        settled("paper"), settled(backbone="tiny-clip"), settled("paper", backbone="tiny-clip"), clip_reid.Config(),
    ):  # fmt: skip
        assert sized(config, large) == config
    given = settled(rate_factor=0.9, layer_decay=0.8, lora_alpha=5.0)
    assert sized(given, large) == given


def test_alpha_follows_the_rank() -> None:
    assert [usual_alpha(rank) for rank in (2, 8, 32)] == [8.0, 16.0, 32.0]
    assert sized(settled(lora_rank=32), bare(768, 12)).lora_alpha == 32.0
    assert sized(settled(backbone="tiny-clip", lora_rank=32), bare(96, 4)).lora_alpha == 16.0


def test_the_size_of_the_update_does_not_depend_on_the_rank() -> None:
    """What `usual_alpha` is for, by the first steps of Adam."""
    found = {rank: moved(96, 3, "lora", steps=3, lora_rank=rank)[0] for rank in (2, 32)}
    ratio = statistics.median(found[32].values()) / statistics.median(found[2].values())
    assert ratio == pytest.approx(1, rel=0.25)  # with the same alpha: 1/4


# Groups -----------------------------------------------------------------------------------------------------------


def test_the_rate_falls_from_block_to_block() -> None:
    assert list(rate_factors(NAMES, 0.5, 0.1).values()) == pytest.approx([0.005, 0.005, 0.05, 0.5, 0.5])
    assert list(rate_factors(NAMES[1:2] + NAMES[4:], 0.5, 0.1).values()) == [0.5, 0.5]
    assert list(rate_factors(["conv.weight", "fc.weight"], 0.5, 0.1).values()) == [0.5, 0.5]  # no blocks


def test_the_optimiser_has_these_rates() -> None:
    config = settled(tuning="full", rate=1e-3, rate_factor=0.5, layer_decay=0.9, bias_rate_factor=2.0)
    backbone = load_backbone("tiny-clip")
    depth = backbone.image.depth
    model = clip_reid.build(backbone, config, 4)
    rates = {id(p): group["base"] for group in stage_optimiser(model, config).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.head_rate
        if name.startswith("image."):
            block = re.search(r"layers\.(\d+)", name)
            nth = int(block[1]) if block else 0 if name.startswith(("image.embed", "image.pre")) else depth - 1
            rate = 1e-3 * 0.5 * 0.9 ** (depth - 1 - nth)
        assert rates[id(parameter)] == pytest.approx(rate * (2 if name.endswith("bias") else 1)), name


# Updates ----------------------------------------------------------------------------------------------------------


def images(seed: int, count: int) -> Tensor:
    """Pixels [2 * count, 3, 16, 8]: two images of each of `count` identities."""
    drawn = torch.Generator().manual_seed(seed)
    pattern, noise = (torch.randn(n * count, 3, 16, 8, generator=drawn) for n in (1, 2))
    return 0.8 * pattern.repeat_interleave(2, 0) + 0.6 * noise


def moved(
    width: int, depth: int, tuning: str, ruled: bool = True, steps: int = 8, seed: int = 0, **given: Any
) -> tuple[dict[str, float], float]:
    """|dW|/|W| of every layer of a random tower, and |df|/|f| of its test feature, after some steps."""
    torch.manual_seed(seed)
    text = TextConfig(vocab_size=8, context_length=4, width=8, depth=1, heads=1, mlp_width=8, embed_dim=64)
    backbone = Backbone.from_configs(shape(width, depth), text)
    off = {} if ruled else {"rate_factor": 1.0, "layer_decay": 1.0}
    config = sized(settled(tuning=tuning, **off, **given), backbone.image)
    model = clip_reid.build(backbone, config, 8)
    module = clip_reid.Tuning(model, torch.randn(8, 64), backbone.logit_scale, config)
    optimiser, before = stage_optimiser(model, config), {n: x.clone() for n, x in model.tower.state_dict().items()}

    def feature() -> Tensor:
        with torch.no_grad():
            return model.eval().test_feature(model.features(images(1000 + seed, 8)))

    old = feature()
    model.train()
    for step in range(steps):
        labels = torch.arange(4).repeat_interleave(2) + 4 * (step % 2)
        optimiser.zero_grad()
        sum(module({"pixels": images(100 * seed + step, 4), "labels": labels}).values()).backward()
        optimiser.step()
    change = ((feature() - old).norm() / old.norm()).item()
    return (lora_drift(model) if tuning == "lora" else weight_drift(model.tower, before)), change


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_larger_tower_moves_about_as_far(tuning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower that is to a small one as ViT-H/14 is to ViT-B/16: every layer within a factor of 2; its features, which
    would move 3.5 and 4.2 times as far, by little more than half of that."""
    monkeypatch.setattr(sizes, "WIDTH", 96)
    monkeypatch.setattr(sizes, "DEPTH", 6)

    def both(width: int, depth: int, ruled: bool) -> tuple[dict[str, float], float]:
        found = [moved(width, depth, tuning, ruled, seed=seed) for seed in range(2)]
        layers = {name: statistics.mean(drift[name] for drift, _ in found) for name in found[0][0]}
        return layers, statistics.mean(change for _, change in found)

    (small, near), (large, far), (_, unruled) = both(96, 6, True), both(160, 16, True), both(160, 16, False)
    compared = 0
    for name, change in large.items():
        if block := re.search(r"layers\.(\d+)\.", name):
            like = name.replace(block[0], f"layers.{round(int(block[1]) / 15 * 5)}.")
            assert 1 / 2 < change / small[like] < 2, name
            compared += 1
    assert compared == 16 * 6
    assert unruled / near > 3
    assert far / unruled < 0.65
