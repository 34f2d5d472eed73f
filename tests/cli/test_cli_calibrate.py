"""`clipreid calibrate`, and what `search` and `compare` show of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import make_run, refused

from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.hub.calibrated import Known, read_calibration

Capture = pytest.CaptureFixture[str]
PEOPLE = 24
CALIBRATE = ("calibrate", "run", "--data", "csv:people.csv", "--protocol", "market1501", "--false-match", 0.05)
SEARCH = ("search", "run", "--gallery", "g.parquet", "--image", "crops/3_1.png", "--top", 3)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "calibrate-cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """run/, people.csv with a test set of 24 people at two cameras, and a gallery of them. Each person is a colour."""
    home = tmp_path_factory.mktemp("calibrated")
    rng = np.random.default_rng(0)
    lines = ["image,identity,camera,split,clothes"]
    for n in range(PEOPLE):
        colour = rng.integers(0, 256, 3)
        for camera in (1, 2):
            noisy = np.clip(colour + rng.normal(0, 30, (16, 8, 3)), 0, 255).astype(np.uint8)
            file = home / "crops" / f"{n}_{camera}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(noisy).resize((32, 64)).save(file)
            lines.append(f"crops/{file.name},p{n},{camera},test,{'red' if n % 3 else 'blue'}")
    (home / "people.csv").write_text("\n".join(lines))
    make_run(home / "run", tiny_folder("clip"), "lora", [f"csv:{home / 'people.csv'}"])
    main(["embed", str(home / "run"), str(home / "crops"), "--output", str(home / "g.parquet")])
    return home


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is the working folder, and the run has no calibration."""
    monkeypatch.chdir(home)
    (home / "run" / "calibration.json").unlink(missing_ok=True)
    return home


@pytest.fixture(scope="module")
def record(home: Path) -> dict[str, Any]:
    """What calibrate writes into the run."""
    main([str(word) for word in ("calibrate", home / "run", "--data", f"csv:{home / 'people.csv'}", *CALIBRATE[4:])])
    return json.loads((home / "run" / "calibration.json").read_text())


@pytest.fixture
def calibrated(record: dict[str, Any], there: Path) -> Known:
    (there / "run" / "calibration.json").write_text(json.dumps(record))
    known = read_calibration(there / "run")
    assert known is not None
    return known


def run(capsys: Capture, *args: object) -> str:
    capsys.readouterr()
    main([str(arg) for arg in args])
    return capsys.readouterr().out


def test_what_is_found_is_printed_kept_and_drawn(there: Path, capsys: Capture) -> None:
    said = run(capsys, *CALIBRATE, "--output", "out", "--by", "clothes", "--curve", "isotonic")
    assert "fitted    to 12 identities, 24 matching and 528 other pairs" in said
    assert "measured  on 12 identities, 24 matching and 528 other pairs: other identities" in said
    assert "written: run/calibration.json, out/calibration.json, out/reliability.png" in said
    with Image.open("out/reliability.png") as drawn:
        assert min(drawn.size) > 300
    details = json.loads(Path("out/calibration.json").read_text())
    assert [row["camera-pair"] for row in details["groups"]["camera-pair"]] == ["1, 1", "1, 2", "2, 2"]
    assert {row["clothes"] for row in details["groups"]["clothes"]} <= {"red", "blue"}
    record = json.loads(Path("run/calibration.json").read_text())
    assert (record["protocol"], record["shown"], record["strength"]) == ("market1501", "isotonic", 1.0)
    assert record["prior"] == pytest.approx(24 / 552)
    assert not any(f"p{n}" in json.dumps(record) for n in range(PEOPLE))  # no name of anybody
    known = read_calibration(there / "run")
    assert known is not None
    for value in details["measured"]["false_match"], known.false_match:
        assert f"pairs     {100 * value:.3g} % of different identities reach it (false match rate)" in said


