"""One step of both stages against a training loop in the published form of CLIP-ReID, side by side in one process.

    python benchmarks/train_step.py                                          # ViT-B/16 at 256x128
    python benchmarks/train_step.py --model ViT-B-32-quickgelu --batch 16    # smaller, for a CPU
    python benchmarks/train_step.py --device cuda --precision bf16 --steps 30

Random weights and painted people; both sides hold the same ones. A step is all of it: images from JPEG files (theirs,
torch's loader with workers) or from the pixel cache (ours), augmentation, forward, losses, backward, optimiser.

`published` (stage 1): a text of 77 tokens for every image of the batch, weights of the text tower with gradients that
nothing uses; `frozen`: the same without these. `published` (stage 2): open_clip's modules, PIL, one group of parameters
for each tensor. Both: float32 on a CPU, float16 with a gradient scaler on a GPU, and the loss read in every step.

`ratio` is the time of `published` / this one, medians of interleaved steps. `mfu` is the share of this device's own
rate of matrix products (same precision, the best of several, measured here) that the step's arithmetic needs: forward,
and twice (all weights) or once (LoRA, prompts) as much backward.
"""

from __future__ import annotations

import contextlib
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from clipreid.config import configure
from clipreid.data.synthetic.camera import make_camera, render
from clipreid.data.synthetic.people import draw_person
from clipreid.evaluation import format_table
from clipreid.methods import clip_reid
from clipreid.training.machine import matrix_rate
from clipreid.training.run import Run, open_run
from clipreid.training.stage import Stage
from clipreid.training.train import _prepare, _step

CSV = Path(__file__).with_suffix(".csv")
SIZE = (256, 128)


@dataclass(frozen=True)
class Config:
    model: str = "ViT-B-16-quickgelu"  # open_clip's name of a CLIP with a ViT
    batch: int = 64  # images; four of each identity
    steps: int = 5  # timed, after two to warm up
    identities: int = 200  # painted, four images each
    workers: int = 2  # of the published loader
    precision: str = "no"  # of ours: no, bf16
    threads: int = os.cpu_count() or 1
    device: str = "cpu"
    stages: tuple[int, ...] = (1, 2)
    csv: Path = CSV


def paint(root: Path, identities: int) -> list[tuple[Path, int]]:
    """JPEG files ROOT/train/IDENTITY_cCAMERA..., and (file, label) of each."""
    (root / "train").mkdir(parents=True)
    files = []
    for label in range(identities):
        for camera in range(4):
            seen = render(
                draw_person(np.random.default_rng(label)), make_camera("wall", camera), np.random.default_rng()
            )
            path = root / "train" / f"{label + 1:04d}_c{camera + 1}s1_000001_00.jpg"
            Image.fromarray(seen).save(path, quality=92)
            files.append((path, label))
    return files


# The published form --------------------------------------------------------------------------------------------------


