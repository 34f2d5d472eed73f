"""What a stage-1 step costs: prompts cut behind EOT and each identity once, against 77 tokens for every image.

    python benchmarks/prompt_length.py

One optimiser step on the text tower of CLIP ViT-B/16 (width 512, depth 12, 49,408 tokens; random weights, no download)
for 64 cached image features, as in a stage 1 on Market-1501. `plain` is the published way; `ours` is `IdentityPrompts`
as `methods/clip_reid.py` uses it. Both run on the same tower and must give the same loss and the same gradient.
The repeats are interleaved, so that whatever else the machine does hits both. Writes a row for each kind of batch.

B images, n identities in the batch, I identities, L prompt tokens, W text width, E embedding.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from clipreid.backbones import Backbone, TextConfig, VisionConfig
from clipreid.backbones.tokenizer import OpenClipTokenizer
from clipreid.evaluation import format_table
from clipreid.methods.clip_reid import prompt_loss
from clipreid.prompts import IdentityPrompts

CSV = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Config:
    repeats: int = 7
    batch: int = 64
    identities: int = 751  # Market-1501's training set: 12,936 images
    images: int = 12_936
    threads: tuple[int, ...] = tuple(sorted({1, os.cpu_count() or 1}, reverse=True))  # several need cores that are free
    device: str = "cpu"
    seed: int = 0
    csv: Path = CSV


class PlainPrompts(nn.Module):
    """The published way: the prompt of every image, over all 77 positions (CLIP-ReID's `PromptLearner`)."""

    def __init__(self, backbone: Backbone, context: Tensor) -> None:
        super().__init__()
        assert backbone.tokenizer is not None
        count = context.shape[1]
        ids = backbone.tokenizer([f"a photo of a{' x' * count} person."]).to(context.device)  # [1, 77]
        start = 1 + 4  # behind the start token and "a photo of a"
        with torch.no_grad():
            embedded = backbone.text.embed(ids)  # [1, 77, W]
        self.text, self.pool = backbone.text, backbone.text.pool_index(ids)
        self.prefix, self.suffix = embedded[:, :start], embedded[:, start + count :]
        self.context = nn.Parameter(context.clone())  # [I, M, W]

    def forward(self, labels: Tensor) -> Tensor:  # [B] -> [B, E]
        count = len(labels)
        learned = F.embedding(labels, self.context.flatten(1)).view(count, *self.context.shape[1:])
        prompt = torch.cat([self.prefix.expand(count, -1, -1), learned, self.suffix.expand(count, -1, -1)], dim=1)
        return self.text(prompt, self.pool.expand(count))


def encode_once(prompts: IdentityPrompts, labels: Tensor) -> Tensor:
    """As in `PromptLearning`: labels [B] to the text of each image's identity [B, E]."""
    identities, place = labels.unique(return_inverse=True)
    return prompts(identities).index_select(0, place)


def batches(config: Config) -> dict[str, Tensor]:
    """Labels [B] of a stage-1 batch (images at random, without replacement) and of a PK batch (16 x 4)."""
    generator = torch.Generator().manual_seed(config.seed)
    owners = torch.arange(config.images) % config.identities
    drawn = owners[torch.randperm(config.images, generator=generator)[: config.batch]]
    few = torch.randperm(config.identities, generator=generator)[: config.batch // 4]
    return {"random": drawn.to(config.device), "16 x 4": few.repeat_interleave(4).to(config.device)}


class Way:
    """One way of making the texts of a batch, with its optimiser; `step` is one training step."""

    def __init__(self, prompts: IdentityPrompts | PlainPrompts, encode: Callable[[Tensor], Tensor]) -> None:
        self.context, self.encode, self.seconds = prompts.context, encode, list[float]()
        self.optimiser = torch.optim.Adam([self.context], lr=3.5e-4, weight_decay=1e-4)

    def step(self, features: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Returns the loss, and adds the time to `seconds`; the gradient stays in `context.grad`."""
        begun = time.perf_counter()
        loss = torch.stack([*prompt_loss(features, self.encode(labels), labels, scale).values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        value = loss.detach().cpu()
        self.seconds.append(time.perf_counter() - begun)
        return value


def compare(config: Config, backbone: Backbone, labels: Tensor) -> dict[str, object]:
    """Times both ways on one batch, after checking that they compute the same."""
    generator = torch.Generator().manual_seed(config.seed)
    features = torch.randn(len(labels), backbone.text.embed_dim, generator=generator).to(config.device)  # [B, E]
    short = IdentityPrompts(backbone, config.identities, "person", 4, generator).to(config.device)
    full = PlainPrompts(backbone, short.context.detach())
    ours, plain = Way(short, lambda batch: encode_once(short, batch)), Way(full, full)
    batch = features, labels, backbone.logit_scale
    loss_gap = abs(ours.step(*batch) - plain.step(*batch)).item()
    gradients = torch.stack([way.context.grad for way in (ours, plain) if way.context.grad is not None])  # [2, I, M, W]
    gradient_gap = ((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()).item()
    if not max(loss_gap, gradient_gap) <= 1e-4:
        raise SystemExit(f"the two ways differ: loss by {loss_gap:.1e}, gradient by {gradient_gap:.1e} of its largest")
    for repeat in range(config.repeats):
        for way in (ours, plain) if repeat % 2 else (plain, ours):
            way.step(*batch)
    mine, theirs = ours.seconds[1:], plain.seconds[1:]  # the first step was the warm-up
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    times = {
        "plain_s": statistics.median(theirs),
        "ours_s": statistics.median(mine),
        "ratio": statistics.median(ratios),
    }
    times |= {"ratio_min": min(ratios), "ratio_max": max(ratios)}
    return {
        "identities": len(labels.unique()),
        "tokens": short.prompt(labels[:1]).shape[1],
        **{name: round(value, 3) for name, value in times.items()},
        "loss_gap": f"{loss_gap:.0e}",
        "gradient_gap": f"{gradient_gap:.0e}",
    }


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    text = TextConfig()  # ViT-B/16's
    tiny = VisionConfig((32, 16), patch_size=16, width=64, depth=1, heads=1, mlp_width=64, embed_dim=text.embed_dim)
    backbone = Backbone.from_configs(tiny, text, tokenizer=OpenClipTokenizer("ViT-B-16", text)).to(config.device)
    device = torch.cuda.get_device_name() if config.device.startswith("cuda") else "CPU"
    load = round(os.getloadavg()[0], 1)  # what else the machine was doing
    where = {"repeats": config.repeats, "load_before": load, "device": device, "torch": torch.__version__}
    rows: list[dict[str, object]] = []
    for threads in config.threads:
        torch.set_num_threads(threads)
        for name, labels in batches(config).items():
            rows.append({"batch": f"{config.batch} {name}", "threads": threads})
            rows[-1] |= compare(config, backbone, labels) | where
    print(format_table(rows))
    with open(config.csv, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
