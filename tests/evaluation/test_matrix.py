"""The train x test table: right cells, home marked, what is missing and how to get it."""

import csv
import json
import shlex
from pathlib import Path

import pytest

from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.evaluation.matrix import columns_of, commands, matrix_table, read_rows, write_csv
from clipreid.evaluation.results import results_table

MARKET, MSMT, CROPS = "market1501:/data/Market-1501-v15.09.15", "msmt17:/data/MSMT17", "folder:/home/me/many/my crops"


def write_run(folder: Path, data: list[str], figures: dict[str, dict[str, float]], backbone: str = "tiny-clip") -> Path:
    """A run folder with these mAPs: {model: {test: mAP}}."""
    folder.mkdir(parents=True)
    config = {"clipreid": "1", "method": "clip_reid", "backbone": {"name": backbone, "positions": "bicubic"}}
    config |= {"run": {"data": data}}
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for model, tests in figures.items():
        for test, value in tests.items():
            other = {"mINP": value / 2, "rank1": value + 0.01, "rank5": value + 0.02, "rank10": value + 0.03}
            metrics.setdefault(test, {})[model] = {"mAP": value, **other}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(
            tmp_path / "both",
            [MARKET, MSMT],
            {"stage2": {MARKET: 0.5, MSMT: 0.3, CROPS: 0.2}, "zero-shot": {MARKET: 0.1, MSMT: 0.05}},
        ),
        write_run(tmp_path / "mine", [CROPS], {"stage2": {CROPS: 0.9, MARKET: 0.25}, "zero-shot": {MARKET: 0.12}}),
    ]


def cells(table: str) -> dict[str, list[str]]:
    """{first word(s) of the run's line: its cells}"""
    lines = [line for line in table.splitlines() if "zero-shot" in line or "stage2" in line]
    return {line.split("  ")[0]: line.split()[-3:] for line in lines}


def test_rows_are_training_sets_and_columns_are_test_sets(runs: list[Path]) -> None:
    table = matrix_table(read_rows(runs)[0])
    header = table.splitlines()[2]
    assert header.split()[-4:] == ["market1501", "msmt17", "my", "crops"]
    assert cells(table) == {
        "nothing (tiny-clip)": ["12.0", "5.0", "-"],  # the better of the two runs' zero-shot
        "market1501 + msmt17": ["50.0*", "30.0*", "20.0"],
        "my crops": ["25.0", "-", "90.0*"],
    }
    assert "* = in-domain" in table
    assert f"my crops = {CROPS}" in table
    assert max(map(len, table.splitlines())) < 100
    assert "26.0" in matrix_table(read_rows(runs)[0], "rank1")


def test_missing_cells_come_with_the_command_that_fills_them(runs: list[Path]) -> None:
    both, mine = runs
    assert [shlex.split(line) for line in commands(read_rows(runs)[0])] == [
        ["clipreid", "evaluate", str(both), "--data", CROPS, "--zero-shot"],
        ["clipreid", "evaluate", str(mine), "--data", MSMT],
    ]


def test_other_protocols_have_columns_of_their_own_and_val_is_left_to_training(
    runs: list[Path], tmp_path: Path
) -> None:
    other = {"stage2": {f"{MARKET} (no-cameras)": 0.6, f"{MARKET} (val)": 0.7}}
    rows, _ = read_rows([runs[1], write_run(tmp_path / "third", [MARKET], other, "hf:some/backbone")])
    assert "market1501 (no-cameras)" in matrix_table(rows)
    assert "70.0*" in matrix_table(rows)  # its own val is home too
    wanted = commands(rows)
    assert [line for line in wanted if "--protocol no-cameras" in line and str(runs[1]) in line]
    assert not [line for line in wanted if "(val)" in line]
    assert "nothing (hf:some/backbone)" in matrix_table(rows)  # never scored zero-shot, so all of it is missing


def test_home_data_comes_first(runs: list[Path]) -> None:
    rows, _ = read_rows([runs[0]])
    rows[1].figures["synthetic"] = rows[1].figures.pop(MARKET)
    rows[1].figures[MARKET] = rows[1].figures["synthetic"]
    assert columns_of(rows) == [MARKET, MSMT, CROPS, "synthetic"]


def test_csv_has_every_figure(runs: list[Path], tmp_path: Path) -> None:
    write_csv(read_rows(runs)[0], tmp_path / "m.csv")
    with open(tmp_path / "m.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 7
    home = [line for line in lines if line["in_domain"] == "yes"]
    assert [(line["tested_on"], float(line["mAP"])) for line in home] == [(MARKET, 0.5), (MSMT, 0.3), (CROPS, 0.9)]
    assert home[0]["trained_on"] == f"{MARKET} + {MSMT}"
    assert float(home[0]["rank10"]) == pytest.approx(0.53)


def test_command_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["matrix", *map(str, runs), "--metric", "rank1", "--csv", str(tmp_path / "m.csv")])
    said = capsys.readouterr().out
    assert "rank1 in percent" in said
    assert "51.0*" in said
    assert "to fill the cells marked -:" in said
    assert (tmp_path / "m.csv").is_file()
    with pytest.raises(SystemExit):
        main(["matrix", str(runs[0]), "--csv", str(tmp_path / "m.csv" / "m.csv")])
    assert "cannot be written" in capsys.readouterr().err


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one run folder"):
        read_rows([])
    with pytest.raises(UserError, match="both is named twice"):
        read_rows([runs[0], runs[0]])