class Crops(Dataset):  # type: ignore[type-arg]
    """Files, opened and augmented one by one."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files
        self.change = transforms.Compose(
            [
                transforms.Resize(SIZE, interpolation=3),
                transforms.RandomHorizontalFlip(0.5),
                transforms.Pad(10),
                transforms.RandomCrop(SIZE),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
                RandomErasing(probability=0.5, mode="pixel", max_count=1, device="cpu"),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, nth: int) -> tuple[Tensor, int]:
        path, label = self.files[nth]
        return self.change(Image.open(path).convert("RGB")), label


def endless(files: list[tuple[Path, int]], config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the first identities; files are sorted by identity."""
    P = config.batch // 4
    rows = [4 * int(person) + k for person in torch.randperm(len(files) // 4)[:P] for k in range(4)]
    loader = DataLoader(Crops(files), batch_sampler=[rows] * 1000, num_workers=config.workers)
    yield from loader


class Published:
    """Losses, optimiser and precision of the published loop, around open_clip's model."""

    def __init__(self, model: Any, identities: int, config: Config) -> None:
        self.clip, self.config, self.device = model.to(config.device), config, torch.device(config.device)
        self.half = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        width, embed = model.visual.proj.shape
        self.contexts = nn.Parameter(0.02 * torch.randn(identities, 4, self.clip.token_embedding.weight.shape[1]))
        self.contexts.data = self.contexts.data.to(self.device)
        self.necks = nn.ModuleList([nn.BatchNorm1d(width), nn.BatchNorm1d(embed)]).to(self.device)
        self.heads = nn.ModuleList([nn.Linear(d, identities, bias=False) for d in (width, embed)]).to(self.device)
        ids = open_clip.get_tokenizer(config.model)(["A photo of a X X X X person."])  # [1, 77]
        self.ids = ids.to(self.device)
        self.bank = torch.randn(identities, embed, device=self.device)

    def backward(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(optimiser)
        self.scaler.update()
        if self.half:
            torch.cuda.synchronize()
        loss.item()  # a meter reads it in every step

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.float16, enabled=self.half)

    def texts(self, labels: Tensor) -> Tensor:  # [B] -> [B, E]
        table = self.clip.token_embedding(self.ids).expand(len(labels), -1, -1)  # [B, 77, W]
        x = torch.cat([table[:, :5], self.contexts[labels], table[:, 9:]], dim=1) + self.clip.positional_embedding
        x = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))
        return x[:, int(self.ids.argmax())] @ self.clip.text_projection

    def prompts(self, features: Tensor, labels: Tensor, frozen: bool) -> Callable[[], None]:
        """A step of stage 1 on features [N, E] with labels [N]."""
        for parameter in self.clip.parameters():
            parameter.requires_grad_(not frozen)
        optimiser = torch.optim.Adam([self.contexts], lr=3.5e-4, weight_decay=1e-4)
        self.clip.train()

        def step() -> None:
            rows = torch.randperm(len(labels), device=self.device)[: self.config.batch]
            with self.cast():
                texts = self.texts(labels[rows])
            same = (labels[rows][:, None] == labels[rows]).float()
            logits = features[rows].float() @ texts.float().T
            loss = sum(-(x.log_softmax(1) * same / same.sum(1, keepdim=True)).sum(1).mean() for x in (logits, logits.T))
            self.backward(loss, optimiser)  # type: ignore[arg-type]
            self.clip.zero_grad()

        return step

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # CLS of two layers, projection
        visual = self.clip.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)  # [B, N, C]
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positions
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        last = visual.ln_post(visual.transformer.resblocks[-1](x))
        return x[:, 0], last[:, 0], last[:, 0] @ visual.proj

    def tune(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
        """A step of stage 2, full tuning."""
        visual = self.clip.visual
        table, side = visual.positional_embedding.data, visual.conv1.kernel_size[0]
        grid = (SIZE[0] // side, SIZE[1] // side)
        square = round((len(table) - 1) ** 0.5)
        patches = table[1:].T.reshape(1, -1, square, square)
        patches = F.interpolate(patches, grid, mode="bilinear")[0].flatten(1).T
        self.positions = nn.Parameter(torch.cat([table[:1], patches]))
        visual.positional_embedding.requires_grad_(False)
        for parameter in visual.parameters():
            parameter.requires_grad_(parameter is not visual.positional_embedding)
        trained = [*visual.parameters(), self.positions, *self.necks.parameters(), *self.heads.parameters()]
        groups = [{"params": [parameter], "lr": 5e-7} for parameter in trained if parameter.requires_grad]
        optimiser = torch.optim.Adam(groups, lr=5e-7, weight_decay=1e-4)
        visual.train()

        def step() -> None:
            pixels, labels = (x.to(self.device) for x in next(batches))
            with self.cast():
                features = self.image(pixels)
                logits = [head(neck(x)) for head, neck, x in zip(self.heads, self.necks, features[1:], strict=True)]
                logits.append(features[2] @ self.bank.T)
            loss = sum(F.cross_entropy(x.float(), labels, label_smoothing=0.1) for x in logits)
            loss = loss + sum(hardest(x.float(), labels) for x in features)
            self.backward(loss, optimiser)
            (logits[-1].argmax(1) == labels).float().mean().item()

        return step


def hardest(x: Tensor, labels: Tensor) -> Tensor:
    """Batch-hard triplet loss of features [B, D]."""
    square = x.square().sum(1)
    distances = (square[:, None] + square - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    far, near = (distances * same).amax(1), (distances + 1e9 * same).amin(1)
    return F.margin_ranking_loss(near, far, torch.ones_like(near), margin=0.3)


# Ours ----------------------------------------------------------------------------------------------------------------


def open_ours(config: Config, root: Path, weights: Path, tuning: str) -> Run:
    flags, method = configure(
        clip_reid, data=(f"folder:{root}",), backbone=f"open_clip:{config.model}/{weights}", image_size=SIZE,
        tuning=tuning, identities_per_batch=config.batch // 4, images_per_identity=4, epochs=1, raw_logits=True,
        prompt_batch=config.batch, precision=config.precision, output=root.parent / f"run-{tuning}",
        threads=config.threads,
    )  # fmt: skip
    with contextlib.redirect_stdout(None):
        return open_run(clip_reid, flags, method)


def ours(stage: Stage, run: Run) -> Callable[[], None]:
    """A step of the one loop; the loss is read at the end of the measurement only."""
    wrapped, counter, batches = _prepare(stage, run).train(), iter(range(10**9)), stage.batches(0)

    def step() -> None:
        _step(stage, wrapped, batches[next(counter) % len(batches)], run)

    return step


# The measurement -----------------------------------------------------------------------------------------------------


def flops(tower: Any, tokens: int) -> float:
    """Of one forward of a transformer: 24 C^2 a token and layer, and attention."""
    c = tower.config
    return c.depth * tokens * (24 * c.width**2 + 4 * tokens * c.width)


def timed(step: Callable[[], object], config: Config) -> float:
    begun = time.perf_counter()
    step()
    if config.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def race(sides: dict[str, Callable[[], None]], config: Config) -> dict[str, float]:
    """Median seconds of each side's step, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for nth in range(config.steps + 2):
        for name, step in sides.items():
            spent = timed(step, config)
            if nth > 1:
                seconds[name].append(spent)
    return {name: statistics.median(each) for name, each in seconds.items()}


def rows_of(stage: int, seconds: dict[str, float], work: dict[str, float], rate: float, config: Config) -> list[Any]:
    return [
        {
            "stage": stage, "loop": name, "step_s": round(spent, 4), "images_s": round(config.batch / spent, 1),
            "ratio": round(seconds["published"] / spent, 2), "mfu": round(work[name] / spent / rate, 3),
        }
        for name, spent in seconds.items()
    ]  # fmt: skip


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root, weights = Path(folder, "crops"), Path(folder, "weights.pt")
        files = paint(root, config.identities)
        clip: Any = open_clip.create_model(config.model)
        torch.save(clip.state_dict(), weights)
        runs = {tuning: open_ours(config, root, weights, tuning) for tuning in ("full", "lora")}
        half = torch.bfloat16 if config.precision == "bf16" else torch.float32
        theirs, rate, rows = (
            Published(clip, config.identities, config),
            matrix_rate(torch.device(config.device), half),
            list[Any](),
        )
        models = {name: clip_reid.build(run.backbone, run.config, config.identities) for name, run in runs.items()}
        run, tower, text = runs["lora"], runs["lora"].backbone.image, runs["lora"].backbone.text
        if 1 in config.stages:
            labels = run.data.labels.to(run.device)
            features = torch.randn(len(labels), tower.embed_dim, device=run.device)
            prompts = clip_reid.IdentityPrompts(run.backbone, config.identities, ["person"] * config.identities, 4)
            stage = clip_reid.prompt_stage(
                run, models["lora"].to(run.device), prompts.to(run.device), run.config, lambda: features
            )
            sides = {"ours": ours(stage, run)}
            seconds = {"published": 0.0, **race({"frozen": theirs.prompts(features, labels, True), **sides}, config)}
            seconds["published"] = race({"it": theirs.prompts(features, labels, False)}, config)["it"]
            one = flops(text, 77) * config.batch
            short = flops(text, prompts.template.ids.shape[1]) * min(config.batch, config.identities)
            rows += rows_of(1, seconds, {"published": 3 * one, "frozen": 2 * one, "ours": 2 * short}, rate, config)
            print(format_table(rows), flush=True)
        if 2 in config.stages:
            bank = torch.randn(config.identities, tower.embed_dim, device=run.device)
            sides = {"published": theirs.tune(endless(files, config))}
            for name, model in models.items():
                stage = clip_reid.tuning_stage(runs[name], model.to(run.device), bank, runs[name].config)
                sides[f"ours, {name}"] = ours(stage, runs[name])
            one = flops(tower, 1 + (SIZE[0] // tower.patch_size) * (SIZE[1] // tower.patch_size)) * config.batch
            work = {"published": 3 * one, "ours, full": 3 * one, "ours, lora": 2 * one}
            rows += rows_of(2, race(sides, config), work, rate, config)
    where = {
        "model": config.model, "batch": config.batch, "precision": config.precision, "threads": config.threads,
        "device": torch.cuda.get_device_name() if config.device != "cpu" else "CPU", "torch": torch.__version__,
        "open_clip": open_clip.__version__, "matrix_gflops": round(rate / 1e9), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(f"\n{format_table(rows)}\n\n{where}")
    with open(config.csv, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0] | where))
        writer.writeheader()
        writer.writerows(row | where for row in rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
