"""What a report and a table look like."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from clipreid.evaluation import evaluate, format_table


def test_a_report_is_json_readable_and_frozen() -> None:
    report = evaluate(query={"identity": [1, 2]}, gallery={"identity": [2, 1, 3]}, similarity=np.eye(2, 3))
    data = json.loads(json.dumps(report.to_dict()))
    assert {"mAP", "mINP", "rank1", "rank5", "rank10"} < set(data)
    assert data["counts"]["gallery"] == 3
    assert data["protocol"] == "market1501"
    assert len(data["notes"]) == 1
    assert all(isinstance(value, float) for value in report.metrics.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.protocol = "other"  # type: ignore[misc]


def test_a_report_prints_as_a_table() -> None:
    report = evaluate(query={"identity": [1, 2]}, gallery={"identity": [1, 3]}, similarity=[[0.0, 1.0]] * 2)
    lines = str(report).splitlines()
    assert lines[0].split() == ["mAP", "mINP", "rank-1", "rank-5", "rank-10"]
    assert lines[2].split() == ["50.0%", "50.0%", "0.0%", "100.0%", "100.0%"]
    assert "queries   1 scored of 2, 2 identities" in lines
    assert "gallery   2 images, 2 identities, 1 images are distractors" in lines
    assert any(line.startswith("note      1 of 2 queries have no valid match") for line in lines)


def test_tables_align_and_show_metrics_in_percent() -> None:
    rows = [
        {"model": "zero-shot", "mAP": 0.12345, "rank1": 1.0, "seconds": 1.23456, "n": 3},
        {"model": "stage 2", "mAP": float("nan"), "n": 12345, "note": "x"},
    ]
    assert format_table(rows).splitlines() == [
        "model        mAP  rank-1  seconds      n  note",
        "---------  -----  ------  -------  -----  ----",
        "zero-shot  12.3%  100.0%    1.235      3  -",
        "stage 2        -       -        -  12345  x",
    ]
    assert format_table(rows, columns=["n", "model"]).splitlines()[2] == "    3  zero-shot"
    assert format_table([]) == ""
