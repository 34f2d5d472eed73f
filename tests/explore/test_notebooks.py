"""The notebooks: made from their scripts, without outputs, and when executed they find what their text says."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from PIL import Image

import clipreid
from clipreid import explore
from clipreid.backbones import load_backbone
from clipreid.data import ReIDData, Split, load_data
from clipreid.hub import CONFIG, backbone_record, save_identities

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUNNER = Path(__file__).with_name("run_notebook.py")
NAMES = ("prompt_anchors", "your_own_crops", "cross_domain")


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


def cells(name: str, *words: str) -> list[str]:
    """The code cells in which these words stand, each without its magics."""
    found = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    sources = [next(c.source for c in found if c.cell_type == "code" and word in c.source) for word in words]
    return ["\n".join(line for line in source.splitlines() if not line.startswith("%")) for source in sources]


def small_street(spec: str, people: int = 2) -> ReIDData:
    """In the place of `load_data("synthetic...")`: people to train on and others to test on, four images of each."""
    file = io.BytesIO()
    Image.effect_noise((32, 64), 50).convert("RGB").save(file, "PNG")
    images = [{"path": f"{i}.png", "bytes": file.getvalue()} for i in range(4 * people)]
    split = partial(Split.from_columns, image=images, camera=[i // people + 1 for i in range(4 * people)])
    names = [f"{n + 1:04d}" for n in range(2 * people)]
    who = {"train": names[:people], "query": names[people:], "gallery": names[people:]}
    return ReIDData(spec, {name: split(name, identity=4 * each) for name, each in who.items()}, "market1501")


@pytest.mark.parametrize("name", NAMES)
def test_first_cell_can_be_repeated(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RUN", "PLAIN", "CROPS", "DATA", "IN_DOMAIN_DATA", "CROSS_DOMAIN_DATA"):
        monkeypatch.setenv(key, str(tmp_path))
    monkeypatch.chdir(NOTEBOOKS)
    (first,) = cells(name, "import")
    known: dict[str, Any] = {}
    for _ in range(2):
        exec(first, known)
        assert Path.cwd() == NOTEBOOKS.parent


def test_broken_image_goes_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipreid, "load_data", partial(small_street, people=10))
    monkeypatch.setenv("CROPS", str(tmp_path / "crops"))
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.chdir(NOTEBOOKS.parent)
    paint, mend = cells("your_own_crops", "write_folder", "unlink")
    exec(paint, {})
    data = load_data(f"folder:{tmp_path / 'crops'}").splits["train"]
    assert len(data) == 40
    assert set(data.cameras) == {1, 2, 3, 4}  # its name is read like the others
    (broken,) = [path for path in data.paths if Path(path).stat().st_size == 2000]
    known: dict[str, Any] = {}
    exec(paint, known)  # the kernel was started anew
    for _ in range(2):
        exec(mend, known)
        assert set(load_data(f"folder:{tmp_path / 'crops'}").splits["train"].paths) == set(data.paths) - {broken}


def test_half_of_the_cross_domain_crops_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = tmp_path / "crops"
    for key, value in {
        "CROPS": crops,
        "IN_DOMAIN_DATA": f"folder:{crops}/in-domain",
        "CROSS_DOMAIN_DATA": f"folder:{crops}/cross-domain",
    }.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.chdir(NOTEBOOKS.parent)
    first, paint = cells("cross_domain", "import", "write_folder")
    paint = paint.partition("domains =")[0]
    known: dict[str, Any] = {}
    exec(first, known)
    monkeypatch.setattr(clipreid, "load_data", small_street)
    exec(paint, known)
    shutil.rmtree(crops / "cross-domain")
    exec(paint, known)
    assert len(list(crops.glob("cross-domain/test/*/*.png"))) == len(list(crops.glob("in-domain/test/*/*.png"))) == 8


def test_questions_can_be_put_to_a_run_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, names = small_street("").splits["train"], ["bus_0001", "bus_0002"]
    buses = Split("train", split.table.map(lambda row: {"identity": f"bus_{row['identity']}"}))
    explore.write_folder({"train": buses}, tmp_path / "buses")
    spec = f"folder:{tmp_path / 'buses'}"
    learned = explore.learned_prompts(load_backbone("tiny-clip"), torch.randn(2, 4, 128), names)
    (tmp_path / "run").mkdir()
    save_identities(tmp_path / "run", {"prompts": learned.tokens, "text_bank": learned.bank}, names)
    config = {"clipreid": "0", "method": "clip_reid", "backbone": backbone_record(learned.backbone, "bicubic")}
    config |= {"data": {"names": [spec], "noun": "person"}, "run": {"data": [spec]}}
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("DATA", "")
    monkeypatch.chdir(NOTEBOOKS.parent)
    found = nbformat.read(NOTEBOOKS / "prompt_anchors.ipynb", as_version=4).cells
    sources = [c.source for c in found if c.cell_type == "code" and not c.source.startswith("%%bash")]
    known: dict[str, Any] = {}
    for source in sources:
        exec("\n".join(line for line in source.splitlines() if not line.startswith("%")), known)
    assert known["names"] == names
    assert set(known["few"].identities) == set(names)
    assert "probed" not in known
    assert "truth" not in known


def executed(name: str, tell: str, folder: Path, **environment: Any) -> tuple[dict[str, Any], int]:
    """Runs a notebook in a fresh process; what the expression `tell` is at its end, and how many images it shows."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "PATH": path, "IPYTHONDIR": str(folder / "ipython")}
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    more |= {"LOCAL_WORLD_SIZE": workers}  # its trainings take this worker's share of the cores
    more |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // int(workers)))}
    command = [sys.executable, RUNNER, NOTEBOOKS / f"{name}.ipynb", tell, folder / "told.json"]
    env = os.environ | more | {key: str(value) for key, value in environment.items()}
    running = subprocess.Popen(
        command,
        cwd=NOTEBOOKS,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = running.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)  # the trainings that it started, where it came to a bad end
    assert running.returncode == 0, said[-4000:]
    print(said)
    found = json.loads((folder / "told.json").read_text())
    return found["told"], found["images"]


