"""Figures by value of a column and by pair of cameras, against evaluations of the parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipreid import UserError
from clipreid.evaluation import by_column, camera_pairs, evaluate


def problem(seed: int = 0) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    q = {"identity": rng.integers(0, 6, 30), "camera": rng.integers(1, 4, 30), "path": [f"q{i}" for i in range(30)]}
    g = {"identity": rng.integers(0, 7, 50), "camera": rng.integers(1, 5, 50), "path": [f"g{i}" for i in range(50)]}
    return rng.standard_normal((30, 50)), q, g


def rows_of(table: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {name: np.asarray(values)[rows] for name, values in table.items()}


@pytest.mark.parametrize("protocol", ["market1501", "no-cameras"])
def test_a_camera_pair_is_an_evaluation_of_its_images(protocol: str) -> None:
    similarity, q, g = problem()
    found = camera_pairs(query=q, gallery=g, similarity=similarity, protocol=protocol, chunk=7)
    assert found.query_cameras == ["1", "2", "3"]
    assert found.gallery_cameras == ["1", "2", "3", "4"]
    for a, ours in enumerate((1, 2, 3)):
        for b, theirs in enumerate((1, 2, 3, 4)):
            rows, columns = np.flatnonzero(q["camera"] == ours), np.flatnonzero(g["camera"] == theirs)
            part = {
                "query": rows_of(q, rows),
                "gallery": rows_of(g, columns),
                "similarity": similarity[rows][:, columns],
            }
            if ours == theirs and protocol == "market1501":
                assert found.queries[a, b] == 0
                assert np.isnan(found.mAP[a, b])
                continue
            report = evaluate(**part, protocol=protocol)
            assert found.mAP[a, b] == pytest.approx(report.metrics["mAP"])
            assert found.queries[a, b] == report.counts["valid_queries"]
    first = str(found).splitlines()[4].split()
    assert first[0] == "1"
    assert ("-" in first) == (protocol == "market1501")


def test_camera_pairs_know_leave_one_out_and_text_cameras() -> None:
    rng = np.random.default_rng(0)
    table = {
        "identity": np.repeat(np.arange(5), 4),
        "camera": ["a", "b", "a", ""] * 5,
        "path": [str(i) for i in range(20)],
    }
    found = camera_pairs(query=table, gallery=table, similarity=rng.standard_normal((20, 20)), protocol="leave-one-out")
    assert found.query_cameras == ["a", "b"]
    assert found.queries.tolist() == [[10, 10], [5, 0]]  # of camera b each identity has one image, the query itself


def test_camera_pairs_without_cameras_or_with_random_galleries_are_refused() -> None:
    similarity, q, g = problem()
    with pytest.raises(UserError, match="draws random galleries"):
        camera_pairs(query=q, gallery=g, similarity=similarity, protocol="cuhk03-classic")
    del q["camera"]
    with pytest.raises(UserError, match="no camera is known"):
        camera_pairs(query=q, gallery=g, similarity=similarity)


def test_a_value_of_a_column_is_an_evaluation_of_its_queries() -> None:
    similarity, q, g = problem()
    report = evaluate(query=q, gallery=g, similarity=similarity)
    view = np.array([0, 1, -1] * 10)
    rows = by_column(report, view, "view")
    assert [row["view"] for row in rows] == ["unknown", "0", "1"]
    for row, value in zip(rows, (-1, 0, 1), strict=True):
        chosen = np.flatnonzero(view == value)
        part = evaluate(query=rows_of(q, chosen), gallery=g, similarity=similarity[chosen])
        assert row["mAP"] == pytest.approx(part.metrics["mAP"])
        assert row["rank1"] == pytest.approx(part.metrics["rank1"])
        assert row["queries"] == part.counts["valid_queries"]
        low, high = part.intervals["mAP"]
        assert row["95%"] == f"{100 * low:.1f} to {100 * high:.1f}"
    alone = by_column(report, report.per_query["identity"], "identity")
    assert {row["95%"] for row in alone} == {"-"}
    with pytest.raises(UserError, match=r"view: \[3\] values for 30 queries"):
        by_column(report, [1, 2, 3], "view")
