"""A merged folder in transformers alone gives the features of `embed`; what it cannot hold is refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_only import save_timm
from PIL import Image
from safetensors import safe_open
from test_export_onnx import REAL, make, noise, save
from test_import_checkpoint import published
from test_plain import odd_images, run_lines

import clipreid
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.export import check_merged, export_merged
from clipreid.hub.import_checkpoint import import_checkpoint
from clipreid.hub.plain import merged_lines
from clipreid.model import ReIDModel
from clipreid.strength import set_strength

Folder = Callable[[str], Path]


def differs(folder: Path, model: ReIDModel, images: list[Path]) -> float:
    found = torch.cat([run_lines(merged_lines(model, str(folder), str(image))) for image in images])
    return float((found - model.embed(images)).abs().max())


def images(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for file, image in zip(files, noise(2), strict=True):
        image.save(file)
    return files


CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {"which": "siglip"},
    "full tuning": {"tuning": "full"},
    "full tuning of siglip": {"tuning": "full", "which": "siglip"},
    "mean of the patches": {"aggregation": "mean"},
    "bilinear positions, OpenAI's logits": {"positions": "bilinear", "raw": True},
    "a square": {"size": (64, 64)},
    "a wide crop": {"size": (32, 64), "which": "siglip"},
    "a square with a rest": {"size": (68, 68)},
    "a crop with a rest": {"size": (70, 35)},
    "side information": {"sie": "camera", "cameras": (1, 2), "sie_coefficient": 3.0},
    "half of the strength": {"strength": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_alone_gives_the_features_of_embed(tiny_folder: Folder, tmp_path: Path, case: str) -> None:
    how = dict(CASES[case])
    strength = how.pop("strength", 1)
    model = make(f"hf:{tiny_folder(how.pop('which', 'clip'))}", **how)
    set_strength(model, strength)
    export_merged(model, tmp_path / "out")
    assert differs(tmp_path / "out", model, images(tmp_path)) <= 1e-4
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118


def test_images_of_all_kinds_are_read_as_embed_reads_them(tiny_folder: Folder, tmp_path: Path) -> None:
    model = make(f"hf:{tiny_folder('clip')}")
    export_merged(model, tmp_path / "out")
    for name, file in odd_images(tmp_path).items():
        found = run_lines(merged_lines(model, str(tmp_path / "out"), str(file)))
        assert float(found @ model.embed([file]).T) > 0.9999, name
    assert "turn an image upright by EXIF" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the 1,134 real photographs are not at {REAL}")
@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2"])
def test_the_command_on_real_photographs(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(make(name), tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--format", "merged", "--output", str(tmp_path / "out")])
    assert "README.md there shows how" in capsys.readouterr().out
    model = clipreid.load(tmp_path / "run")
    assert differs(tmp_path / "out", model, sorted((REAL / "test").glob("*.jpg"))[:5]) <= 1e-4
    written = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == written
    said = (tmp_path / "out" / "README.md").read_text()
    assert merged_lines(model, ".") in said
    assert "strength" not in said
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {usual_mode(tmp_path)}
    half = ["export", str(tmp_path / "run"), "--format", "merged", "--strength", "0.5"]
    main([*half, "--output", str(tmp_path / "half")])
    assert f"{clipreid.__version__}, strength 0.5 (0 is the backbone" in (tmp_path / "half" / "README.md").read_text()


def usual_mode(folder: Path) -> int:
    """Who may read any new file here."""
    (folder / "new").touch()
    return (folder / "new").stat().st_mode


def test_the_classes_and_the_processor_of_transformers(tiny_folder: Folder, tmp_path: Path) -> None:
    from transformers import AutoModel, CLIPImageProcessorPil, CLIPVisionModel, SiglipVisionModel

    file, size = images(tmp_path)[0], {"height": 64, "width": 32}
    for family, kind in (("clip", CLIPVisionModel), ("siglip", SiglipVisionModel)):
        model, folder = make(f"hf:{tiny_folder(family)}"), tmp_path / family
        export_merged(model, folder)
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        assert dict(processor.size) == size
        pixels = processor(Image.open(file), return_tensors="pt").pixel_values
        features = model.features(model.normalise(model.crops([file])))
        for theirs in (kind.from_pretrained(folder), AutoModel.from_pretrained(folder)):
            with torch.no_grad():
                out: Any = theirs.eval()(pixel_values=pixels, interpolate_pos_encoding=True)
            found = out.pooler_output
            assert (found - features["final" if family == "clip" else "projection"]).abs().max() <= 1e-4
        assert json.loads((folder / "config.json").read_text())["architectures"]


def test_an_imported_run(tmp_path: Path) -> None:
    torch.save(published(rows=4), tmp_path / "old.pth")
    import_checkpoint(tmp_path / "old.pth", tmp_path / "run", sie="camera", sie_coefficient=3.0)
    model = clipreid.load(tmp_path / "run")
    export_merged(model, tmp_path / "out")
    assert differs(tmp_path / "out", model, images(tmp_path)) <= 1e-4


def config_of(tuning: str = "lora", **backbone: Any) -> dict[str, Any]:
    source = {"name": "tiny-clip", "positions": "bicubic", "stride": None}
    return {"backbone": source | backbone, "method": "clip_reid", "config": {"tuning": tuning}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "overlapping": (config_of(stride=4), r"its patches overlap \(stride 4\)"),
    "head": (config_of("head"), "it trained linear maps behind the tower"),
    "timm": (config_of(name="timm:vit_small_patch14_dinov2.lvd142m"), "is none of transformers' CLIP or SigLIP"),
    "osnet": (config_of("full", name="osnet:x1_0/w.pth"), "is none of transformers' CLIP or SigLIP"),
    "imported, overlapping": (
        config_of("full") | {"backbone": {"name": "imported", "vision": {"stride": 12, "patch_size": 16}}},
        r"its patches overlap \(stride 12\)",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_transformers_cannot_hold_is_refused(how: str) -> None:
    config, words = REFUSED[how]
    with pytest.raises(UserError, match=f"--format merged: .*{words}.*; take --format onnx"):
        check_merged(config)


def test_mistakes_are_named_before_anything_is_written(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["export", *flags])
        assert ended.value.code == 2
        return capsys.readouterr().err

    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    save(make(f"hf:{tiny_folder('clip')}", "head"), tmp_path / "run")
    assert "linear maps behind the tower" in refused(run, "--format", "merged", "--output", out)
    assert "strength 1.5: give a number" in refused(run, "--format", "onnx", "--output", out, "--strength", "1.5")
    assert "is in use: give a new or an empty folder" in refused(run, "--format", "onnx", "--output", run)
    assert "nowhere" in refused(str(tmp_path / "nowhere"), "--format", "onnx", "--output", out)
    assert "merged" in refused(run, "--format", "torchscript", "--output", out)
    assert not (tmp_path / "out").exists()


def test_a_timm_run_is_refused_by_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"timm:test_vit/{save_timm('test_vit', tmp_path)[0]}"
    save(make(name, size=(64, 32)), tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), "--format", "merged", "--output", str(tmp_path / "out")])
    assert "is none of transformers' CLIP or SigLIP towers" in capsys.readouterr().err
    assert load_backbone(name, image_size=(64, 32)).family == "image-only"