@pytest.mark.slow
def test_prompt_anchors(tmp_path: Path) -> None:
    tell = "{'truth': truth, 'probed': probed, 'ablations': ablations, 'found': found.tolist(), 'ends': [a, b], 'who': "
    tell += "few.identities[found[[0, -1], 0]].tolist(), 'names': names, 'near': float(near.cosine.mean()), 'chance': "
    tell += "chance, 'met': met, 'colours': float(np.isin(words, list(COLOURS)).mean())}"
    told, images = executed("prompt_anchors", tell, tmp_path, RUN=tmp_path / "run")
    assert images == 8
    assert told["near"] > 1.3 * told["chance"]
    everything, colours, rest = (told["truth"][name] for name in ("all words", "colours only", "the rest"))
    assert told["colours"] > 0.5
    assert everything["own"] > 0.5
    assert colours["own"] > 2 * colours["others"]
    assert colours["own"] - colours["others"] > 1.5 * (rest["own"] - rest["others"])
    probed = {row["attribute"]: row for row in told["probed"]}
    assert probed["top_colour"]["learned texts"] > 4 * probed["top_colour"]["shuffled"]
    assert probed["top_colour"]["true captions"] > probed["top_colour"]["learned texts"]
    gain = {name: row["learned texts"] - row["shuffled"] for name, row in probed.items()}
    large = min(gain.pop("top_colour"), gain.pop("bottom_colour"))
    assert large > max(gain.values())
    assert all(gain[kind] < large / 2 for kind in ("top", "bottom", "hat", "bag"))
    for rows in told["ablations"].values():
        precision = [row["mAP"] for row in rows]
        assert all(precision[0] > one > 10 * precision[-1] for one in precision[1:-1])
    assert told["who"] == [told["names"][i] for i in told["ends"]]
    assert [told["met"][0][0], told["met"][-1][0]] == ["yellow", "purple"]
    assert {colour for row in told["met"][1:-1] for colour in row} - {"yellow", "purple"}


@pytest.mark.slow
def test_your_own_crops(tmp_path: Path) -> None:
    places = {"RUN": tmp_path / "run", "CROPS": tmp_path / "crops"}
    tell = "{'shape': list(features.shape), 'mAP': report.metrics['mAP']}"
    told, images = executed("your_own_crops", tell, tmp_path, **places)
    assert images == 3
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())[f"folder:{tmp_path / 'crops'}"]
    assert figures["stage2"]["mAP"] > figures["zero-shot"]["mAP"]
    assert told["mAP"] == pytest.approx(figures["stage2"]["mAP"], abs=1e-3)
    assert told["shape"] == [2, 256]
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert len(list((tmp_path / "crops" / "train").glob("*/*.png"))) == 359  # the spoiled one was taken out


@pytest.mark.slow
def test_cross_domain(tmp_path: Path) -> None:
    places = {"RUN": tmp_path / "run", "PLAIN": tmp_path / "plain", "CROPS": tmp_path / "crops"}
    found, images = executed("cross_domain", "table", tmp_path, **places)
    assert images == 2
    zero, plain, tuned = found["zero-shot"], found["no prompts"], found["two stages"]
    assert tuned["in-domain"] > max(zero["in-domain"], plain["in-domain"]) + 0.05
    assert abs(plain["in-domain"] - zero["in-domain"]) < 0.03
    assert plain["cross-domain"] < zero["cross-domain"]
    for domain in ("in-domain", "cross-domain"):
        assert abs(found["dial at 0.75"][domain] - tuned[domain]) < 0.02
    assert abs(tuned["cross-domain"] - zero["cross-domain"]) < 0.03
