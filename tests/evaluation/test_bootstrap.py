"""Intervals over identities: what they contain, how wide they are, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from clipreid import UserError, evaluate
from clipreid.evaluation import Report, confidence
from clipreid.evaluation.bootstrap import METRICS, figures_of


def report_of(ap: ArrayLike, identity: np.ndarray, protocol: str = "market1501") -> Report:
    """A report whose queries have these AP (and INP), and rank 1 where AP is above one half, else 7."""
    ap = np.asarray(ap, float)
    scores = {
        "ap": ap,
        "inp": ap,
        "first_rank": np.where(ap > 0.5, 1.0, 7.0),
        "n_positives": np.ones(len(ap), int),
        "identity": np.asarray(identity),
    }
    first = scores["first_rank"]
    metrics = {"mAP": ap.mean(), "mINP": ap.mean(), **{f"rank{k}": (first <= k).mean() for k in (1, 5, 10)}}
    return Report({k: float(v) for k, v in metrics.items()}, {"gallery": 10, "queries": len(ap)}, scores, protocol)


def noisy(spread: float, seed: int, identities: int = 60, each: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """AP around one half: one value per identity, and a little of each query's own."""
    rng = np.random.default_rng(seed)
    ap = np.repeat(0.5 + spread * rng.uniform(-1, 1, identities), each) + 0.01 * rng.uniform(-1, 1, identities * each)
    return ap, np.repeat(np.arange(identities), each)


@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 0.5)), min_size=4, max_size=25), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_of_symmetric_figures_the_interval_holds_the_mean(rows: list[tuple[int, float]], seed: int) -> None:
    """Every identity has a mirror image on the other side of 0.5, so the mean is 0.5 and the draws are symmetric."""
    identity = np.array([i for i, _ in rows] + [100 + i for i, _ in rows])
    ap = np.array([0.5 + x for _, x in rows] + [0.5 - x for _, x in rows])
    low, high = confidence(report_of(ap, identity), draws=200, seed=seed)["mAP"]
    assert low - 1e-9 <= 0.5 <= high + 1e-9
    assert 0 <= low <= high <= 1


@given(st.integers(0, 99), st.floats(0.5, 0.9), st.floats(0.05, 0.09))
@settings(max_examples=15, deadline=None)
def test_more_confidence_is_wider_and_the_seed_decides(seed: int, level: float, more: float) -> None:
    report = report_of(*noisy(0.4, seed))
    narrow, wide = (confidence(report, draws=300, seed=seed, level=share)["mAP"] for share in (level, level + more))
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    assert narrow == confidence(report, draws=300, seed=seed, level=level)["mAP"]
    assert narrow != confidence(report, draws=300, seed=seed + 1, level=level)["mAP"]


def test_the_width_is_that_of_the_identities_not_of_the_queries() -> None:
    """The standard error of a mean of 60 values; a bootstrap over the 240 queries would have half of it."""
    ap, identity = noisy(0.4, 0)
    low, high = confidence(report_of(ap, identity), draws=4000)["mAP"]
    error = ap.reshape(60, 4).mean(1).std() / 60**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)
    order = np.random.default_rng(1).permutation(len(ap))
    names = np.array([f"id {i}" for i in identity], dtype=object)
    again = confidence(report_of(ap[order], names[order]), draws=4000)["mAP"]
    assert again == pytest.approx((low, high), abs=0.01)


def test_the_true_mean_is_inside_about_as_often_as_promised() -> None:
    inside = 0
    for seed in range(100):
        low, high = confidence(report_of(*noisy(0.4, seed)), draws=300, seed=seed, level=0.9)["mAP"]
        inside += low <= 0.5 <= high
    assert 80 <= inside <= 98  # 90 of 100, three standard deviations either side


def test_several_runs_widen_the_interval() -> None:
    ap, identity = noisy(0.2, 0)
    same = [report_of(ap, identity)] * 3
    apart = [report_of(ap + shift, identity) for shift in (-0.1, 0.0, 0.1)]
    one, equal, unlike = (confidence(reports)["mAP"] for reports in (same[:1], same, apart))
    assert equal == pytest.approx(one, abs=0.01)
    assert unlike[1] - unlike[0] > 1.5 * (one[1] - one[0])
    assert unlike[0] < 0.5 < unlike[1]


def test_figures_of_the_queries_average_to_the_metrics_of_every_protocol() -> None:
    rng = np.random.default_rng(0)
    identity, camera = np.repeat(np.arange(12), 3), np.tile([1, 2, 2], 12)
    path = [f"{i}.jpg" for i in range(36)]
    table = {"identity": identity, "camera": camera, "path": path}
    features = rng.standard_normal((36, 4)) + np.eye(12, 4)[identity]
    for protocol in ("market1501", "vehicleid", "cuhk03-classic"):
        report = evaluate(features, features, table, table, protocol=protocol)
        figures, weights = figures_of(report)
        means = (figures * weights[:, None]).sum(0) / weights.sum()
        assert dict(zip(METRICS, means, strict=True)) == pytest.approx(report.metrics, abs=1e-9)
        for name, (low, high) in report.intervals.items():
            assert low <= report.metrics[name] <= high
        assert report.to_dict()["intervals"]["mAP"] == list(report.intervals["mAP"])
        assert f"mAP {100 * report.metrics['mAP']:.1f}% ({100 * report.intervals['mAP'][0]:.1f} to " in str(report)


def test_what_makes_no_interval_is_refused() -> None:
    report = report_of(*noisy(0.2, 0))
    for wrong in ({"draws": 1}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(UserError, match="at least 2 draws and a level between 0 and 1"):
            confidence(report, **wrong)  # type: ignore[arg-type]
    lonely = evaluate(query={"identity": [1, 1]}, gallery={"identity": [1, 2]}, similarity=np.eye(2))
    assert lonely.intervals == {}
    assert "intervals" not in lonely.to_dict()
    with pytest.raises(UserError, match="at least 2 of them"):
        confidence(lonely)
