"""`clipreid compare`: figures of the runs, what they give together, what is refused before anything is scored."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from test_cli import KEYS, make_run, metrics, refused

from clipreid.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> tuple[Path, Path, str]:
    """Two runs and a data set with query, gallery and val, all with the images of a painted street."""
    from launching import paint_street

    place = tmp_path_factory.mktemp("compared")
    crops = paint_street(place / "crops", train=2)
    lines = ["image,identity,camera,split"]
    for file in sorted((crops / "test").iterdir()):
        number, camera = file.name[:4], int(file.name[6])
        lines += [f"{file},{number},{camera},{'query' if camera < 3 else 'gallery'}"]
    for file in sorted((crops / "train").iterdir()):
        lines += [f"{file},{file.name[:4]},{int(file.name[6])},val"]
    (place / "street.csv").write_text("\n".join(lines))
    data = f"csv:{place / 'street.csv'}"
    a, b = (
        make_run(place / name, tiny_folder("clip"), tuning, [data]) for name, tuning in (("a", "lora"), ("b", "head"))
    )
    return a, b, data


def test_figures_are_those_of_evaluate_and_files_hold_every_query(
    runs: tuple[Path, Path, str], tmp_path: Path, capsys: Capture
) -> None:
    a, b, data = (*(shutil.copytree(run, tmp_path / run.name) for run in runs[:2]), runs[2])
    main(["compare", str(a), str(b), "--report", str(tmp_path / "report"), "--fuse", "--queries", "2"])
    said = capsys.readouterr().out
    assert not (a / "metrics.json").exists()
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())[data]
    main(["evaluate", str(a), "--by", "camera", "--by", "camera-pair", "--open-set"])
    evaluated = capsys.readouterr().out
    main(["evaluate", str(b)])
    entries = [metrics(run)[data]["stage2"] for run in (a, b)]
    for key in KEYS:
        own = [entry[key] for entry in entries]
        assert [side["metrics"][key] for side in found["models"]] == pytest.approx(own)
        assert found["difference"][key] == pytest.approx(own[1] - own[0])
        assert found["models"][0]["intervals"][key] == pytest.approx(entries[0]["intervals"][key])
    for word in (
        f"{100 * entries[0]['mAP']:.1f}% (",
        "paired bootstrap over identities",
        "chosen on val",
        "fused minus a",
    ):
        assert word in said
    weight = found["fusion"]["weight"]
    assert 0 <= weight <= 1
    if weight in (0, 1):
        assert found["fusion"]["mAP"] == pytest.approx(entries[0 if weight else 1]["mAP"])
    with open(tmp_path / "report" / "queries.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 12
    assert sum(float(row["ap b"]) for row in rows) / 12 == pytest.approx(entries[1]["mAP"])
    with Image.open(tmp_path / "report" / "changed.png") as image:
        assert min(image.size) > 300
    assert {"tpr@0.01", "tpr@0.001", "eer"} < set(entries[0]["open_set"])
    for word in ("camera  ", "mAP by camera pair", "equal error rate"):
        assert word in evaluated


def test_a_weight_chosen_on_one_data_set_serves_those_without_val(
    runs: tuple[Path, Path, str], tmp_path: Path, capsys: Capture
) -> None:
    a, b, data = runs
    source = Path(data.removeprefix("csv:"))
    plain = source.with_name("plain.csv")  # beside the images
    plain.write_text("\n".join(line for line in source.read_text().splitlines() if not line.endswith(",val")))
    report = tmp_path / "report"
    main(["compare", str(a), str(b), "--data", f"csv:{plain}", "--data", data, "--fuse", "--report", str(report)])
    assert f"(that of {data})" in capsys.readouterr().out
    found = json.loads((report / "comparison.json").read_text())
    assert found[data]["fusion"]["weight"] == found[f"csv:{plain}"]["fusion"]["weight"]


def test_seeds_and_zero_shot_stand_on_either_side(runs: tuple[Path, Path, str], capsys: Capture) -> None:
    a, b, _ = runs
    main(["compare", f"{a},{b}", "zero-shot"])
    said = capsys.readouterr().out
    assert "a, b" in said
    assert f"zero-shot: before training, {a}" in said
    assert "means of 2 and 1 runs" in said
    main(["compare", str(a), str(a), "--weight", "0.25"])
    said = capsys.readouterr().out
    assert "+0.0 (+0.0 to +0.0)" in said
    assert "no query changed" in said
    assert "weight 0.25 (given)" in said


def test_mistakes_are_named_before_anything_is_scored(
    runs: tuple[Path, Path, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipreid.cli.compare.score_on", None)
    a, b, data = runs
    both = ("compare", str(a), str(b))
    assert "zero-shot against zero-shot" in refused(capsys, "compare", "zero-shot", "zero-shot")
    assert f"names {a} twice" in refused(capsys, "compare", f"{a},{a}", str(b))
    assert "is not a folder" in refused(capsys, "compare", str(a), str(tmp_path / "nowhere"))
    assert "--weight 2.0: must be at least 0 and at most 1" in refused(capsys, *both, "--weight", "2")
    assert "--fuse takes one run on each side" in refused(capsys, "compare", f"{a},{b}", "zero-shot", "--fuse")
    (tmp_path / "file").write_text("mine")
    assert "is a file: give a folder" in refused(capsys, *both, "--report", str(tmp_path / "file"))
    lines = Path(data.removeprefix("csv:")).read_text().splitlines()
    (tmp_path / "plain.csv").write_text("\n".join(line for line in lines if not line.endswith(",val")))
    spec = f"csv:{tmp_path / 'plain.csv'}"
    assert "has no val split to choose the weight on" in refused(capsys, *both, "--data", spec, "--fuse")
    said = refused(capsys, "evaluate", str(a), "--by", "colour")
    assert "--by colour: the queries of" in said
    assert "identity, camera, view, clothes" in said


def test_copies_are_left_out_and_named_unless_they_are_to_count(
    runs: tuple[Path, Path, str], tmp_path: Path, capsys: Capture
) -> None:
    a, b, data = (*(shutil.copytree(run, tmp_path / run.name) for run in runs[:2]), runs[2])
    lines = ["image,identity,split"]
    for line in Path(data.partition(":")[2]).read_text().splitlines()[1:]:
        file, who, _, split = line.split(",")
        copied = tmp_path / f"copy-{Path(file).name}"
        if split in ("query", "gallery"):
            lines.append(f"{file},{who},gallery")
        if split == "query":
            shutil.copy(file, copied)
            lines.append(f"{copied},{who},query")
    (tmp_path / "copied.csv").write_text("\n".join(lines))
    copied_set = f"csv:{tmp_path / 'copied.csv'}"
    note = "12 of 12 queries are copies of gallery images of their identity ("
    main(["compare", str(a), str(b), "--data", copied_set])
    assert capsys.readouterr().out.count(note) == 1
    main(["evaluate", str(a), "--data", copied_set])
    assert note in capsys.readouterr().out
    plain = metrics(a)[copied_set]["stage2"]
    assert plain["counts"]["copies"] == 12
    assert note in " ".join(plain["notes"])
    main(["evaluate", str(a), "--data", copied_set, "--count-copies"])
    assert note not in capsys.readouterr().out
    (counted,) = [each["stage2"] for each in metrics(a).values() if each["stage2"].get("copies") == "counted"]
    assert metrics(a)[copied_set]["stage2"] == plain  # figures with copies counted have a name of their own
    assert counted["rank1"] == 1 > plain["rank1"]
    assert "copies of queries count as matches (count_copies)" in counted["notes"]
