"""Our towers against the libraries that the weights come from: how far the features differ, what a LoRA step costs.

    python benchmarks/backbones.py                                            # 4 backbones x 2 sources
    python benchmarks/backbones.py --backbones ViT-B-32 --repeats 3           # a quick look
    python benchmarks/backbones.py --backbones SigLIP2-L-16-256 SigLIP-So400m-14-384 --batch 4

Full architectures with random weights (no download); of a SigLIP vocabulary, 1,000 tokens are kept, for memory. The
differences are the largest absolute ones, in fp32, between `load_backbone`'s conversion and the source's own model, of
two images of the native size and three texts. A step is forward, backward and AdamW on rank-8 adapters in every
attention and MLP layer, for crops of 256x128: ours, and peft on transformers' vision model, which holds the same
weights, adapters and targets; both must give the same loss and gradient first. Repeats are interleaved, so that
whatever else the machine does hits both; `ratio` is the median of ours / theirs.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import peft
import torch
import transformers
import tyro
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from clipreid.backbones import Backbone, VisionTower, load_backbone, resize_positions
from clipreid.backbones.build import POSITIONS, build
from clipreid.backbones.openclip import convert
from clipreid.backbones.save import ACTIVATION_NAMES
from clipreid.evaluation import format_table
from clipreid.model import LORA_TARGETS

CSV = Path(__file__).with_suffix(".csv")
VOCABULARY = 1000
CROP = (256, 128)
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
L_14_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
# open_clip's name; where the published config.json of transformers' differs from the class's defaults: image, text
BACKBONES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViT-B-32": ("ViT-B-32-quickgelu", {"patch_size": 32}, {}),
    "ViT-B-16": ("ViT-B-16-quickgelu", {"patch_size": 16}, {}),
    "ViT-L-14": ("ViT-L-14-quickgelu", {**LARGE, "patch_size": 14}, L_14_TEXT),
    "SigLIP2-B-16-256": ("ViT-B-16-SigLIP2-256", {"image_size": 256}, {}),
    "SigLIP2-B-16-384": ("ViT-B-16-SigLIP2-384", {"image_size": 384}, {}),
    "SigLIP2-L-16-256": ("ViT-L-16-SigLIP2-256", {**LARGE, "image_size": 256}, LARGE),
    "SigLIP2-So400m-16-384": ("ViT-SO400M-16-SigLIP2-384", {**SO400M, "image_size": 384}, SO400M),
    "SigLIP-So400m-14-384": ("ViT-SO400M-14-SigLIP-384", {**SO400M, "image_size": 384, "patch_size": 14}, SO400M),
}


@dataclass(frozen=True)
class Config:
    backbones: tuple[str, ...] = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "SigLIP2-B-16-256")
    sources: tuple[str, ...] = ("open_clip", "transformers")
    repeats: int = 7  # timed steps of each side, after one to warm up
    batch: int = 8
    threads: int = os.cpu_count() or 1
    device: str = "cpu"  # of the steps; the differences are taken on the CPU
    seed: int = 0
    csv: Path = CSV


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Norms, biases and position tables far from 1 and 0, so that a missing one shows."""
    for name, parameter in model.named_parameters():
        if (parameter.ndim <= 1 and "logit" not in name) or "pos" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval()


def gap(ours: Tensor, theirs: Tensor) -> str:
    assert ours.shape == theirs.shape
    return f"{(ours - theirs).abs().max().item():.1e}"


def inputs(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Pixels [2, 3, S, S] and token ids [3, L]; CLIP's end at EOT, the largest id."""
    text = backbone.text.config
    ids = torch.randint(3, VOCABULARY - 2, (3, text.context_length))
    ids[:, 11] = text.vocab_size - 1
    return torch.randn(2, 3, *backbone.image_size), ids


@torch.no_grad()
def from_open_clip(name: str) -> tuple[Backbone, dict[str, str]]:
    config = open_clip.get_model_config(name)
    siglip = "SigLIP" in name
    text = {**config["text_cfg"], **({"vocab_size": VOCABULARY} if siglip else {})}
    model: Any = open_clip.create_model(name, text_cfg=text)
    randomise(model)
    backbone = build(convert(model, name), name, image_size=config["vision_cfg"]["image_size"])
    pixels, ids = inputs(backbone)
    model.visual.output_tokens = True
    both = (model.visual(pixels), model.visual.trunk.forward_features(pixels)) if siglip else model.visual(pixels)
    tokens = backbone.tokens(pixels)
    gaps = {"image_gap": gap(tokens.pooled, both[0]), "patch_gap": gap(tokens.patches, both[1])}
    return backbone, gaps | {"text_gap": gap(backbone.text.encode(ids), model.encode_text(ids))}


@torch.no_grad()
def from_transformers(name: str, vision: dict[str, Any], text: dict[str, Any]) -> tuple[Backbone, dict[str, str]]:
    if "SigLIP" in name:
        model: Any = SiglipModel(SiglipConfig(vision_config=vision, text_config={**text, "vocab_size": VOCABULARY}))
    else:
        text = {"projection_dim": 512, **text, "eos_token_id": 49407}
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=text["projection_dim"]))
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        backbone = load_backbone(f"hf:{folder}", image_size=model.config.vision_config.image_size)
    pixels, ids = inputs(backbone)
    out = model.get_image_features(pixels)
    patches = out.last_hidden_state
    if backbone.family == "clip":
        patches = model.vision_model.post_layernorm(patches)[:, 1:]
    tokens = backbone.tokens(pixels)
    gaps = {"image_gap": gap(tokens.pooled, out.pooler_output), "patch_gap": gap(tokens.patches, patches)}
    return backbone, gaps | {"text_gap": gap(backbone.text.encode(ids), model.get_text_features(ids).pooler_output)}


