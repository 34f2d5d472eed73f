"""Queries that find nothing, named with the reason."""

import numpy as np
import pytest

from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.unmatched import unmatched


def table(*rows: tuple[object, ...]) -> dict[str, list[object]]:
    names = ("identity", "camera", "path")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


QUERY = table(("a", 1, "q1"), ("b", 1, "q2"), ("c", 1, "q3"), ("d", 1, "g9"), ("e", 1, "g5"))
GALLERY = table(
    ("a", 2, "g1"), ("b", 1, "g2"), ("b", 1, "g3"), ("x", 2, "g4"), ("d", 2, "g9"), ("e", 2, "g5"), ("e", 1, "g6")
)


def test_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [
        (
            1,
            "2 of 2 images of identity b in the gallery are from camera 1 "
            "(junk = same identity and same camera as the query)",
        ),
        (2, "identity c is not in the gallery"),
        (3, "the only image of identity d in the gallery is the query itself"),
        (
            4,
            "2 of 2 images of identity e in the gallery are from camera 1 or the query itself "
            "(junk = same identity and same camera as the query)",
        ),
    ]
    assert unmatched(QUERY, GALLERY, "market1501") == expected
    monkeypatch.setattr("clipreid.evaluation.unmatched._CHUNK", 7)  # one query at a time
    assert unmatched(QUERY, GALLERY, "market1501") == expected
    assert [row for row, _ in unmatched(QUERY, GALLERY, "no-cameras")] == [2, 3]


@pytest.mark.parametrize("protocol", ["market1501", "cross-camera", "no-cameras"])
def test_they_are_those_that_evaluate_leaves_out(protocol: str) -> None:
    random = np.random.default_rng(0)
    sides = [
        {"identity": random.integers(0, 30, n), "camera": random.integers(0, 2, n), "path": random.integers(0, 60, n)}
        for n in (40, 50)
    ]
    scores = evaluate(similarity=random.random((40, 50)), query=sides[0], gallery=sides[1], protocol=protocol)
    left_out = np.flatnonzero(scores.per_query["n_positives"] == 0).tolist()
    assert [row for row, _ in unmatched(*sides, protocol)] == left_out
    assert len(left_out) > 3


def test_queries_that_the_protocol_does_not_ask_are_none_of_them() -> None:
    views = {"identity": ["a", "b"], "camera": [1, 2], "view": [0, 1]}
    lost = unmatched(views, {"identity": ["x"], "camera": [3], "view": [1]}, "aerial-to-ground")
    assert lost == [(0, "identity a is not in the gallery")]


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match="unknown protocol 'market'"):
        unmatched(QUERY, GALLERY, "market")


def test_columns_that_evaluate_needs_are_needed_here() -> None:
    sides = [{**side, "view": [-1] * len(side["path"])} for side in (QUERY, GALLERY)]
    with pytest.raises(UserError) as refused:
        evaluate(similarity=np.zeros((5, 7)), query=sides[0], gallery=sides[1], protocol="aerial-ground")
    with pytest.raises(UserError) as found:
        unmatched(*sides, "aerial-ground")
    assert str(found.value) == str(refused.value)
    assert "needs the column 'view', and none is known in query or gallery" in str(found.value)
    with pytest.raises(UserError, match=r"scores queries of view 0 \(aerial\) only, and there are none"):
        unmatched(*({**side, "view": [1] * len(side["path"])} for side in sides), "aerial-to-ground")
