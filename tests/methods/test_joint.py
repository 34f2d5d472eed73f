"""Joint training: what the text stage leaves alone, its losses by hand, what each order trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from launching import caption_street, paint_street
from safetensors.torch import load_file
from short_runs import data_of, short_run
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.methods import build, clip_reid, joint
from clipreid.model import Output
from clipreid.training.run import Run
from clipreid.training.stage import Stage

Folder = Callable[[str], Path]
SENTENCES = ["a red hat", "a blue bag on the left", "shoes", "a green coat"]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_street(paint_street(tmp_path_factory.mktemp("joint") / "crops", train=4, test=3))


@pytest.fixture(scope="module")
def runs(street: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A short run of each order, from the same seed."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        order: short_run(joint, street, folder / order, order=order, prompts="none")
        for order in ("decoupled", "together", "image", "text")
    }


def adapter(run: Run, name: str) -> dict[str, Tensor]:
    return load_file(run.folder / name / "adapter_model.safetensors")


def test_the_text_stage_leaves_image_to_image_as_it_was_bit_for_bit(runs: dict[str, Run], street: Path) -> None:
    alone, both = runs["image"], runs["decoupled"]
    assert both.record["stages"] == ["stage2", "text"]
    before, after = adapter(alone, "adapter"), adapter(both, "adapter")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    crops = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8)
    first, second = clipreid.load(alone.folder), clipreid.load(both.folder)
    assert torch.equal(first.embed(crops), second.embed(crops))
    assert not torch.allclose(first.embed_text(SENTENCES), second.embed_text(SENTENCES), atol=1e-3)


def test_what_each_order_trains(runs: dict[str, Run]) -> None:
    assert runs["image"].record["stages"] == runs["together"].record["stages"] == ["stage2"]
    assert runs["text"].record["stages"] == ["text"]
    assert not (runs["image"].folder / "text_adapter").exists()
    untrained = {name: x for name, x in adapter(runs["text"], "adapter").items() if "lora_B" in name}
    assert not any(x.any() for x in untrained.values())
    for order in ("decoupled", "together", "text"):
        found = adapter(runs[order], "text_adapter")
        assert any(x.any() for name, x in found.items() if "lora_B" in name), order
    lines = [json.loads(line) for line in (runs["together"].folder / "log.jsonl").read_text().splitlines()]
    assert {"id_loss", "triplet_loss", "sdm_loss"} <= next(line for line in lines if "loss" in line).keys()


def model_of(tiny_folder: Folder, **given: Any) -> tuple[Any, joint.Config]:
    config = configure(joint, backbone=f"hf:{tiny_folder('clip')}", **given)[1]
    torch.manual_seed(0)
    return build(joint, load_backbone(f"hf:{tiny_folder('clip')}"), config, 3), config


def test_the_text_losses_are_those_of_cosines(tiny_folder: Folder) -> None:
    """Written anew; only the text tower gets a gradient."""
    model, config = model_of(tiny_folder, weight_sdm=2.0, weight_itc=0.5, temperature=0.1)
    model.requires_grad_(False)
    for name, parameter in model.text.named_parameters():
        parameter.requires_grad_("lora" in name)
    (backbone,), labels = model.source, torch.tensor([0, 0, 1, 2])
    images = torch.randn(4, backbone.image.embed_dim, requires_grad=True)
    batch = {"features": images, "captions": backbone.tokenizer(SENTENCES), "labels": labels}
    losses = joint.Alignment(model, config)(batch)
    cosines = F.normalize(images, dim=1) @ F.normalize(backbone.text.encode(batch["captions"]), dim=1).T
    same = (labels[:, None] == labels).float()
    wanted = (same / same.sum(1, keepdim=True) + 1e-8).log()
    ways = [
        F.kl_div(wanted, (10 * x).log_softmax(1), log_target=True, reduction="batchmean") for x in (cosines, cosines.T)
    ]
    torch.testing.assert_close(losses["sdm_loss"], 2 * (ways[0] + ways[1]))
    own = torch.arange(4)
    pairs = (F.cross_entropy(10 * cosines, own) + F.cross_entropy(10 * cosines.T, own)) / 2
    torch.testing.assert_close(losses["itc_loss"], 0.5 * pairs)
    torch.stack(list(losses.values())).sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith("text.") for name in moved)


@pytest.mark.parametrize("compare", ["alike", "apart"])
def test_apart_leaves_the_projection_to_the_texts(tiny_folder: Folder, compare: str) -> None:
    model, config = model_of(tiny_folder, order="together", compare=compare, prompts="none")
    (backbone,), widths = model.source, model.aggregator.widths
    features = {name: torch.randn(4, width, requires_grad=True) for name, width in widths.items()}
    logits = {name: model.necks[name](features[name]) for name in model.necks}
    labels = torch.tensor([0, 0, 1, 1])
    batch = {"labels": labels, "captions": backbone.tokenizer(SENTENCES), "captioned": torch.zeros(4, dtype=torch.bool)}
    losses = joint.WithCaptions(model, None, None, config).losses(Output(features, logits), batch)
    assert losses["sdm_loss"] == 0  # no image of this batch has a caption
    (losses["id_loss"] + losses["triplet_loss"]).backward()
    assert features["final"].grad is not None
    assert (features["projection"].grad is None) == (compare == "apart")


def test_together_each_tower_has_its_own_rate(street: Path, tmp_path: Path) -> None:
    found: list[Stage] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "image_stage", lambda *args, make=joint.image_stage: found.append(make(*args)) or found[0])
        short_run(joint, street, tmp_path / "run", order="together", prompts="none", rate=3e-3, text_rate=7e-4)
    names = {id(x): name for name, x in found[0].module.named_parameters()}
    rates: dict[str, set[float]] = {}
    for group in found[0].optimisers[0].param_groups:
        for parameter in group["params"]:
            rates.setdefault(names[id(parameter)].split(".")[1], set()).add(group["base"])
    assert rates["image"] == {3e-3}
    assert rates["text"] == {7e-4}


def test_images_are_compared_with_their_mirrored_sentence(street: Path, tmp_path: Path) -> None:
    """The feature of a mirrored image, and its sentence with left and right exchanged."""
    run = short_run(joint, street, tmp_path / "run", order="text", prompts="none", flip=1.0)
    model = clipreid.load(run.folder)
    found = joint.projections(run, model)  # [N, 2, E]
    crops = run.crops(training=False)[:2]
    expected = torch.stack([model.embed_parts(x)["projection"] for x in (crops, crops.flip(3))], 1)
    torch.testing.assert_close(F.normalize(found[:2], dim=2), expected)
    batch = joint.caption_batches(run, run.config, lambda: found)(0)[0]
    torch.testing.assert_close(batch["features"], found[batch["rows"], 1])


def test_what_captions_are_needed_for_is_said(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    silent = f"folder:{street}"
    with pytest.raises(UserError, match=r"0 of the 16 training images of .* have a caption.*--order image"):
        short_run(joint, street, tmp_path / "none", data=(silent,))
    with pytest.raises(UserError, match="--weight-sdm and --weight-itc are 0"):
        short_run(joint, street, tmp_path / "weights", weight_sdm=0.0)
    with pytest.raises(UserError, match=r"--text-batch.*2 processes"):
        joint.batch_size(joint.Config(), 1, 2)
    assert short_run(joint, street, tmp_path / "image", data=(silent,), order="image", prompts="none").record["stages"]


def test_several_sets_of_which_one_has_captions(street: Path, tmp_path: Path) -> None:
    """The image tower learns from both, the text tower from the one."""
    more = paint_street(tmp_path / "more", train=4, test=2)
    run = short_run(joint, street, tmp_path / "run", data=(data_of(street), f"folder:{more}"), prompts="none")
    spoken = [bool(each) for each in run.data.captions]
    assert any(spoken)
    assert not all(spoken)
    rows = torch.cat(
        [batch["rows"] for batch in joint.caption_batches(run, run.config, lambda: torch.zeros(99, 2, 1))(0)]
    )
    assert all(spoken[row] for row in rows.tolist())


def test_the_image_stage_without_captions_is_clip_reids(runs: dict[str, Run], street: Path, tmp_path: Path) -> None:
    other = short_run(clip_reid, street, tmp_path / "clip_reid", prompts="none")
    ours, theirs = adapter(runs["image"], "adapter"), adapter(other, "adapter")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
