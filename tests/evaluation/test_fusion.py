"""Two models together: alone at the ends, better where each knows what the other does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid import UserError
from clipreid.evaluation import (
    choose_weight,
    cosine_similarity,
    cosine_spread,
    evaluate,
    fuse,
    fuse_features,
    raw_weight,
)
from clipreid.evaluation.fusion import GRID, at_edge


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


def test_the_spread_is_that_of_all_pairs_in_a_cone_too() -> None:
    (a, _), _ = halves(1)
    for shift in (0.0, 3.0, 300.0):
        x = torch.nn.functional.normalize(a.double() + shift, dim=1)
        pairs = (x @ x.T)[~torch.eye(len(x), dtype=torch.bool)]
        assert cosine_spread(x) == pytest.approx(float(pairs.std(correction=0)), rel=1e-3)
    assert cosine_spread(a[:1]) == cosine_spread(torch.ones(5, 3)) == 0.0


@given(st.integers(0, 999), st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_the_raw_weight_ranks_as_the_sum_of_z_scores(seed: int, weight: float) -> None:
    (a, b), _ = halves(seed)
    similarities = [cosine_similarity(x, x).double() for x in (a, b + 2)]
    z = [s / cosine_spread(x) for s, x in zip(similarities, (a, b + 2), strict=True)]
    fused = fuse(*similarities, raw_weight(weight, (cosine_spread(a), cosine_spread(b + 2))))
    expected = weight * z[0] + (1 - weight) * z[1]
    scale = float((expected / fused).median())
    torch.testing.assert_close(fused * scale, expected, rtol=1e-5, atol=1e-6)


def test_squeezed_cosines_do_not_change_the_chosen_weight() -> None:
    """All features of a model moved into a cone: its share stays, where a raw weight went to the edge."""
    (a, b), table = halves(0)
    x = torch.nn.functional.normalize(a, dim=1)
    squeezed = torch.cat([x, torch.full((len(x), 1), 40.0)], dim=1)  # cosines above 0.998, ranked alike
    weights = [choose_weight((y, y), (b, b), table, table)[0] for y in (a, squeezed)]
    assert weights[0] == pytest.approx(weights[1], abs=0.051)
    assert raw_weight(weights[1], (cosine_spread(squeezed), cosine_spread(b))) > 0.98
    assert raw_weight(0.3, (0.0, 0.0)) == 0.3
    assert [at_edge(weight) for weight in (0.0, 0.05, 0.1, 0.9, 0.95, 1.0)] == [True, True, False, False, True, True]
