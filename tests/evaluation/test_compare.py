"""Two models on the same queries: equal ones do not differ, a known shift is found, other queries are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bootstrap import noisy, report_of

from clipreid import UserError
from clipreid.evaluation import compare


@given(st.integers(0, 999), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_a_model_does_not_differ_from_itself(seed: int, identities: int) -> None:
    report = report_of(*noisy(0.4, seed, identities))
    found = compare(report, report, draws=50, flips=99, seed=seed)
    assert set(found.difference.values()) == {0.0}
    assert set(found.difference_interval.values()) == {(0.0, 0.0)}
    assert set(found.p_value.values()) == {1.0}
    assert found.changed() == []
    assert found.changed_table() == ""


@given(st.integers(0, 999), st.floats(0.02, 0.3))
@settings(max_examples=20, deadline=None)
def test_a_known_shift_is_found_and_its_sign_is_the_second_less_the_first(seed: int, shift: float) -> None:
    """The models are far less alike than the shift is large, but the pairs are not."""
    ap, identity = noisy(0.3, seed)
    a, b = report_of(ap, identity), report_of(ap + shift, identity)
    for first, second, sign in ((a, b, 1), (b, a, -1)):
        found = compare(first, second, draws=100, flips=999, seed=seed)
        assert found.difference["mAP"] == pytest.approx(sign * shift)
        assert found.difference_interval["mAP"] == pytest.approx((sign * shift, sign * shift))
        assert found.p_value["mAP"] == pytest.approx(1 / 1000)


@given(st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_swapping_the_models_turns_the_difference_round(seed: int) -> None:
    ap, identity = noisy(0.3, seed)
    other = ap + np.random.default_rng(seed).normal(0, 0.1, len(ap))
    there, back = (
        compare(*pair, draws=100, flips=200)
        for pair in (
            (report_of(ap, identity), report_of(other, identity)),
            (report_of(other, identity), report_of(ap, identity)),
        )
    )
    for name in there.difference:
        assert there.difference[name] == pytest.approx(-back.difference[name])
        low, high = back.difference_interval[name]
        assert there.difference_interval[name] == pytest.approx((-high, -low), abs=1e-9)
        assert there.p_value[name] == back.p_value[name]


def test_without_a_difference_p_is_uniform_though_queries_of_an_identity_agree() -> None:
    """The share of p <= 0.1 over 100 pairs of equals; a test over the queries would find far more."""
    few = 0
    for seed in range(100):
        a, identity = noisy(0.2, seed, identities=20)
        b, _ = noisy(0.2, seed + 1000, identities=20)
        few += (
            compare(report_of(a, identity), report_of(b, identity), draws=2, flips=199, seed=seed).p_value["mAP"] <= 0.1
        )
    assert 2 <= few <= 19  # 10, three standard deviations either side


def test_seeds_count_as_means_and_widen_the_interval() -> None:
    ap, identity = noisy(0.2, 0)
    a = [report_of(ap, identity)]
    steady = [report_of(ap + 0.1, identity)] * 2
    shaky = [report_of(ap + shift, identity) for shift in (0.02, 0.18)]
    one, two = compare(a, steady), compare(a, shaky)
    assert one.difference["mAP"] == pytest.approx(0.1)
    assert two.difference["mAP"] == pytest.approx(0.1)
    assert one.difference_interval["mAP"] == pytest.approx((0.1, 0.1))
    assert two.difference_interval["mAP"] == pytest.approx((0.02, 0.18))
    assert "means of 1 and 2 runs" in str(two)
    np.testing.assert_allclose(two.ap[1], ap + 0.1)


def test_the_queries_that_changed_most_come_first() -> None:
    a, b = report_of([0.5, 0.5, 0.5, 0.5], np.arange(4)), report_of([0.6, 0.1, 0.5, 0.8], np.arange(4))
    a.per_query["path"] = np.array(["/data/q/0.jpg", "/data/q/1.jpg", "/data/q/2.jpg", ""], dtype=object)
    found = compare(a, b, ("old", "new"))
    assert found.changed() == [1, 3, 0]
    assert found.changed(1) == [1]
    lines = found.changed_table().splitlines()
    assert lines[0].split() == ["query", "identity", "AP", "old", "AP", "new", "change"]
    assert lines[2].split() == ["q/1.jpg", "1", "50.0%", "10.0%", "-40.0"]
    assert lines[3].split()[:3] == ["row", "3", "3"]
    assert str(found).splitlines()[0].split() == ["figure", "old", "new", "difference", "p"]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["models"][1]["name"] == "new"
    assert told["difference"]["mAP"] == pytest.approx(0.0)


def test_other_queries_are_refused_and_named() -> None:
    ap, identity = noisy(0.2, 0)
    a = report_of(ap, identity)
    paths = np.array([f"{i}.jpg" for i in range(len(ap))], dtype=object)
    other_paths = np.where(paths == "7.jpg", "x.jpg", paths)
    for b, said in (
        (report_of(ap[:-1], identity[:-1]), "different queries: 240 and 239"),
        (report_of(ap, identity[::-1]), "different query identities: row 0 has 0 and 59"),
        (report_of(ap, identity, "cross-camera"), "different protocols: market1501 and cross-camera"),
        (replace(a, counts={"gallery": 11}), "galleries, of 10 and 11"),
        (
            replace(a, per_query={**a.per_query, "n_positives": a.per_query["n_positives"] + 1}),
            "different matches: row 0",
        ),
        (replace(a, per_query={**a.per_query, "path": other_paths}), "images: row 7 has 7.jpg and x.jpg"),
    ):
        known = replace(a, per_query={**a.per_query, "path": paths})
        with pytest.raises(UserError, match=said):
            compare(known, b)
    with pytest.raises(UserError, match="two different names"):
        compare(a, a, ("a", "a"))
