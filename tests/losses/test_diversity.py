"""The diversity of anchors: the formula, and its ends."""

import math

import pytest
import torch

from clipreid.losses.regularisers import anchor_diversity_loss


def test_mean_squared_cosine_of_different_anchors() -> None:
    anchors = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, rows = [], anchors.tolist()
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j:
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                found.append((dot / math.hypot(*a) / math.hypot(*b)) ** 2)
    assert anchor_diversity_loss(anchors).item() == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_its_ends_and_its_gradient() -> None:
    assert anchor_diversity_loss(3 * torch.eye(4)).item() == pytest.approx(0, abs=1e-7)
    assert anchor_diversity_loss(torch.ones(4, 6) * torch.tensor([1.0, -2, 3, 4])[:, None]).item() == pytest.approx(1)
    assert anchor_diversity_loss(torch.ones(1, 6)).item() == 0
    anchors = torch.randn(6, 4, requires_grad=True)
    before = anchor_diversity_loss(anchors)
    before.backward()
    assert anchors.grad is not None
    assert anchor_diversity_loss(anchors.detach() - 0.1 * anchors.grad) < before
    zero = torch.zeros(3, 4, requires_grad=True)
    anchor_diversity_loss(zero).backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()
