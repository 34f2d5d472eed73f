"""What people get wrong: each ends with one message that names the file or value and says what to do."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from launching import ROOT, paint_street
from PIL import Image

from clipreid.errors import UserError
from clipreid.training.config import PromptConfig, RunConfig, TuneConfig
from clipreid.training.run import open_run

Launch = Callable[..., subprocess.CompletedProcess[str]]
P8 = TuneConfig(identities_per_batch=8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def refused(run: RunConfig, tune: TuneConfig | None = P8) -> str:
    with pytest.raises(UserError) as caught:
        open_run(run, PromptConfig(), tune)
    return str(caught.value)


def config(street: Path, tmp_path: Path, **more: object) -> RunConfig:
    return RunConfig(data=(f"folder:{street}",), output=tmp_path / "run", threads=1, **more)  # type: ignore[arg-type]


def test_unknown_backbone_lists_the_valid_names(street: Path, tmp_path: Path) -> None:
    message = refused(config(street, tmp_path, backbone="tiny-clop"))
    assert "'tiny-clop'" in message
    assert "tiny-clip" in message
    assert "open_clip:" in message


def test_unknown_data_lists_the_valid_names(tmp_path: Path) -> None:
    message = refused(RunConfig(data=("markt1501:/x",), output=tmp_path / "run"))
    assert "market1501" in message


def test_missing_root_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(RunConfig(data=(f"folder:{tmp_path / 'nowhere'}",)))


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert str(tmp_path) in refused(RunConfig(data=(f"folder:{tmp_path}",), output=tmp_path / "run"))


def test_one_identity_only(tmp_path: Path) -> None:
    root = paint_street(tmp_path / "crops", train=1)
    assert "one identity only" in refused(RunConfig(data=(f"folder:{root}",), output=tmp_path / "run"))


def test_fewer_identities_than_P(street: Path, tmp_path: Path) -> None:
    message = refused(config(street, tmp_path), TuneConfig())
    assert "10 identities" in message
    assert "16" in message


@pytest.fixture
def broken(street: Path, tmp_path: Path) -> Path:
    root = tmp_path / "broken"
    shutil.copytree(street, root)
    (root / "train" / "0001_c1s1_000001_00.jpg").write_bytes(b"not an image")
    return root


def test_an_undecodable_image_is_named(broken: Path, tmp_path: Path) -> None:
    message = refused(config(broken, tmp_path))
    assert "0001_c1s1_000001_00.jpg" in message
    assert "--skip-bad" in message


def test_skip_bad_continues_and_counts(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(config(broken, tmp_path, skip_bad=True), PromptConfig(), P8)
    assert len(run.labels) == 39
    assert run.crops("bicubic").shape[0] == 39
    assert len([path for path in (Path(os.environ["CLIPREID_CACHE"]) / "pixels").iterdir() if path.is_dir()]) == 1
    assert "1 training pictures left out" in capsys.readouterr().out


def test_images_that_are_mended_meanwhile_stop_the_run(broken: Path, street: Path, tmp_path: Path) -> None:
    run = open_run(config(broken, tmp_path, skip_bad=True), PromptConfig(), P8)
    name = "train/0001_c1s1_000001_00.jpg"
    shutil.copy(street / name, broken / name)
    with pytest.raises(UserError, match="the training pictures changed while the run was being prepared: start it"):
        run.crops("bicubic")


def test_a_one_pixel_image_is_named(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "speck"
    shutil.copytree(street, root)
    Image.new("RGB", (1, 1)).save(root / "train" / "0002_c1s1_000001_00.jpg")
    message = refused(config(root, tmp_path))
    assert "0002_c1s1_000001_00.jpg" in message
    assert "1x1" in message


def test_labels_with_gaps_are_relabelled(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "gaps"
    shutil.copytree(street, root)
    for file in (root / "train").glob("0003_*"):
        file.rename(file.with_name(file.name.replace("0003_", "9003_")))
    run = open_run(config(root, tmp_path), PromptConfig(), P8)
    assert sorted(set(run.labels.tolist())) == list(range(10))
    assert run.names[-1] == "9003"


def test_a_foreign_folder_is_refused_and_kept(street: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "holds other files" in refused(config(street, tmp_path, overwrite=True))
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_other_stage_1_settings_are_refused_by_name(street: Path, tmp_path: Path) -> None:
    open_run(config(street, tmp_path), PromptConfig()).note("prompts")
    with pytest.raises(UserError, match=r"another seed \(0 there, 7 now\)"):
        open_run(config(street, tmp_path, seed=7), PromptConfig(), P8)
    with pytest.raises(UserError, match=r"another tokens \(4 there, 2 now\)"):
        open_run(config(street, tmp_path), PromptConfig(prompt_tokens=2), P8)


def test_resume_needs_a_run(street: Path, tmp_path: Path) -> None:
    assert "holds no run" in refused(config(street, tmp_path, resume=True))


@pytest.mark.parametrize(
    ("tune", "flag"),
    [
        (TuneConfig(epochs=0), "--epochs"),
        (TuneConfig(rate=-1.0), "--rate"),
        (TuneConfig(identities_per_batch=0), "--ident"),
    ],
)
def test_impossible_values_are_named(street: Path, tmp_path: Path, tune: TuneConfig, flag: str) -> None:
    assert flag in refused(config(street, tmp_path), tune)


def test_exit_status_and_message_of_a_launched_recipe(launch: Launch, tmp_path: Path) -> None:
    done = launch("clipreid_stage2.py", "--data", f"folder:{tmp_path / 'nowhere'}")
    assert done.returncode != 0
    assert f"error: --data folder:{tmp_path / 'nowhere'}" in done.stderr


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import tyro

    with pytest.raises(SystemExit) as ended:
        tyro.cli(recipe("clipreid_stage2").Stage2, args=["--bakbone", "x"], config=(tyro.conf.OmitArgPrefixes,))
    assert ended.value.code != 0
    assert "--backbone" in capsys.readouterr().err  # what may have been meant


def test_small_data_gets_more_epochs_unless_told_otherwise(street: Path, tmp_path: Path) -> None:
    """One batch an epoch: 180 epochs make the 180 steps that the tiny backbones want."""
    assert open_run(config(street, tmp_path), PromptConfig(), P8).values.epochs == 180
    asked = TuneConfig(identities_per_batch=8, epochs=2)
    assert open_run(config(street, tmp_path / "b"), PromptConfig(), asked).values.epochs == 2
