"""The mask over dimensions: both generators against loops, their cost, odd grids, constant images; the aggregator."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.aggregation import Taps
from clipreid.aggregation.mask_generator import LowRankMask, MaskAggregator, PublishedMask, mask_layers

B, C, E, DEPTH = 3, 8, 5, 12
LAYERS = (2, 4, 10, 12)
GRIDS = [(4, 2), (1, 1), (1, 5), (3, 1), (5, 3)]


def made(kind: str, out: int = C, layers: int = 4, zero: bool = False) -> Any:
    torch.manual_seed(0)
    found = LowRankMask(layers, C, out, 3) if kind == "low-rank" else PublishedMask(layers, C, out)
    if not zero:
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return found.eval()


def maps_of(grid: tuple[int, int], layers: int = 4, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(B, grid[0] * grid[1], C, generator=generator) + 1 for _ in range(layers)]


def test_the_published_layers_and_their_shares_of_other_depths() -> None:
    assert mask_layers(12) == (2, 4, 10, 12)
    assert mask_layers(24) == (4, 8, 20, 24)
    assert mask_layers(6) == (1, 2, 5, 6)
    assert mask_layers(2) == (1, 2)
    assert mask_layers(1) == (1,)


def test_what_they_cost_for_vit_b() -> None:
    """59 million parameters in DPM's code, two thirds of ViT-B; 0.15 million at rank 32."""
    with torch.device("meta"):
        published, low_rank = PublishedMask(4, 768, 768), LowRankMask(4, 768, 768, 32)
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in (("p", published), ("l", low_rank))}
    assert 58e6 < count["p"] < 60e6
    assert count["l"] == 4 * 768 * 32 + 32 + 64 * 768 + 768


def test_low_rank_by_loops() -> None:
    module, maps = made("low-rank", out=7), maps_of((4, 2))
    found = module(maps, (4, 2))
    for image in range(B):
        said = []
        for patch in range(8):
            total = module.down[0].bias.clone()
            for down, layer in zip(module.down, maps, strict=True):
                x = layer[image, patch]
                x = (x - x.mean()) / ((x - x.mean()).square().mean() + 1e-5).sqrt()
                total = total + down.weight @ x
            said.append([h * 0.5 * (1 + math.erf(h / 2**0.5)) for h in total.tolist()])
        columns = list(zip(*said, strict=True))
        pooled = torch.tensor([sum(c) / 8 for c in columns] + [max(c) for c in columns])
        wanted = 1 / (1 + (-(module.linear.weight @ pooled + module.linear.bias)).exp())
        torch.testing.assert_close(found[image], wanted, atol=1e-5, rtol=1e-5)


