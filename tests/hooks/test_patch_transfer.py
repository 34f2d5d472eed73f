"""Patch transfer: the formula and the pairing by loops; when it does nothing; draws that follow the rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreid.backbones import VisionConfig, VisionTower
from clipreid.hooks.patch_transfer import PatchTransfer, pair, transfer

GRID = (4, 3)
N = 12


def masks(count: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, N, generator=torch.Generator().manual_seed(seed)) < share


def looped_scores(salient: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """|M_i and M_j| / |M_j|, as it is and for the best horizontal shift, one patch at a time."""
    count, (h, w) = len(salient), GRID
    plain, best = ([[0.0] * count for _ in range(count)] for _ in range(2))
    for i in range(count):
        for j in range(count):
            size = max(1, int(salient[j].sum()))
            shares = []
            for dx in range(w):
                shifted = [salient[i, y * w + (x - dx) % w] for y in range(h) for x in range(w)]
                shares.append(sum(bool(a and b) for a, b in zip(shifted, salient[j], strict=True)) / size)
            plain[i][j], best[i][j] = shares[0], max(shares)
    return plain, best


@given(st.integers(2, 24), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 50))
@settings(deadline=None, max_examples=25)
def test_the_pairing_by_its_definition(count: int, share: float, seed: int) -> None:
    salient = masks(count, share, seed)
    plain, best = looped_scores(salient)
    found = pair(salient, GRID, torch.Generator().manual_seed(seed)).tolist()
    top = max(1, int(0.1 * (count - 1)))
    for i, j in enumerate(found):
        others = sorted((best[i][k] for k in range(count) if k != i), reverse=True)
        ranked = [k for k in range(count) if k != i and best[i][k] >= others[top - 1] - 1e-5]  # ties included
        fitting = [k for k in ranked if plain[i][k] > 0.7]
        if j == -1:  # the best donor would leave nothing
            assert any(plain[i][k] == 0 for k in ranked)
        elif plain[i][j] > 0.7:
            assert j in fitting
        else:
            assert best[i][j] == pytest.approx(others[0], abs=1e-5)  # none fits among the drawn best: the best one
            assert plain[i][j] > 0
        assert i != j


def test_a_shifted_person_ranks_high_but_is_not_drawn_where_another_fits() -> None:
    """21 images: two are drawn from. Donor 1 is image 0 moved by one column, donor 2 nearly image 0; others are alike
    in no patch."""
    column = torch.zeros(4, 3, dtype=torch.bool)
    column[:, 0] = True
    moved, near = column.roll(1, 1), column.clone()
    near[3, 0] = False
    empty = torch.zeros(18, N, dtype=torch.bool)
    salient = torch.cat([torch.stack([m.flatten() for m in (column, moved, near)]), empty])
    found = [pair(salient, GRID, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {int(x[0]) for x in found} == {2}  # donor 1 overlaps by 0 where it stands
    assert {int(x[1]) for x in found} <= {-1}  # 0 and 2 stand elsewhere: nothing would be left
    assert {int(x[5]) for x in found} == {-1}  # nobody is seen in it


def test_equal_donors_are_drawn_evenly_and_a_single_image_has_none() -> None:
    salient = masks(1).repeat(41, 1)
    drawn = torch.stack([pair(salient, GRID, torch.Generator().manual_seed(s)) for s in range(30)])
    assert len(drawn[:, 0].unique()) > 15
    assert bool((drawn != torch.arange(41)).all())
    assert pair(masks(1), GRID, torch.Generator()).tolist() == [-1]


def test_the_formula() -> None:
    x, given_, salient = torch.randn(3, N, 5), torch.randn(3, N, 5), masks(3).float()
    found = transfer(x, given_, salient, torch.tensor([2, -1, 0]))
    for i in range(3):
        for n in range(N):
            m = 1.0 if i == 1 else salient[i, n].item()
            torch.testing.assert_close(found[i, n], x[i, n] * m + given_[i, n] * (1 - m))


def about(count: int, rows: list[int] | None = None) -> dict[str, Tensor]:
    return {"salient": masks(count).float(), "rows": torch.tensor(rows or list(range(count)))}


@pytest.mark.parametrize("has_cls", [True, False])
def test_the_hook_puts_patches_of_donors_into_images(has_cls: bool) -> None:
    hook, x, batch = PatchTransfer(has_cls, GRID, 1.0).train(), torch.randn(12, N + has_cls, 5), about(12)
    found = hook.before(0, x, batch)
    assert torch.equal(found, hook.before(0, x, batch))  # the same draw for the same rows: both turns see one batch
    if has_cls:
        assert torch.equal(found[:, 0], x[:, 0])
    patches, changed = x[:, has_cls:], 0
    for i in range(12):
        same = (found[i, has_cls:] == patches[i]).all(1)  # [N]
        donors = [j for j in range(12) if j != i and torch.equal(
            transfer(patches[i][None], patches[j][None], batch["salient"][j][None], torch.tensor([j]))[0],
            found[i, has_cls:])]  # fmt: skip
        assert bool(same.all()) or donors
        changed += not bool(same.all())
    assert changed > 6


def test_other_rows_are_another_draw() -> None:
    hook, x, batch = PatchTransfer(False, GRID, 1.0).train(), torch.randn(41, N, 5), about(41)
    assert not torch.equal(hook.before(0, x, batch), hook.before(0, x, batch | {"rows": batch["rows"] + 1}))


def test_it_does_nothing_at_test_in_other_layers_without_saliency_and_at_probability_0() -> None:
    x, batch = torch.randn(12, N + 1, 5), about(12)
    hook = PatchTransfer(True, GRID, 1.0).train()
    assert torch.equal(hook.before(1, x, batch), x)
    assert torch.equal(hook.before(0, x, {"rows": batch["rows"]}), x)
    assert torch.equal(hook.eval().before(0, x, batch), x)
    assert torch.equal(PatchTransfer(True, GRID, 0.0).train().before(0, x, batch), x)
    hook.bake(torch.nn.Identity())  # and so it leaves an exported tower as it is


def test_its_probability() -> None:
    x = torch.randn(12, N, 5)
    share = []
    for probability in (0.25, 0.75):
        hook, changed = PatchTransfer(False, GRID, probability).train(), 0
        for seed in range(40):
            found = hook.before(0, x, about(12, [seed, *range(1, 12)]))
            changed += int((found != x).flatten(1).any(1).sum())
        share.append(changed / 480)
    assert share[0] == pytest.approx(0.25, abs=0.08)
    assert share[1] == pytest.approx(0.75, abs=0.12)


def test_inside_a_tower_a_donor_gives_no_gradient() -> None:
    config = VisionConfig((32, 24), 8, width=16, depth=2, heads=2, mlp_width=32, embed_dim=16)
    tower, batch = VisionTower(config).train(), about(12)
    assert tower.grid == GRID
    hook = PatchTransfer(tower.has_cls, tower.grid, 1.0).train()
    pixels = torch.randn(12, 3, 32, 24).requires_grad_()
    plain, changed = tower(pixels), tower(pixels, hooks=(hook,), about=batch)
    assert not torch.allclose(plain.pooled, changed.pooled)
    x = torch.randn(12, N + 1, 16, requires_grad=True)
    hook.before(0, x, batch)[0].sum().backward()
    assert x.grad is not None
    assert not bool(x.grad[1:].any())
