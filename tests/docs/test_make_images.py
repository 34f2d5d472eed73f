"""The command that makes the images of README and the documentation."""

import runpy
from pathlib import Path

import pytest
from test_package import finished

from clipreid.evaluation.score import OF_ZERO_SHOT
from clipreid.hub.files import read_metrics


@pytest.mark.slow
def test_the_images_of_the_readme_are_made_by_a_command(tmp_path: Path) -> None:
    """Of a run on the synthetic street, whatever else the run was tested on."""
    run = finished(tmp_path / "run", data="synthetic")
    make = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_images.py"))["make_images"]
    output = tmp_path / "docs"
    output.mkdir()
    files = make(run, output, queries=1, strengths="0,1")
    assert [file.name for file in files] == ["ranked_lists.png", "strength.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    figures = read_metrics(run)["synthetic"]
    assert len(figures["stage2"]["cmc"]) == 20  # scored anew: the curve is kept
    assert figures["zero-shot"]["feature"] in OF_ZERO_SHOT
