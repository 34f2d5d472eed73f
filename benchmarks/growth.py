"""What more identities and more images cost: seconds and bytes, with all classes and with a tenth of them sampled.

    python benchmarks/growth.py                                 # 1k, 10k, 100k identities; 10k, 100k, 1M images
    python benchmarks/growth.py --identities 1000 --images 10000 --steps 3    # a quick look

Each row is measured in a process of its own, on the CPU. What grows has its real size, that of ViT-B/16: features of
768 and 512 dimensions, prompts of four tokens of 512. The towers have a narrow block or two, so that it can be seen.

`stage2`: a step of 16 x 4 images: losses, backward, AdamW; `stage1`: one of 64 images. `epoch_s`: step x steps of an
epoch, with four images of each identity. `peak_mb`: what the process took more than one with 64 identities. `flops`:
the work of classifiers and texts in a step, as a share of the tower's with LoRA (45.6 GFLOP an image of 256x128).
Computed, in MB (float32; what is trained has a gradient and Adam's two moments):

    contexts      [I, 4, W] x 4                              the prompts, in stage 1
    bank          [I, E]                                     the texts, in stage 2
    classifiers   [I, D] x 4; sampled: [I, D] x 3 + [S, D] x 2    of both necks, in stage 2

`images`: an epoch's batches are drawn; computed: the pixel cache (a file, mapped into memory) and the features of
stage 1 [N, E]. These images are simulated by their labels, ten of each identity. What the free memory does not hold is
computed only.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro
from torch import Tensor

from clipreid.backbones import Backbone, VisionConfig
from clipreid.backbones.text import TextConfig
from clipreid.backbones.tokenizer import OpenClipTokenizer
from clipreid.config import configure
from clipreid.data import mixed_pk_indices
from clipreid.evaluation import format_table
from clipreid.methods import clip_reid
from clipreid.prompts import IdentityPrompts
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.sampling import SampledRows, draw_classes, sample_size

CSV = Path(__file__).with_suffix(".csv")
FEW = 64  # identities of the process that others are compared with
W, E, C, TOKENS, P, K = 512, 512, 768, 4, 16, 4  # ViT-B/16: text width, embedding, image width; learned tokens; batch
CROP = 256 * 128 * 3  # bytes
TOWER = 45.6e9  # FLOP
MB = 2**20


@dataclass(frozen=True)
class Config:
    identities: tuple[int, ...] = (1_000, 10_000, 100_000)
    shares: tuple[float, ...] = (1.0, 0.1)
    images: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    steps: int = 5  # timed, after one
    threads: int = os.cpu_count() or 1
    csv: Path = CSV


def backbone() -> Backbone:
    """A narrow block or two in each tower, features and prompts of ViT-B/16's sizes."""
    text = TextConfig(width=W, depth=1, heads=8, mlp_width=64, embed_dim=E)
    image = VisionConfig((32, 16), 16, None, C, 2, 12, 64, E)
    return Backbone.from_configs(image, text, tokenizer=OpenClipTokenizer("ViT-B-16-quickgelu", text))


def settings(share: float) -> Any:
    return configure(clip_reid, backbone="of random weights", identities_per_batch=P, sample_classes=share)[1]


def stage1(identities: int, share: float) -> Callable[[int], None]:
    """A step of stage 1 on 64 images."""
    prompts = IdentityPrompts(backbone(), identities, "person", TOKENS)
    module = clip_reid.PromptLearning(prompts, None)
    optimiser = torch.optim.Adam([prompts.context], lr=3.5e-4, weight_decay=1e-4)

    def step(nth: int) -> None:
        labels = torch.randint(identities, (P * K,), generator=torch.Generator().manual_seed(nth))
        run(module({"features": torch.randn(P * K, E), "labels": labels}), optimiser)

    return step


