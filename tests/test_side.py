"""Side information (SIE): what is added to CLS, what stands for the unknown, and how a run keeps and uses it."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.data import trained_name
from clipreid.errors import UserError
from clipreid.hub import backbone_record, model_record, save_model
from clipreid.model import ModelConfig, ReIDModel
from clipreid.side import SideEmbedding, known_numbers
from clipreid.training.config import PRESETS, PromptConfig, RunConfig, TuneConfig
from clipreid.training.run import measure, open_run
from clipreid.training.stage2 import make_optimiser

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "side-cache"))


def pictures(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, 64, 32), generator=generator, dtype=torch.uint8)


def make(folder: Path, tuning: Any = "lora", sie: Any = "camera", **more: Any) -> ReIDModel:
    numbers: dict[str, Any] = {"camera": {"cameras": (2, 5, 7)}, "view": {"views": (0, 1)}, "none": {}}
    numbers["camera+view"] = {"cameras": (2, 2, 5, 5, 7, 7), "views": (0, 1, 0, 1, 0, 1)}
    config = ModelConfig(tuning, lora_rank=4, sie=sie, **numbers[sie], **more)
    return ReIDModel(load_backbone(f"hf:{folder}"), config, identities=3).eval()


# The embedding ----------------------------------------------------------------------------------------------------


def test_start_is_truncated_normal_and_of_the_right_size() -> None:
    embedding = SideEmbedding([n // 4 for n in range(800)], [n % 4 for n in range(800)], 64)
    assert embedding.table.shape == (800, 64)
    assert embedding.table.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(embedding.table.mean().item()) < 1e-3
    assert SideEmbedding([], [3, 1], 8).table.shape == (2, 8)
    with pytest.raises(UserError, match="needs the numbers of the cameras or views"):
        SideEmbedding([], [], 8)
    with pytest.raises(UserError, match="pairs got 3 cameras and 2 views: name the camera and the view of each pair"):
        SideEmbedding([1, 2, 3], [0, 1], 8)


def test_rows_by_number_and_the_mean_for_the_unknown() -> None:
    embedding = SideEmbedding((2, 2, 2, 5, 5, 5), (0, 1, 4, 0, 1, 4), 8, coefficient=3.0)
    rows = embedding.table.detach().view(2, 3, 8)  # camera, view
    cameras, views = torch.tensor([5, 2, -1, 9, 5, -1]), torch.tensor([0, 4, 1, 1, -1, -1])
    expected = [rows[1, 0], rows[0, 2], rows[:, 1].mean(0), rows[:, 1].mean(0), rows[1].mean(0), rows.mean((0, 1))]
    found = embedding(cameras, views, 6)
    torch.testing.assert_close(found, 3 * torch.stack(expected), atol=1e-7, rtol=1e-6)
    assert torch.equal(found[:2], 3 * torch.stack(expected[:2]))  # a known pair gets its row, bit for bit
    torch.testing.assert_close(embedding(None, None, 2), 3 * rows.mean((0, 1)).expand(2, 8), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(embedding(cameras, None, 6)[0], 3 * rows[1].mean(0), atol=1e-7, rtol=1e-6)


def test_pairs_that_never_occurred_have_no_part() -> None:
    """Camera 5 was never seen from view 4: such pictures take what is known of either, and no random row dilutes."""
    cameras, views = torch.tensor([5, 2, 2, 2, 7, -1]), torch.tensor([0, 4, 0, 0, -1, 0])
    pairs = known_numbers("camera+view", cameras, views)
    assert pairs == ((2, 2, 5), (0, 4, 0))
    embedding = SideEmbedding(*pairs, 8)
    rows = embedding.table.detach()
    cases = {(5, 0): [2], (5, 4): [1, 2], (2, -1): [0, 1], (-1, 0): [0, 2], (7, 0): [0, 2], (7, 9): [0, 1, 2]}
    found = embedding(torch.tensor([c for c, _ in cases]), torch.tensor([v for _, v in cases]), len(cases))
    torch.testing.assert_close(found, torch.stack([rows[which].mean(0) for which in cases.values()]))
    message = r"--sie camera\+view: no training picture has both a known camera and a known view: choose --sie cam"
    with pytest.raises(UserError, match=message):
        known_numbers("camera+view", [1, -1], [-1, 0])


def test_only_cls_is_changed() -> None:
    embedding, x = SideEmbedding((1, 2), (), 8), torch.randn(2, 5, 8)
    y = embedding.hook(torch.tensor([2, 1]), None)(x)
    assert torch.equal(y[:, 1:], x[:, 1:])
    torch.testing.assert_close(y[:, 0] - x[:, 0], embedding.table[[1, 0]])


def test_numbers_of_the_training_set() -> None:
    cameras, views = torch.tensor([3, -1, 1, 3]), torch.tensor([-1, 0, 0, 2])
    assert known_numbers("camera", cameras, views) == ((1, 3), ())
    assert known_numbers("view", cameras, views) == ((), (0, 2))
    assert known_numbers("camera+view", cameras, views) == ((1, 3), (0, 2))
    assert known_numbers("none", cameras, views) == ((), ())
    with pytest.raises(UserError, match=r"--sie camera\+view: no training picture has a known view: choose --sie none"):
        known_numbers("camera+view", cameras, torch.full((4,), -1))


def test_whose_cameras_are_known() -> None:
    """Camera 1 of the new street is not camera 1 of the old one; a benchmark may have moved to another disk."""
    assert trained_name("folder:/a", ["folder:/b", "folder:/a"]) == "folder:/a"
    assert trained_name("market1501:/here", ["folder:/a", "market1501:/there"]) == "market1501:/there"
    assert trained_name("synthetic:new-cameras", ["synthetic"]) is None
    assert trained_name("folder:/b", ["folder:/a"]) is None
    assert trained_name("market1501:/here", ["folder:/there"]) is None
    assert trained_name("market1501:/here", []) is None
    assert trained_name("folder:/a/", ["folder:/b", "folder:/a"]) == "folder:/a"
    assert trained_name("hub:owner/a", ["hub:owner/b"]) is None


# In the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
@torch.no_grad()
def test_it_is_added_to_cls_before_the_positions(tiny_folder: Folder, tuning: str) -> None:
    """A tower whose class embedding has the camera's vector in it gives the same features."""
    model = make(tiny_folder("clip"), tuning, sie_coefficient=20.0)
    assert model.side is not None
    found = model.embed(pictures(2), cameras=[7, 7])
    model.tower.embeddings.class_embedding += 20 * model.side.table[2]
    with model.without_side():
        assert (model.embed(pictures(2)) - found).abs().max() < 1e-5
    assert model.side is not None
    assert list(model.state_dict()).index("side.table") < list(model.state_dict()).index("necks.final.norm.weight")


