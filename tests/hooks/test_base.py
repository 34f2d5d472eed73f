"""Where a token hook is asked: in front of and behind every block, before and behind CLIP's pre-norm, before taps."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipreid.backbones import TextConfig, VisionConfig, VisionTower
from clipreid.backbones.backbone import Backbone
from clipreid.errors import UserError
from clipreid.hooks import TokenHook
from clipreid.model import ReIDModel

DEPTH, WIDTH, PATCHES = 3, 32, 32  # 8 x 4
VISION = {
    "clip": VisionConfig((64, 32), 8, width=WIDTH, depth=DEPTH, heads=4, mlp_width=64, embed_dim=24),
    "siglip": VisionConfig((64, 32), 8, width=WIDTH, depth=DEPTH, heads=4, mlp_width=64, embed_dim=WIDTH,
                           pooling="attention"),
}  # fmt: skip
TEXT = TextConfig(vocab_size=50, context_length=12, width=WIDTH, depth=1, heads=4, mlp_width=64, embed_dim=24)
families = pytest.mark.parametrize("family", list(VISION))
About = Mapping[str, Tensor]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 32, generator=torch.Generator().manual_seed(0))


class Pool(TokenHook):
    """Deep prompts: tokens of its own at the end in front of every block of `layers`, taken away behind it."""

    def __init__(self, count: int = 2, layers: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.count, self.layers = count, layers
        self.tokens = nn.Parameter(torch.zeros(DEPTH, count, WIDTH))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens)

    def before(self, layer: int, x: Tensor, about: About) -> Tensor:
        if layer not in self.layers:
            return x
        return torch.cat([x, self.tokens[layer - 1].expand(len(x), -1, -1)], dim=1)

    def after(self, layer: int, x: Tensor, about: About) -> Tensor:
        return x[:, : -self.count] if layer in self.layers else x


class Stay(TokenHook):
    """Inserts one token behind CLS (or in front) at the seam `first`, and takes it away behind block `last`."""

    def __init__(self, first: int = 0, last: int = 2, value: float = 1.0) -> None:
        super().__init__()
        self.first, self.last, self.value = first, last, value
        self.found: Tensor | None = None  # what it took away

    def before(self, layer: int, x: Tensor, about: About) -> Tensor:
        if layer != self.first:
            return x
        token = self.value * torch.linspace(-1, 2, WIDTH).square().expand_as(x[:, :1])
        return torch.cat([x[:, :1], token, x[:, 1:]], dim=1)

    def after(self, layer: int, x: Tensor, about: About) -> Tensor:
        if layer != self.last:
            return x
        self.found = x[:, 1]
        return torch.cat([x[:, :1], x[:, 2:]], dim=1)


class Times(TokenHook):
    """Doubles all tokens at one seam."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def before(self, layer: int, x: Tensor, about: About) -> Tensor:
        return 2 * x if layer == self.layer else x


@families
@torch.no_grad()
def test_a_hook_that_does_nothing_changes_nothing(family: str) -> None:
    tower = VisionTower(VISION[family])
    plain, asked = (tower(images(), taps=(1, 2, 3), hooks=hooks) for hooks in ((), (TokenHook(), TokenHook())))
    assert torch.equal(plain.pooled, asked.pooled)
    assert all(torch.equal(plain.taps[layer], asked.taps[layer]) for layer in (1, 2, 3))


@torch.no_grad()
def test_before_0_is_in_front_of_clips_pre_norm_and_before_1_behind_it() -> None:
    """A norm takes back what doubles the tokens in front of it, and not what doubles them behind it."""
    tower = VisionTower(VISION["clip"])
    tower.embeddings.position_embedding.weight.mul_(10)  # far above the norm's eps
    plain = tower(images()).pooled
    torch.testing.assert_close(tower(images(), hooks=(Times(0),)).pooled, plain, atol=1e-4, rtol=1e-4)
    for layer in (1, 2):
        assert (tower(images(), hooks=(Times(layer),)).pooled - plain).abs().max() > 1e-2
    siglip = VisionTower(VISION["siglip"])  # which has no such norm: both are the input of its first block
    zero, one = (siglip(images(), hooks=(Times(layer),)).pooled for layer in (0, 1))
    assert torch.equal(zero, one)
    assert not torch.allclose(zero, siglip(images()).pooled)


@families
@torch.no_grad()
def test_what_is_inserted_takes_part_and_is_gone_in_taps_and_tokens(family: str) -> None:
    """Deep prompts, against a loop over the blocks."""
    tower, hook, cls = VisionTower(VISION[family]), Pool(), int(family == "clip")
    hook.reset_parameters()
    found = tower(images(), taps=(1, 2, 3), hooks=(hook,))
    x = tower.embeddings(images())
    x = tower.pre_layrnorm(x) if cls else x
    for layer, block in enumerate(tower.encoder.layers, start=1):
        x = block(torch.cat([x, hook.tokens[layer - 1].expand(2, -1, -1)], dim=1))[:, :-2]
        torch.testing.assert_close(found.taps[layer], x)
    x = tower.post_layernorm(x)
    torch.testing.assert_close(found.patches, x[:, cls:])
    assert found.patches.shape == (2, PATCHES, WIDTH)
    pooled = tower.visual_projection(x[:, 0]) if cls else tower.head(x)
    torch.testing.assert_close(found.pooled, pooled)
    assert not torch.allclose(pooled, tower(images()).pooled)


