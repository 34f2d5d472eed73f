"""CLIP-ReID as a method: it learns, its losses and optimisers are what they should be, its settings follow the data."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import paint_street
from torch import Tensor

from clipreid.backbones import load_backbone
from clipreid.config import configure
from clipreid.losses import id_loss, image_text_logits, triplet_loss
from clipreid.methods import build, clip_reid
from clipreid.model import Output
from clipreid.training.drift import lora_drift
from clipreid.training.launch import build_model
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.run import open_run
from clipreid.training.train import train

BIG = "open_clip:ViT-B-16-quickgelu/openai"


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("method") / "crops", train=4, test=1)


def settled(preset: str = "default", **given: Any) -> clip_reid.Config:
    """The settings of a preset for a large backbone."""
    return configure(clip_reid, preset=preset, backbone=BIG, **given)[1]


@pytest.mark.parametrize(("tuning", "rate"), [("lora", 3e-3), ("full", 3e-4)])
def test_the_loss_falls_on_images_that_do_not_change(tuning: str, rate: float, street: Path, tmp_path: Path) -> None:
    flags, config = configure(
        clip_reid, data=(f"folder:{street}",), output=tmp_path / "run", threads=1, prompts="none", tuning=tuning,
        epochs=8, warmup=1, rate=rate, head_rate=3.5e-4, identities_per_batch=4, flip=0.0, pad=0, erase=0.0,
    )  # fmt: skip
    run = open_run(clip_reid, flags, config)
    model = build_model(run)
    (stage,) = clip_reid.stages(run, model, run.config)
    train(stage, run)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    log = [line["loss"] for line in lines if line["stage"] == "stage2"]
    assert len(log) == 8
    assert log[-1] < 0.8 * log[0]
    if tuning == "lora":
        assert min(lora_drift(model).values()) > 0
    assert not stage.module.training


def test_the_loss_is_the_weighted_sum_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    features = {n: torch.randn(8, 5, generator=generator) for n in ("penultimate", "final", "projection")}
    logits = {n: torch.randn(8, 3, generator=generator) for n in ("final", "projection")}
    labels, bank = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1]), torch.randn(3, 5, generator=generator)

    def losses(bank: Tensor | None, scale: float | None = None, **given: Any) -> dict[str, Tensor]:
        return clip_reid.tuning_loss(Output(features, logits), labels, bank, scale, settled("paper", **given))

    found = losses(bank)
    assert set(found) == {"id_loss", "triplet_loss", "i2t_loss"}
    identity = id_loss(logits["final"], labels) + id_loss(logits["projection"], labels)
    triplet = sum(triplet_loss(x, labels, 0.3) for x in features.values())
    torch.testing.assert_close(found["id_loss"], 0.25 * identity)
    torch.testing.assert_close(found["triplet_loss"], triplet)
    torch.testing.assert_close(
        found["i2t_loss"], id_loss(image_text_logits(features["projection"], bank, None), labels)
    )
    assert set(losses(None)) == {"id_loss", "triplet_loss"}
    weighted = losses(bank, 7.0, weight_id=2.0, weight_triplet=3.0, weight_i2t=4.0)
    torch.testing.assert_close(weighted["id_loss"], 2 * identity)
    torch.testing.assert_close(weighted["triplet_loss"], 3 * triplet)
    scaled = id_loss(image_text_logits(features["projection"], bank, 7.0), labels)
    torch.testing.assert_close(weighted["i2t_loss"], 4 * scaled)


@pytest.mark.parametrize("at_once", [1, 50, 2**24])
def test_separability_counts_the_nearest_in_both_directions(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where images are compared a few at a time."""
    monkeypatch.setattr(clip_reid, "LOGITS", at_once)
    drawn = torch.Generator().manual_seed(0)
    labels, bank = torch.arange(40) % 10, torch.randn(10, 6, generator=drawn)
    features = bank[labels] + torch.randn(40, 6, generator=drawn)
    dots = [[sum(float(a * b) for a, b in zip(x, text, strict=True)) for text in bank] for x in features]
    images = sum(max(range(10), key=row.__getitem__) == label for row, label in zip(dots, labels.tolist(), strict=True))
    texts = sum(int(labels[max(range(40), key=lambda nth: dots[nth][i])]) == i for i in range(10))
    found = clip_reid.separability(features, bank, labels, None)
    assert found == {"text_to_image": pytest.approx(texts / 10), "image_to_text": pytest.approx(images / 40)}
    assert 0 < texts < 10
    assert 0 < images < 40


def test_optimiser_groups() -> None:
    """Few groups; LoRA is not decayed; the published settings give biases twice the rate."""
    default, paper = settled(), settled("paper")
    lora = stage_optimiser(build(clip_reid, load_backbone("tiny-clip"), default, 4), default)
    assert len(lora.param_groups) <= 4
    (tower,) = [group for group in lora.param_groups if group["base"] == default.rate]
    assert tower["weight_decay"] == 0
    full = stage_optimiser(build(clip_reid, load_backbone("tiny-clip"), paper, 4), paper)
    assert {group["base"] for group in full.param_groups} == {5e-6, 1e-5}
    assert all(group["weight_decay"] == 1e-4 for group in full.param_groups)
    assert type(full) is torch.optim.Adam


def test_an_optimiser_of_a_larger_module() -> None:
    """A module around the model adds parameters of its own, which get the rate of the heads."""
    config = settled()
    model = build(clip_reid, load_backbone("tiny-clip"), config, 4)
    around = torch.nn.Module()
    around.model, around.queue = model, torch.nn.Linear(3, 3)
    alone, both = stage_optimiser(model, config), stage_optimiser(model, config, around)
    rates = {id(p): group["base"] for group in both.param_groups for p in group["params"]}
    assert rates[id(around.queue.weight)] == rates[id(around.queue.bias)] == config.head_rate
    for group in alone.param_groups:
        assert all(rates[id(p)] == group["base"] for p in group["params"])
    assert len(rates) == sum(p.requires_grad for p in around.parameters())


@pytest.mark.parametrize(("rate", "warned"), [(3.5e-3, False), (1e-6, True)])
def test_texts_that_do_not_find_their_images_are_doubted(
    rate: float, warned: bool, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, config = configure(
        clip_reid, data=(f"folder:{street}",), output=tmp_path / "run", threads=1, prompt_epochs=20, prompt_rate=rate,
        identities_per_batch=4,
    )  # fmt: skip
    run = open_run(clip_reid, flags, config)
    train(next(iter(clip_reid.stages(run, build_model(run), run.config))), run)
    said = capsys.readouterr().out
    assert "text finds its own images" in said
    assert ("most texts do not find an image of their own identity" in said) == warned
    run.record["stages"], run.log.warned = ["stage1"], []  # as the recipe of stage 2 finds it
    next(iter(clip_reid.stages(run, build_model(run), run.config)))
    assert any("--prompts none" in text for text in run.log.warned) == warned
