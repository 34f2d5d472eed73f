"""Stage 2 in one process: it learns, and the terms of its loss are what they should be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from clipreid.backbones import load_backbone
from clipreid.data.synthetic.camera import make_camera, render
from clipreid.data.synthetic.people import draw_person
from clipreid.losses import id_loss, image_text_logits, triplet_loss
from clipreid.model import ModelConfig, Output, ReIDModel
from clipreid.training.config import PRESETS
from clipreid.training.harness import Log
from clipreid.training.stage2 import lora_drift, make_optimiser, tune, tuning_loss

STILL = replace(PRESETS["default"], epochs=8, warmup=1, rate={"lora": 3e-3, "full": 3e-4}, identities_per_batch=4,
                flip=0.0, pad=0, erase=0.0)  # fmt: skip


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    seen = [
        render(draw_person(np.random.default_rng(who)), make_camera("wall", shot), np.random.default_rng([who, shot]))
        for who in range(4)
        for shot in range(4)
    ]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in seen])


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_loss_falls_on_pictures_that_do_not_change(tuning: str, crops: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = load_backbone("tiny-clip")
    model = ReIDModel(backbone, ModelConfig(tuning, mean=backbone.mean, std=backbone.std), 4)  # type: ignore[arg-type]
    accelerator = Accelerator(cpu=True)
    labels = torch.arange(4).repeat_interleave(4)
    values = replace(STILL, tuning=tuning)
    tune(accelerator, Log(tmp_path, accelerator), model, crops, labels, None, None, values, seed=0, folder=tmp_path)
    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 8
    assert log[-1] < 0.8 * log[0]
    if tuning == "lora":
        assert min(lora_drift(model).values()) > 0


def test_the_loss_is_the_weighted_sum_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    features = {n: torch.randn(8, 5, generator=generator) for n in ("penultimate", "final", "projection")}
    logits = {n: torch.randn(8, 3, generator=generator) for n in ("final", "projection")}
    labels, bank = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1]), torch.randn(3, 5, generator=generator)
    found = tuning_loss(Output(features, logits), labels, bank, None, PRESETS["paper"])
    expected_id = 0.25 * (id_loss(logits["final"], labels) + id_loss(logits["projection"], labels))
    torch.testing.assert_close(found["id_loss"], expected_id)
    torch.testing.assert_close(found["triplet_loss"], sum(triplet_loss(x, labels, 0.3) for x in features.values()))
    i2t = id_loss(image_text_logits(features["projection"], bank, None), labels)
    torch.testing.assert_close(found["i2t_loss"], i2t)
    assert set(tuning_loss(Output(features, logits), labels, None, None, PRESETS["paper"])) == {
        "id_loss",
        "triplet_loss",
    }


def test_optimiser_groups() -> None:
    """Few groups; LoRA is not decayed; the published settings give biases twice the rate."""
    backbone = load_backbone("tiny-clip")
    lora = make_optimiser(ReIDModel(backbone, ModelConfig("lora"), 4), PRESETS["default"])
    assert len(lora.param_groups) <= 4
    tower = next(g for g in lora.param_groups if g["base"] == PRESETS["default"].rate["lora"])
    assert tower["weight_decay"] == 0
    full = make_optimiser(ReIDModel(load_backbone("tiny-clip"), ModelConfig("full"), 4), PRESETS["paper"])
    assert {g["base"] for g in full.param_groups} == {5e-6, 1e-5}
    assert all(g["weight_decay"] == 1e-4 for g in full.param_groups)
    assert type(full) is torch.optim.Adam