def test_embed_knows_cameras_by_their_numbers(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip"), sie="camera+view", sie_coefficient=20.0)
    unknown = model.embed(pictures())
    assert torch.equal(model.embed(pictures(), cameras=[-1, 3, 99, -1]), unknown)
    found = model.embed(pictures(), cameras=[2, 5, 99, -1], views=[0, 1, 1, -1])
    assert torch.equal(found[3], unknown[3])
    assert (found - unknown).abs().amax(1)[:3].min() > 1e-3
    again = model.embed(pictures(), 3, cameras=torch.tensor([2, 5, 99, -1]), views=[0, 1, 1, -1])  # two batches
    assert (again - found).abs().max() < 1e-6
    parts = model.embed_parts(pictures(), torch.tensor([2, 5, 99, -1]), torch.tensor([0, 1, 1, -1]))
    assert (parts["concat"] - found).abs().max() < 1e-6
    for name in ("cameras", "views"):
        with pytest.raises(ValueError, match=rf"{name} must be 4 numbers, one for each picture, not \[3\]"):
            model.embed(pictures(), **{name: [2, 5, 7]})
    plain = make(tiny_folder("clip"), sie="none")
    assert torch.equal(plain.embed(pictures(), cameras=[2, 5, 7, 7]), plain.embed(pictures()))


def test_training_reaches_the_rows_of_the_batch(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip")).train()
    assert model.side is not None
    output = model(torch.randn(4, 3, 64, 32), torch.tensor([2, 2, 7, 7]))
    sum(x.square().sum() for x in output.logits.values()).backward()  # type: ignore[union-attr]
    assert model.side.table.grad is not None
    moved = model.side.table.grad.abs().amax(1)
    assert (moved > 0).tolist() == [True, False, True]


def test_rates(tiny_folder: Folder) -> None:
    """With full tuning the embedding belongs to the tower, as published; elsewhere to the heads."""
    for tuning, rate in (("full", 5e-6), ("lora", 3.5e-4), ("head", 3.5e-4)):
        model = make(tiny_folder("clip"), tuning)
        assert model.side is not None
        groups = make_optimiser(model, replace(PRESETS["default"], tuning=tuning)).param_groups
        (own,) = (group for group in groups if any(p is model.side.table for p in group["params"]))
        assert (own["base"], own["weight_decay"]) == (rate, 1e-4)


def test_siglip_and_unknown_kinds_are_refused(tiny_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"--sie camera: hf:.* has no CLS token of ours.*use --sie none, or a CLIP"):
        make(tiny_folder("siglip"))
    with pytest.raises(UserError, match="no sie 'lens': choose one of none, camera, view, camera\\+view"):
        ModelConfig(sie="lens")  # type: ignore[arg-type]


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_a_run_keeps_the_embedding_and_the_numbers(tiny_folder: Folder, tmp_path: Path, tuning: str) -> None:
    model = make(tiny_folder("clip"), tuning, "camera+view", sie_coefficient=20.0)
    save_model(model, tmp_path)
    record = backbone_record(load_backbone(f"hf:{tiny_folder('clip')}"), "bicubic")
    config = {"clipreid": "0", "status": "finished", "backbone": record, "model": model_record(model.config)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = clipreid.load(tmp_path)
    assert (again.config.cameras, again.config.views) == ((2, 2, 5, 5, 7, 7), (0, 1, 0, 1, 0, 1))
    known: dict[str, Any] = {"cameras": [2, 5, 7, 7], "views": [0, 1, 1, -1]}
    assert (again.embed(pictures(), **known) - model.embed(pictures(), **known)).abs().max() < 1e-6
    assert (again.embed(pictures()) - model.embed(pictures())).abs().max() < 1e-6


# In a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launching import paint_street

    return paint_street(tmp_path_factory.mktemp("side") / "crops", train=4, test=3)


def config(street: Path, folder: Path, weights: Path, **more: Any) -> RunConfig:
    return RunConfig(f"hf:{weights}", (f"folder:{street}",), output=folder / "run", threads=1, **more)


def test_zero_shot_is_scored_without_it_and_stage_2_with_it(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    from launching import ROOT

    spec = importlib.util.spec_from_file_location("side_recipe", ROOT / "recipes" / "clipreid_stage2.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    flags = TuneConfig(prompts="none", sie="camera", sie_coefficient=30.0, identities_per_batch=4)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(street, elsewhere)  # the same pictures, but who would know that the cameras are the same?
    asked = config(street, tmp_path, tiny_folder("clip"), test=(f"folder:{elsewhere}",))
    run = open_run(asked, PromptConfig(), flags)
    model = recipe.build_model(run, flags)
    assert model.config.cameras == (1, 2, 3, 4)
    measure(run, model, "zero-shot")
    measure(run, model, "stage2")  # nothing was trained: only the random embedding makes a difference
    home, abroad = (json.loads((run.folder / "metrics.json").read_text())[f"folder:{x}"] for x in (street, elsewhere))
    split = clipreid.load_data(f"folder:{street}").splits["query"]
    seen, table = [split.image(i) for i in range(len(split))], split.metadata()

    def mean_ap(**known: Any) -> float:
        features = model.embed(seen, **known)
        return clipreid.evaluate(features, features, table, table, protocol="cross-camera").metrics["mAP"]

    with model.without_side():
        assert home["zero-shot"]["parts"]["concat"]["mAP"] == pytest.approx(mean_ap(), abs=1e-6)
    assert home["zero-shot"]["mAP"] == abroad["zero-shot"]["mAP"]
    assert home["stage2"]["mAP"] == pytest.approx(mean_ap(cameras=split.cameras.tolist()), abs=1e-6)
    assert abroad["stage2"]["mAP"] == pytest.approx(mean_ap(), abs=1e-6)
    assert (
        len({round(x["parts"]["concat"]["mAP"], 6) for x in (home["zero-shot"], home["stage2"], abroad["stage2"])}) == 3
    )


def test_what_cannot_have_it_is_refused_early(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    def refused(message: str, kind: Any, family: str = "clip", **more: Any) -> None:
        with pytest.raises(UserError, match=message):
            open_run(config(street, tmp_path, tiny_folder(family), **more), PromptConfig(),
                     TuneConfig(sie=kind, identities_per_batch=4))  # fmt: skip
        assert not (tmp_path / "run").exists()

    refused("no training picture has a known view", "view")
    refused("has no CLS token of ours", "camera", "siglip")
