"""The command that makes the images of README and the documentation."""

import runpy
from pathlib import Path

import pytest
from launching import paint_street
from test_package import finished

from clipreid.evaluation.score import OF_ZERO_SHOT
from clipreid.hub.files import read_metrics


def test_the_images_of_the_readme_are_made_by_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run on the synthetic street (here two small ones in its place), whatever else the run was tested on."""
    make = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_images.py"))["make_images"]
    assert (make.__globals__["IN_DOMAIN"], make.__globals__["CROSS_DOMAIN"]) == ("synthetic", "synthetic:new-cameras")
    small = [f"folder:{paint_street(tmp_path / name, train=2, test=4)}" for name in ("street", "other")]
    monkeypatch.setitem(make.__globals__, "IN_DOMAIN", small[0])
    monkeypatch.setitem(make.__globals__, "CROSS_DOMAIN", small[1])
    run = finished(tmp_path / "run", data="synthetic")
    output = tmp_path / "docs"
    output.mkdir()
    files = make(run, output, queries=1, strengths="0,1")
    assert [file.name for file in files] == ["ranked_lists.png", "strength.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    figures = read_metrics(run)[small[0]]
    assert len(figures["stage2"]["cmc"]) == 20  # scored anew: the curve is kept
    assert figures["zero-shot"]["feature"] in OF_ZERO_SHOT