def test_published_by_plain_convolutions() -> None:
    """On a grid that 2x2 pooling divides: as published, with the running statistics of its batch norms."""
    module, maps = made("published", out=7), maps_of((8, 4))
    x = torch.cat([m.transpose(1, 2).reshape(B, C, 8, 4) for m in maps], dim=1)
    for nth, stage in enumerate((module.first, module.second, module.third)):
        convolution, norm, _ = stage
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
        x = (x / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
        if nth < 2:
            x = x.reshape(B, -1, x.shape[2] // 2, 2, x.shape[3] // 2, 2).amax((3, 5))
    assert x.shape[2:] == (2, 1)
    wanted = (x.flatten(2).amax(2) @ module.linear.weight.T + module.linear.bias).sigmoid()
    torch.testing.assert_close(module(maps, (8, 4)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["low-rank", "published"])
def test_a_new_one_masks_nothing_and_learns(kind: str) -> None:
    module = made(kind, zero=True).train()
    masks = module(maps_of((4, 2)), (4, 2))
    assert torch.equal(masks, torch.full((B, C), 0.5))
    (masks * torch.randn(B, C)).sum().backward()
    assert module.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["low-rank", "published"])
def test_one_patch_other_grids_and_constant_images(kind: str, grid: tuple[int, int]) -> None:
    module, maps = made(kind), maps_of(grid)
    constant = [torch.full_like(m, 3.0) for m in maps]
    for given in (maps, constant, [0 * m for m in maps]):
        given = [m.requires_grad_() for m in given]
        masks = module(given, grid)
        assert masks.shape == (B, C)
        assert bool(((masks >= 0) & (masks <= 1)).all())  # NaN is neither
        masks.sum().backward()
        assert all(m.grad is not None and bool(m.grad.isfinite().all()) for m in given)
    assert not torch.allclose(module(maps, grid)[0], module(maps, grid)[1])  # it looks at the image


@pytest.mark.parametrize("kind", ["low-rank", "published"])
def test_every_layer_counts(kind: str) -> None:
    module, maps = made(kind), maps_of((4, 2))
    for layer in range(4):
        changed = [m + (nth == layer) * torch.randn_like(m) for nth, m in enumerate(maps)]
        assert not torch.allclose(module(maps, (4, 2)), module(changed, (4, 2)))


# The aggregator ---------------------------------------------------------------------------------------------------


def tokens(grid: tuple[int, int] = (4, 2), has_cls: bool = True, layers: tuple[int, ...] = (*LAYERS, 11)) -> Any:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(B, *shape, generator=generator)

    count = grid[0] * grid[1]
    taps = {layer: draw(count + has_cls, C) for layer in layers}
    cls = draw(C) if has_cls else None
    return SimpleNamespace(cls=cls, patches=draw(count, C), grid=grid, taps=taps, pooled=draw(E))


def aggregator(
    kind: str = "low-rank", masked: Any = "final", none: bool = False, pooling: str = "cls"
) -> MaskAggregator:
    generator = None if none else made(kind, out=C + E * (masked == "both"))
    return MaskAggregator(Taps(pooling, DEPTH, C, E), generator, LAYERS, masked, DEPTH).eval()


def test_it_adds_a_mask_of_the_patches_without_cls() -> None:
    module, given = aggregator(), tokens()
    found = module(given, {})
    assert set(found) == set(module.widths) == {"penultimate", "final", "projection", "mask"}
    assert all(found[name].shape == (B, width) for name, width in module.widths.items())
    assert (module.test, module.necks, module.scored) == (("final", "mask"), ("final",), ("final", "projection"))
    assert set(module.taps) == {2, 4, 10, 11, 12}
    assert torch.equal(found["mask"], module.generator([given.taps[n][:, 1:] for n in LAYERS], (4, 2)))  # type: ignore
    for layer in LAYERS:
        given.taps[layer][:, 0] += 1  # CLS is not looked at
    assert torch.equal(module(given, {})["mask"], found["mask"])
    siglip = tokens(has_cls=False)
    assert torch.equal(
        module(siglip, {})["mask"],
        module.generator([siglip.taps[n] for n in LAYERS], (4, 2)),  # type: ignore
    )


def test_both_is_final_and_projection_of_unit_length() -> None:
    module, given = aggregator(masked="both"), tokens()
    found = module(given, {})
    wanted = [given.cls[0] / given.cls[0].norm(), given.pooled[0] / given.pooled[0].norm()]
    torch.testing.assert_close(found["both"][0], torch.cat(wanted))
    assert found["mask"].shape == (B, C + E)
    assert (module.test, module.necks) == (("both", "mask"), ("both",))


def test_without_a_generator_the_feature_is_alone() -> None:
    module = aggregator(none=True)
    assert (module.test, module.necks) == (("final",), ("final",))
    assert set(module(tokens(), {})) == set(module.widths) == {"penultimate", "final", "projection"}


def test_what_goes_into_the_last_block_is_kept_in_training_only() -> None:
    module, given = aggregator(), tokens()
    module(given, {})
    assert module.last_input is None
    module.train()(given, {})
    assert module.last_input is given.taps[11]
    siglip = tokens(has_cls=False)
    module(siglip, {})
    assert module.last_input is siglip.patches
    module.eval()(given, {})
    assert module.last_input is None


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("masked", ["final", "both"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("has_cls", [True, False])
def test_any_grid_and_a_constant_image(grid: tuple[int, int], masked: Any, pooling: str, has_cls: bool) -> None:
    module, given = aggregator("published", masked, pooling=pooling), tokens(grid, has_cls)
    assert all(bool(x.isfinite().all()) for x in module(given, {}).values())
    for x in (*given.taps.values(), given.patches, given.pooled, *([given.cls] if has_cls else [])):
        x.zero_()
    assert all(bool(x.isfinite().all()) for x in module(given, {}).values())


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature 'cls' to mask: choose one of final, both"):
        MaskAggregator(Taps("cls", DEPTH, C, E), nn.Identity(), LAYERS, "cls", DEPTH)  # type: ignore[arg-type]
