"""The recipes as users launch them: what comes out, that it repeats, resumes, and does not depend on processes."""

import io
import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from launching import run_recipe
from processes import forked
from safetensors.torch import load_file

import clipreid
from clipreid.errors import UserError
from clipreid.methods import clip_reid
from clipreid.training.launch import parse, run_method

Launch = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--image-size", 64, 32, "--identities-per-batch", 8, "--pictures-per-identity", 4, "--threads", 1)
SHORT = ("--prompt-epochs", 2, "--epochs", 2, *SMALL)


def train(*flags: object) -> None:
    """What the recipe does with these flags, in this process: starting another one takes longer than such a run."""
    run_method(clip_reid, *parse(clip_reid, None, [str(flag) for flag in flags]))


def losses(run: Path, stage: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage and "loss" in line]


@pytest.fixture(scope="module")
def finished(street: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Stage 1, then stage 2, in the same folder, with flags only where they must differ from the defaults."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    run_recipe("clipreid_stage1.py", "--data", f"folder:{street}", "--output", run, "--prompt-epochs", 2, *SMALL)
    assert not (run / "adapter").exists()
    with redirect_stdout(io.StringIO()) as said:
        run_recipe("clipreid_stage2.py", "--data", f"folder:{street}", "--output", run, *SHORT)
    return run, said.getvalue()


def test_stage_2_continues_stage_1_and_leaves_a_whole_run_folder(finished: tuple[Path, str], street: Path) -> None:
    run, output = finished
    assert f"stage1  finished before: taken from {run}" in output  # the text bank was not learned twice
    expected = {"config.json", "adapter", "heads.safetensors", "identities.safetensors", "metrics.json", "log.jsonl"}
    assert expected <= {p.name for p in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())[f"folder:{street}"]
    assert set(metrics) == {"zero-shot", "stage2"}
    assert all(0 <= metrics[m][k] <= 1 for m in metrics for k in ("mAP", "mINP", "rank1", "rank5", "rank10"))
    identities = load_file(run / "identities.safetensors")
    assert identities["prompts"].shape == (10, 4, 128)
    assert identities["text_bank"].shape == (10, 128)
    config = json.loads((run / "config.json").read_text())
    assert (config["method"], config["stages"], config["finished"]) == ("clip_reid", ["stage1", "stage2"], True)
    assert config["config"]["identities_per_batch"] == 8


def test_output_shows_progress_a_table_and_what_to_type_next(finished: tuple[Path, str]) -> None:
    run, output = finished
    assert re.search(r"stage2  epoch 2/2 .*loss .*images/s .*left", output)
    assert re.search(r"zero-shot +[\w-]+ +\d+\.\d%", output)
    assert re.search(r"stage2 +[\w-]+ +\d+\.\d%", output)
    assert f"clipreid evaluate {run}" in output


def test_loading_gives_the_features_of_the_training_process(finished: tuple[Path, str], street: Path) -> None:
    """metrics.json was computed by the training process; the loaded model must reproduce it."""
    run, _ = finished
    model = clipreid.load(run)
    split = clipreid.load_data(f"folder:{street}").splits["query"]
    features = model.embed([split.path(i) for i in range(len(split))])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(split)))
    report = clipreid.evaluate(features, features, split.metadata(), split.metadata(), protocol="cross-camera")
    recorded = json.loads((run / "metrics.json").read_text())[f"folder:{street}"]["stage2"]
    assert report.metrics["mAP"] == pytest.approx(recorded["mAP"], abs=1e-6)


def test_a_finished_folder_is_refused(finished: tuple[Path, str], street: Path) -> None:
    with pytest.raises(UserError, match=r"holds a finished run: .*--overwrite"):
        train("--data", f"folder:{street}", "--output", finished[0], *SHORT)


def test_resume_after_kill_ends_bit_identical(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--data", f"folder:{street}", "--prompt-epochs", 2, "--epochs", 8, *SMALL)  # long enough to be killed
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train("--output", whole, *flags)
    process = forked(run_recipe, "clipreid_stage2.py", "--output", killed, *flags)
    process.start()
    deadline = time.monotonic() + 240
    while not list((killed / "checkpoints").glob("stage2-0000[1-6]")):
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (killed / "adapter").exists()
    with pytest.raises(UserError, match="holds an interrupted run: continue it with --resume"):
        train("--output", killed, *flags)
    capsys.readouterr()
    train("--output", killed, *flags, "--resume")
    resumed = capsys.readouterr().out
    assert "stage1  finished before" in resumed
    assert "stage2  resumes after epoch" in resumed
    for name in ("adapter/adapter_model.safetensors", "heads.safetensors", "identities.safetensors"):
        a, b = load_file(whole / name), load_file(killed / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name


def test_two_processes_equal_one(street: Path, launch: Launch, tmp_path: Path) -> None:
    side = ("--sie", "camera", "--sie-coefficient", 5)  # each process is told the cameras of its own images
    flags = ("--data", f"folder:{street}", "--prompt-epochs", 1, "--epochs", 1, *side, *SMALL)
    one, two = tmp_path / "one", tmp_path / "two"
    train("--output", one, *flags)
    pair = launch("clipreid_stage2.py", "--output", two, *flags, processes=2)
    assert pair.returncode == 0, pair.stderr
    assert "2 process(es)" in pair.stdout
    for stage in ("stage1", "stage2"):
        a, b = losses(one, stage)[0], losses(two, stage)[0]
        for name in (k for k in a if k.endswith("loss")):
            assert a[name] == pytest.approx(b[name], abs=1e-5), (stage, name)
    metrics = [json.loads((run / "metrics.json").read_text())[f"folder:{street}"] for run in (one, two)]
    for model in ("zero-shot", "stage2"):
        assert metrics[0][model]["mAP"] == pytest.approx(metrics[1][model]["mAP"], abs=1e-4), model


@pytest.mark.parametrize("tuning", ["full", "head"])
def test_other_tunings_without_prompts_load_again(
    tuning: str, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / tuning
    flags = ("--data", f"folder:{street}", "--output", run, "--tuning", tuning, "--prompts", "none", *SHORT)
    train(*flags)
    assert "stage1" not in capsys.readouterr().out
    split = clipreid.load_data(f"folder:{street}").splits["query"]
    features = clipreid.load(run).embed([split.path(i) for i in range(len(split))])
    report = clipreid.evaluate(features, features, split.metadata(), split.metadata(), protocol="cross-camera")
    recorded = json.loads((run / "metrics.json").read_text())[f"folder:{street}"]["stage2"]
    assert report.metrics["mAP"] == pytest.approx(recorded["mAP"], abs=1e-6)


def test_paper_preset_with_a_tracker(street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "paper"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train("--data", f"folder:{street}", "--output", run, "--preset", "paper", "--track", "wandb", *SHORT)
    config = json.loads((run / "config.json").read_text())
    assert config["backbone"]["mean"] == [0.5, 0.5, 0.5]
    assert config["backbone"]["interpolation"] == "bilinear"
    assert config["backbone"]["positions"] == "bilinear"
    assert config["config"]["tuning"] == "full"
    clipreid.load(run)
    assert list(tmp_path.glob("wandb/offline-run-*")), "the tracker wrote nothing"
