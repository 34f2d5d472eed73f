"""The other re-rankers against their definitions, what all of them share, and streams of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clipreid
from clipreid.errors import UserError
from clipreid.evaluation import cosine_similarity, evaluate, rerank, reranked_rows
from clipreid.evaluation.rerank import METHODS

Array = np.ndarray


def people(seed: int, n: int, dim: int = 12) -> tuple[Array, Array]:
    """Unit features [n, dim] of a few identities, and cameras [n], -1 among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, dim))[rng.integers(0, 5, n)] + 0.6 * rng.standard_normal((n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True), rng.integers(-1, 3, n)


def kwf_reference(
    q: Array, g: Array, q_cameras: Array, g_cameras: Array, candidates: int, k: int, weighting: str, epsilon: float
) -> Array:
    """Fused features, one pair at a time."""
    out = q @ g.T
    for i in range(len(q)):
        for j in np.argsort(-(q[i] @ g.T))[:candidates]:
            others = [n for n in range(len(g)) if q_cameras[i] == -1 or g_cameras[n] != q_cameras[i]]
            near = sorted(others, key=lambda n, j=j: -(g[j] @ g[n]))[:k]  # type: ignore[misc]
            if not near:
                continue
            distance = np.array([1 - g[j] @ g[n] for n in near])
            weight = {
                "uniform": np.ones(len(near)),
                "inverse-distance": np.maximum(distance, epsilon) ** -2.0,
                "exponential": np.exp(-distance),
            }[weighting]
            out[i, j] = q[i] @ (weight / weight.sum() @ g[near])
    return out


@pytest.mark.parametrize("weighting", ["uniform", "inverse-distance", "exponential"])
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 40), st.integers(1, 50), st.integers(1, 9))
def test_kwf_equals_fused_features(
    weighting: str, seed: int, n_query: int, n_gallery: int, candidates: int, k: int
) -> None:
    x, cameras = people(seed, n_query + n_gallery)
    q, g, q_cameras, g_cameras = x[:n_query], x[n_query:], cameras[:n_query], cameras[n_query:]
    found = rerank(
        q,
        g,
        "kwf",
        query_cameras=q_cameras,
        gallery_cameras=g_cameras,
        candidates=candidates,
        neighbours=k,
        weighting=weighting,
        epsilon=0.05,
    )
    expected = kwf_reference(q, g, q_cameras, g_cameras, candidates, k, weighting, 0.05)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_kwf_without_epsilon_in_effect_changes_nothing() -> None:
    """Why it is needed: without it, the image itself has all the weight."""
    x, _ = people(0, 60)
    cosine = cosine_similarity(x[:9], x[9:]).float()
    still = rerank(x[:9], x[9:], "kwf", weighting="inverse-distance", epsilon=1e-5)
    torch.testing.assert_close(still, cosine, atol=1e-4, rtol=0)
    assert (rerank(x[:9], x[9:], "kwf", weighting="inverse-distance") - cosine).abs().max() > 0.01


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 40), st.integers(1, 50), st.sampled_from([0, 1.0, 3]))
def test_alpha_expansion_equals_its_definition(
    seed: int, n_query: int, n_gallery: int, neighbours: int, alpha: float
) -> None:
    x, _ = people(seed, n_query + n_gallery)
    q, g = x[:n_query], x[n_query:]
    expected = np.zeros((n_query, n_gallery))
    for i in range(n_query):
        cosine = g @ q[i]
        best = [j for j in np.argsort(-cosine)[:neighbours] if cosine[j] > 0]
        expanded = q[i] + sum((cosine[j] ** alpha * g[j] for j in best), np.zeros(q.shape[1]))
        expected[i] = g @ (expanded / np.linalg.norm(expanded))
    found = rerank(q, g, "aqe", neighbours=neighbours, alpha=alpha)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


# Shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
def test_rows_are_the_whole_in_parts_and_evaluate_takes_both(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, cameras = people(1, 300)
    metadata = {"identity": np.arange(300) % 7, "camera": cameras}
    query, gallery = (
        {name: values[part] for name, values in metadata.items()} for part in (slice(150), slice(150, 300))
    )
    given_ = {"query_cameras": query["camera"], "gallery_cameras": gallery["camera"]}
    whole = clipreid.rerank(x[:150], x[150:], method, **given_)
    expected = evaluate(query=query, gallery=gallery, similarity=whole)
    monkeypatch.setattr("clipreid.evaluation.similarity._CHUNK_ELEMENTS", 64 * 150)
    blocks = list(reranked_rows(x[:150], x[150:], method, **given_))
    assert [len(block) for block in blocks] == [64, 64, 22]
    torch.testing.assert_close(torch.cat(blocks), whole, atol=1e-6, rtol=0)
    report = evaluate(query=query, gallery=gallery, similarity=reranked_rows(x[:150], x[150:], method, **given_))
    assert report.metrics == pytest.approx(expected.metrics)
    assert expected.metrics != evaluate(x[:150], x[150:], query, gallery).metrics


@pytest.mark.parametrize("method", list(METHODS))
def test_features_are_left_alone_and_gradients_are_not_kept(method: str) -> None:
    x = torch.randn(80, 16, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    q, g = x[:20].requires_grad_(), x[20:]
    assert not rerank(q, g, method).requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_says_what_it_depends_on(method: str) -> None:
    assert METHODS[method].note.startswith("transductive")
    assert "gallery" in METHODS[method].note


EYE = torch.eye(3)
REFUSED = [
    ({"method": "krnn"}, "unknown re-ranking method 'krnn'; valid are k-reciprocal, kwf, aqe"),
    ({"k3": 1}, "k-reciprocal has no option 'k3'; it has k1, k2, lambda_value"),
    ({"k1": 0}, "k1 is 0 and k2 is 6"),
    ({"k1": 20.0}, "k1 is 20.0"),
    ({"lambda_value": 2}, "lambda_value is 2"),
    ({"method": "kwf", "weighting": "best"}, "unknown weighting 'best'; valid are uniform, inverse-distance, expon"),
    ({"method": "kwf", "neighbours": 0}, "neighbours is 0"),
    ({"method": "kwf", "epsilon": 0}, "epsilon is 0"),
    ({"method": "kwf", "query_cameras": [0, 1]}, r"query_cameras is torch.int64 \[2\]; whole numbers \[3\]"),
    ({"method": "aqe", "alpha": -1}, "alpha is -1"),
    ({"method": "aqe", "neighbours": 2.5}, "neighbours is 2.5"),
    ({"gallery_features": torch.eye(4)}, r"query_features has shape \[3, 3\] and gallery_features \[4, 4\]"),
    ({"gallery_features": torch.zeros(0, 3)}, "at least one row"),
    ({"query_features": EYE / torch.tensor([[1], [0], [1]])}, "query_features: NaN or infinity in row 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refusals_come_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reranked_rows(**({"query_features": EYE, "gallery_features": EYE} | arguments))  # type: ignore[arg-type]


def stream(*blocks: Array) -> Iterator[Array]:
    yield from blocks


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_stream_of_rows_is_scored_as_its_matrix(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.random((sum(sizes), 20), np.float32)
    query, gallery = {"identity": rng.integers(0, 4, sum(sizes))}, {"identity": np.arange(20) % 4}
    expected = evaluate(query=query, gallery=gallery, similarity=similarity)
    parts = np.split(similarity, np.cumsum(sizes)[:-1])
    copies = [part.copy() for part in parts]
    report = evaluate(query=query, gallery=gallery, similarity=stream(*parts))
    assert report.metrics == expected.metrics
    for part, copy in zip(parts, copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([(2, 3)], "its blocks have 2 rows, the metadata needs 3 queries"),
        ([(2, 3), (2, 3)], "its blocks have at least 4 rows, the metadata needs 3"),
        ([(2, 3), (1, 4)], r"the block of similarity from row 2 has shape \[1, 4\]"),
        ([], "its blocks have 0 rows"),
    ],
)
def test_streams_that_do_not_fit_are_refused(blocks: list[tuple[int, int]], message: str) -> None:
    table = {"identity": range(3)}
    with pytest.raises(UserError, match=message):
        evaluate(query=table, gallery=table, similarity=stream(*map(np.zeros, blocks)))


def test_a_bad_row_of_a_stream_is_named() -> None:
    table = {"identity": range(3)}
    bad = np.array([[0, 0, np.nan]])
    with pytest.raises(UserError, match="similarity: NaN or infinity in row 2"):
        evaluate(query=table, gallery=table, similarity=stream(np.zeros((2, 3)), bad))
