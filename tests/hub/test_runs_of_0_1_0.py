"""Run folders and galleries that clipreid 0.1.0 wrote: they load, and give what they gave then.

`runs-0.1.0/` was made by that version on the street of `paint_street(train=6, test=4)`: `clip-sie` is tiny-clip with
LoRA and `--sie camera`, `siglip-head` is tiny-siglip2 with `--tuning head --prompts none`, `stage1` is a finished stage
1; the galleries hold the features of the test images.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from launching import paint_street

import clipreid
from clipreid.errors import UserError
from clipreid.explore import open_prompts
from clipreid.hub import read_config
from clipreid.hub.package import package
from clipreid.search import Gallery

RUNS = Path(__file__).parent / "runs-0.1.0"


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("old") / "crops", train=6, test=4)


@pytest.mark.parametrize("name", ["clip-sie", "siglip-head"])
def test_features_are_those_of_then(name: str, crops: Path) -> None:
    table = pq.read_table(RUNS / f"{name}.parquet")
    files = [crops / "test" / Path(path).name for path in table["path"].to_pylist()]
    then = torch.from_numpy(np.stack(table["feature"].to_numpy(zero_copy_only=False)))
    model = clipreid.load(RUNS / name)
    torch.testing.assert_close(model.embed(files), then, atol=2e-6, rtol=0)
    assert model.method == "clip_reid"
    assert read_config(RUNS / name)["stages"][-1] == "stage2"


def test_cameras_of_then_still_matter(crops: Path) -> None:
    model = clipreid.load(RUNS / "clip-sie")
    files = sorted((crops / "test").iterdir())[:4]
    with_cameras = model.embed(files, cameras=[1, 2, 3, 4])
    assert model.config.cameras == (1, 2, 3, 4)
    assert (with_cameras - model.embed(files)).abs().max() > 1e-4


def test_figures_of_then_are_read_and_the_run_is_published_in_todays_form(tmp_path: Path) -> None:
    run = shutil.copytree(RUNS / "clip-sie", tmp_path / "run")
    files = package(run, "alice/old")
    config = json.loads(bytes(files["config.json"]))  # type: ignore[arg-type]
    assert config["method"] == "clip_reid"
    assert config["config"]["lora_rank"] == 2
    assert "status" not in config
    for name, content in files.items():  # what is published loads without a conversion
        (tmp_path / "public" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "public" / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    crop = torch.randint(0, 256, (1, 3, 128, 64), dtype=torch.uint8)
    ours, theirs = clipreid.load(RUNS / "clip-sie"), clipreid.load(tmp_path / "public")
    assert torch.equal(ours.embed(crop), theirs.embed(crop))


@pytest.mark.parametrize("name", ["clip-sie", "siglip-head"])
def test_galleries_of_then_are_searched_with_their_model(name: str, crops: Path) -> None:
    gallery, model = Gallery.open(RUNS / f"{name}.parquet"), clipreid.load(RUNS / name)
    gallery.check(model)
    (hits,) = gallery.search(model.embed([crops / "test" / "0102_c2s1_000001_00.jpg"]), top=1)
    assert Path(hits[0].path).name == "0102_c2s1_000001_00.jpg"
    other = clipreid.load(RUNS / {"clip-sie": "siglip-head", "siglip-head": "clip-sie"}[name])
    with pytest.raises(UserError, match="made by another model"):
        gallery.check(other)


def test_prompts_of_then_are_explored() -> None:
    learned = open_prompts(RUNS / "stage1")
    assert learned.tokens.shape[:2] == (6, 4)


def test_an_interrupted_run_of_then_says_what_to_do(
    tmp_path: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipreid.config import configure
    from clipreid.methods import clip_reid
    from clipreid.training.run import open_run

    run = shutil.copytree(RUNS / "clip-sie", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"status": "tuning"}))
    monkeypatch.chdir(crops.parent)
    flags, settings = configure(clip_reid, data=("folder:crops",), output=run, resume=True, prompt_epochs=1, epochs=1,
                                identities_per_batch=3)  # fmt: skip
    with pytest.raises(UserError, match=r"begun by clipreid 0\.1\.0.*--overwrite"):
        open_run(clip_reid, flags, settings)
