"""Whether the size rule moves every layer of a larger tower about as far as those of ViT-B/16, and its features too.

    python benchmarks/update_size.py                                           # six towers, LoRA and full tuning
    python benchmarks/update_size.py --towers ViT-L-14 --tunings full --steps 4

Architectures as published, weights drawn as CLIP's are at the start of training (arXiv 2103.00020, section 2.4): no
download. Each is trained for a few steps on stage 2's losses, with the preset `default` at its full rates (no warm-up),
with the size rule (`clipreid/training/sizes.py`) and with the values of ViT-B for all. Batches of four crops
of 4 x 2 patches.

`update`: |dW|/|W| (Frobenius) of the median layer; `least` and `most`: of a layer, as a multiple of the layer of
ViT-B/16 at the same relative depth and place in the block. `feature`: how far the test feature of four other images
moved, |df|/|f|, and `feature_ratio` this as a multiple of ViT-B/16's; means over the seeds, from one to the next up to
twice as much. Random weights say how updates grow with width and depth, not how well a pretrained tower learns. Full
tuning of ViT-H/14 takes 11 GB; a tower is skipped, with a message, where the memory is not free.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import tyro
from torch import Tensor

from clipreid.backbones import Backbone, VisionConfig
from clipreid.backbones.text import TextConfig
from clipreid.config import configure
from clipreid.evaluation import format_table
from clipreid.methods import clip_reid
from clipreid.model import ReIDModel
from clipreid.training.drift import lora_drift, weight_drift
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.sizes import size_rule, sized

CSV = Path(__file__).with_suffix(".csv")
IDENTITIES = 16
REFERENCE = "ViT-B-16"


def clip(patch: int, width: int, depth: int, heads: int, embed: int, activation: str = "quick_gelu") -> VisionConfig:
    return VisionConfig((4 * patch, 2 * patch), patch, None, width, depth, heads, 4 * width, embed, "cls", activation)


def siglip(patch: int, width: int, depth: int, heads: int, mlp: int) -> VisionConfig:
    size = (4 * patch, 2 * patch)
    return VisionConfig(size, patch, None, width, depth, heads, mlp, width, "attention", "gelu_tanh", 1e-6)


TOWERS = {
    "ViT-B-16": clip(16, 768, 12, 12, 512),
    "ViT-B-32": clip(32, 768, 12, 12, 512),
    "SigLIP2-B-16": siglip(16, 768, 12, 12, 3072),
    "ViT-L-14": clip(14, 1024, 24, 16, 768),
    "SigLIP2-So400m-14": siglip(14, 1152, 27, 16, 4304),
    "ViT-H-14": clip(14, 1280, 32, 16, 1024, "gelu"),
}


@dataclass(frozen=True)
class Config:
    towers: tuple[str, ...] = tuple(TOWERS)
    tunings: tuple[Literal["lora", "full"], ...] = ("lora", "full")
    rules: tuple[Literal["size", "none"], ...] = ("size", "none")
    steps: int = 5
    threads: int = os.cpu_count() or 1
    seeds: tuple[int, ...] = (0, 1)
    csv: Path = CSV


def images(shape: VisionConfig, seed: int) -> Tensor:
    """Normalised pixels [4, 3, H, W] of two identities: a common pattern for each, and noise."""
    drawn = torch.Generator().manual_seed(seed)
    pattern, noise = (torch.randn(n, 3, *shape.image_size, generator=drawn) for n in (2, 4))
    return 0.8 * pattern.repeat_interleave(2, 0) + 0.6 * noise


def make_model(shape: VisionConfig, tuning: str, rule: str, seed: int) -> tuple[ReIDModel, Any]:
    torch.manual_seed(seed)
    text = TextConfig(vocab_size=8, context_length=4, width=8, depth=1, heads=1, mlp_width=8, embed_dim=shape.embed_dim)
    backbone = Backbone.from_configs(shape, text)
    config = configure(clip_reid, backbone="of random weights", tuning=tuning)[1]
    if rule == "none":
        config = replace(config, rate_factor=1.0, layer_decay=1.0)
    config = sized(config, backbone.image)
    return clip_reid.build(backbone, config, IDENTITIES), config


def moved(shape: VisionConfig, tuning: str, rule: str, config: Config) -> tuple[dict[str, float], float, Any]:
    """|dW|/|W| by layer, |df|/|f|, and the settings, after the steps; means over the seeds."""
    each = [moved_once(shape, tuning, rule, config.steps, seed) for seed in config.seeds]
    drift = {name: statistics.mean(drift[name] for drift, _, _ in each) for name in each[0][0]}
    return drift, statistics.mean(feature for _, feature, _ in each), each[0][2]


def moved_once(
    shape: VisionConfig, tuning: str, rule: str, steps: int, seed: int
) -> tuple[dict[str, float], float, Any]:
    model, settings = make_model(shape, tuning, rule, seed)
    bank = torch.randn(IDENTITIES, shape.embed_dim, generator=torch.Generator().manual_seed(1))
    stage = clip_reid.Tuning(model, bank, model.source[0].logit_scale, settings)
    optimiser = stage_optimiser(model, settings)
    others = images(shape, seed + 1000)

    def feature() -> Tensor:
        with torch.no_grad():
            return model.eval().test_feature(model.features(others))

    old = feature()
    model.train()
    for step in range(steps):
        batch = {"pixels": images(shape, 100 * seed + step), "labels": torch.tensor([0, 0, 1, 1]) + 2 * (step % 8)}
        optimiser.zero_grad(set_to_none=True)
        sum(stage(batch).values()).backward()
        optimiser.step()
    change = ((feature() - old).norm() / old.norm()).item()
    if tuning == "lora":
        return lora_drift(model), change, settings
    optimiser.zero_grad(set_to_none=True)
    optimiser.state.clear()  # room for the weights before, which are drawn again
    before = make_model(shape, tuning, rule, seed)[0].tower.state_dict()
    return weight_drift(model.tower, before), change, settings


def fits(shape: VisionConfig, tuning: str) -> bool:
    """Whether weights, gradients and Adam's moments fit into the memory that is free."""
    weights = shape.depth * (4 * shape.width**2 + 2 * shape.width * shape.mlp_width)
    return psutil.virtual_memory().available > 1.15 * weights * (16 if tuning == "full" else 5)


