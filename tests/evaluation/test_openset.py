"""One threshold for all pairs, against every threshold tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid import UserError
from clipreid.evaluation import evaluate, open_set, rates_at

RATES = (0.01, 0.1, 0.25, 0.5)


def brute_force(positive: np.ndarray, negative: np.ndarray) -> tuple[dict[float, float], float]:
    thresholds = [*np.unique(np.concatenate([positive, negative])), np.inf]
    tpr = np.array([(positive >= t).mean() for t in thresholds])
    fpr = np.array([(negative >= t).mean() for t in thresholds])
    return {rate: tpr[fpr <= rate].max() for rate in RATES}, np.maximum(fpr, 1 - tpr).min()


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 12),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from(["fine", "ties", "tiny", "zeros"]),
    st.integers(1, 70),
)
@settings(max_examples=150, deadline=None)
def test_figures_are_those_of_every_threshold_tried(
    seed: int, queries: int, gallery: int, kind: str, values: str, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.standard_normal((queries, gallery))
    scale = {"fine": 1.0, "ties": 1.0, "tiny": 1e-42, "zeros": -0.0}[values]
    similarity = (np.round(similarity) if values == "ties" else similarity * scale).astype(kind)
    q, g = ({"identity": rng.integers(0, 3, n), "camera": rng.integers(0, 2, n)} for n in (queries, gallery))
    same, seen = (q[name][:, None] == g[name] for name in ("identity", "camera"))
    positive, negative = similarity[same & ~seen], similarity[~same]  # junk is neither
    if not len(positive) or not len(negative):
        with pytest.raises(UserError, match=r"no (positive|negative) pair"):
            open_set(query=q, gallery=g, similarity=similarity)
        return
    found = open_set(query=q, gallery=g, similarity=similarity, fpr=RATES, chunk=chunk)
    tpr, eer = brute_force(positive.astype(float), negative.astype(float))
    assert found.tpr == tpr
    assert found.eer == eer
    assert (found.positives, found.negatives) == (len(positive), len(negative))


def test_features_give_what_their_cosines_give() -> None:
    rng = np.random.default_rng(0)
    q, g = {"identity": np.arange(40) % 8}, {"identity": np.arange(90) % 9}
    a, b = (torch.from_numpy(rng.standard_normal((n, 8), "f4")) for n in (40, 90))
    a, b = (x + 2 * torch.eye(9, 8)[t["identity"]] for x, t in ((a, q), (b, g)))
    cosine = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    one, other = open_set(a, b, q, g), open_set(query=q, gallery=g, similarity=cosine)
    assert one.eer == pytest.approx(other.eer, abs=1e-3)
    assert one.tpr == pytest.approx(other.tpr, abs=1e-2)
    assert 0.05 < one.eer < 0.4
    assert f"equal error rate {100 * one.eer:.1f}%" in str(one)
    assert one.to_dict()["tpr@0.01"] == one.tpr[0.01]


def test_perfect_and_constant_similarities() -> None:
    table = {"identity": [1, 2, 3]}
    perfect = open_set(query=table, gallery=table, similarity=np.eye(3))
    assert (perfect.eer, set(perfect.tpr.values())) == (0.0, {1.0})
    constant = open_set(query=table, gallery=table, similarity=np.ones((3, 3)))
    assert (constant.eer, set(constant.tpr.values())) == (1.0, {0.0})


def test_what_has_no_meaning_is_refused() -> None:
    table = {"identity": [1, 2]}
    with pytest.raises(UserError, match="NaN or infinity in row 1"):
        open_set(query=table, gallery=table, similarity=[[1.0, 0.0], [np.nan, 1.0]])
    with pytest.raises(UserError, match="fpr=0: false positive rates"):
        open_set(query=table, gallery=table, similarity=np.eye(2), fpr=[0])
    with pytest.raises(UserError, match="give the matrix"):
        open_set(query=table, gallery=table, similarity=iter([np.eye(2)]))
    with pytest.raises(UserError, match="Nothing to score"):  # the same input, for what evaluate says
        evaluate(query=table, gallery={"identity": [3, 4]}, similarity=np.eye(2))
    with pytest.raises(UserError, match="no positive pair"):
        open_set(query=table, gallery={"identity": [3, 4]}, similarity=np.eye(2))


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_given_threshold_has_the_rates_of_a_count(chunk: int | None) -> None:
    rng = np.random.default_rng(1)
    similarity = np.round(rng.standard_normal((20, 30)), 1)  # with ties at the threshold
    q, g = ({"identity": rng.integers(0, 4, n), "camera": rng.integers(0, 2, n)} for n in (20, 30))
    same = q["identity"][:, None] == g["identity"]
    junk = same & (q["camera"][:, None] == g["camera"])
    false, missed = rates_at(0.3, query=q, gallery=g, similarity=similarity, chunk=chunk)
    assert false == pytest.approx((similarity[~same] >= 0.3).mean())
    assert missed == pytest.approx((similarity[same & ~junk] < 0.3).mean())
    with pytest.raises(UserError, match="there is no negative pair"):
        rates_at(0.3, query={"identity": [1]}, gallery={"identity": [1, 1]}, similarity=np.ones((1, 2)))
