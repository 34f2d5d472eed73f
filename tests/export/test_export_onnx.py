"""The ONNX graph alone, in onnxruntime, gives the features of `embed`: every kind of run, any batch, real images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from image_only import save_osnet, save_timm
from PIL import Image
from test_hub import shake, write_run
from test_import_checkpoint import published
from test_plain import odd_images

import clipreid
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.export import bake, export_onnx, onnx_file
from clipreid.export.onnx_file import run_onnx
from clipreid.hub import backbone_record
from clipreid.hub.import_checkpoint import import_checkpoint
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel
from clipreid.strength import set_strength

Folder = Callable[[str], Path]
REAL = Path(__file__).parents[3] / "shared" / "data" / "vehicles-2cam"


def make(
    name: str,
    tuning: str = "lora",
    raw: bool = False,
    stride: int | None = None,
    size: Any = None,
    positions: Any = "bicubic",
    interpolation: str | None = None,
    **config: Any,
) -> ReIDModel:
    backbone = load_backbone(name, image_size=size, stride=stride, positions=positions)
    backbone.raw_logits, backbone.mean, backbone.std = raw, (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)
    backbone.interpolation = interpolation or backbone.interpolation
    model = build(clip_reid, backbone, clip_reid.Config(tuning=tuning, **config))  # type: ignore[arg-type]
    shake(model)
    return model.eval()


def prepare(images: list[Path] | list[Image.Image], declared: dict[str, Any]) -> np.ndarray:
    """Images to what the graph takes, by `preprocessing.json` alone: no clipreid, no torch."""
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    found = []
    for source in images:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        size = (declared["width"], declared["height"])
        resized = image.convert(declared["channels"]).resize(size, filters[declared["interpolation"]])
        pixels = np.asarray(resized, dtype=np.float64) * declared["scale"]  # [H, W, 3]
        found.append(((pixels - declared["mean"]) / declared["std"]).transpose(2, 0, 1))
    return np.stack(found).astype(declared["dtype"])


def noise(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (70, 30, 3), dtype=np.uint8)) for _ in range(count)]


def differs(folder: Path, model: ReIDModel, images: Any) -> float:
    declared = json.loads((folder / "preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {declared["input"]: prepare(images, declared)})
    assert found.shape == (len(images), declared["D"])
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-5
    return float((torch.from_numpy(found) - model.embed(images)).abs().max())


SIDE = {"sie": "camera", "cameras": (1, 2), "sie_coefficient": 3.0}
CASES: dict[str, dict[str, Any]] = {
    "OpenAI's logits, full tuning": {"raw": True, "tuning": "full", "interpolation": "bilinear"},
    "mean of the patches, which overlap, side information": {"aggregation": "mean", "stride": 6, **SIDE},
    "linear maps": {"tuning": "head", "which": "siglip"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_graph_gives_the_features_of_embed(tiny_folder: Folder, tmp_path: Path, case: str) -> None:
    how = dict(CASES[case])
    model = make(f"hf:{tiny_folder(how.pop('which', 'clip'))}", **how)
    assert export_onnx(model, tmp_path) <= 1e-4
    for count in (1, 64):
        assert differs(tmp_path, model, noise(count)) <= 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "preprocessing.json"]


@pytest.mark.parametrize(("kind", "tuning"), [("timm", "lora"), pytest.param("osnet", "full", marks=pytest.mark.slow)])
def test_image_only_towers(tmp_path: Path, kind: str, tuning: str) -> None:
    name = f"timm:test_vit/{save_timm('test_vit', tmp_path)[0]}"
    if kind == "osnet":
        name = f"osnet:x0_25/{save_osnet('x0_25', tmp_path)[0]}"
    model = make(name, tuning, size=(64, 32))
    export_onnx(model, tmp_path / "out")
    for count in (1, 64):
        assert differs(tmp_path / "out", model, noise(count)) <= 1e-4


def test_an_imported_run(tmp_path: Path) -> None:
    torch.save(published(rows=4), tmp_path / "old.pth")
    model = import_checkpoint(tmp_path / "old.pth", tmp_path / "run", sie="camera", sie_coefficient=3.0)
    assert model.reads == ("cameras",)
    export_onnx(clipreid.load(tmp_path / "run"), tmp_path / "out")
    assert differs(tmp_path / "out", model, noise(3)) <= 1e-4


@pytest.fixture(scope="module", params=["tiny-clip", "tiny-siglip2"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReIDModel]:
    """(folder of the command, at half strength; the model that it should be)."""
    folder = tmp_path_factory.mktemp("exported")
    save(make(request.param), folder / "run")
    main(["export", str(folder / "run"), "--format", "onnx", "--output", str(folder / "out"), "--strength", "0.5"])
    return folder / "out", clipreid.load(folder / "run", strength=0.5)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the 1,134 real photographs are not at {REAL}")
def test_real_photographs(exported: tuple[Path, ReIDModel]) -> None:
    folder, model = exported
    photographs = sorted((REAL / "test").glob("*.jpg"))[:64]
    assert len(photographs) == 64
    for batch in (photographs[:1], photographs):
        assert differs(folder, model, batch) <= 1e-4
    now = model.embed(photographs)
    for other in (0, 1):
        assert (set_strength(model, other).embed(photographs) - now).abs().max() > 1e-3
    set_strength(model, 0.5)


def test_the_graph_declares_what_trackers_need(exported: tuple[Path, ReIDModel]) -> None:
    folder, _ = exported
    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph)
    (given,), (found,) = graph.graph.input, graph.graph.output
    sizes = [(d.dim_param, d.dim_value) for d in given.type.tensor_type.shape.dim]
    assert sizes[0][0]  # a name, no number: any batch
    assert [value for _, value in sizes[1:]] == [3, 128, 64]
    declared = json.loads((folder / "preprocessing.json").read_text())
    assert (given.name, found.name) == (declared["input"], declared["output"])
    assert declared["D"] == 256 == sum(declared["parts"].values())
    assert (declared["layout"], declared["channels"], declared["interpolation"]) == ("NCHW", "RGB", "bicubic")
    assert (declared["mean"], declared["std"]) == ([0.4, 0.5, 0.6], [0.3, 0.2, 0.25])
    assert declared["strength"] == 0.5
    metadata = {item.key: item.value for item in graph.metadata_props}
    for key, value in declared.items():
        assert metadata[key] == (value if isinstance(value, str) else json.dumps(value))


def test_images_of_all_kinds_by_the_declaration_alone(exported: tuple[Path, ReIDModel], tmp_path: Path) -> None:
    """preprocessing.json says how any image becomes what the graph takes."""
    folder, model = exported
    declared = json.loads((folder / "preprocessing.json").read_text())
    program: dict[str, Any] = {}
    exec(declared["python"], program)
    size, filters = (declared["width"], declared["height"]), {"bicubic": Image.Resampling.BICUBIC}
    for name, file in odd_images(tmp_path).items():
        resized = program["rgb"](Image.open(file)).resize(size, filters[declared["interpolation"]])
        values = np.asarray(resized).astype(np.float32) * declared["scale"]  # [H, W, 3]
        pixels = ((values - declared["mean"]) / declared["std"]).astype(np.float32).transpose(2, 0, 1)[None]
        found = run_onnx(folder / "model.onnx", torch.from_numpy(np.ascontiguousarray(pixels)))
        assert float(found @ model.embed([file]).T) > 0.9999, name
    assert declared["transparency"] == "laid on black"


def save(model: ReIDModel, folder: Path) -> None:
    """A finished run folder of the model."""
    fresh = load_backbone(model.source[0].name, image_size=model.image_size)
    fresh.mean, fresh.std = model.mean, model.std
    write_run(model, folder, backbone_record(fresh, "bicubic"))


def test_baking_leaves_the_model_alone(tiny_folder: Folder) -> None:
    model = make(f"hf:{tiny_folder('clip')}", sie="camera", cameras=(1, 2))
    before, cameras = model.embed(noise(2)), [1, 2]
    known = model.embed(noise(2), cameras=cameras)
    baked = bake(model)
    assert (baked.embed(noise(2)) - before).abs().max() <= 1e-5
    assert torch.equal(model.embed(noise(2)), before)
    assert torch.equal(model.embed(noise(2), cameras=cameras), known)
    assert not any("lora" in name for name in baked.state_dict())
    assert not baked.hooks
    assert not baked.reads


def test_without_the_extra(tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    with pytest.raises(UserError, match=r'needs onnx, onnxscript, onnxruntime: pip install "clipreid\[onnx\]"'):
        export_onnx(make(f"hf:{tiny_folder('clip')}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_whose_batch_cannot_be_free_is_refused(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(f"hf:{tiny_folder('clip')}")
    monkeypatch.setattr(ReIDModel, "test_feature", lambda self, found: found["final"].reshape(2, -1))
    with pytest.raises(UserError, match=r"torch cannot export the tower of hf:"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
