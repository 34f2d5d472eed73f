"""`calibration.json`: published without places and names, bound to the model, and downloaded with the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_package import PEOPLE, ROOT, clone, content, finished

import clipreid
from clipreid.errors import UserError
from clipreid.hub.calibrated import calibration_of, feature_print, read_calibration, save_calibration
from clipreid.hub.download import WANTED, _needed
from clipreid.hub.files import CALIBRATION, OWNED
from clipreid.hub.package import CARD, PUBLISHED, package

FOUND: dict[str, Any] = {
    "shown": "logistic",
    "prior": 0.01,
    "threshold": 0.81,
    "logistic": {"slope": 20.0, "intercept": -15.0},
    "isotonic": {"similarity": [0.1, 0.6], "probability": [0.001, 0.4]},
    "fitted": {"identities": 30, "positive_pairs": 100, "negative_pairs": 9900, "false_match": 0.01},
    "measured": {"identities": 31, "false_match": 0.0123, "missed": 0.4, "strangers": 0.2, "gallery": 58.0},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = finished(tmp_path / "run")
    save_calibration(folder, FOUND, clipreid.load(folder), f"folder:{ROOT} (val)", "market1501")
    return folder


def test_it_holds_for_the_model_it_was_made_with(run: Path) -> None:
    known, why = calibration_of(run, clipreid.load(run))
    assert known is not None
    assert why == ""
    assert known.calibration.probability(0.75) == pytest.approx(0.5)
    assert known.false_match == 0.0123
    half = clipreid.load(run, strength=0.5)
    nothing, why = calibration_of(run, half)
    assert nothing is None
    assert "made at strength 1.0, here 0.5. No probabilities are shown; `clipreid calibrate" in why
    other = clipreid.load(run)
    next(other.maps.parameters(), next(other.image.parameters())).data += 0.01
    assert feature_print(other) != feature_print(clipreid.load(run))
    assert "made at other weights" in calibration_of(run, other)[1]
    (run / CALIBRATION).unlink()
    assert calibration_of(run, half) == (None, "")


def test_it_is_published_with_the_run(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / CALIBRATION).read_text())
    noted = record | {"note": PEOPLE[0], "measured": record["measured"] | {"a /path": 1.0}}
    (run / CALIBRATION).write_text(json.dumps(noted))
    files = package(run, "me/demo")
    public = json.loads(content(files, CALIBRATION))
    assert public == record | {"data": "own data (val)"}
    card = content(files, CARD).decode()
    assert (
        "Calibrated on own data (val) (`calibration.json`): two images with a similarity of at least 0.8100 count"
        in card
    )
    assert "On 31 identities that the threshold was not fitted to, 1.23 % of pairs of different identities" in card
    copy = clone(files, tmp_path / "clone")
    known, why = calibration_of(copy, clipreid.load(copy))
    assert known is not None
    assert why == ""
    assert CALIBRATION in PUBLISHED  # and removed from the repository when it is gone
    assert CALIBRATION in OWNED


def test_a_run_without_figures_shows_it_too(run: Path) -> None:
    (run / "metrics.json").unlink()
    assert "Calibrated on own data" in content(package(run, "me/demo"), CARD).decode()


def test_nothing_broken_is_published(run: Path) -> None:
    (run / CALIBRATION).write_text("{")
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        package(run, "me/demo")
    (run / CALIBRATION).unlink()
    (run / CALIBRATION).symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="is a link that leads out of"):
        read_calibration(run)


def test_it_is_downloaded_where_it_is_listed() -> None:
    config = {"config": {"tuning": "head"}}
    assert CALIBRATION in WANTED
    assert CALIBRATION in _needed(config, {"config.json", CALIBRATION})
    assert CALIBRATION not in _needed(config, {"config.json"})