def stage2(identities: int, share: float) -> Callable[[int], None]:
    """A step of stage 2 on 16 x 4 images."""
    config, source = settings(share), backbone()
    size = sample_size(config, identities)
    model = clip_reid.build(source, config, identities)
    sampled = None if size is None else SampledRows(model, size)
    module = clip_reid.Tuning(model, torch.randn(identities, E), source.logit_scale, config, sampled)
    optimiser = stage_optimiser(model, config, module)

    def step(nth: int) -> None:
        own = torch.randperm(identities, generator=torch.Generator().manual_seed(nth))[:P]
        batch = {"pixels": torch.randn(P * K, 3, 32, 16), "labels": own.repeat_interleave(K)}
        if size is not None:
            batch["classes"] = draw_classes(own, identities, size, 0, 0, nth)
        run(module(batch), optimiser)

    return step


def run(losses: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    sum(losses.values(), start=torch.zeros(())).backward()
    optimiser.step()


def draw(images: int, share: float) -> Callable[[int], None]:
    """The batches of an epoch."""
    labels = torch.arange(images) // 10
    groups = torch.zeros_like(labels)

    def step(nth: int) -> None:
        mixed_pk_indices(labels, groups, P, K, 0, nth)

    return step


def measure(make: Callable[[int, float], Callable[[int], None]], size: int, share: float, config: Config) -> Any:
    """(seconds of a step, peak of the process in MB), in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (make, size, share, config.steps, config.threads))


def measured(make: Any, size: int, share: float, steps: int, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step, seconds = make(size, share), []
    for nth in range(steps + 1):
        begun = time.perf_counter()
        step(nth)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def computed(stage: str, identities: int, share: float) -> dict[str, Any]:
    """Bytes of what grows, in MB, and the work as a share of the tower's."""
    config = settings(share)
    compared = sample_size(config, identities) or identities
    if stage == "stage1":
        return {"contexts_mb": identities * TOKENS * W * 4 * 4 / MB, "bank_mb": 0.0, "classifiers_mb": 0.0, "flops": ""}
    rows = 4 * identities if compared == identities else 3 * identities + 2 * compared
    flops = P * K * compared * (6 * (C + E) + 4 * E)  # the bank has no gradient
    return {
        "contexts_mb": 0.0, "bank_mb": identities * E * 4 / MB, "classifiers_mb": rows * (C + E) * 4 / MB,
        "flops": f"{flops / (P * K * TOWER):.3%}",
    }  # fmt: skip


def main(config: Config) -> None:
    rows: list[dict[str, Any]] = []
    where = {"threads": config.threads, "torch": torch.__version__, "device": "CPU"}

    def add(row: dict[str, Any]) -> None:
        load = {"load": round(os.getloadavg()[0], 1)}
        rows.append({name: round(x, 4) if isinstance(x, float) else x for name, x in (row | where | load).items()})
        print(format_table(rows[-1:]), flush=True)
        with open(config.csv, "w", newline="") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    few = measure(draw, 10 * FEW, 1.0, config)[1]
    for images in config.images:
        seconds, peak = measure(draw, images, 1.0, config)
        add({
            "what": "images", "identities": images // 10, "images": images, "share": 1.0, "step_s": "",
            "epoch_s": seconds, "peak_mb": peak - few, "contexts_mb": "", "bank_mb": "", "classifiers_mb": "",
            "flops": "", "pixels_mb": images * CROP / MB, "features_mb": images * E * 4 / MB,
        })  # fmt: skip
    kinds = [("stage2", stage2, config.shares), ("stage1", stage1, (1.0,))]
    for stage, make, shares in kinds:
        few = measure(make, FEW, 1.0, config)[1]
        for identities in config.identities:
            for share in shares:
                sizes = computed(stage, identities, share)
                needed = 2 * sum(sizes[name] for name in ("contexts_mb", "bank_mb", "classifiers_mb"))
                seconds, peak = math.nan, math.nan
                if psutil.virtual_memory().available > needed * MB:
                    seconds, peak = measure(make, identities, share, config)
                else:
                    print(
                        f"{stage}, {identities:,} identities: computed only, {needed:,.0f} MB are not free", flush=True
                    )
                add({
                    "what": stage, "identities": identities, "images": K * identities, "share": share,
                    "step_s": seconds, "epoch_s": seconds * (K * identities // (P * K)), "peak_mb": peak - few,
                    **sizes, "pixels_mb": "", "features_mb": "",
                })  # fmt: skip
    print(f"\n{format_table(rows)}\n\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