@families
@torch.no_grad()
def test_taps_are_read_behind_what_after_takes_away(family: str) -> None:
    """A token that stays for two blocks is in the first one's tap, not in the second one's."""
    tower, hook, cls = VisionTower(VISION[family]), Stay(), family == "clip"
    found = tower(images(), taps=(1, 2, 3), hooks=(hook,))
    assert [found.taps[layer].shape[1] for layer in (1, 2, 3)] == [PATCHES + cls + 1, PATCHES + cls, PATCHES + cls]
    assert found.patches.shape[1] == PATCHES
    assert hook.found is not None
    late = Stay(first=2, last=DEPTH)
    after = tower(images(), taps=(1, 2), hooks=(late,))
    torch.testing.assert_close(after.taps[1], tower(images(), taps=(1,)).taps[1])  # before it was there
    assert after.taps[2].shape[1] == PATCHES + cls + 1


@families
@torch.no_grad()
def test_several_hooks_each_find_what_they_inserted(family: str) -> None:
    """In front of a block they are asked in their order, behind it in the reverse: the last one in is the first out."""
    tower = VisionTower(VISION[family])
    seen: list[str] = []

    class Named(TokenHook):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def before(self, layer: int, x: Tensor, about: About) -> Tensor:
            seen.append(f"{self.name} before {layer}")
            return x

        def after(self, layer: int, x: Tensor, about: About) -> Tensor:
            seen.append(f"{self.name} after {layer}")
            return x

    tower(images(), hooks=(Named("a"), Named("b")))
    order = ("a before {}", "b before {}", "b after {}", "a after {}")
    assert seen == ["a before 0", "b before 0", *(word.format(n) for n in (1, 2, 3) for word in order)]
    one, other = Stay(value=1.0), Stay(value=-1.0)
    both = tower(images(), hooks=(one, other))
    assert both.patches.shape[1] == PATCHES
    kept = one.found
    alone = tower(images(), hooks=(other, one))  # tokens behind CLS have no positions: their order does not matter
    torch.testing.assert_close(both.pooled, alone.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.found, kept, atol=1e-5, rtol=1e-4)  # its own token, not the other's
    assert not torch.allclose(one.found, other.found)


@torch.no_grad()
def test_a_hook_is_told_what_is_known_of_the_images() -> None:
    told: list[dict[str, Any]] = []

    class Listen(TokenHook):
        def before(self, layer: int, x: Tensor, about: About) -> Tensor:
            told.append(dict(about))
            return x

        after = before

    tower, cameras = VisionTower(VISION["clip"]), torch.tensor([3, -1])
    tower(images(), hooks=(Listen(),), about={"cameras": cameras, "occluded": cameras})
    assert len(told) == 1 + 2 * DEPTH
    assert all(about.keys() == {"cameras", "occluded"} and about["cameras"] is cameras for about in told)
    told.clear()
    tower(images(), hooks=(Listen(),))
    assert told == [{}] * (1 + 2 * DEPTH)


def test_hooks_of_a_model_are_drawn_trained_and_kept() -> None:
    """Also where the blocks are computed again in the backward pass."""
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = Backbone.from_configs(VISION["clip"], TEXT, name="toy")
        backbone.image.gradient_checkpointing = recompute
        torch.manual_seed(5)
        model = ReIDModel(backbone, "lora", hooks={"pool": Pool(), "second": Pool(layers=(2,))}, identities=2).train()
        pool: Any = model.hooks["pool"]
        assert pool.tokens.any()  # drawn by the model, so that it follows the seed
        assert not torch.equal(pool.tokens, model.hooks["second"].tokens)
        output = model({"pixels": images(4), "labels": torch.arange(4)})
        sum(x.square().mean() for x in output.features.values()).backward()  # type: ignore[union-attr]
        gradients.append(pool.tokens.grad)
        assert pool.tokens.grad.abs().amax((1, 2)).min() > 0  # of every layer
        assert model.hooks["second"].tokens.grad.abs().amax((1, 2)).bool().tolist() == [False, True, False]
        assert [name for name in model.state_dict() if "pool" in name] == ["hooks.pool.tokens"]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_cannot_be_part_of_the_weights_is_refused() -> None:
    with pytest.raises(UserError, match="Pool works inside the tower and cannot be merged into its weights"):
        Pool().bake(VisionTower(VISION["clip"]))
