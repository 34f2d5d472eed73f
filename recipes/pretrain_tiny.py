"""Pretrain the tiny backbones that clipreid ships, on captioned synthetic pedestrians.

    python recipes/pretrain_tiny.py --output runs/tiny-clip
    python recipes/pretrain_tiny.py --family siglip --output runs/tiny-siglip2

The models are the real architectures made small (6 image blocks, 4 text blocks, 64-wide heads). Nothing they see
comes from a named set: other people, cameras, backgrounds and painting styles. What the shipped weights reached,
and with which commands: `clipreid/weights/tiny-clip/README.md`.

Shapes: B batch, L text tokens, E embedding, N held-out images.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from clipreid.backbones import Backbone, TextConfig, VisionConfig, save_backbone, square_backbone
from clipreid.backbones.tokenizer import END, FastTokenizer, train_tokenizer
from clipreid.config import none_is
from clipreid.data import normalise
from clipreid.data.synthetic.people import COLOURS
from clipreid.data.synthetic.pretraining import Captioned, captioned_images
from clipreid.flags import parse_flags
from clipreid.losses import clip_loss, siglip_loss

EXTRA = "a photo of an image of the same person. vehicle. animal. object. X X X X bus car truck motorcycle dog cat"


@dataclass(frozen=True)
class Config:
    output: Path = Path("runs/tiny-clip")
    family: Literal["clip", "siglip"] = "clip"
    init: Annotated[Path | None, none_is("new weights")] = (
        None  # go on from the state and tokenizer in this folder, with a fresh optimiser
    )
    images: int = 60_000  # painted once, seen several times
    held_out: int = 400  # further ones, to measure with
    steps: int = 1_400
    batch: int = 256
    rate: float = 1e-3  # AdamW, linear warm-up over 5 % of the steps, then cosine to zero
    weight_decay: float = 0.05
    width: int = 128
    depth: int = 6
    text_depth: int = 4
    context: int = 48
    seed: int = 0
    threads: int = os.cpu_count() or 1
    bf16: bool = True  # autocast; about twice as fast where the processor has bf16 arithmetic
    compile: bool = False


def build(config: Config, tokenizer: Tokenizer) -> Backbone:
    """Both towers, freshly initialised. The temperature is trained as `log_scale` and put in at the end."""
    clip, width, end = config.family == "clip", config.width, tokenizer.token_to_id(END)
    activation, eps = ("quick_gelu", 1e-5) if clip else ("gelu_tanh", 1e-6)
    shared: dict[str, Any] = {"width": width, "heads": max(1, width // 64), "mlp_width": 4 * width}
    shared |= {"embed_dim": width, "activation": activation, "eps": eps}
    vision = VisionConfig((128, 64), patch_size=8, depth=config.depth, pooling="cls" if clip else "attention", **shared)
    text = TextConfig(
        tokenizer.get_vocab_size(),
        config.context,
        depth=config.text_depth,
        causal=clip,
        eot_id=end if clip else None,
        **shared,
    )
    words = FastTokenizer(tokenizer, config.context, causal=clip, eot_id=end, pad_id=end or 0, lower=not clip)
    return Backbone.from_configs(vision, text, name=f"tiny-{'clip' if clip else 'siglip2'}", tokenizer=words)


@torch.no_grad()
def probe(backbone: Backbone, held_out: Captioned) -> dict[str, float]:
    """Text-to-image rank-1 on 200 distinct full captions, and zero-shot accuracy of the colour of the top."""
    device = backbone.image.post_layernorm.weight.device
    captions = held_out.captions()
    first = [i for i, c in enumerate(captions) if c not in captions[:i]][:200]
    pixels = [
        normalise(p.to(device), backbone.mean, backbone.std) for p in torch.from_numpy(held_out.pixels).split(100)
    ]
    images = F.normalize(torch.cat([backbone.encode_image(p) for p in pixels]), dim=1)  # [N, E]
    texts = F.normalize(backbone.encode_text([captions[i] for i in first]), dim=1)
    right = (texts @ images[first].T).argmax(1).cpu() == torch.arange(len(first))
    asked = [f"a photo of a person wearing a {colour} {p.top}" for p in held_out.people for colour in COLOURS]
    place = {text: row for row, text in enumerate(dict.fromkeys(asked))}  # most are asked of several people
    bank = F.normalize(backbone.encode_text(list(place)), dim=1)[[place[text] for text in asked]]
    bank = bank.view(len(images), len(COLOURS), -1)  # [N, colours, E]
    guessed = torch.einsum("nce,ne->nc", bank, images).argmax(1).cpu()
    truth = torch.tensor([list(COLOURS).index(p.top_colour) for p in held_out.people])
    return {"text_to_image_rank1": right.float().mean().item(), "top_colour": (guessed == truth).float().mean().item()}


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng, clip, started = np.random.default_rng([3, config.seed]), config.family == "clip", time.time()
    print(f"painting {config.images} captioned images", flush=True)
    train = captioned_images(config.images, seed=config.seed * 2 + 10, processes=config.threads)
    held_out = captioned_images(config.held_out, seed=config.seed * 2 + 11, processes=config.threads)
    saved = config.init / "tokenizer.json" if config.init else None
    tokenizer = Tokenizer.from_file(str(saved)) if saved else train_tokenizer([*train.captions(rng), *[EXTRA] * 50])
    backbone = build(config, tokenizer).to(device)
    log_scale = torch.nn.Parameter(torch.tensor([math.log(1 / 0.07 if clip else 10.0)], device=device))
    bias = torch.nn.Parameter(torch.tensor([0.0 if clip else -10.0], device=device), requires_grad=not clip)
    everything = backbone.state_dict() | {"log_scale": log_scale.data, "bias": bias.data}  # shares memory
    if config.init:
        for name, tensor in load_file(config.init / "state.safetensors").items():
            everything[name].copy_(tensor)
    weights, rest = ([p for p in backbone.parameters() if (p.ndim > 1) == big] for big in (True, False))
    rest += [p for p in (log_scale, bias) if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, config.rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    warm = max(1, config.steps // 20)
    tower = torch.compile(backbone.image) if config.compile else backbone.image
    rounds = config.steps * config.batch // config.images + 1
    order = np.concatenate([rng.permutation(config.images) for _ in range(rounds)])
    print(f"{tokenizer.get_vocab_size()} tokens, {sum(p.numel() for p in backbone.parameters()):,} weights", flush=True)
    begun = time.time()
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        index = np.sort(order[step * config.batch : (step + 1) * config.batch])
        pixels = normalise(torch.from_numpy(train.pixels[index]).to(device), backbone.mean, backbone.std)
        pixels = torch.where(torch.rand(len(pixels), 1, 1, 1, device=device) < 0.5, pixels.flip(3), pixels)
        ids = backbone.tokenizer(train.captions(rng, index)).to(device)  # type: ignore[misc]  # [B, L]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            images, texts = tower(pixels).pooled, backbone.text.encode(ids)  # [B, E]
        scale = log_scale.exp().clamp(max=100)
        loss = clip_loss(images, texts, scale) if clip else siglip_loss(images, texts, scale, bias)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        last = step == config.steps - 1
        if step % 25 == 0 or last:
            rate = (step + 1) * config.batch / (time.time() - begun)
            left = (config.steps - step - 1) * config.batch / rate / 60
            line = f"step {step + 1}/{config.steps}  loss {loss.item():.3f}"
            print(f"{line}  {rate:.0f} images/s  {left:.0f} min left", flush=True)
        if step % 200 == 199 or last:
            print(probe(backbone, held_out), flush=True)
            config.output.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in everything.items()}
            save_file(state, config.output / "state.safetensors")
            tokenizer.save(str(config.output / "tokenizer.json"))
    backbone.logit_scale, backbone.logit_bias = log_scale.exp().clamp(max=100).item(), bias.item()
    save_backbone(square_backbone(backbone.cpu(), 128), config.output, dtype=torch.float16, image_size=(128, 64))
    print(f"{config.output}: {(time.time() - started) / 60:.1f} minutes; {config}")


if __name__ == "__main__":
    main(parse_flags(Config, sys.argv[1:], description=__doc__))
