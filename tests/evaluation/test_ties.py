"""Ties, duplicates and values that are no numbers, as docs/evaluation.md says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import problems, take

from clipreid.errors import UserError
from clipreid.evaluation import evaluate

quick = settings(max_examples=25, deadline=None)
KINDS = ("mAP", "mINP", "rank1", "rank5", "rank10")


@quick
@given(problems, st.integers(0, 100))
def test_no_way_to_break_ties_is_worse(problem, seed) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    rounded = similarity.round(1).astype(np.float64)
    broken = rounded + 1e-4 * np.random.default_rng(seed).random(similarity.shape)
    tied, lucky = (evaluate(query=query, gallery=gallery, similarity=s) for s in (rounded, broken))
    for kind in KINDS:
        assert tied.metrics[kind] <= lucky.metrics[kind] + 1e-12
    scored = tied.per_query["n_positives"] > 0
    assert (tied.per_query["first_rank"][scored] >= lucky.per_query["first_rank"][scored]).all()


@quick
@given(problems, st.floats(-1e6, 1e6, width=32))
def test_equal_scores_put_every_mistake_first(problem, score) -> None:  # type: ignore[no-untyped-def]
    similarity, query, gallery = problem
    report = evaluate(query=query, gallery=gallery, similarity=np.full_like(similarity, score), protocol="no-cameras")
    itself = (query["path"][:, None] == gallery["path"]) & (gallery["path"] != "")
    right = (query["identity"][:, None] == gallery["identity"]) & ~itself
    wrong = ((~right) & ~itself).sum(1)
    for i, n in enumerate(right.sum(1)):
        if n:
            k = np.arange(1, n + 1)
            assert report.per_query["ap"][i] == pytest.approx(np.mean(k / (wrong[i] + k)))
            assert report.per_query["inp"][i] == pytest.approx(n / (wrong[i] + n))
            assert report.per_query["first_rank"][i] == wrong[i] + 1


@quick
@given(problems)
def test_a_copy_of_a_mistake_stands_beside_it(problem) -> None:  # type: ignore[no-untyped-def]
    """Doubling the images that nobody asks for moves a first match down by those before it."""
    similarity, query, gallery = problem
    gallery = gallery | {"path": np.full(len(gallery["path"]), "")}
    strangers = np.flatnonzero(~np.isin(gallery["identity"], query["identity"]))
    more = take(gallery, np.concatenate([np.arange(similarity.shape[1]), strangers]))
    before = evaluate(query=query, gallery=gallery, similarity=similarity, protocol="no-cameras")
    doubled = np.concatenate([similarity, similarity[:, strangers]], 1)
    after = evaluate(query=query, gallery=more, similarity=doubled, protocol="no-cameras")
    right = query["identity"][:, None] == gallery["identity"]
    best = np.where(right, similarity, -np.inf).max(1)
    ahead = (similarity[:, strangers] >= best[:, None]).sum(1)  # of the first match, ties included
    scored = before.per_query["n_positives"] > 0
    moved = after.per_query["first_rank"] - before.per_query["first_rank"]
    np.testing.assert_array_equal(moved[scored], ahead[scored])


@quick
@given(st.sets(st.integers(0, 19), min_size=1, max_size=5), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_features_that_are_no_numbers_are_refused_by_row(rows: set[int], value: float, in_query: bool) -> None:
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    bad = x.copy()
    bad[list(rows), 3] = value
    table = {"identity": np.arange(20) % 5}
    features = (bad, torch.tensor(x)) if in_query else (x, torch.tensor(bad))
    with pytest.raises(UserError) as refused:
        evaluate(*features, table, table)
    message, names = str(refused.value), [str(row) for row in sorted(rows)]
    assert message.startswith("query_features" if in_query else "gallery_features")
    listed = message.split("row")[1].lstrip("s ").split(".")[0].replace(" and ", ", ").split(", ")
    assert listed == names
