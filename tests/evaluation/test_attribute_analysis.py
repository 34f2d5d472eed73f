"""The analysis of attributes: regression, intervals and corrections against formulas, importance against loops."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from clipreid.data import Split
from clipreid.errors import UserError
from clipreid.evaluation.attributes import (
    WORST,
    Importance,
    confusions,
    differ,
    differences,
    effects,
    rank_correlation,
    true_importance,
)
from clipreid.evaluation.report import Report
from clipreid.evaluation.score import Scored
from clipreid.reports.attributes import attribute_table, effects_csv, plot_attributes

pytest.importorskip("statsmodels")

IDENTITIES = ["a", "a", "b", "b", "c", "c", "d", "e"]
KNOWN = [{"hat": "cap", "top": "red"}] * 2 + [{"hat": "none"}] * 2 + [{"hat": "cap", "top": "red|blue"}] * 2 + [{}] + [
    {"top": "blue"}
]  # fmt: skip
GAINS = {
    "hat": np.array([0.3, 0.1, 0.0, 0.05, 0.2, np.nan, 9.0, 9.0]),
    "top": np.array([0.1, -0.2, 9.0, 9.0, 0.1, 0.3, 9.0, 0.4]),
}


def test_effects_are_means_with_errors_clustered_by_identity_and_holm_s_correction() -> None:
    """Against the sandwich (X'X)^-1 sum_g s_g s_g' (X'X)^-1, with the usual correction for few groups."""
    stats = pytest.importorskip("scipy.stats")
    found = effects(GAINS, KNOWN, IDENTITIES, "ap")
    rows = [(n, GAINS[n][q], IDENTITIES[q]) for n in GAINS for q, k in enumerate(KNOWN) if n in k]
    rows = [row for row in rows if not math.isnan(row[1])]
    total, groups = len(rows), sorted({who for _, _, who in rows})
    p_values = []
    for effect in found:
        mine = [row for row in rows if row[0] == effect.attribute]
        mean = sum(gain for _, gain, _ in mine) / len(mine)
        scores = [sum(gain - mean for _, gain, who in mine if who == group) for group in groups]
        few = len(groups) / (len(groups) - 1) * (total - 1) / (total - 2)
        error = math.sqrt(few * sum(score**2 for score in scores)) / len(mine)
        reach = stats.t.ppf(0.975, len(groups) - 1) * error
        assert effect.effect == pytest.approx(mean)
        assert (effect.low, effect.high) == pytest.approx((mean - reach, mean + reach))
        assert effect.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, len(groups) - 1))
        assert effect.queries == len(mine)
        assert effect.identities == len({who for _, _, who in mine})
        p_values.append(effect.p)
    small, large = sorted(p_values)
    wanted = {small: min(1, 2 * small), large: max(min(1, 2 * small), large)}
    assert [effect.p_holm for effect in found] == pytest.approx([wanted[p] for p in p_values])


def test_effects_of_values_are_of_the_queries_that_have_them() -> None:
    found = {(e.attribute, e.value): e for e in effects({"hat": GAINS["hat"]}, KNOWN, IDENTITIES, "ap", by_value=True)}
    assert found.keys() == {("hat", "cap"), ("hat", "none")}
    assert found["hat", "cap"].effect == pytest.approx(0.2)
    assert found["hat", "none"].effect == pytest.approx(0.025)
    assert (found["hat", "none"].queries, found["hat", "none"].identities) == (2, 1)


def test_gains_that_are_the_same_for_all_have_no_interval_and_no_nan() -> None:
    (none,) = effects({"hat": np.zeros(8)}, KNOWN, IDENTITIES, "rank1")
    assert (none.effect, none.low, none.high, none.p, none.p_holm) == (0, 0, 0, 1, 1)


def test_too_few_identities_and_a_missing_library_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="fewer than two identities"):
        effects({"hat": GAINS["hat"]}, KNOWN[:2], IDENTITIES[:2], "ap")
    monkeypatch.setitem(sys.modules, "statsmodels.api", None)
    with pytest.raises(UserError, match=r"pip install 'clipreid\[analysis\]'"):
        effects(GAINS, KNOWN, IDENTITIES, "ap")


def report_of(ap: list[float], first: list[float]) -> Report:
    return Report({}, {}, {"ap": np.array(ap), "first_rank": np.array(first)}, "market1501")


def test_differences_are_with_minus_without() -> None:
    on, off = report_of([0.9, 0.5, np.nan], [1, 3, np.nan]), report_of([0.4, 0.6, np.nan], [2, 1, np.nan])
    found = differences(on, off)
    np.testing.assert_allclose(found["ap"], [0.5, -0.1, np.nan])
    np.testing.assert_allclose(found["rank1"], [1, -1, np.nan])


