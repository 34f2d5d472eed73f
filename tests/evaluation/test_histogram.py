"""The histograms of similarities against numpy's, over all pairs that are not junk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.errors import UserError
from clipreid.evaluation import Report, cosine_similarity, evaluate


def by_hand(report: Report, similarity: np.ndarray, query: dict, gallery: dict) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives under the market rule, counted pair by pair."""
    assert report.histogram is not None
    edges = report.histogram.edges.copy()
    same = query["identity"][:, None] == gallery["identity"]
    junk = same & (query["camera"][:, None] == gallery["camera"])
    edges[0], edges[-1] = -np.inf, np.inf
    edges = edges.astype(similarity.dtype)
    return tuple(np.histogram(similarity[pairs & ~junk], edges)[0] for pairs in (same, ~same))  # type: ignore


@given(seed=st.integers(0, 10**6), levels=st.integers(1, 50), chunk=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equals_numpys_whatever_the_chunk(seed: int, levels: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    query, gallery = ({"identity": rng.integers(0, 6, n), "camera": rng.integers(0, 3, n)} for n in (12, 30))
    query["identity"][0], gallery["identity"][0] = 1, 1
    query["camera"][0], gallery["camera"][0] = 0, 1  # at least one match
    similarity = (rng.integers(0, levels, (12, 30)) / 7 - 2).astype(np.float32)
    report = evaluate(query=query, gallery=gallery, similarity=similarity, chunk=chunk)
    positive, negative = by_hand(report, similarity, query, gallery)
    np.testing.assert_array_equal(report.histogram.positive, positive)  # type: ignore[union-attr]
    np.testing.assert_array_equal(report.histogram.negative, negative)  # type: ignore[union-attr]


def test_bins_of_cosines_follow_the_data() -> None:
    """Features in a cone: with bins over -1 to 1 all pairs would be in one bar."""
    rng = np.random.default_rng(0)
    query, gallery = ({"identity": np.arange(20) % 5, "camera": np.full(20, camera)} for camera in (0, 1))
    features = (30 + rng.standard_normal((20, 8))).astype(np.float32)
    report = evaluate(features, features, query, gallery)
    found = report.histogram
    assert found is not None
    used = np.flatnonzero(found.positive + found.negative)
    assert found.edges[0] > 0.99
    assert len(used) > 60
    similarity = cosine_similarity(features, features).numpy()
    np.testing.assert_array_equal(found.negative, by_hand(report, similarity, query, gallery)[1])
    flat = evaluate(np.ones((20, 8)), np.ones((20, 8)), query, gallery).histogram
    assert flat is not None
    assert flat.edges[-1] - flat.edges[0] > 5e-5  # of equal features too
    labels = [text.get_text() for text in report.plot_similarities().axes[0].get_xticklabels()]
    assert all("e" not in label and "+" not in label for label in labels)


def test_equal_images_are_counted() -> None:
    rng = np.random.default_rng(0)
    query, gallery = ({"identity": np.arange(20), "camera": np.full(20, camera)} for camera in (0, 1))
    features = rng.standard_normal((20, 8)).astype(np.float32)
    report = evaluate(features, features, query, gallery, count_copies=True)
    found = report.histogram
    assert found is not None
    assert found.edges[[0, -1]].tolist() == [-1, 1]
    assert found.positive.sum() == found.positive[-1] == 20  # cosine 1, or a rounding beyond it
    assert found.negative.sum() == 380
    _, negative = by_hand(report, cosine_similarity(features, features).numpy(), query, gallery)
    np.testing.assert_array_equal(found.negative, negative)


def test_random_galleries_and_streams_have_none_and_infinity_is_still_refused() -> None:
    rng = np.random.default_rng(0)
    table = {"identity": np.repeat(np.arange(5), 4), "path": [f"{i}.jpg" for i in range(20)]}
    report = evaluate(similarity=rng.random((20, 20)), query=table, gallery=table, protocol="vehicleid")
    assert report.histogram is None
    report = evaluate(similarity=iter([rng.random((20, 20))]), query=table, gallery=table)
    assert report.histogram is None  # the range of a stream is not known before its end
    similarity = torch.rand(20, 20)
    similarity[3, 4] = torch.inf
    with pytest.raises(UserError, match="NaN or infinity in row 3"):
        evaluate(similarity=similarity, query=table, gallery=table)
