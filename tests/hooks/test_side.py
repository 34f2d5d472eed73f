"""Side information (SIE): what is added to CLS, what stands for the unknown, and how a run keeps and uses it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import paint_street
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.config import check_values, configure
from clipreid.data import trained_name
from clipreid.errors import UserError
from clipreid.evaluation.score import ZERO_SHOT
from clipreid.hooks.side import SideEmbedding, known_numbers
from clipreid.hub import backbone_record, save_model
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel, untrained_model
from clipreid.training.launch import build_model, measure
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.run import Run, open_run

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "side-cache"))


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, 64, 32), generator=generator, dtype=torch.uint8)


def make(folder: Path, tuning: Any = "lora", sie: Any = "camera", **more: Any) -> ReIDModel:
    numbers: dict[str, Any] = {"camera": {"cameras": (2, 5, 7)}, "view": {"views": (0, 1)}, "none": {}}
    numbers["camera+view"] = {"cameras": (2, 2, 5, 5, 7, 7), "views": (0, 1, 0, 1, 0, 1)}
    config = clip_reid.Config(tuning=tuning, lora_rank=4, sie=sie, **numbers[sie], **more)
    return build(clip_reid, load_backbone(f"hf:{folder}"), config, identities=3).eval()


def drawn(cameras: Any, views: Any, width: int, coefficient: float = 1.0) -> SideEmbedding:
    """An embedding as a model has it: with a table that is no longer zero."""
    embedding = SideEmbedding(cameras, views, width, coefficient)
    assert not embedding.table.any()
    embedding.reset_parameters()
    return embedding


# The embedding ----------------------------------------------------------------------------------------------------


def test_start_is_truncated_normal_and_of_the_right_size() -> None:
    embedding = drawn([n // 4 for n in range(800)], [n % 4 for n in range(800)], 64)
    assert embedding.table.shape == (800, 64)
    assert embedding.table.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(embedding.table.mean().item()) < 1e-3
    assert drawn([], [3, 1], 8).table.shape == (2, 8)
    with pytest.raises(UserError, match="needs the numbers of the cameras or views"):
        SideEmbedding([], [], 8)
    with pytest.raises(UserError, match="pairs got 3 cameras and 2 views: name the camera and the view of each pair"):
        SideEmbedding([1, 2, 3], [0, 1], 8)


def test_rows_by_number_and_the_mean_for_the_unknown() -> None:
    embedding = drawn((2, 2, 2, 5, 5, 5), (0, 1, 4, 0, 1, 4), 8, coefficient=3.0)
    rows = embedding.table.detach().view(2, 3, 8)  # camera, view
    cameras, views = torch.tensor([5, 2, -1, 9, 5, -1]), torch.tensor([0, 4, 1, 1, -1, -1])
    expected = [rows[1, 0], rows[0, 2], rows[:, 1].mean(0), rows[:, 1].mean(0), rows[1].mean(0), rows.mean((0, 1))]
    found = embedding(cameras, views, 6)
    torch.testing.assert_close(found, 3 * torch.stack(expected), atol=1e-7, rtol=1e-6)
    assert torch.equal(found[:2], 3 * torch.stack(expected[:2]))  # a known pair gets its row, bit for bit
    torch.testing.assert_close(embedding(None, None, 2), 3 * rows.mean((0, 1)).expand(2, 8), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(embedding(cameras, None, 6)[0], 3 * rows[1].mean(0), atol=1e-7, rtol=1e-6)


def test_pairs_that_never_occurred_have_no_part() -> None:
    """Camera 5 was never seen from view 4: such images take what is known of either, and no random row dilutes."""
    cameras, views = torch.tensor([5, 2, 2, 2, 7, -1]), torch.tensor([0, 4, 0, 0, -1, 0])
    pairs = known_numbers("camera+view", cameras, views)
    assert pairs == ((2, 2, 5), (0, 4, 0))
    embedding = drawn(*pairs, 8)
    rows = embedding.table.detach()
    cases = {(5, 0): [2], (5, 4): [1, 2], (2, -1): [0, 1], (-1, 0): [0, 2], (7, 0): [0, 2], (7, 9): [0, 1, 2]}
    found = embedding(torch.tensor([c for c, _ in cases]), torch.tensor([v for _, v in cases]), len(cases))
    torch.testing.assert_close(found, torch.stack([rows[which].mean(0) for which in cases.values()]))
    message = r"--sie camera\+view: no training image has both a known camera and a known view: choose --sie cam"
    with pytest.raises(UserError, match=message):
        known_numbers("camera+view", [1, -1], [-1, 0])


def test_only_cls_is_changed_and_only_before_the_first_norm() -> None:
    embedding, x = drawn((1, 2), (), 8), torch.randn(2, 5, 8)
    about = {"cameras": torch.tensor([2, 1]), "views": torch.tensor([0, 0])}
    y = embedding.before(0, x, about)
    assert torch.equal(y[:, 1:], x[:, 1:])
    torch.testing.assert_close(y[:, 0] - x[:, 0], embedding.table[[1, 0]])
    for layer in (1, 2):
        assert embedding.before(layer, x, about) is x
        assert embedding.after(layer, x, about) is x
    mean = embedding.before(0, x, {})[:, 0] - x[:, 0]
    torch.testing.assert_close(mean, embedding.table.mean(0).expand(2, 8), atol=1e-6, rtol=1e-5)


def test_what_it_reads() -> None:
    assert SideEmbedding((1, 2), (), 8).reads == ("cameras",)
    assert SideEmbedding((), (0, 1), 8).reads == ("views",)
    assert SideEmbedding((1, 2), (0, 0), 8).reads == ("cameras", "views")


def test_numbers_of_the_training_set() -> None:
    cameras, views = torch.tensor([3, -1, 1, 3]), torch.tensor([-1, 0, 0, 2])
    assert known_numbers("camera", cameras, views) == ((1, 3), ())
    assert known_numbers("view", cameras, views) == ((), (0, 2))
    assert known_numbers("camera+view", cameras, views) == ((1, 3), (0, 2))
    assert known_numbers("none", cameras, views) == ((), ())
    with pytest.raises(UserError, match=r"--sie camera\+view: no training image has a known view: choose --sie none"):
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
    found = model.embed(images(2), cameras=[7, 7])
    assert list(model.state_dict()).index("hooks.side.table") < list(model.state_dict()).index(
        "necks.final.norm.weight"
    )
    side: Any = model.hooks.pop("side")
    model.tower.embeddings.class_embedding += 20 * side.table[2]
    assert (model.embed(images(2)) - found).abs().max() < 1e-5


def test_embed_knows_cameras_by_their_numbers(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip"), sie="camera+view", sie_coefficient=20.0)
    unknown = model.embed(images())
    assert torch.equal(model.embed(images(), cameras=[-1, 3, 99, -1]), unknown)
    found = model.embed(images(), cameras=[2, 5, 99, -1], views=[0, 1, 1, -1])
    assert torch.equal(found[3], unknown[3])
    assert (found - unknown).abs().amax(1)[:3].min() > 1e-3
    again = model.embed(images(), 3, cameras=torch.tensor([2, 5, 99, -1]), views=[0, 1, 1, -1])  # two batches
    assert (again - found).abs().max() < 1e-6
    parts = model.embed_parts(images(), {"cameras": torch.tensor([2, 5, 99, -1]), "views": torch.tensor([0, 1, 1, -1])})
    assert (parts["concat"] - found).abs().max() < 1e-6
    for name in ("cameras", "views"):
        with pytest.raises(ValueError, match=rf"{name} must be 4 numbers, one for each image, not \[3\]"):
            model.embed(images(), **{name: [2, 5, 7]})
    plain = make(tiny_folder("clip"), sie="none")
    assert torch.equal(plain.embed(images(), cameras=[2, 5, 7, 7]), plain.embed(images()))


def test_training_reaches_the_rows_of_the_batch(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip")).train()
    output = model({"pixels": torch.randn(4, 3, 64, 32), "cameras": torch.tensor([2, 2, 7, 7])})
    sum(x.square().sum() for x in output.logits.values()).backward()  # type: ignore[union-attr]
    table = model.hooks["side"].table
    assert table.grad is not None
    moved = table.grad.abs().amax(1)
    assert (moved > 0).tolist() == [True, False, True]


def test_rates(tiny_folder: Folder) -> None:
    """With full tuning the embedding belongs to the tower, as published; elsewhere to the heads."""
    for tuning, rate in (("full", 5e-6), ("lora", 3.5e-4), ("head", 3.5e-4)):
        config = configure(clip_reid, backbone="hf:large", tuning=tuning)[1]
        model = make(tiny_folder("clip"), tuning)
        table = model.hooks["side"].table
        groups = stage_optimiser(model, config).param_groups
        (own,) = (group for group in groups if any(p is table for p in group["params"]))
        assert (own["base"], own["weight_decay"]) == (rate, 1e-4)


def test_siglip_and_unknown_kinds_are_refused(tiny_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"--sie camera: hf:.* has no CLS token of ours.*use --sie none, or a CLIP"):
        make(tiny_folder("siglip"))
    with pytest.raises(UserError, match="--sie lens: choose one of none, camera, view, camera\\+view"):
        check_values(clip_reid.Config(sie="lens"))  # type: ignore[arg-type]


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_a_run_keeps_the_embedding_and_the_numbers(tiny_folder: Folder, tmp_path: Path, tuning: str) -> None:
    model = make(tiny_folder("clip"), tuning, "camera+view", sie_coefficient=20.0)
    save_model(model, tmp_path)
    record = backbone_record(load_backbone(f"hf:{tiny_folder('clip')}"), "bicubic")
    config = {"clipreid": "0", "method": "clip_reid", "config": asdict(model.config), "backbone": record}
    config |= {"finished": True, "stages": ["stage2"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = clipreid.load(tmp_path)
    assert (again.config.cameras, again.config.views) == ((2, 2, 5, 5, 7, 7), (0, 1, 0, 1, 0, 1))
    known: dict[str, Any] = {"cameras": [2, 5, 7, 7], "views": [0, 1, 1, -1]}
    assert (again.embed(images(), **known) - model.embed(images(), **known)).abs().max() < 1e-6
    assert (again.embed(images()) - model.embed(images())).abs().max() < 1e-6


# In a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("side") / "crops", train=4, test=3)


def opened(street: Path, folder: Path, weights: Path, **given: Any) -> Run:
    common = {"backbone": f"hf:{weights}", "data": (f"folder:{street}",), "output": folder / "run", "threads": 1}
    return open_run(clip_reid, *configure(clip_reid, **common, identities_per_batch=4, **given))


def test_zero_shot_is_scored_without_it_and_stage_2_with_it(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(street, elsewhere)  # the same images, but who would know that the cameras are the same?
    given = {"prompts": "none", "sie": "camera", "sie_coefficient": 30.0, "test": (f"folder:{elsewhere}",)}
    run = opened(street, tmp_path, tiny_folder("clip"), **given)
    zero = untrained_model(run.backbone)
    measure(run, zero, ZERO_SHOT)
    model = build_model(run)
    assert model.config.cameras == (1, 2, 3, 4)
    measure(run, model, "stage2")  # nothing was trained: only the random embedding makes a difference
    home, other = (json.loads((run.folder / "metrics.json").read_text())[f"folder:{x}"] for x in (street, elsewhere))
    split = clipreid.load_data(f"folder:{street}").splits["query"]
    seen, table = [split.image(i) for i in range(len(split))], split.metadata()

    def mean_ap(model: ReIDModel, **known: Any) -> float:
        features = model.embed(seen, **known)
        return clipreid.evaluate(features, features, table, table, protocol="cross-camera").metrics["mAP"]

    assert home["zero-shot"]["parts"]["concat"]["mAP"] == pytest.approx(mean_ap(zero), abs=1e-6)
    assert home["zero-shot"]["mAP"] == other["zero-shot"]["mAP"]
    assert home["stage2"]["mAP"] == pytest.approx(mean_ap(model, cameras=split.cameras.tolist()), abs=1e-6)
    assert other["stage2"]["mAP"] == pytest.approx(mean_ap(model), abs=1e-6)
    assert (
        len({round(x["parts"]["concat"]["mAP"], 6) for x in (home["zero-shot"], home["stage2"], other["stage2"])}) == 3
    )


def test_what_cannot_have_it_is_refused_early(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    def refused(message: str, kind: str, family: str = "clip") -> None:
        with pytest.raises(UserError, match=message):
            opened(street, tmp_path, tiny_folder(family), sie=kind)
        assert not (tmp_path / "run").exists()

    refused("no training image has a known view", "view")
    refused("has no CLS token of ours", "camera", "siglip")