@pytest.fixture(scope="module")
def scored() -> Scored:
    """Random features; 6 identities, 3 cameras."""
    drawn = np.random.default_rng(0)

    def split(name: str, count: int) -> Split:
        who = [int(n) for n in drawn.integers(0, 6, count)]
        return Split.from_columns(
            name,
            image=[{"path": f"{name}{n}.png", "bytes": None} for n in range(count)],
            identity=[f"p{n}" for n in who],
            camera=drawn.integers(0, 3, count).tolist(),
            attributes=[{"hat": "cap" if n % 2 else "none", **({"top": str(n // 2)} if n < 5 else {})} for n in who],
        )

    torch.manual_seed(0)
    features = [torch.nn.functional.normalize(torch.randn(count, 4), dim=1) for count in (8, 40)]
    found = Scored({}, {"concat": features[0]}, {"concat": features[1]}, split("query", 8), split("gallery", 40), 0)
    found.add_reports("market1501")
    return found


def test_confusions_and_importance_equal_loops(scored: Scored) -> None:
    query, gallery, likeness = scored.query, scored.gallery, scored.similarity()
    wanted = []
    for q in range(len(query)):
        same = query.identities[q] == gallery.identities
        right = same & (gallery.cameras != query.cameras[q])
        if not right.any():
            continue
        worst = likeness[q][torch.from_numpy(right)].min()
        wrong = [(float(likeness[q, g]), g) for g in range(len(gallery)) if not same[g] and likeness[q, g] > worst]
        wanted += [(q, g) for _, g in sorted(wrong, reverse=True)[:WORST]]
    assert sorted(confusions(scored, "market1501")) == sorted(wanted)
    assert max(np.bincount([q for q, _ in wanted])) == WORST
    found = true_importance(scored, "market1501")
    pairs = [(a, b) for a in range(6) for b in range(a)]
    assert found["hat"].separates == pytest.approx(np.mean([a % 2 != b % 2 for a, b in pairs]))
    assert found["top"].separates == pytest.approx(np.mean([a < 5 and b < 5 and a // 2 != b // 2 for a, b in pairs]))
    unlike = [{n for n in ("hat", "top") if differ(query.attributes[q], gallery.attributes[g], n)} for q, g in wanted]
    for name in ("hat", "top"):
        assert found[name].resolves == pytest.approx(np.mean([name in each for each in unlike]))
        assert found[name].alone == pytest.approx(np.mean([each == {name} for each in unlike]))
        assert (found[name].pairs, found[name].confusions) == (15, len(wanted))


def test_what_is_unknown_or_shared_does_not_differ() -> None:
    assert differ({"top": "red"}, {"top": "blue"}, "top")
    assert not differ({"top": "red|blue"}, {"top": "blue"}, "top")
    assert not differ({"top": "red"}, {}, "top")


def test_rank_correlation_of_what_both_know() -> None:
    rho, p, count = rank_correlation({"a": 1, "b": 2, "c": 9, "d": 4}, {"a": 0.1, "b": 0.3, "c": 0.5, "d": math.nan})
    assert (rho, count) == (1.0, 3)
    assert p < 0.05
    assert rank_correlation({"a": 3, "b": 2, "c": 1}, {"a": 1, "b": 2, "c": 3})[0] == -1.0
    assert math.isnan(rank_correlation({"a": 1, "b": 2}, {"a": 1, "b": 2})[0])
    assert math.isnan(rank_correlation({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 1, "c": 1})[0])


def test_tables_and_picture_show_the_largest_gain_first() -> None:
    found = [*effects(GAINS, KNOWN, IDENTITIES, "ap"), *effects(GAINS, KNOWN, IDENTITIES, "rank1"),
             *effects(GAINS, KNOWN, IDENTITIES, "ap", by_value=True)]  # fmt: skip
    true = {name: Importance(0.5, 0.25, 0.125, 10, 20) for name in GAINS}
    lines = attribute_table(found, true).splitlines()
    assert lines[0].startswith("| attribute | queries | ap, points | p (Holm) | rank1, points | p (Holm) | separates |")
    gains: dict[str, Any] = {e.attribute: e.effect for e in found if e.metric == "ap" and not e.value}
    assert [line.split("|")[1].strip() for line in lines[2:]] == sorted(gains, key=lambda name: -gains[name])
    assert "50.0% | 25.0% | 12.5% |" in lines[2]
    csv = effects_csv(found).splitlines()
    assert csv[0] == "attribute,value,metric,effect,low,high,p,p_holm,queries,identities"
    assert len(csv) == 1 + len(found)
    gain, could = plot_attributes(found, true).axes
    assert [label.get_text() for label in gain.get_yticklabels()] == sorted(gains, key=lambda name: gains[name])
    assert [bar.get_width() for bar in could.patches] == [25.0, 25.0, 12.5, 12.5]
