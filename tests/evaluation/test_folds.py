"""The mean of the folds of a cross-validation."""

import json
from pathlib import Path
from typing import Any

import pytest

import clipreid
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.evaluation.folds import folds_table

KEYS = ("mAP", "mINP", "rank1", "rank5", "rank10")


def entry(value: float, queries: int, half: float, protocol: str = "market1501") -> dict[str, Any]:
    intervals = {key: [value - half, value + half] for key in KEYS}
    counts = {"valid_queries": queries, "queries": queries}
    return {**dict.fromkeys(KEYS, value), "counts": counts, "intervals": intervals, "protocol": protocol}


def make(folder: Path, data: str, models: dict[str, Any], trained: list[str] | None = None) -> Path:
    folder.mkdir()
    run = {"data": [data] if trained is None else trained}
    config = {"clipreid": clipreid.__version__, "method": "clip_reid", "config": {}, "stages": ["stage2"], "run": run}
    (folder / "config.json").write_text(json.dumps(config | {"finished": True, "backbone": {"name": "tiny-clip"}}))
    (folder / "metrics.json").write_text(json.dumps({data: models}))
    return folder


def test_figures_are_weighted_by_queries_and_intervals_add_in_squares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make(tmp_path / "fold1", "csv:a.csv", {"stage2": entry(0.4, 100, 0.10), "zero-shot": entry(0.2, 100, 0.1)})
    b = make(tmp_path / "fold2", "csv:b.csv", {"stage2": entry(0.8, 300, 0.04), "zero-shot": entry(0.2, 300, 0.1)})
    main(["matrix", str(a), str(b), "--folds"])
    said = capsys.readouterr().out
    assert "2 folds, 400 queries in all, protocol market1501" in said
    lines = [line.split() for line in said.splitlines()[4:]]
    assert lines[0] == ["stage2", *["70.0%"] * 5]  # (100 x 40 + 300 x 80) / 400
    assert lines[1] == ["95", "%", *["±", "3.9"] * 5]  # root of (1/4 x 10)^2 + (3/4 x 4)^2
    assert lines[2][-1] == "28.3"
    assert lines[3] == ["zero-shot", *["20.0%"] * 5]


def test_what_is_no_cross_validation_is_refused(tmp_path: Path) -> None:
    one = {"stage2": entry(0.5, 9, 0.1)}
    a, b = make(tmp_path / "a", "csv:a.csv", one), make(tmp_path / "b", "csv:b.csv", one)
    for runs, said in {
        (a,): "--folds: name the runs of all folds",
        (a, make(tmp_path / "c", "csv:a.csv", one)): "csv:a.csv was tested on by several runs",
        (
            a,
            make(tmp_path / "d", "csv:d.csv", {"saga": entry(0.5, 9, 0.1)}),
        ): "do not both have figures of saga, stage2",
        (a, make(tmp_path / "e", "csv:e.csv", {"stage2": entry(0.5, 9, 0.1, "no-cameras")})): "different protocols",
        (b, make(tmp_path / "f", "csv:f.csv", one, ["csv:g.csv"])): "has no figures on what it was trained on",
        (b, make(tmp_path / "g", "csv:h.csv", one, ["csv:h.csv", "csv:i.csv"])): "has several data sets: train each",
    }.items():
        with pytest.raises(UserError, match=said):
            folds_table(runs)


def test_other_flags_of_matrix_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["matrix", str(tmp_path), "--folds", "--csv", "x.csv"])
    assert "--folds prints all figures: leave out --metric and --csv" in capsys.readouterr().err