def ratios(found: dict[str, float], reference: dict[str, float], depth: int) -> list[float]:
    """Of each layer in a block, as a multiple of the reference's at the same relative depth and place."""
    result = []
    for name, value in found.items():
        if match := re.search(r"layers\.(\d+)\.(.+)", name):
            at = round(int(match[1]) / (depth - 1) * (TOWERS[REFERENCE].depth - 1))
            result.append(value / reference[f"encoder.layers.{at}.{match[2]}"])
    return result


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    where = {"steps": config.steps, "batch": 4, "seeds": len(config.seeds), "torch": torch.__version__, "device": "CPU"}
    rows = []
    for tuning in config.tunings:
        reference, of_feature, _ = moved(TOWERS[REFERENCE], tuning, "size", config)
        for name in config.towers:
            shape = TOWERS[name]
            for rule in config.rules if size_rule(shape.width, shape.depth, tuning) != (1, 1) else ("size",):
                begun = time.perf_counter()
                if not fits(shape, tuning):
                    print(f"{name}, {tuning}: skipped, too little memory is free", flush=True)
                    continue
                found, feature, settings = moved(shape, tuning, rule, config)
                each = ratios(found, reference, shape.depth)
                row = {
                    "tower": name, "width": shape.width, "depth": shape.depth, "tuning": tuning, "rule": rule,
                    "rate_factor": round(settings.rate_factor, 4), "layer_decay": round(settings.layer_decay, 5),
                    "update": f"{statistics.median(found.values()):.3e}", "least": round(min(each), 3),
                    "most": round(max(each), 3), "feature": f"{feature:.3e}",
                    "feature_ratio": round(feature / of_feature, 3), "seconds": round(time.perf_counter() - begun),
                }  # fmt: skip
                rows.append(row | where)
                print(format_table(rows[-1:]), flush=True)
                with open(config.csv, "w", newline="") as handle:
                    writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
    print(f"\n{format_table(rows)}\n\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
