"""k-reciprocal encoding, sparse, against the definition written out over dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.evaluation import cosine_similarity, rerank
from clipreid.evaluation.neighbours import nearest, prepare, product
from clipreid.evaluation.similarity import unit_rows

Array = np.ndarray


def dense_reference(cosine: Array, n_query: int, k1: int, k2: int, lambda_value: float) -> Array:
    """Similarities [Q, G] from the cosines [N, N] of queries and gallery; sets are sets, matrices are dense float32."""
    n = len(cosine)
    distance = np.maximum(2 - 2 * cosine, 0).astype(np.float32)
    np.fill_diagonal(distance, 0)
    largest = distance.max(1, keepdims=True)
    distance = np.divide(distance, largest, out=np.zeros_like(distance), where=largest > 0)
    order = [sorted(range(n), key=lambda j, i=i: (j != i, -cosine[i, j], j)) for i in range(n)]  # type: ignore[misc]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in order[p][: k + 1] if p in order[g][: k + 1]}

    codes = np.zeros((n, n), np.float32)
    for p in range(n):
        members = core = reciprocal(p, k1)
        for candidate in core:
            more = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(core & more) > 2 / 3 * len(more):
                members = members | more
        for g in members:
            codes[p, g] = np.exp(-distance[p, g])
    codes /= codes.sum(1, keepdims=True)
    codes = np.stack([codes[order[p][:k2]].mean(0) for p in range(n)])
    out = np.zeros((n_query, n - n_query), np.float32)
    for i in range(n_query):
        for j in range(n_query, n):
            jaccard = 1 - np.minimum(codes[i], codes[j]).sum() / np.maximum(codes[i], codes[j]).sum()
            out[i, j - n_query] = 1 - ((1 - lambda_value) * jaccard + lambda_value * distance[i, j])
    return out


def lattice(rng: np.random.Generator, n: int, dim: int) -> Array:
    """Rows of length 1 whose dot products are exact in any order of summation, with many ties and duplicates."""
    assert dim >= 4
    x = np.zeros((n, dim), np.float32)
    for row in x:
        row[rng.choice(dim, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return x


settings_ = st.tuples(st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.0, 0.3, 1.0]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 30), st.integers(4, 8), settings_)
def test_equals_the_dense_reference_with_ties_and_duplicates(
    seed: int, n_query: int, n_gallery: int, dim: int, chosen: tuple[int, int, float]
) -> None:
    x = lattice(np.random.default_rng(seed), n_query + n_gallery, dim)
    k1, k2, lambda_value = chosen[0], min(chosen[1], chosen[0] + 1), chosen[2]
    found = rerank(x[:n_query], x[n_query:], k1=k1, k2=k2, lambda_value=lambda_value)
    expected = dense_reference(x @ x.T, n_query, k1, k2, lambda_value)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("n_query", "n_gallery", "k1", "k2"),
    [(1, 60, 20, 6), (20, 70, 20, 6), (1, 1, 20, 6), (3, 9, 20, 6), (12, 50, 7, 1), (9, 60, 30, 9)],
)
def test_equals_the_dense_reference_on_clusters(n_query: int, n_gallery: int, k1: int, k2: int) -> None:
    rng = np.random.default_rng(n_gallery)
    identities = rng.integers(0, 6, n_query + n_gallery)
    x = rng.standard_normal((6, 24))[identities] + 0.7 * rng.standard_normal((len(identities), 24))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    expected = dense_reference(x @ x.T, n_query, k1, k2, 0.3)
    found = rerank(7 * x[:n_query], torch.tensor(x[n_query:]), method="k-reciprocal", k1=k1, k2=k2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=0)
    assert found.min() >= 0
    assert found.max() <= 1


def test_same_identity_rises() -> None:
    """What re-ranking is for: an image close to the query's neighbours passes one that is close to the query alone."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32))
    identities = np.repeat(np.arange(40), 8)
    x = centres[identities] + 1.1 * rng.standard_normal((320, 32))
    first = np.arange(320) % 8 == 0
    right = identities[first][:, None] == identities[~first]
    before = cosine_similarity(x[first], x[~first]).numpy()
    after = rerank(x[first], x[~first], k1=7, k2=3).numpy()

    def share(similarity: Array) -> float:
        top = np.argsort(-similarity, 1)[:, :7]
        return float(np.take_along_axis(right, top, 1).mean())

    assert share(after) > share(before) + 0.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 260), st.integers(1, 20))
def test_neighbours_do_not_depend_on_tiles(seed: int, n: int, k: int) -> None:
    k = min(k, n)
    units = unit_rows(torch.tensor(lattice(np.random.default_rng(seed), n, 5)), "x")
    cosine = (units @ units.T)[:n, :n]
    lowest = cosine.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf).amin(1)
    cosine.fill_diagonal_(torch.inf)
    expected = cosine.sort(dim=1, descending=True, stable=True).indices[:, :k]
    for tile in (64, 128, 2048):
        index, low = nearest(units, n, k, tile)
        assert torch.equal(index, expected)
        assert torch.equal(low, lowest)


def test_products_do_not_depend_on_the_block() -> None:
    units = unit_rows(torch.randn(320, 100, generator=torch.Generator().manual_seed(0)), "x")
    whole = product(units, prepare(units))
    assert torch.equal(whole, whole.T)
    assert torch.equal(product(units[64:192], prepare(units[128:])), whole[64:192, 128:])
    torch.testing.assert_close(whole, units @ units.T, atol=1e-6, rtol=0)


def test_images_that_are_all_alike_fall_apart_by_their_rows() -> None:
    """Equal neighbours are taken by row, so who is among the first k1 is a matter of order, here and in any library."""
    found = rerank(torch.ones(3, 16), torch.ones(70, 16), k1=5, k2=2)  # rows 0..5 of 73 are everyone's neighbours
    assert bool((found[:, :3] == 1).all())
    assert bool((found[:, 3:] < 1).all())
    assert bool(torch.isfinite(rerank(torch.zeros(2, 4), torch.eye(4), k1=2, k2=1)).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_agree() -> None:
    x = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    expected = rerank(x[:100], x[100:])
    torch.testing.assert_close(rerank(x[:100].cuda(), x[100:].cuda()).cpu(), expected, atol=1e-5, rtol=0)