def test_search_shows_probabilities_and_may_say_nobody(there: Path, record: dict[str, Any], capsys: Capture) -> None:
    (there / "run" / "calibration.json").unlink(missing_ok=True)
    assert "probabilit" not in run(capsys, *SEARCH)
    for threshold, word in ((0.0, "somebody: the first images reach"), (1.0, "nobody: no image reaches")):
        (there / "run" / "calibration.json").write_text(json.dumps(record | {"threshold": threshold}))
        said = run(capsys, *SEARCH, "--report", "page")
        assert f"{word} the threshold {threshold:.4f} (false match rate" in said
        assert f"of 48 by chance)\nprobabilities: for pairs of which {100 * 24 / 552:.2g} % match (as on csv:" in said
        found = json.loads(run(capsys, *SEARCH, "--json"))
        assert found["queries"][0]["nobody"] == word.startswith("nobody")
        assert found["calibration"] == {
            "threshold": threshold,
            "false_match": record["measured"]["false_match"],
            "prior": 24 / 552,
        }
    itself, *hits = found["queries"][0]["results"]
    assert itself["probability"] is None
    known = read_calibration(there / "run")
    assert known is not None
    for hit in hits:
        assert hit["probability"] == pytest.approx(float(known.calibration.probability(hit["similarity"])))
        assert f"{100 * hit['probability']:.1f}%" in said
    page = (there / "page" / "index.html").read_text()
    assert re.search(rf"{str(hits[0]['similarity'])[:4]}\d*, {100 * hits[0]['probability']:.1f} %", page)
    rarer = json.loads(run(capsys, *SEARCH, "--json", "--prior", "0.001"))
    assert rarer["queries"][0]["results"][1]["probability"] < hits[0]["probability"]
    assert rarer["calibration"]["prior"] == 0.001


@pytest.mark.usefixtures("calibrated")
def test_it_holds_for_one_strength(capsys: Capture) -> None:
    run(capsys, "embed", "run", "crops", "--output", "h.parquet", "--strength", 0.5)
    half = ("search", "run", "--gallery", "h.parquet", "--image", "crops/3_1.png", "--strength", 0.5)
    main([str(arg) for arg in half])
    said = capsys.readouterr()
    assert "probabilit" not in said.out
    assert "run/calibration.json is not used: it was made at strength 1.0, here 0.5. No probabilities" in said.err
    assert "`clipreid calibrate run --strength 0.5` makes one for this model" in said.err
    assert "--prior is for image queries of a calibrated run" in refused(capsys, *half, "--prior", 0.1)
    run(capsys, *CALIBRATE, "--strength", 0.5)
    assert "the threshold" in run(capsys, *half)


def test_compare_says_what_the_threshold_does_here(calibrated: Known, capsys: Capture) -> None:
    compare = ("compare", "zero-shot", "run", "--data", "csv:people.csv", "--protocol", "market1501", "--report", "c")
    said = run(capsys, *compare)
    assert f"run: at the threshold {calibrated.calibration.threshold:.4f} of its calibration on csv:" in said
    assert f"match here (there {100 * calibrated.false_match:.3g} %), and " in said


def test_mistakes_are_named(there: Path, capsys: Capture) -> None:
    assert "0.0001 cannot be fitted to 528 pairs" in refused(capsys, *CALIBRATE[:-1], 0.0001)
    assert "--validate: csv:people.csv has no val split" in refused(capsys, *CALIBRATE, "--validate")
    assert "--centre-cameras: a calibration is of the plain" in refused(
        capsys, *CALIBRATE, "--centre-cameras", "gallery"
    )
    assert "--floor: a calibration is of the plain" in refused(capsys, *CALIBRATE, "--floor")
    both = refused(capsys, *CALIBRATE, "--strangers", 0.1)
    assert "--strangers and --false-match both set the threshold: give one of them" in both
    Path("others.csv").write_text(Path("people.csv").read_text())
    two = refused(capsys, *CALIBRATE, "--data", "csv:others.csv")
    assert "calibrate takes one data set, and here are csv:people.csv, csv:others.csv: name one" in two
    Path("file").touch()
    assert "--output file is a file: give a folder" in refused(capsys, *CALIBRATE, "--output", "file")
    assert "--by shoes: the queries have" in refused(capsys, *CALIBRATE, "--by", "shoes")
    assert not Path("run/calibration.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prior": 1.5}, "prior 1.5, shown"),
        ({"threshold": "high"}, r'it.threshold is "high": it must be a number'),
        ({"isotonic": {"similarity": [0.2, 0.1], "probability": [0.1, 0.2]}}, "isotonic is no rising curve"),
        ({"isotonic": {"similarity": [], "probability": []}}, "isotonic is no rising curve"),
        ({"logistic": {"slope": 1.0}}, "logistic lacks intercept"),
        ({"shown": "tarot"}, 'prior 0.04[0-9]*, shown "tarot"'),
        ({"protocol": "/home/me"}, 'protocol "/home/me"'),
    ],
)
def test_a_damaged_file_is_refused(record: dict[str, Any], tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=rf"is damaged, or was not written by clipreid \({said}"):
        read_calibration(tmp_path)
