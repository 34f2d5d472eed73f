"""The notebooks: made from their scripts, without outputs, and when executed they find what their text says."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ("prompt_anchors", "your_own_crops", "home_and_abroad")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_agrees_with_its_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    import make

    assert (NOTEBOOKS / f"{name}.ipynb").read_text() == make.notebook_text(name), "run: python notebooks/make.py"
    assert set(make.NAMES) == {file.stem for file in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_stripped(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def executed(name: str, tell: str, monkeypatch: pytest.MonkeyPatch, **environment: Any) -> tuple[dict[str, Any], int]:
    """Runs a notebook as Jupyter would; what the expression `tell` is at its end, and how many pictures it shows."""
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print('told', json.dumps({tell}))"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    told = next(o.text for o in reversed(outputs) if o.output_type == "stream" and o.text.startswith("told "))
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return json.loads(told.removeprefix("told ")), pictures


@pytest.mark.slow
def test_prompt_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = "{'truth': truth, 'probed': probed, 'ablations': ablations, 'found': found.tolist(), 'ends': [a, b], 'who': "
    tell += "few.identities[found[[0, -1], 0]].tolist(), 'names': names, 'near': float(near.cosine.mean()), 'chance': "
    told, pictures = executed("prompt_anchors", tell + "chance}", monkeypatch, RUN=tmp_path / "run")
    assert pictures == 8
    assert told["near"] > 1.3 * told["chance"]
    assert told["truth"]["colours only"]["own"] > 2 * told["truth"]["colours only"]["others"]
    probed = {row["attribute"]: row for row in told["probed"]}
    assert probed["top_colour"]["learned texts"] > 4 * probed["top_colour"]["shuffled"]
    assert probed["top_colour"]["true captions"] > probed["top_colour"]["learned texts"]
    for rows in told["ablations"].values():
        precision = [row["mAP"] for row in rows]
        assert all(precision[0] > one > 10 * precision[-1] for one in precision[1:-1])
    assert told["who"] == [told["names"][i] for i in told["ends"]]


@pytest.mark.slow
def test_your_own_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"RUN": tmp_path / "run", "CROPS": tmp_path / "crops"}
    tell = "{'shape': list(features.shape), 'mAP': report.metrics['mAP']}"
    told, pictures = executed("your_own_crops", tell, monkeypatch, **places)
    assert pictures == 3
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())[f"folder:{tmp_path / 'crops'}"]
    assert figures["stage2"]["mAP"] > figures["zero-shot"]["mAP"]
    assert told["mAP"] == pytest.approx(figures["stage2"]["mAP"], abs=1e-3)
    assert told["shape"] == [2, 256]
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert len(list((tmp_path / "crops" / "train").glob("*/*.png"))) == 359  # the spoiled one was taken out


@pytest.mark.slow
def test_home_and_abroad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"RUN": tmp_path / "run", "PLAIN": tmp_path / "plain", "CROPS": tmp_path / "crops"}
    found, pictures = executed("home_and_abroad", "table", monkeypatch, **places)
    assert pictures == 2
    zero, plain, tuned = found["zero-shot"], found["no prompts"], found["two stages"]
    assert tuned["home"] > plain["home"] > zero["home"]
    assert zero["abroad"] > tuned["abroad"] > plain["abroad"]
    assert found["dial at 0.75"]["abroad"] > tuned["abroad"]
