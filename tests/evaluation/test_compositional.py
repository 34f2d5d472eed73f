"""Choices between sentences: ties count half, each answer counts alike, intervals are those of identities."""

import numpy as np
import pytest
import torch

from clipreid.errors import UserError
from clipreid.evaluation.bootstrap import mean_interval
from clipreid.evaluation.compositional import accuracy_rows, right_choices


def test_right_wrong_and_alike() -> None:
    images = torch.eye(3)
    true = torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.5]])
    false = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.2, 0.9], [0.7, 0.0, 0.5]])
    assert right_choices(images, true, false).tolist() == [1, 0, 0.5]


def test_a_model_that_always_gives_the_same_answer_has_half() -> None:
    answers = ["with"] * 90 + ["without"] * 10
    right = np.array([answer == "with" for answer in answers], float)
    (row,) = accuracy_rows(right, ["negation"] * 100, answers, np.arange(100) % 25)
    assert str(row["right"]).startswith("50.0% (")
    assert row["each answer"] == "with 100.0%, without 0.0%"
    assert row["choices"] == 100


def test_kinds_have_rows_of_their_own() -> None:
    kinds, right = ["a", "b", "a", "b"], np.array([1.0, 0.0, 1.0, 0.0])
    rows = accuracy_rows(right, kinds, ["x", "x", "x", "x"], np.array([1, 1, 2, 2]))
    assert [(row["kind"], row["right"], row["each answer"]) for row in rows] == [
        ("a", "100.0% (100.0 to 100.0)", None),
        ("b", "0.0% (0.0 to 0.0)", None),
    ]


def test_the_interval_is_that_of_drawn_identities() -> None:
    rng = np.random.default_rng(5)
    identity = rng.integers(0, 30, 200)
    values, weights = (rng.random(200) < 0.3 + 0.4 * (identity % 2)).astype(float), rng.uniform(0.5, 2, 200)
    mean, (low, high) = mean_interval(values, identity, weights, draws=4000)
    names, means = np.unique(identity), []
    for _ in range(4000):  # a bootstrap by loops
        rows = np.concatenate([np.flatnonzero(identity == name) for name in rng.choice(names, len(names))])
        means.append(np.average(values[rows], weights=weights[rows]))
    assert mean == pytest.approx(np.average(values, weights=weights))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)


def test_more_images_of_the_same_people_say_nothing_new() -> None:
    rng = np.random.default_rng(0)
    values, identity = (rng.random(40) < 0.5).astype(float), np.arange(40)
    once = mean_interval(values, identity)
    mean, interval = mean_interval(np.tile(values, 9), np.tile(identity, 9))
    assert (mean, *interval) == pytest.approx((once[0], *once[1]))
    assert once[1][1] - once[1][0] > 0.25


def test_what_makes_no_interval_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        mean_interval(np.ones(3), np.zeros(3))
    with pytest.raises(UserError, match="draws=1"):
        mean_interval(np.ones(3), np.arange(3), draws=1)
