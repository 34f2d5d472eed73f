"""The `paper` preset is the published method: both stages against plain loops written from its description alone.

The reference shares with the toolkit what is random (batches, augmentation, initial values) and the modules of the
towers; losses, necks, side information, positions, schedules and optimiser groups are its own.
"""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from launching import paint_street
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_folder
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.config import configure
from clipreid.data import augment, pk_indices, seed_for
from clipreid.methods import clip_reid
from clipreid.training.harness import Progress
from clipreid.training.launch import build_model
from clipreid.training.run import Run, open_run
from clipreid.training.train import train

SIZE, STRIDE, PATCH = (64, 32), 6, 8
EPS, MARGIN, WEIGHT_ID, COEFFICIENT = 0.1, 0.3, 0.25, 1.0


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("paper") / "crops", train=18, test=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Projections so large that raw dot products are far from 0, as those of OpenAI's weights are."""
    folder = tmp_path_factory.mktemp("weights") / "openai"
    write_tiny_folder(folder, "clip", clipreid={"image_size": list(SIZE), "raw_logits": True})
    tensors = load_file(folder / "model.safetensors")
    for name in ("visual_projection.weight", "text_projection.weight"):
        tensors[name] *= 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return f"hf:{folder}"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every step that a stage reports."""
    seen: list[float] = []
    monkeypatch.setattr(Progress, "update", lambda self, losses, images: seen.append(sum(losses.values()).item()))
    monkeypatch.setattr(Progress, "close_epochs", lambda *args, **kwargs: None)
    return seen


# The reference ----------------------------------------------------------------------------------------------------


def training_images(street: Path, filtering: Image.Resampling) -> tuple[Tensor, Tensor, Tensor]:
    """Training images uint8 [N, 3, H, W], labels and camera numbers from 0, in the order of their names."""
    files = sorted((street / "train").iterdir())
    crops = [pil_to_tensor(Image.open(file).resize((SIZE[1], SIZE[0]), filtering)) for file in files]
    identity = [int(file.name[:4]) - 1 for file in files]
    return torch.stack(crops), torch.tensor(identity), torch.tensor([int(file.name[6]) - 1 for file in files])


def bilinear_positions(weights: str) -> Tensor:
    """The square table of the weights, its grid stretched; the CLS row kept."""
    square = load_backbone(weights, image_size=64).image.embeddings.position_embedding.weight.detach()
    side = math.isqrt(len(square) - 1)
    rows, columns = (SIZE[0] - PATCH) // STRIDE + 1, (SIZE[1] - PATCH) // STRIDE + 1
    grid = square[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear")
    return torch.cat([square[:1], grid[0].flatten(1).T])


def taps(tower: Any, pixels: Tensor, side: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """CLS before the last block, after the last norm, and projected. side [B, C] is added to CLS, then positions."""
    patches = F.conv2d(pixels, tower.embeddings.patch_embedding.weight, stride=STRIDE).flatten(2).transpose(1, 2)
    cls = tower.embeddings.class_embedding.expand(len(pixels), 1, -1)
    if side is not None:
        cls = cls + side[:, None]
    x = torch.cat([cls, patches], dim=1) + tower.embeddings.position_embedding.weight
    x = tower.pre_layrnorm(x)
    for block in tower.encoder.layers[:-1]:
        x = block(x)
    x11 = x[:, 0]
    x12 = tower.post_layernorm(tower.encoder.layers[-1](x))[:, 0]
    return x11, x12, x12 @ tower.visual_projection.weight.T


def contrast(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    """-(1/n) sum_i 1/|P(i)| sum_{j in P(i)} [a_i.b_j - log sum_k exp(a_i.b_k)]"""
    dots = a @ b.T
    dots = dots - dots.detach().max(1, keepdim=True).values  # else exp overflows
    terms = dots - dots.exp().sum(1).log()[:, None]
    positive = torch.tensor([[1.0 if i == j else 0.0 for j in labels.tolist()] for i in labels.tolist()])
    return -(positive * terms).sum(1).div(positive.sum(1)).mean()


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    target = torch.full_like(logits, EPS / logits.shape[1])
    target[torch.arange(len(labels)), labels] += 1 - EPS
    return (-target * torch.log_softmax(logits, 1)).mean(0).sum()


def batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    """labels: blocks of four."""
    distance = (x[:, None] - x[None]).pow(2).sum(-1).clamp(min=1e-12).sqrt()
    farthest = torch.stack([distance[i, i // 4 * 4 : i // 4 * 4 + 4].max() for i in range(len(x))])
    nearest = (distance + 1e9 * (labels[:, None] == labels)).min(1).values
    return torch.relu(farthest - nearest + MARGIN).mean()


def neck(x: Tensor, scale: Tensor, classifier: Tensor) -> Tensor:
    standard = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    return (standard * scale) @ classifier.T


def reference_prompts(backbone: Backbone, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """120 epochs of Adam on four tokens for each identity; the text of every image encoded in full length."""
    text: Any = backbone.text
    ids = backbone.tokenizer(["a photo of a x x x x person."])  # type: ignore[misc]
    words = text.embed(ids)[0].detach()  # [L, W]
    end = int(ids[0].argmax())
    context = torch.empty(18, 4, words.shape[1])
    context.normal_(std=0.02, generator=torch.Generator().manual_seed(seed_for(0, 0, 0, 0)))
    context.requires_grad_()
    optimiser = torch.optim.Adam([context], lr=3.5e-4, weight_decay=1e-4)

    def encode(which: Tensor) -> Tensor:
        first, last = (part.expand(len(which), -1, -1) for part in (words[:5], words[9:]))
        return text(torch.cat([first, context[which], last], dim=1), torch.full((len(which),), end))

    found = []
    for epoch in range(1, 121):
        cosine = 1e-6 + 0.5 * (3.5e-4 - 1e-6) * (1 + math.cos(math.pi * epoch / 120))
        rate = 1e-5 + (3.5e-4 - 1e-5) * epoch / 5 if epoch < 5 else cosine
        optimiser.param_groups[0]["lr"] = rate
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_for(0, epoch)))
        for begin in range(0, len(labels), 64):
            index = order[begin : begin + 64]
            texts = encode(labels[index])
            images = features[index]
            loss = contrast(images, texts, labels[index]) + contrast(texts, images, labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
    with torch.no_grad():
        return encode(torch.arange(18)), found


def reference_tuning(
    model: Any, crops: Tensor, labels: Tensor, cameras: Tensor, bank: Tensor, rate: float
) -> tuple[dict[str, Tensor], list[float]]:
    """60 epochs; every weight of the tower, the camera table, the scale of the necks and the classifiers."""
    tower, table = copy.deepcopy(model.tower), model.hooks["side"].table.detach().clone()
    trained = {f"image.{name}": p for name, p in tower.named_parameters()} | {"hooks.side.table": table}
    for name in ("final", "projection"):
        trained[f"necks.{name}.norm.weight"] = torch.ones_like(model.necks[name].norm.weight)
        trained[f"necks.{name}.classifier.weight"] = model.necks[name].classifier.weight.detach().clone()
    groups = [{"params": [p.requires_grad_()], "double": "bias" in name} for name, p in trained.items()]
    optimiser = torch.optim.Adam(groups, lr=rate, weight_decay=1e-4)
    found = []
    for epoch in range(1, 61):
        factor = 0.1 + 0.9 * epoch / 10 if epoch < 10 else 1.0
        factor *= 0.1 if epoch >= 30 else 1.0
        factor *= 0.1 if epoch >= 50 else 1.0
        for group in optimiser.param_groups:
            group["lr"] = rate * factor * (2 if group["double"] else 1)
        for nth, rows in enumerate(pk_indices(labels, 16, 4, 0, epoch - 1)):
            drawn = torch.Generator().manual_seed(seed_for(0, epoch - 1, nth))
            pixels = augment(crops[rows], mean=(0.5,) * 3, std=(0.5,) * 3, generator=drawn, flip=0.5, pad=2, erase=0.5)
            x11, x12, projected = taps(tower, pixels, COEFFICIENT * table[cameras[rows]])
            y = labels[rows]
            loss = batch_hard(x11, y) + batch_hard(x12, y) + batch_hard(projected, y)
            for name, x in (("final", x12), ("projection", projected)):
                logits = neck(x, trained[f"necks.{name}.norm.weight"], trained[f"necks.{name}.classifier.weight"])
                loss = loss + WEIGHT_ID * smoothed(logits, y)
            loss = loss + smoothed(projected @ bank.T, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
    return trained, found


# The comparison ---------------------------------------------------------------------------------------------------


def open_paper(weights: str, street: Path, folder: Path, **given: Any) -> Run:
    flags, config = configure(
        clip_reid, preset="paper", backbone=weights, data=(f"folder:{street}",), output=folder, stride=STRIDE,
        threads=1, sie="camera", sie_coefficient=COEFFICIENT, **given,
    )  # fmt: skip
    return open_run(clip_reid, flags, config)


def test_stage_1_is_the_published_method(weights: str, street: Path, tmp_path: Path, steps: list[float]) -> None:
    run = open_paper(weights, street, tmp_path / "run")
    positions = run.backbone.image.embeddings.position_embedding.weight
    torch.testing.assert_close(positions, bilinear_positions(weights))
    crops, labels, _ = training_images(street, Image.Resampling.BILINEAR)
    with torch.no_grad():
        features = taps(run.backbone.image, (crops.float() / 255 - 0.5) / 0.5, None)[2]  # without side information
    expected_bank, expected = reference_prompts(run.backbone, features, labels)
    stage = next(clip_reid.stages(run, build_model(run), run.config))
    train(stage, run)
    bank = stage.identities()["text_bank"]
    assert len(steps) == 240  # 72 images: two batches in each of the 120 epochs
    assert steps == pytest.approx(expected, abs=1e-4)
    assert steps[-1] < steps[0] - 1
    torch.testing.assert_close(bank, expected_bank, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rate", [None, pytest.param(5e-5, marks=pytest.mark.slow)])
def test_stage_2_is_the_published_method(
    rate: float | None, weights: str, street: Path, tmp_path: Path, steps: list[float]
) -> None:
    """Every loss, and where every weight has moved; at the published rate, and at one that changes the losses more."""
    run = open_paper(weights, street, tmp_path / "run", **{"rate": rate, "head_rate": rate} if rate else {})
    crops, labels, cameras = training_images(street, Image.Resampling.BICUBIC)
    model = build_model(run)
    begun = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert (model.hooks["side"].table.shape, model.config.cameras) == ((4, 32), (1, 2, 3, 4))
    bank = torch.randn(18, 24)
    trained, expected = reference_tuning(model, crops, labels, cameras, bank, rate or 5e-6)
    train(clip_reid.tuning_stage(run, model, bank, run.config), run)
    assert len(steps) == 60  # 18 groups of four images: one batch in each of the 60 epochs
    assert steps == pytest.approx(expected, abs=1e-4)
    assert begun.keys() == trained.keys()
    for name, parameter in model.named_parameters():
        if name in begun and "k_proj.bias" not in name:  # whose gradient is rounding noise around zero
            off, moved = (parameter - trained[name]).norm(), (parameter - begun[name]).norm()
            assert off < 0.002 * moved, name
