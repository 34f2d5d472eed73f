"""What a run is made of: flags, presets, and the values they resolve to.

Flags left at `None` take the value of the preset; the resolved values are written into the run folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from clipreid.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    """What both stages share."""

    backbone: str = "tiny-clip"
    """tiny-clip | tiny-siglip2 | open_clip:MODEL/TAG | hf:NAME or hf:FOLDER | image only, with --prompts none:
    timm:NAME, osnet:x1_0/FILE"""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to train on, repeatable: synthetic | market1501:/path | folder:/path | csv:/path.csv | hub:OWNER/NAME |
    hub:FOLDER [default: synthetic]"""
    test: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further data to test on, repeatable [default: synthetic:new-cameras for synthetic, else none]"""
    validate: bool = False
    """Score on the identity-disjoint val split instead of the test splits, to choose flags by"""
    output: Path | None = None
    """Run folder [default: a fresh numbered folder under runs/]"""
    preset: Literal["default", "paper"] = "default"
    """default: tuned for LoRA; paper: the published settings of CLIP-ReID"""
    seed: int = 0
    threads: int | None = None
    """CPU threads [default: all cores, shared by the local processes]"""
    resume: bool = False
    """Continue an interrupted run from its last checkpoint"""
    overwrite: bool = False
    """Start anew in a folder that holds a run"""
    skip_bad: bool = False
    """Leave out pictures that cannot be decoded, and count them"""
    pattern: str | None = None
    """Regular expression for file names with the groups identity, camera, view (folder: data and tests)"""
    columns: str | None = None
    """Which column is which, where a table has other names: identity=pid,camera=camid,... (hub: data and tests)"""
    noun: str | None = None
    """What the individuals are, for the prompts [default: from the data: person, vehicle, ...]"""
    image_size: tuple[int, int] | None = None
    """Height and width of the crops in pixels [default: the backbone's, 256 128 for the large ones]"""
    stride: int | None = None
    """Distance of the patches in pixels; smaller than the patch: overlapping [default: the patch size]"""
    precision: Literal["no", "bf16"] = "no"
    """bf16: autocast of the image tower while it is trained; stage 1 and evaluation stay in float32"""
    track: Literal["none", "wandb"] = "none"
    """Also send the log to a tracker; log.jsonl is always written"""
    push: str | None = None
    """Publish the finished run as this OWNER/NAME on the Hugging Face Hub; token and repository are seen to first"""
    private: bool = False
    """With --push: make the repository private"""


@dataclass(frozen=True)
class PromptConfig:
    """Stage 1: learning the prompts."""

    prompt_epochs: int | None = None
    prompt_rate: float | None = None
    prompt_batch: int | None = None
    prompt_tokens: int = 4
    """Learned tokens per identity"""


@dataclass(frozen=True)
class TuneConfig:
    """Stage 2: adapting the image tower."""

    prompts: Literal["identity", "none"] = "identity"
    """identity: pulled towards the learned text features; none: the same recipe without text"""
    tuning: Literal["lora", "full", "head"] | None = None
    """lora | full | head (a linear map on frozen features) [default: lora; full with the paper preset]"""
    aggregation: Literal["cls", "mean"] = "cls"
    """cls: the CLS token (SigLIP, which has none: mean); mean: the mean of the patches"""
    sie: Literal["none", "camera", "view", "camera+view"] = "none"
    """Side information embedding: tells the tower the camera or view of a picture, in training and at test"""
    sie_coefficient: float = 1.0
    """Factor on that embedding"""
    lora_rank: int = 8
    lora_alpha: float = 16.0
    epochs: int | None = None
    rate: float | None = None
    """Learning rate of the image tower (LoRA, all weights, or the linear map)"""
    head_rate: float | None = None
    """Learning rate of necks and classifiers"""
    identities_per_batch: Annotated[int | None, tyro.conf.arg(aliases=["-P"])] = None
    pictures_per_identity: Annotated[int | None, tyro.conf.arg(aliases=["-K"])] = None
    """[default: 4, or 2 where most identities have fewer than 4 pictures]"""
    balance: Literal["proportional", "equal"] = "proportional"
    """With several --data: each set's share of the identities of a batch, by its number of identities or equal"""
    checkpoint_every: int = 1
    """Epochs between checkpoints"""
    gradient_checkpointing: bool = False
    """Trade time for memory"""


@dataclass(frozen=True)
class Values:
    """The numbers behind a preset. Epochs, not iterations; rates per optimiser step at the global batch."""

    tuning: str
    # stage 1: Adam, linear warm-up, then cosine, stepped once an epoch (`schedules.prompt_rate`)
    prompt_epochs: int
    prompt_rate: float
    prompt_batch: int
    prompt_warmup: int
    # stage 2
    optimiser: Literal["adam", "adamw"]
    epochs: int
    rate: dict[str, float]  # by tuning
    head_rate: float
    bias_rate_factor: float
    weight_decay: float
    schedule: Literal["cosine", "steps"]
    warmup: float  # epochs
    warmup_factor: float
    milestones: tuple[int, ...] = ()
    least_steps: int = 0  # small data gets more epochs than `epochs`, until there are so many optimiser steps
    identities_per_batch: int = 16
    pictures_per_identity: int = 4
    smoothing: float = 0.1
    margin: float = 0.3
    weight_id: float = 0.25
    weight_triplet: float = 1.0
    weight_i2t: float = 1.0
    pad: int = 10  # pixels at 256 x 128, scaled with the crop
    flip: float = 0.5
    erase: float = 0.5
    # pictures
    pixels: Literal["backbone", "half"] = "backbone"  # whose mean and std: the backbone's own, or 0.5
    positions: str = "bicubic"
    train_interpolation: str = "bicubic"
    test_interpolation: str = "bicubic"


PRESETS: dict[str, Values] = {
    # the published settings (arXiv 2211.13977 and its code): ViT-B/16, person. Published for vehicles besides:
    # --image-size 256 256 --prompt-epochs 60; for VehicleID also --prompt-batch 256 --rate 5e-5 --head-rate 5e-5.
    # "SIE + overlapping patches" is --sie camera --stride 12. Published in half precision, here in float32.
    "paper": Values(
        tuning="full", prompt_epochs=120, prompt_rate=3.5e-4, prompt_batch=64, prompt_warmup=5,
        optimiser="adam", epochs=60, rate={"full": 5e-6, "lora": 2e-4, "head": 3.5e-4}, head_rate=5e-6,
        bias_rate_factor=2.0, weight_decay=1e-4, schedule="steps", warmup=10, warmup_factor=0.1,
        milestones=(30, 50), pixels="half", positions="bilinear", test_interpolation="bilinear",
    ),
    # LoRA has its own rates; one interpolation everywhere
    "default": Values(
        tuning="lora", prompt_epochs=120, prompt_rate=3.5e-4, prompt_batch=64, prompt_warmup=5,
        optimiser="adamw", epochs=60, rate={"full": 5e-6, "lora": 2e-4, "head": 3.5e-4}, head_rate=3.5e-4,
        bias_rate_factor=1.0, weight_decay=1e-4, schedule="cosine", warmup=5, warmup_factor=0.1,
    ),
}  # fmt: skip

# The tiny backbones want larger rates (their weights are far from converged) and fewer epochs. Two LoRA
# rates were compared on `val` and a lower one taken, which costs less on unseen cameras; the others are not tuned.
TINY: dict[str, dict[str, Any]] = {
    "paper": {
        "prompt_epochs": 30, "prompt_warmup": 2, "prompt_rate": 3.5e-3,
        "epochs": 6, "warmup": 1, "milestones": (4, 6),
        "rate": {"full": 2e-4, "lora": 2e-3, "head": 3.5e-3}, "head_rate": 2e-4,
    },
    "default": {
        "prompt_epochs": 15, "prompt_warmup": 1, "prompt_rate": 3.5e-3,
        "epochs": 4, "least_steps": 180, "warmup": 0.5,
        "rate": {"full": 1e-4, "lora": 4e-4, "head": 3.5e-3}, "head_rate": 3.5e-3,
    },
}  # fmt: skip


def resolve(preset: str, backbone: str, prompts: PromptConfig, tune: TuneConfig | None = None) -> Values:
    """The preset's values for this kind of backbone, with the flags that were given put in their place.

    Raises:
        UserError: a value that makes no sense, with the flag and the range.
    """
    values = PRESETS[preset]
    if backbone.startswith("tiny-"):
        values = replace(values, **TINY[preset])
    given = {f.name: getattr(prompts, f.name) for f in fields(prompts)} | (
        {f.name: getattr(tune, f.name) for f in fields(tune)} if tune else {}
    )
    known = {f.name for f in fields(Values)}
    rate = given.pop("rate", None)
    values = replace(values, **{k: v for k, v in given.items() if v is not None and k in known})
    if rate is not None:
        values = replace(values, rate=values.rate | {values.tuning: rate})
    least = {"prompt_epochs": 1, "prompt_batch": 1, "prompt_tokens": 1, "epochs": 1, "lora_rank": 1,
             "checkpoint_every": 1, "identities_per_batch": 2, "pictures_per_identity": 2}  # fmt: skip
    resolved = given | asdict(values)
    for name, minimum in least.items():
        if name in resolved and resolved[name] < minimum:
            raise UserError(f"--{name.replace('_', '-')} {resolved[name]}: must be at least {minimum}")
    for name, number in (
        ("prompt-rate", values.prompt_rate),
        ("rate", values.rate[values.tuning]),
        ("head-rate", values.head_rate),
    ):
        if not 0 < number < 1:
            raise UserError(f"--{name} {number}: a learning rate lies between 0 and 1")
    return values
