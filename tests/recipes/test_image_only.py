"""Image-only backbones in a run: trained without prompts, refused with them, loaded back as they were saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_only import save_osnet, save_timm
from launching import run_recipe
from safetensors.torch import load_file, save_file

import clipreid
from clipreid.backbones import check_processes
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.methods import clip_reid
from clipreid.training import launch as launch_module
from clipreid.training.launch import run_method
from clipreid.training.run import open_run

SIZE = (64, 32)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    return {
        "timm": f"timm:test_vit/{save_timm('test_vit', folder)[0]}",
        "osnet": f"osnet:x0_25/{save_osnet('x0_25', folder)[0]}",
    }


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))


def settings(name: str, street: Path, output: Path, **given: Any) -> tuple[Any, Any]:
    common = {"backbone": name, "data": (f"folder:{street}",), "output": output, "threads": 1, "image_size": SIZE}
    return configure(clip_reid, **common | given)


@pytest.mark.parametrize(("kind", "tuning"), [("timm", "lora"), ("timm", "head"), ("osnet", "full"), ("osnet", "head")])
def test_trains_without_prompts_and_loads_back(
    names: dict[str, str], street: Path, tmp_path: Path, kind: str, tuning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    given = {"prompts": "none", "tuning": tuning, "epochs": 2, "identities_per_batch": 8, "rate": 1e-3}
    trained: list[Any] = []
    build = launch_module.build_model
    monkeypatch.setattr(launch_module, "build_model", lambda run: trained.append(build(run)) or trained[0])
    run_method(clip_reid, *settings(names[kind], street, run, **given))
    config = json.loads((run / "config.json").read_text())
    assert (config["finished"], config["stages"]) == (True, ["stage2"])
    assert config["pooling"] == {"timm": "CLS", "osnet": "mean, fc"}[kind]
    assert config["backbone"]["interpolation"] == {"timm": "bicubic", "osnet": "bilinear"}[kind]
    assert config["backbone"]["mean"] == {"timm": [0.5] * 3, "osnet": [0.485, 0.456, 0.406]}[kind]
    figures = json.loads((run / "metrics.json").read_text())[f"folder:{street}"]
    assert set(figures) == {"zero-shot", "stage2"}
    assert set(figures["stage2"]["parts"]) == {"concat", "projection"}

    crops = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    model = clipreid.load(run)
    assert model.aggregator.test == model.aggregator.necks == ("projection",)
    features = model.embed(crops)
    torch.testing.assert_close(features, trained[0].eval().embed(crops), atol=1e-6, rtol=0)
    assert features.shape == (4, {"timm": 64, "osnet": 512}[kind])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    assert model.embed([]).shape == (0, features.shape[1])
    untouched = clipreid.load_backbone(names[kind], image_size=SIZE).eval()
    with torch.no_grad():
        before = torch.nn.functional.normalize(untouched.encode_image(model.normalise(crops)), dim=1)
    assert (features - before).abs().max() > 1e-4  # it learned something, and that is what came back


def test_a_damaged_adapter_is_refused(names: dict[str, str], street: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"prompts": "none", "epochs": 1, "identities_per_batch": 8}
    run_method(clip_reid, *settings(names["timm"], street, run, **given))
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert len(tensors) == 2 * 4 * 6  # A and B of four Linears in six blocks
    save_file(dict(list(tensors.items())[1:]), file)
    with pytest.raises(UserError, match="1 missing"):
        clipreid.load(run)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_prompts_are_refused_before_anything_is_decoded(
    names: dict[str, str], street: Path, tmp_path: Path, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    for name in names.values():
        flags, config = settings(name, street, tmp_path / "run", tuning=tuning)
        for whole in (True, False):
            with pytest.raises(
                UserError, match=rf"{name} has no text tower to learn prompts with: train it with --prompts n"
            ):
                open_run(clip_reid, flags, config, whole=whole)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("osnet", {}, r"--tuning lora: osnet:x0_25/.* use --tuning full or head"),
        ("timm", {"aggregation": "mean"}, r"--aggregation mean: timm:test_vit/.*\(CLS\): leave"),
        ("timm", {"sie": "camera"}, r"--sie camera: timm:test_vit/.* has no CLS token of ours"),
    ],
)
def test_what_a_wrapped_tower_has_not_is_refused_before_any_image_is_read(
    names: dict[str, str],
    street: Path,
    tmp_path: Path,
    kind: str,
    given: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message):
        open_run(clip_reid, *settings(names[kind], street, tmp_path / "run", prompts="none", **given))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_typed_as_users_do(names: dict[str, str], street: Path, tmp_path: Path) -> None:
    words = ["--backbone", names["timm"], "--prompts", "none", "--data", f"folder:{street}", "--threads", 1]
    words += ["--output", tmp_path / "run", "--epochs", 1, "--identities-per-batch", 8, "--image-size", *SIZE]
    run_recipe("clipreid_stage2.py", *words)
    assert clipreid.load(tmp_path / "run").embed(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)).shape == (1, 64)


def test_batch_norms_are_not_trained_on_several_processes(names: dict[str, str]) -> None:
    osnet, vit = (clipreid.load_backbone(names[kind], image_size=SIZE) for kind in ("osnet", "timm"))
    with pytest.raises(UserError, match=r"--tuning full: the batch norms of osnet:.* \(2\): train on one process"):
        check_processes(osnet, "full", 2)
    for backbone, tuning, processes in ((osnet, "full", 1), (osnet, "head", 2), (vit, "full", 2)):
        check_processes(backbone, tuning, processes)
