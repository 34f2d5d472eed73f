"""The maps against known answers and brute force, the figures of `calibrate` against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.errors import UserError
from clipreid.evaluation.calibration import (
    Calibration,
    at_prior,
    calibration_error,
    fit_isotonic,
    fit_logistic,
)
from clipreid.evaluation.trials import BINS, LEAST, calibrate


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Maps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(12.0, -7.0), (40.0, -39.0), (-3.0, 1.0), (0.0, -2.0)])
def test_a_logistic_curve_is_found_again(slope: float, intercept: float) -> None:
    x = np.linspace(-0.2, 1.0, 2000)
    p = sigmoid(slope * x + intercept)
    found = fit_logistic(x, 1e6 * p, 1e6 * (1 - p))  # so many pairs that the targets of Platt change nothing
    assert found == pytest.approx((slope, intercept), abs=1e-4)


def test_drawn_pairs_give_the_curve_back() -> None:
    rng = np.random.default_rng(0)
    s = rng.normal(0.4, 0.25, 200_000)
    same = rng.random(len(s)) < sigmoid(10 * s - 6)
    slope, intercept = fit_logistic(s, same.astype(float), (~same).astype(float))
    assert (slope, intercept) == pytest.approx((10, -6), rel=0.03)


def test_classes_that_do_not_overlap_have_a_finite_curve() -> None:
    x = np.array([0.1, 0.2, 0.8, 0.9])
    slope, intercept = fit_logistic(x, np.array([0, 0, 5, 5]), np.array([50, 50, 0, 0]))
    p = sigmoid(slope * x + intercept)
    assert np.isfinite([slope, intercept]).all()
    assert p[1] < 0.1 < 0.8 < p[2]


def isotonic_by_force(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The least squares solution by its min-max formula: max over a <= i of min over b >= i of the mean of a..b."""
    n = len(positive)

    def mean(a: int, b: int) -> float:
        return positive[a : b + 1].sum() / (positive + negative)[a : b + 1].sum()

    return np.array([max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_isotonic_steps_are_those_of_a_brute_force_search(pairs: list[tuple[int, int]]) -> None:
    positive, negative = np.array(pairs).T
    edges = np.linspace(0, 1, len(pairs) + 1)
    steps = fit_isotonic(edges, positive, negative)
    least = 1 / (positive.sum() + negative.sum() + 2)
    wanted = np.clip(isotonic_by_force(positive, negative), least, 1 - least)
    found = Calibration(0, 0, steps, 0.5, 0.5, "isotonic").probability((edges[1:] + edges[:-1]) / 2)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert np.all(np.diff([p for _, p in steps]) > 0)


def test_bins_without_pairs_take_the_step_below() -> None:
    steps = fit_isotonic(np.arange(6.0), np.array([0, 1, 0, 0, 3]), np.array([9, 1, 0, 0, 1]))
    found = Calibration(0, 0, steps, 0.5, 0.5, "isotonic")
    np.testing.assert_allclose(
        found.probability([-9, 0.5, 1.5, 2.5, 3.9, 4.0, 99]), [1 / 17] * 2 + [0.5] * 3 + [0.75] * 2
    )


def test_another_prior_is_bayes_rule() -> None:
    # 0.9 where half of the pairs match: odds 9; where one in a hundred does, odds 9 / 99
    assert at_prior(np.array(0.9), 0.5, 0.01) == pytest.approx(1 / 12)
    found = Calibration(8.0, -4.0, ((0.0, 0.5),), 0.5, 0.5)
    assert found.probability(1.0, prior=0.01) == pytest.approx(at_prior(sigmoid(np.array(4.0)), 0.5, 0.01))
    assert found.probability(1.0, prior=0.5) == pytest.approx(found.probability(1.0))
    with pytest.raises(UserError, match="prior 1: it is the share of pairs that match, between 0 and 1"):
        found.probability(1.0, prior=1)


def test_the_calibration_error_by_hand() -> None:
    p, positive, negative = np.array([0.1, 0.12, 0.9]), np.array([0, 2, 6]), np.array([6, 2, 4])
    # one bin holds the first two: says (0.6 + 0.48) / 10, 2 of 10 match; the other says 0.9, 6 of 10 match
    assert calibration_error(p, positive, negative, bins=5) == pytest.approx((abs(0.108 - 0.2) + abs(0.9 - 0.6)) / 2)


# Trials -------------------------------------------------------------------------------------------------------------


def known(people: int, seed: int = 0) -> dict[str, Any]:
    """Two images of each of some people as queries and as gallery, matching with the odds of a known logistic curve."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"p{n}" for n in range(people)], 2)
    table = {"identity": names, "camera": np.tile([1, 2], people), "path": [f"/{n}" for n in range(2 * people)]}
    same = names[:, None] == names
    other = rng.normal(0.2, 0.1, same.shape)
    matching = rng.normal(0.6, 0.1, same.shape)  # log odds of the two: 40 s - 16
    return {"query": table, "gallery": table, "similarity": np.where(same, matching, other)}


def test_two_normal_classes_have_the_curve_of_theory() -> None:
    found = calibrate(**known(300), false_match=0.01)
    prior = found.calibration.prior
    assert prior == pytest.approx(1 / 299, rel=0.01)  # one match among the others' images and the other one's
    assert found.calibration.slope == pytest.approx(40, rel=0.1)
    middle = -found.calibration.intercept / found.calibration.slope  # where it says one half
    assert middle == pytest.approx((16 - np.log(prior / (1 - prior))) / 40, abs=0.01)
    assert found.calibration.threshold == pytest.approx(0.2 + 0.1 * 2.326, abs=0.01)  # the 99 % point of the others
    assert found.false_match == pytest.approx(0.01, abs=0.002)
    assert found.missed == pytest.approx(0.046, abs=0.03)
    assert found.error("logistic", even=False) < 0.002
    assert found.error("logistic", even=True) < 0.03


def test_figures_are_what_their_definitions_say() -> None:
    """Against every pair looked at one by one."""
    data = known(40, seed=3)
    data["query"] = {**data["query"], "shift": np.tile(["day", "night"], 40)}
    found = calibrate(**data, false_match=0.05, by=("shift",), seed=5)
    names, cameras = data["query"]["identity"], data["query"]["camera"]
    assert found.identities == (20, 20)
    _, ours = halves(names, seed=5)
    s, t = data["similarity"], found.calibration.threshold
    counts = {"different": 0, "false": 0, "matching": 0, "missed": 0}
    pairs: dict[str, list[int]] = {}
    strangers, missing, first = [], [], []
    for q in np.flatnonzero(ours):
        best: dict[bool, float] = {True: -np.inf, False: -np.inf}
        for g in np.flatnonzero(ours):
            same = bool(names[q] == names[g])
            if g == q or (same and cameras[q] == cameras[g]):
                continue
            counts["matching" if same else "different"] += 1
            counts["missed"] += same and s[q, g] < t
            counts["false"] += not same and s[q, g] >= t
            best[same] = max(best[same], s[q, g])
            both = ", ".join(sorted(str(cameras[i]) for i in (q, g)))
            row = pairs.setdefault(both, [0, 0])
            row[0] += not same
            row[1] += not same and s[q, g] >= t
        strangers.append(best[False] >= t)
        missing.append(best[True] < t)
        first.append(best[True] > best[False])
    assert (found.measured.positive.sum(), found.measured.negative.sum()) == (counts["matching"], counts["different"])
    assert found.false_match == pytest.approx(counts["false"] / counts["different"], abs=2 / counts["different"])
    assert found.missed == pytest.approx(counts["missed"] / counts["matching"])
    assert (found.strangers, found.missing) == pytest.approx((np.mean(strangers), np.mean(missing)))
    assert found.first_hits()[1] == pytest.approx(np.mean(first))
    assert found.gallery == 39  # 20 people, two images each, without the query itself
    rows = {row["camera-pair"]: row for row in found.groups["camera-pair"]}
    assert rows.keys() == pairs.keys() == {"1, 1", "1, 2", "2, 2"}
    for name, (different, false) in pairs.items():
        assert rows[name]["different"] == different
        assert float(str(rows[name]["false matches"])[:-1]) == pytest.approx(100 * false / different, rel=0.01)
    assert [row["shift"] for row in found.groups["shift"]] == ["day", "night"]
    assert sum(int(str(row["matching"])) for row in found.groups["shift"]) == counts["matching"]


def test_the_threshold_is_the_least_one_for_so_many_strangers() -> None:
    data = known(60, seed=1)
    found = calibrate(**data, strangers=0.2)
    fit, _ = halves(data["query"]["identity"], seed=0)
    names, s = data["query"]["identity"][fit], data["similarity"][np.ix_(fit, fit)]
    best = np.where(names[:, None] == names, -1, s).max(1)  # of each query, were it a stranger
    step = np.ptp(found.fitted.edges) / BINS
    assert (best >= found.calibration.threshold).mean() <= 0.2
    assert (best >= found.calibration.threshold - step).mean() > 0.2
    assert found.strangers == pytest.approx(0.2, abs=0.12)
    assert "fitted to 20 % of strangers" in str(found)


def halves(names: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from clipreid.data.split import shuffled

    order = shuffled(set(names.tolist()), seed)
    return np.isin(names, order[::2]), np.isin(names, order[1::2])


def test_the_second_half_decides_nothing() -> None:
    data = known(40)
    first = calibrate(**data).calibration
    _, ours = halves(data["query"]["identity"], seed=0)
    changed = data["similarity"].copy()
    inside = np.ix_(ours, ours)
    low, high = changed.min(), changed.max()
    changed[inside] = np.clip(1 - changed[inside], low, high)
    assert calibrate(**{**data, "similarity": changed}).calibration == first


def test_features_and_chunks_make_no_difference() -> None:
    x = torch.nn.functional.normalize(torch.randn(60, 8), dim=1)
    table = {"identity": np.repeat([f"p{n}" for n in range(30)], 2), "camera": np.tile([1, 2], 30)}
    a = calibrate(x, x, table, table, false_match=0.1)
    b = calibrate(x, x, table, table, false_match=0.1, chunk=7)
    assert a.to_dict() == b.to_dict()
    assert len(a.calibration.steps) <= BINS
    assert "open set  among 59 images" in str(a) or "open set  among" in str(a)


def test_what_cannot_be_calibrated_is_refused() -> None:
    few = known(LEAST - 1)
    with pytest.raises(UserError, match="19 identities have a match, and 20 are needed: half of them fit"):
        calibrate(**few)
    with pytest.raises(UserError, match=r"false match 0.001 cannot be fitted to 1,520 pairs .* at least 0.0069"):
        calibrate(**known(40), false_match=0.001)
    with pytest.raises(UserError, match="false match 2: a share lies between 0 and 1"):
        calibrate(**known(30), false_match=2)
    with pytest.raises(UserError, match=r"strangers 0.01 cannot be fitted to 40 queries: at least 1 .* at least 0.026"):
        calibrate(**known(40), strangers=0.01)
    with pytest.raises(UserError, match="--by shoes: the queries have camera, identity, path"):
        calibrate(**known(40), by=("shoes",))
    with pytest.raises(UserError, match="all similarities are equal"):
        calibrate(**{**known(30), "similarity": np.ones((60, 60))})
    with pytest.raises(UserError, match="under text-to-image the queries are captions"):
        calibrate(**known(30), protocol="text-to-image")
