"""Attribute experts: equal to a loop over images and experts, silent where nothing is known, apart in threads."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.data.attributes import attribute_codes, code
from clipreid.errors import UserError
from clipreid.hooks.experts import LINEARS, AttributeExperts, hidden

VALUES = [("hat", "cap"), ("hat", "none"), ("top", "red"), ("top", "blue")]
GIVEN = [{"hat": "cap", "top": "red"}, {"hat": "none", "top": "red|blue"}, {}, {"top": "green"}, {"hat": "cap"}]
ABOUT = {"attributes": attribute_codes(GIVEN), "rows": torch.arange(len(GIVEN))}
RANK, ALPHA = 3, 6.0


@pytest.fixture
def backbone(tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder('clip')}")


def made(backbone: Backbone, **given: Any) -> AttributeExperts:
    """Experts in the last block, trained as it were: no update is zero."""
    codes = [code(name, value) for name, value in VALUES]
    hook = AttributeExperts(backbone.image, **{"codes": codes, "blocks": 1, "rank": RANK, "alpha": ALPHA, **given})
    hook.reset_parameters()
    drawn = torch.Generator().manual_seed(3)
    for experts in hook.experts.values():
        torch.nn.init.normal_(experts.up, std=0.3, generator=drawn)
    return hook.eval()


def pixels_of(backbone: Backbone, count: int = len(GIVEN)) -> Tensor:
    return torch.randn(count, 3, *backbone.image_size, generator=torch.Generator().manual_seed(1))


def pooled(backbone: Backbone, hook: AttributeExperts | None, about: dict[str, Tensor] | None = None) -> Tensor:
    hooks = () if hook is None else (hook,)
    return backbone.image.eval()(pixels_of(backbone), hooks=hooks, about=ABOUT if about is None else about).pooled


@torch.no_grad()
def by_loop(backbone: Backbone, hook: AttributeExperts, active: list[list[int]], mean: bool = True) -> Tensor:
    """Each image alone through a tower whose weights are W + alpha / r * sum_a B_a A_a / |A|, expert by expert."""
    found = []
    for image, chosen in zip(pixels_of(backbone), active, strict=True):
        tower = copy.deepcopy(backbone.image)
        for name in LINEARS:
            linear = tower.encoder.layers[-1].get_submodule(name)
            experts = hook.experts[f"{tower.depth}_{name.replace('.', '_')}"]
            for expert in chosen:
                update = experts.up[expert].T @ experts.down[expert]
                linear.weight += ALPHA / RANK * update / (len(chosen) if mean else 1)
        found.append(tower.eval()(image[None]).pooled[0])
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("mix", ["mean", "sum"])
def test_all_images_at_once_equal_a_loop_over_images_and_experts(backbone: Backbone, mix: Any) -> None:
    hook = made(backbone, mix=mix)
    found = pooled(backbone, hook)
    wanted = by_loop(backbone, hook, [[0, 2], [1, 2, 3], [], [], [0]], mean=mix == "mean")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    alone = pooled(backbone, None)
    assert torch.equal(found[2:4], alone[2:4])  # nothing known; a value that was never trained on
    assert (found[[0, 1, 4]] - alone[[0, 1, 4]]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_experts_of_attributes_ignore_the_value_unless_it_says_that_there_is_none(backbone: Backbone) -> None:
    hook = made(backbone, codes=[code("hat"), code("top")], by="attribute")
    wanted = by_loop(backbone, hook, [[0, 1], [1], [], [1], [0]])
    torch.testing.assert_close(pooled(backbone, hook), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_before_training_and_without_attributes_the_tower_is_alone(backbone: Backbone) -> None:
    alone = pooled(backbone, None)
    hook = made(backbone)
    assert torch.equal(pooled(backbone, hook, {}), alone)
    hook.strength = 0.0
    torch.testing.assert_close(pooled(backbone, hook), alone, atol=1e-6, rtol=0)
    hook.strength = 1.0
    hook.reset_parameters()
    torch.testing.assert_close(pooled(backbone, hook), alone, atol=1e-6, rtol=0)
    assert all(experts.down.any() for experts in hook.experts.values())


@torch.no_grad()
def test_a_muted_expert_is_missing_and_the_others_do_what_they_did(backbone: Backbone) -> None:
    hook = made(backbone)
    weights = hook.route(ABOUT)
    hook.muted = frozenset({code("top", "red")})
    muted = hook.route(ABOUT)
    assert weights is not None
    assert muted is not None
    assert not muted[:, 2].any()
    assert torch.equal(muted[:, [0, 1, 3]], weights[:, [0, 1, 3]])
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0, 1, 0]))  # alpha / r is 2
    torch.testing.assert_close(weights[1], torch.tensor([0, 2 / 3, 2 / 3, 2 / 3]))
    torch.testing.assert_close(weights[4], torch.tensor([2.0, 0, 0, 0]))


def test_only_experts_that_an_image_has_get_a_gradient(backbone: Backbone) -> None:
    hook = made(backbone)
    about = {"attributes": ABOUT["attributes"][[0, 4]]}
    backbone.image(pixels_of(backbone, 2), hooks=(hook,), about=about).pooled.square().sum().backward()
    for experts in hook.experts.values():
        moved = experts.up.grad.flatten(1).abs().amax(1) > 0
        assert moved.tolist() == [True, False, True, False]


def test_attributes_are_hidden_in_training_alone_and_the_same_way_again(backbone: Backbone) -> None:
    hook = made(backbone, hide=0.5)
    whole = hook.route(ABOUT)
    assert torch.equal(hook.route(ABOUT), whole)  # type: ignore[arg-type]
    hook.train()
    once = hook.route(ABOUT)
    assert torch.equal(hook.route(ABOUT), once)  # type: ignore[arg-type]
    assert (once > 0).sum() < (whole > 0).sum()  # type: ignore[operator]
    share = hidden(torch.arange(500), 20, 0.3).float().mean()
    assert share == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(hidden(torch.arange(5), 9, 0.5), hidden(torch.arange(5) + 1, 9, 0.5))


def test_threads_and_other_models_on_the_same_tower_do_not_see_each_other(backbone: Backbone) -> None:
    first, second = made(backbone), made(backbone)
    abouts = [{"attributes": ABOUT["attributes"].roll(shift, 0)} for shift in range(4)] * 4
    with torch.no_grad():
        wanted = [pooled(backbone, first, about) for about in abouts]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda about: torch.no_grad()(pooled)(backbone, first, about), abouts))
        other = pooled(backbone, second)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(
            other, by_loop(backbone, second, [[0, 2], [1, 2, 3], [], [], [0]]), atol=1e-5, rtol=0
        )


def test_a_copy_is_a_model_of_its_own(backbone: Backbone) -> None:
    hook = made(backbone)
    twin, twin_hook = copy.deepcopy((backbone, hook))
    with torch.no_grad():
        before = pooled(backbone, hook)
        for experts in hook.experts.values():
            experts.up.zero_()
        assert torch.equal(pooled(twin, twin_hook), before)
        assert not torch.equal(pooled(backbone, hook), before)


def test_towers_that_cannot_have_them_are_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=f"--expert-blocks 99: the tower has {backbone.image.depth} blocks"):
        made(backbone, blocks=99)
    with pytest.raises(UserError, match="an exported model is not given"):
        made(backbone).bake(backbone.image)
    backbone.image.gradient_checkpointing = True
    with pytest.raises(UserError, match="gradient checkpointing"):
        made(backbone)
