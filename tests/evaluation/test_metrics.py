"""evaluate() against an independent slow reference, its invariances, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.errors import UserError
from clipreid.evaluation import cosine_similarity, evaluate

Table = dict[str, np.ndarray]


def slow_reference(similarity: np.ndarray, query: Table, gallery: Table, protocol: str) -> dict[str, np.ndarray]:
    """One query at a time: drop junk, argsort, walk down the list. Ties: mistakes first."""
    out: dict[str, list[float]] = {"ap": [], "inp": [], "first_rank": []}
    for i in range(len(similarity)):
        kept = []
        for j in range(similarity.shape[1]):
            same_id = query["identity"][i] == gallery["identity"][j]
            same_camera = query["camera"][i] == gallery["camera"][j] != -1
            junk = query["path"][i] == gallery["path"][j] != ""
            junk |= protocol == "market1501" and same_id and same_camera
            junk |= protocol == "cross-camera" and same_camera
            if not junk:
                kept.append((-similarity[i, j], bool(same_id)))  # False sorts before True
        hits = [rank for rank, (_, right) in enumerate(sorted(kept), start=1) if right]
        out["ap"].append(np.mean([k / r for k, r in enumerate(hits, start=1)]) if hits else np.nan)
        out["inp"].append(len(hits) / hits[-1] if hits else np.nan)
        out["first_rank"].append(hits[0] if hits else np.nan)
    return {name: np.array(values) for name, values in out.items()}


def random_problem(seed: int, q: int = 40, g: int = 90, levels: int = 0) -> tuple[np.ndarray, Table, Table]:
    """Similarities (few levels: many ties); metadata with junk, shared paths, queries without match."""
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, levels, (q, g)).astype(np.float32) if levels else rng.random((q, g), np.float32)
    query, gallery = (
        {
            "identity": rng.integers(0, high, n),
            "camera": rng.integers(-1, 3, n),
            "path": rng.permutation([f"{i}.jpg" if i % 3 else "" for i in range(n)]),
        }
        for n, high in ((q, 14), (g, 11))
    )
    return similarity, query, gallery


def take(table: Table, rows: np.ndarray) -> Table:
    return {name: values[rows] for name, values in table.items()}


@pytest.mark.parametrize("protocol", ["market1501", "cross-camera", "no-cameras"])
@pytest.mark.parametrize("levels", [0, 1, 5])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_reference(seed: int, levels: int, protocol: str) -> None:
    similarity, query, gallery = random_problem(seed, levels=levels)
    report = evaluate(query=query, gallery=gallery, similarity=similarity, protocol=protocol, chunk=16)
    expected = slow_reference(similarity, query, gallery, protocol)
    for name, values in expected.items():
        np.testing.assert_allclose(report.per_query[name], values, rtol=1e-12)
    valid = ~np.isnan(expected["ap"])
    assert not valid.all()
    assert report.counts["valid_queries"] == valid.sum()
    assert report.metrics["mAP"] == pytest.approx(np.nanmean(expected["ap"]))
    assert report.metrics["mINP"] == pytest.approx(np.nanmean(expected["inp"]))
    for k in (1, 5, 10):
        assert report.metrics[f"rank{k}"] == pytest.approx((expected["first_rank"][valid] <= k).mean())


def test_a_worked_example() -> None:
    report = evaluate(
        similarity=[[0.9, 0.8, 0.7, 0.6, 0.5]],
        query={"identity": [1], "camera": [0]},
        gallery={"identity": [1, 2, 1, 0, 1], "camera": [0, 1, 1, 1, 2]},
    )  # the first is junk: x, wrong, right, wrong, right
    assert report.metrics["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert report.metrics["mINP"] == pytest.approx(2 / 4)
    assert (report.metrics["rank1"], report.metrics["rank5"]) == (0.0, 1.0)
    assert report.per_query["n_positives"].tolist() == [2]
    assert report.counts == {
        "queries": 1,
        "valid_queries": 1,
        "gallery": 5,
        "query_identities": 1,
        "gallery_identities": 3,
        "distractors": 2,
        "copies": 0,
    }


def test_ties_go_against_the_query() -> None:
    gallery = {"identity": np.array([1, 1, 2, 3])}
    report = evaluate(query={"identity": [1]}, gallery=gallery, similarity=np.zeros((1, 4)))
    assert report.per_query["first_rank"][0] == 3
    assert report.metrics["mAP"] == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize("dim", [3, 64, 1281])
@pytest.mark.parametrize("chunk", [1, 7, None])
def test_equal_features_tie_exactly_wherever_they_stand(dim: int, chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(dim)
    q, g = torch.randn(1, dim, generator=generator).expand(37, -1), torch.randn(1, dim, generator=generator)
    gallery = {"identity": [*range(37), *range(200)]}
    report = evaluate(q, g.expand(237, -1), {"identity": range(37)}, gallery, chunk=chunk)
    assert (report.per_query["first_rank"] == 236).all()  # 235 mistakes first, then both matches


def test_features_are_compared_by_cosine_whatever_their_length_and_type() -> None:
    _, query, gallery = random_problem(0)
    rng = np.random.default_rng(0)
    q, g = rng.standard_normal((40, 24)), rng.standard_normal((90, 24))
    cosine = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    np.testing.assert_allclose(cosine_similarity(q, g).numpy(), cosine, atol=1e-14)
    assert cosine_similarity(torch.tensor(q).float(), torch.tensor(g).float()).dtype == torch.float32
    expected = evaluate(query=query, gallery=gallery, similarity=cosine).metrics
    assert evaluate(q, g, query, gallery).metrics == pytest.approx(expected)
    assert evaluate(q * 1e30, g * 1e-30, query, gallery).metrics == pytest.approx(expected)
    single = evaluate(torch.tensor(q).float() * 1e30, g.astype(np.float32) * 1e-30, query, gallery)
    assert single.metrics == pytest.approx(expected, abs=1e-3)
    half = evaluate(torch.tensor(q).bfloat16(), torch.tensor(g).bfloat16(), query, gallery)
    again = evaluate(torch.tensor(q).bfloat16().float(), torch.tensor(g).bfloat16().float(), query, gallery)
    assert half.metrics == again.metrics


def test_neither_autocast_nor_reduced_precision_reach_the_similarities() -> None:
    q, g = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), torch.eye(512)
    expected = cosine_similarity(q, g)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cosine_similarity(q, g), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_input_is_left_alone() -> None:
    similarity, query, gallery = random_problem(1)
    for given_ in (similarity, torch.tensor(similarity)):
        before = given_.copy() if isinstance(given_, np.ndarray) else given_.clone()
        evaluate(query=query, gallery=gallery, similarity=given_)
        assert (np.asarray(before) == np.asarray(given_)).all()


problems = st.builds(
    random_problem,
    seed=st.integers(0, 10_000),
    q=st.integers(8, 30),
    g=st.integers(30, 60),
    levels=st.sampled_from([0, 2, 6]),
)
quick = settings(max_examples=25, deadline=None)


@quick
@given(problems, st.randoms(use_true_random=False))
def test_order_of_queries_and_gallery_changes_nothing(problem, random) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    expected = evaluate(query=query, gallery=gallery, similarity=similarity)
    rows = np.array(random.sample(range(len(similarity)), len(similarity)))
    columns = np.array(random.sample(range(similarity.shape[1]), similarity.shape[1]))
    shuffled = evaluate(
        query=take(query, rows), gallery=take(gallery, columns), similarity=similarity[rows][:, columns]
    )
    assert shuffled.metrics == pytest.approx(expected.metrics, rel=1e-12)
    assert shuffled.counts == expected.counts
    for name, values in expected.per_query.items():
        np.testing.assert_array_equal(shuffled.per_query[name], values[rows])


@quick
@given(problems, st.integers(1, 40))
def test_junk_changes_nothing(problem, n) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    query = query | {"camera": np.full(len(similarity), 7)}
    expected = evaluate(query=query, gallery=gallery, similarity=similarity)
    rows = np.arange(n) % len(similarity)
    junk = {"identity": query["identity"][rows], "camera": np.full(n, 7), "path": np.full(n, "")}
    more = {name: np.concatenate([gallery[name], junk[name]]) for name in gallery}
    scores = np.full((len(similarity), n), 0.5, similarity.dtype)
    scores[query["identity"][:, None] != junk["identity"]] = -9  # to others it is a mistake: behind everything
    report = evaluate(query=query, gallery=more, similarity=np.concatenate([similarity, scores], axis=1))
    assert report.metrics == expected.metrics
    for name, values in expected.per_query.items():
        np.testing.assert_array_equal(report.per_query[name], values)


@quick
@given(problems)
def test_a_perfect_ranking_is_perfect(problem) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    right = query["identity"][:, None] == gallery["identity"]
    report = evaluate(query=query, gallery=gallery, similarity=similarity + 100 * right)
    assert set(report.metrics.values()) == {1.0}


@quick
@given(problems, st.integers(1, 50), st.booleans())
def test_chunk_size_changes_nothing(problem, chunk, from_features) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    if from_features:
        rng = np.random.default_rng(chunk)
        q, g = (rng.integers(-3, 4, (n, 6)).astype(np.float32) for n in similarity.shape)
        one, other = (evaluate(q, g, query, gallery, chunk=c) for c in (None, chunk))
    else:
        one, other = (evaluate(query=query, gallery=gallery, similarity=similarity, chunk=c) for c in (None, chunk))
    assert one.metrics == other.metrics
    assert one.notes == other.notes
    for name, values in one.per_query.items():
        np.testing.assert_array_equal(other.per_query[name], values)


TWO = {"identity": ["a", "b"]}
FEATURES = torch.eye(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_features": FEATURES}, "give query_features and gallery_features, or similarity"),
        ({}, "give query_features and gallery_features, or similarity"),
        ({"query_features": FEATURES, "similarity": FEATURES}, "either features or similarity, not both"),
        ({"similarity": torch.zeros(2, 3)}, r"similarity has shape \[2, 3\], the metadata needs \[2, 2\]"),
        (
            {"query_features": torch.eye(3), "gallery_features": FEATURES},
            r"query_features has shape \[3, 3\]",
        ),
        ({"query_features": FEATURES, "gallery_features": torch.ones(2, 5)}, r"with the D of the queries"),
        (
            {"query_features": torch.ones(2), "gallery_features": FEATURES},
            r"query_features has shape \[2\]; feat",
        ),
        (
            {"similarity": torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])},
            "similarity: NaN or infinity in row 1",
        ),
        (
            {
                "query_features": FEATURES,
                "gallery_features": torch.tensor([[torch.inf, 0.0], [torch.nan, 1.0]]),
            },
            "gallery_features: NaN or infinity in rows 0 and 1",
        ),
        ({"similarity": FEATURES, "chunk": 0}, "chunk is 0"),
        (
            {"similarity": FEATURES, "protocol": "market"},
            "unknown protocol 'market'; valid are market1501, cross",
        ),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(**({"query": TWO, "gallery": TWO} | arguments))


def test_a_bad_row_in_a_late_chunk_is_named_by_its_own_number() -> None:
    similarity = np.zeros((5, 5))
    similarity[3, 1] = np.inf
    table = {"identity": range(5)}
    with pytest.raises(UserError, match="in row 3"):
        evaluate(query=table, gallery=table, similarity=similarity, chunk=2)