def at_crop(tower: VisionTower) -> VisionTower:
    """Our tower for crops of whole patches, as `load_backbone` makes it; the tensors are shared with `tower`."""
    rows, columns = (side - side % tower.patch_size for side in CROP)
    config = replace(tower.config, image_size=(rows, columns))
    with torch.device("meta"):
        ours = VisionTower(config)
    state = dict(tower.state_dict())
    state[POSITIONS] = resize_positions(state[POSITIONS], tower.grid, config.grid)
    ours.load_state_dict(state, assign=True)
    return ours


def twin(tower: VisionTower) -> nn.Module:
    """transformers' vision model of the same architecture, with the tensors of our (square) tower."""
    c = tower.config
    settings = {
        "image_size": c.image_size[0],
        "patch_size": c.patch_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_width,
        "hidden_act": ACTIVATION_NAMES[c.activation],
        "layer_norm_eps": c.eps,
    }
    if tower.has_cls:
        theirs: Any = CLIPVisionModel(CLIPVisionConfig(**settings))
    else:
        theirs = SiglipVisionModel(SiglipVisionConfig(**settings))
    state = {key: value for key, value in tower.state_dict().items() if key != "visual_projection.weight"}
    theirs.load_state_dict(state, assign=True)
    return theirs


class Side:
    """One model with its adapters and optimiser; `step` is one training step on the pooled feature."""

    def __init__(self, tower: nn.Module, device: str) -> None:
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS)
        self.model, self.seconds = get_peft_model(tower, settings).to(device).train(), list[float]()
        self.adapters = {key: p for key, p in self.model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(self.adapters.values(), lr=1e-4)

    def feature(self, pixels: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, C]: CLIP's normed CLS, SigLIP's pooling head
        if isinstance(self.model.get_base_model(), VisionTower):
            tokens = self.model(pixels)
            return tokens.pooled if tokens.cls is None else tokens.cls
        return self.model(pixels, interpolate_pos_encoding=True).pooler_output

    def step(self, pixels: Tensor) -> float:
        """Returns the loss, and adds the time to `seconds`; the gradients stay."""
        begun = time.perf_counter()
        loss = self.feature(pixels).square().mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        value = loss.item()
        if pixels.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - begun)
        return value


def compare(config: Config, tower: VisionTower) -> dict[str, object]:
    """Times a LoRA step of both sides, after checking that they compute the same."""
    ours, theirs = Side(at_crop(tower), config.device), Side(twin(tower), config.device)
    with torch.no_grad():
        for key, adapter in ours.adapters.items():
            if "lora_B" in key:  # zero at the start, and then no lora_A would get a gradient
                adapter.normal_(std=0.01)
            theirs.adapters[key].copy_(adapter)
    tower_size = ours.model.get_base_model().config.image_size
    pixels = torch.randn(config.batch, 3, *tower_size, device=config.device)
    mine, other = ours.step(pixels), theirs.step(pixels)
    gradients = [torch.cat([side.adapters[key].grad.flatten() for key in ours.adapters]) for side in (ours, theirs)]
    gradient_gap = ((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()).item()
    if not max(abs(mine / other - 1), gradient_gap) <= 1e-3:
        raise SystemExit(f"the two differ: loss {mine} and {other}, gradient by {gradient_gap:.1e} of its largest")
    for repeat in range(config.repeats):
        for side in (ours, theirs) if repeat % 2 else (theirs, ours):
            side.step(pixels)
    a, b = ours.seconds[1:], theirs.seconds[1:]  # the first step was the warm-up
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    targets = [sum(key.count("lora_A") for key in side.adapters) for side in (ours, theirs)]
    assert targets[0] == targets[1]
    figures = {"ours_s": statistics.median(a), "theirs_s": statistics.median(b), "ratio": statistics.median(ratios)}
    figures |= {"ratio_min": min(ratios), "ratio_max": max(ratios)}
    crop = "x".join(map(str, tower_size))
    rounded = {name: round(value, 3) for name, value in figures.items()}
    return {"lora_targets": targets[0], "crop": crop, **rounded, "gradient_gap": f"{gradient_gap:.0e}"}


def row(config: Config, name: str, source: str) -> dict[str, object]:
    torch.manual_seed(config.seed)
    theirs, vision, text = BACKBONES[name]
    backbone, gaps = from_open_clip(theirs) if source == "open_clip" else from_transformers(name, vision, text)
    tower = backbone.image
    activations = f"{tower.config.activation}, {backbone.text.config.activation}"
    del backbone  # one tower in memory while the steps are timed
    return {"backbone": name, "source": source, "activations": activations} | gaps | compare(config, tower)


def main(config: Config) -> None:
    for given, known in ((config.backbones, tuple(BACKBONES)), (config.sources, Config.sources)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    torch.set_num_threads(config.threads)
    device = torch.cuda.get_device_name() if config.device.startswith("cuda") else "CPU"
    where = {"batch": config.batch, "repeats": config.repeats, "threads": config.threads, "device": device}
    where |= {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    rows = []
    for name in config.backbones:
        for source in config.sources:
            load = round(os.getloadavg()[0], 1)  # what else the machine was doing
            rows.append(row(config, name, source) | where | {"open_clip": open_clip.__version__, "load_before": load})
            print(format_table(rows[-1:]), flush=True)
    print(f"\n{format_table(rows)}")
    with open(config.csv, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
