"""Two models together: alone at the ends, better where each knows what the other does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid import UserError
from clipreid.evaluation import choose_weight, cosine_similarity, evaluate, fuse, fuse_features
from clipreid.evaluation.fusion import GRID


def halves(seed: int, n: int = 60) -> tuple[list[torch.Tensor], dict[str, np.ndarray]]:
    """Features of two models: each tells half of what there is to know of 16 identities, with noise."""
    rng = np.random.default_rng(seed)
    identity = np.arange(n) % 16
    parts = [np.eye(4)[identity // 4], np.eye(4)[identity % 4]]
    noisy = [torch.from_numpy(part + 0.3 * rng.standard_normal((n, 4))).float() for part in parts]
    return noisy, {"identity": identity}


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_at_the_ends_each_model_is_alone(seed: int) -> None:
    (a, b), table = halves(seed)
    one, other = cosine_similarity(a[:20], a), cosine_similarity(b[:20], b)
    assert torch.equal(fuse(one, other, 1), one)
    assert torch.equal(fuse(one, other, 0), other)
    query = {"identity": table["identity"][:20]}
    for weight, x in ((1.0, a), (0.0, b)):
        features = fuse_features(a, b, weight)
        fused = evaluate(features[:20], features, query, table)
        assert fused.metrics == pytest.approx(evaluate(x[:20], x, query, table).metrics, abs=1e-6)


@given(st.integers(0, 999), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_cosine_of_fused_features_is_the_fused_cosine(seed: int, weight: float) -> None:
    (a, b), _ = halves(seed)
    features = fuse_features(a, b, weight)
    expected = fuse(cosine_similarity(a, a), cosine_similarity(b, b), weight)
    torch.testing.assert_close(cosine_similarity(features, features), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(a)), atol=1e-5, rtol=0)


def test_the_weight_is_the_best_of_the_grid_and_together_they_are_better() -> None:
    (a, b), table = halves(0)
    weight, found = choose_weight(
        (a[:20], a[20:]), (b[:20], b[20:]), {"identity": table["identity"][:20]}, {"identity": table["identity"][20:]}
    )
    assert len(found) == len(GRID) == 21
    assert found[GRID.index(weight)] == max(found)
    assert 0.2 < weight < 0.8
    assert max(found) > max(found[0], found[-1]) + 0.2


def test_of_equal_weights_the_one_nearest_to_half_is_taken() -> None:
    (a, _), table = halves(0)
    weight, found = choose_weight((a, a), (a, a), table, table)
    assert weight == 0.5
    assert max(found) - min(found) < 0.01


def test_what_cannot_be_fused_is_refused() -> None:
    a = torch.eye(3)
    with pytest.raises(UserError, match=r"weight 1\.5"):
        fuse(a, a, 1.5)
    with pytest.raises(UserError, match="weight nan"):
        fuse_features(a, a, float("nan"))
    with pytest.raises(UserError, match="the same queries and gallery"):
        fuse(a, a[:2], 0.5)
    with pytest.raises(UserError, match="features of 3 and 2 images"):
        fuse_features(a, a[:2], 0.5)