def test_what_has_no_figures_is_left_out_with_a_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`runs/*` holds notes, unfinished runs and other things."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (runs[0] / "metrics.json").unlink()
    rows, left_out = read_rows(sorted(tmp_path.iterdir()))
    assert {row.folder for row in rows} == {runs[1]}
    assert left_out == [
        f"{runs[0]} has no metrics.json yet: finish its training, or run `clipreid evaluate {runs[0]}`",
        f"{tmp_path / 'notes.txt'} is not a folder: give a run folder, such as runs/demo",
        f"{tmp_path / 'other'} is not a run folder: it has no config.json",
    ]
    main(["matrix", *map(str, sorted(tmp_path.iterdir()))])
    said = capsys.readouterr().out
    assert said.startswith(f"left out: {left_out[0]}\nleft out: ")
    assert "90.0*" in said
    with pytest.raises(UserError, match=r"no run with figures is left:\n  .*both has no metrics.json yet"):
        read_rows([runs[0]])


def test_one_place_is_one_column(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", ["folder:/my/crops"], {"stage2": {"folder:/my/crops": 0.5, "veri:/v": 0.1}})
    second = write_run(tmp_path / "b", ["veri:/v/"], {"stage2": {"folder:/my/crops/": 0.25, "veri:/v/": 0.75}})
    rows, _ = read_rows([first, second])
    assert columns_of(rows) == ["folder:/my/crops", "veri:/v"]
    assert [line.split()[-2:] for line in matrix_table(rows).splitlines() if "stage2" in line] == [
        ["50.0*", "10.0"],
        ["25.0", "75.0*"],
    ]


def flagged(run: Path, **flags: object) -> Path:
    config = json.loads((run / "config.json").read_text())
    config["run"] |= flags
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_commands_read_the_data_as_the_run_that_has_it(tmp_path: Path) -> None:
    pattern, columns = r"(?P<identity>\d+) .*", "identity=pid"
    table = "hub:me/table"
    named = flagged(
        write_run(tmp_path / "named", [CROPS], {"stage2": {CROPS: 0.5, table: 0.5}}),
        pattern=pattern,
        columns=columns,
        test=[table],
        skip_bad=True,
    )
    plain = write_run(tmp_path / "plain", [MARKET], {"stage2": {MARKET: 0.5}})
    rows, _ = read_rows([named, plain])
    asked = [shlex.split(line) for line in commands([row for row in rows if row.model == "stage2"])]
    assert asked == [
        ["clipreid", "evaluate", str(named), "--data", MARKET],
        ["clipreid", "evaluate", str(plain), "--data", CROPS, "--skip-bad", "--pattern", pattern],
        ["clipreid", "evaluate", str(plain), "--data", table, "--skip-bad", "--columns", columns],
    ]
    before = [shlex.split(line) for line in commands(rows) if "--zero-shot" in line and "--skip-bad" in line]
    assert ["clipreid", "evaluate", str(named), "--data", CROPS, "--data", table, "--skip-bad", "--zero-shot"] in before


def test_an_imported_run_with_side_information_is_reminded_of_its_cameras(runs: list[Path], tmp_path: Path) -> None:
    imported = write_run(tmp_path / "imported", [], {"stage2": {"veri:/v": 0.5}})
    config = {"clipreid": "1", "backbone": {"name": "imported"}, "imported": "x.pth", "method": "clip_reid"}
    config |= {"config": {"sie": "camera", "cameras": [1, 2]}}
    (imported / "config.json").write_text(json.dumps(config))
    (line,) = [line for line in commands(read_rows([*runs, imported])[0]) if str(imported) in line]
    assert line.endswith("  # and --same-cameras, if it was trained on this data")
    assert shlex.split(line, comments=True)[:3] == ["clipreid", "evaluate", str(imported)]


def test_the_table_of_a_run_stays_readable(runs: list[Path]) -> None:
    lines = results_table(runs[0]).splitlines()
    assert lines[2].startswith("market1501  ")
    assert f"my crops = {CROPS}" in lines
    assert max(map(len, lines[:7])) < 80


def test_what_was_not_trained_has_a_row_of_its_own_and_says_how_it_is_filled(tmp_path: Path) -> None:
    centred = {"stage2+centred-gallery": {MARKET: 0.6}, "zero-shot+centred-gallery": {MARKET: 0.2}}
    figures = {"stage2": {MARKET: 0.5, MSMT: 0.3}, "zero-shot": {MARKET: 0.1, MSMT: 0.05}, "colour": {MARKET: 0.01}}
    run = write_run(tmp_path / "run", [MARKET], figures | centred)
    rows = read_rows([run])[0]
    assert [(row.model, row.backbone, row.trained) for row in rows] == [
        ("zero-shot", "tiny-clip", ()),
        ("colour", "colour", ()),
        ("zero-shot+centred-gallery", "tiny-clip", ()),
        ("stage2", "tiny-clip", (MARKET,)),
        ("stage2+centred-gallery", "tiny-clip", (MARKET,)),
    ]
    table = matrix_table(rows)
    assert "nothing (colour)     colour " in table
    assert "nothing (tiny-clip)  zero-shot+centred-gallery" in table
    (line,) = commands(rows)
    assert line.endswith(f"--data {MSMT} --floor --zero-shot --centre-cameras=gallery")
