"""CLIP-ReID (Li, Sun and Li, AAAI 2023, arXiv 2211.13977): learn a prompt per identity, then pull the images to it.

Stage 1 learns a few tokens for every identity, "a photo of a [X]1 [X]2 [X]3 [X]4 person.", while both towers are
frozen: supervised contrast between images and the texts of their identities (section 3.2, equations 4-5). Stage 2
adapts the image tower with three losses (section 3.3, equation 9): identity on both necks, triplet on three taps, and
images against the fixed texts of all identities. `--prompts none` leaves stage 1 and the third loss out.

P identities x K images make the global batch G, of which this process has B; E embedding, I identities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from tyro.conf import Suppress, arg

from clipreid.backbones import Backbone, check_fits, check_processes
from clipreid.config import Between, RunConfig, none_is
from clipreid.data import normalise, seed_for
from clipreid.distributed import gather
from clipreid.evaluation import extract
from clipreid.hooks import TokenHook
from clipreid.hooks.side import SideEmbedding, check_cls, known_numbers
from clipreid.losses import id_loss, image_text_logits, supcon_loss, triplet_loss
from clipreid.model import Output, ReIDModel, default_aggregator
from clipreid.prompts import IdentityPrompts
from clipreid.training.batches import feature_batches, fit_batches, image_batches
from clipreid.training.drift import report_drift
from clipreid.training.occluding import occluding, training_library
from clipreid.training.optimisers import full_precision, stage_optimiser, stage_rate
from clipreid.training.run import Run, refuse_text_free
from clipreid.training.sampling import SampledRows, memory_of, place, sample_rows, seen
from clipreid.training.schedules import prompt_rate
from clipreid.training.sets import RunData
from clipreid.training.sizes import sized
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/clipreid_stage2.py"
LOGITS = 2**24  # between images and texts at a time: of 100,000 texts and as many images they would take 40 GB
FOUND = 0.5  # share of texts that find an image of their own identity: below it a warning


@dataclass(frozen=True)
class Config:
    """The settings of both stages. Epochs, not iterations; rates per optimiser step at the global batch."""

    prompts: Literal["identity", "none"] = "identity"
    """identity: pulled towards the learned text features; none: the same recipe without text"""
    tuning: Literal["lora", "full", "head"] = "lora"
    """lora | full | head (a linear map on frozen features)"""
    aggregation: Literal["cls", "mean"] = "cls"
    """cls: the CLS token (SigLIP, which has none: mean); mean: the mean of the patches"""
    sie: Literal["none", "camera", "view", "camera+view"] = "none"
    """Side information embedding: tells the tower the camera or view of an image, in training and at test"""
    sie_coefficient: float = 1.0
    """Factor on that embedding"""
    lora_rank: int = 8
    """--tuning lora: rank r of the update B A of each weight matrix"""
    lora_alpha: Annotated[float | None, none_is("16 at rank 8, growing with the root of the rank")] = 16.0
    """--tuning lora: the update is multiplied by alpha / rank"""
    prompt_tokens: int = 4
    """Stage 1: learned tokens per identity"""
    prompt_epochs: int = 120
    """Stage 1: epochs of Adam, linear warm-up, then cosine, stepped once an epoch"""
    prompt_rate: float = 3.5e-4
    """Stage 1: learning rate of the prompts"""
    prompt_batch: int = 64
    """Stage 1: images in a batch"""
    prompt_warmup: int = 5
    """Stage 1: epochs of warm-up"""
    epochs: int = 60
    """Stage 2: epochs"""
    least_steps: int = 0
    """Stage 2: small data gets more epochs, until there are so many steps; 0 where --epochs is given"""
    rate: float = 2e-4
    """Learning rate of the image tower (LoRA, all weights, or the linear map)"""
    rate_factor: Annotated[float | None, Between(1e-3, 1e3), none_is("1, less for towers larger than ViT-B")] = 1.0
    """Factor on --rate for the size of the tower"""
    layer_decay: Annotated[float | None, Between(0.1, 1), none_is("1, less for full tuning of more than 12 blocks")] = (
        1.0
    )
    """Further factor on --rate from each block of the tower to the one below it"""
    clip_norm: Annotated[float | None, Between(1e-6, 1e9), none_is("nothing is cut")] = None
    """Of stage 2: gradients whose norm, of all together, is larger are shortened to it"""
    head_rate: float = 3.5e-4
    """Learning rate of necks and classifiers"""
    bias_rate_factor: float = 1.0
    """Factor on the rates of biases"""
    optimiser: Literal["adam", "adamw"] = "adamw"
    """Of stage 2"""
    weight_decay: float = 1e-4
    """Of stage 2; adamw decays neither LoRA nor vectors"""
    schedule: Literal["cosine", "steps"] = "cosine"
    """cosine: to 0, within epochs; steps: a tenth from each milestone on, once an epoch"""
    warmup: float = 5
    """Epochs of linear warm-up"""
    warmup_factor: float = 0.1
    """Factor on the rates where the warm-up begins"""
    milestones: tuple[int, ...] = ()
    """Epochs, for --schedule steps"""
    identities_per_batch: Annotated[int | None, arg(aliases=["-P"]), none_is("16, more where K is smaller")] = None
    """P, identities of a batch; give a smaller one where there are fewer than 16 training identities"""
    images_per_identity: Annotated[
        int | None, arg(aliases=["-K", "--pictures-per-identity"]), none_is("4, or 2 where most have fewer images")
    ] = None
    """K, images of each of them"""
    balance: Literal["proportional", "equal"] = "proportional"
    """With several --data: each set's share of the identities of a batch, by its number of identities or equal"""
    sample_classes: Annotated[float, Between(1e-6, 1)] = 1.0
    """Share of the identities that classifiers and image-to-text loss compare in a step: those of the batch, and others
    at random"""
    smoothing: float = 0.1
    """Of the labels, in the identity and image-to-text losses"""
    margin: float = 0.3
    """Of the triplet loss"""
    soft_margin: bool = False
    """A triplet loss without margin, which goes on pushing what is in order"""
    triplet_features: Literal["raw", "unit"] = "raw"
    """What the triplet loss compares: features as they come (as published); unit: of unit length, as retrieval does"""
    triplet_taps: Literal["all", "test"] = "all"
    """all: on three features, as published; test: on the two that retrieval compares"""
    weight_id: float = 0.25
    """Weight of the identity loss"""
    weight_triplet: float = 1.0
    """Weight of the triplet loss"""
    weight_i2t: float = 1.0
    """Weight of the image-to-text loss"""
    pad: int = 10
    """Augmentation: pixels of padding before a random crop, at a height of 256"""
    flip: float = 0.5
    """Augmentation: probability of mirroring"""
    erase: float = 0.5
    """Augmentation: probability of random erasing"""
    tint: Annotated[float, Between(0, 1)] = 0.0
    """Augmentation: spread of a random gain of each colour channel, as other light and cameras have; 0: none"""
    tint_share: Annotated[float, Between(0, 1)] = 1.0
    """Augmentation: probability that an image gets such gains"""
    occluders: Literal["none", "street"] = "none"
    """Augmentation: street: painted things in front of images, of classes that are in no test set; none: nothing"""
    occluder_folder: Annotated[Path | None, none_is("those of --occluders")] = None
    """Folder of your own cut-outs instead (PNG or WebP with transparency, in one folder per class): its part train/, or
    half of its classes"""
    occlude_probability: Annotated[float, Between(0, 1)] = 0.5
    """How often an image gets an occluder, where there are some"""
    severity_least: Annotated[float, Between(0.05, 0.9)] = 0.1
    """Least share of the crop that an occluder hides"""
    severity_most: Annotated[float, Between(0.05, 0.9)] = 0.5
    """Most of it; uniform between the two"""
    checkpoint_every: int = 1
    """Stage 2: epochs between checkpoints"""
    cameras: Suppress[tuple[int, ...]] = ()
    """Of each row of the side information embedding, as numbered in the training set; from the data"""
    views: Suppress[tuple[int, ...]] = ()
    """The same; of camera+view both are as long, and (camera, view) are the trained pairs"""


# Published for vehicles besides `paper`: --image-size 256 256 --prompt-epochs 60; for VehicleID also --prompt-batch 256
# --rate 5e-5 --head-rate 5e-5. "SIE + overlapping patches" is --sie camera --stride 12. Half precision there, here
# float32.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "triplet_features": "unit", "tint": 0.1, "rate": {"full": 5e-6, "lora": 2e-4, "head": 3.5e-4},
        "rate_factor": None, "layer_decay": None, "lora_alpha": None,  # by size: clipreid/training/sizes.py
    },
    "paper": {
        "tuning": "full", "optimiser": "adam", "rate": {"full": 5e-6, "lora": 2e-4, "head": 3.5e-4}, "head_rate": 5e-6,
        "bias_rate_factor": 2.0, "schedule": "steps", "warmup": 10, "milestones": (30, 50),
        "weight_id": {"identity": 0.25, "none": 1.0},  # none: the published baseline
        "pixels": "half", "positions": "bilinear", "train_interpolation": "bicubic", "test_interpolation": "bilinear",
    },
}  # fmt: skip

# The tiny backbones want larger rates (their weights are far from converged) and fewer epochs. The rates of LoRA
# and of full tuning (of two) were chosen on training images of cameras and people left out (benchmarks/factors.py); the
# others are not tuned.
TINY: dict[str, dict[str, Any]] = {
    "default": {
        "prompt_epochs": 15, "prompt_warmup": 1, "prompt_rate": 3.5e-3, "epochs": 4, "least_steps": 180, "warmup": 0.5,
        "rate": {"full": 2e-4, "lora": 4e-3, "head": 3.5e-3}, "head_rate": 3.5e-3,
        "rate_factor": 1.0, "layer_decay": 1.0, "lora_alpha": 16.0,
    },
    "paper": {
        "prompt_epochs": 30, "prompt_warmup": 2, "prompt_rate": 3.5e-3, "epochs": 6, "warmup": 1, "milestones": (4, 6),
        "rate": {"full": 2e-4, "lora": 2e-3, "head": 3.5e-3}, "head_rate": 2e-4,
    },
}  # fmt: skip

# What shapes the tower and what is trained of it: another method takes these over from the run that it continues.
TOWER_FLAGS = ("tuning", "aggregation", "sie", "sie_coefficient", "cameras", "views", "lora_rank", "lora_alpha")

# With these values peft and transformers alone give the features of a run (shown by tests/hub/test_plain.py).
PLAIN: dict[str, tuple[Any, ...]] = {"tuning": ("lora",), "sie": ("none",), "aggregation": ("cls", "mean")}

# Settings that matter to one stage only: they may still change while the other has not begun.
STAGE_FLAGS = {
    "stage1": ("prompt_epochs", "prompt_rate", "prompt_batch", "prompt_warmup", "prompt_tokens"),
    "stage2": (
        *TOWER_FLAGS, "prompts", "epochs", "least_steps", "rate", "rate_factor", "layer_decay", "clip_norm",
        "sample_classes", "head_rate", "bias_rate_factor", "optimiser",
        "weight_decay", "schedule", "warmup", "warmup_factor", "milestones", "identities_per_batch",
        "images_per_identity", "balance", "smoothing", "margin", "soft_margin", "triplet_features",
        "triplet_taps", "weight_id", "weight_triplet", "weight_i2t", "pad",
        "flip", "erase", "tint", "tint_share", "occluders", "occluder_folder", "occlude_probability", "severity_least",
        "severity_most", "train_interpolation", "precision", "validate", "test",
    ),
}  # fmt: skip


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """The settings that data and backbone decide: P, K, epochs, the cameras and views that `--sie` embeds, and what
    depends on the size of the tower.

    Raises:
        UserError: what the backbone has nothing for; side information that nobody knows; batches that cannot be drawn.
    """
    if config.prompts != "none":
        refuse_text_free(backbone)
    check_fits(backbone, config.tuning)
    default_aggregator(backbone, config.aggregation)  # refuses what a wrapped tower has not, as `build` would later
    check_processes(backbone, config.tuning, processes)
    if config.sie != "none":
        check_cls(config.sie, backbone.family, backbone.name)
        cameras, views = known_numbers(config.sie, *data.sides)
        config = replace(config, cameras=cameras, views=views)
    training_library(config)  # refuses what cannot be read
    return fit_batches(sized(config, backbone.image), data, flags, processes)


def by_parts(config: Config) -> bool:
    """Whether the features of an image depend on that image alone, as `--accumulate` needs it."""
    return True


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """The image tower with what `tuning` trains, side information, three taps and two necks.

    identities: I; 0 for a model that only embeds. Raises `UserError` where the backbone lacks what the settings need.
    """
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=side_hooks(backbone, config),
        aggregator=default_aggregator(backbone, config.aggregation),
        identities=identities,
    )


def side_hooks(backbone: Backbone, config: Config) -> dict[str, TokenHook]:
    """The token hook that `sie` asks for. Raises `UserError` for a backbone without a CLS token."""
    if config.sie == "none":
        return {}
    check_cls(config.sie, backbone.family, backbone.name)
    return {"side": SideEmbedding(config.cameras, config.views, backbone.image.width, config.sie_coefficient)}


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """Stage 1 (unless `prompts` is none), then stage 2 towards the text bank that it left."""
    bank = None
    if config.prompts == "identity":
        bank = yield from learned_bank(run, model, config)  # [I, E]
    yield tuning_stage(run, model, bank, config)
    report_drift(run, model)


def learned_bank(run: Run, model: ReIDModel, config: Config) -> Generator[Stage, None, Tensor]:
    """Stage 1; returns the text bank [I, E] that it left."""
    drawn = torch.Generator().manual_seed(seed_for(run.seed, 0, 0, 0))
    nouns = run.data.mixture.nouns(run.data.names)
    prompts = IdentityPrompts(run.backbone, len(nouns), nouns, config.prompt_tokens, drawn).to(run.device)
    if "stage1" in run.record["stages"]:  # by an earlier command, whose output is gone
        doubt_texts(run, run.record.get("separability", {}))
    yield prompt_stage(run, model, prompts, config)
    return prompts.bank()


# Stage 1 -----------------------------------------------------------------------------------------------------------


class PromptLearning(nn.Module):
    """Stage 1 as a module: cached image features to L_i2t and L_t2i (equations 4-5)."""

    def __init__(self, prompts: IdentityPrompts, scale: float | None) -> None:
        super().__init__()
        self.prompts, self.scale = prompts, scale

    def forward(self, batch: Batch) -> Losses:
        """ "features" [B, E] and "labels" [B], the same in every process."""
        identities, place = batch["labels"].unique(return_inverse=True)  # each identity is encoded once
        texts = self.prompts(identities).index_select(0, place)  # [B, E]
        return prompt_loss(batch["features"], texts, batch["labels"], self.scale)


def prompt_loss(images: Tensor, texts: Tensor, labels: Tensor, scale: float | None) -> Losses:
    """L_i2t and L_t2i of CLIP-ReID (eq. 4-5), for images [B, E] and the text of each image's identity [B, E]."""
    with full_precision(images.device):
        logits = image_text_logits(images, texts, scale)  # [B, B]
        return {"i2t_loss": supcon_loss(logits, labels, labels), "t2i_loss": supcon_loss(logits.T, labels, labels)}


def doubt_texts(run: Run, found: Mapping[str, float], rate: str = "--prompt-rate") -> None:
    """Warns where the learned texts say little; found: as `separability` gives it; rate: the flag of their rate."""
    if found.get("text_to_image", 1.0) < FOUND:
        run.log.warn(
            f"most texts do not find an image of their own identity ({found['text_to_image']:.0%} do): stage 2 is "
            f"pulled to texts that say little; raise --prompt-epochs or {rate}, say with --noun what the "
            "individuals are, or train without texts (--prompts none)",
            "stage1",
        )


def prompt_stage(
    run: Run,
    model: ReIDModel,
    prompts: IdentityPrompts,
    config: Config,
    features: Callable[[], Tensor] | None = None,
) -> Stage:
    """Adam on the prompts alone; the images' features are computed once, without augmentation.

    features: gives them, [N, E]; None: `image_features`, when the first batch is asked for.
    """
    labels, scale, epochs = run.data.labels.to(run.device), text_scale(run.backbone), config.prompt_epochs
    features = features or functools.cache(lambda: image_features(run, model))

    def after_epoch(done: int) -> None:
        if done < epochs:
            return
        found = separability(features(), prompts.bank(), labels, scale)
        run.log.write("stage1", epochs, **found)
        run.log.say(
            f"stage1  text finds its own images {found['text_to_image']:.1%}, "
            f"image finds its own text {found['image_to_text']:.1%}"
        )
        doubt_texts(run, found)
        run.note(separability=found)

    optimiser = torch.optim.Adam([prompts.context], lr=config.prompt_rate, weight_decay=1e-4)
    optimiser.param_groups[0]["base"] = 1.0  # the schedule gives the rate itself
    every = max(1, epochs // 10)
    return Stage(
        name="stage1",
        module=PromptLearning(prompts, scale),
        batches=feature_batches(features, labels, config.prompt_batch, run.seed),
        optimisers=(optimiser,),
        rate=lambda at: prompt_rate(int(at) + 1, epochs, config.prompt_rate, config.prompt_warmup),
        epochs=epochs,
        shared=True,
        after_epoch=after_epoch,
        identities=lambda: {"prompts": prompts.context, "text_bank": prompts.bank()},
        line_every=every,
        checkpoint_every=every,
    )


def image_features(run: Run, model: ReIDModel) -> Tensor:
    """Features of all training images in the text space, [N, E], by the tower as it was before training."""
    tower = model.tower.eval()

    def embed(crops: Tensor) -> Tensor:  # uint8 [B, 3, H, W]
        return tower(normalise(crops, run.backbone.mean, run.backbone.std)).pooled

    found = extract(embed, run.crops(training=False), accelerator=run.accelerator)
    assert isinstance(found, Tensor)
    return found


def text_scale(backbone: Backbone) -> float | None:
    """Temperature of image-text logits: None (raw dot products) for OpenAI's CLIP, else the backbone's own."""
    return None if backbone.raw_logits else backbone.logit_scale


@torch.no_grad()
def separability(features: Tensor, bank: Tensor, labels: Tensor, scale: float | None) -> dict[str, float]:
    """How well the text bank [I, E] tells the training images [N, E] apart, 0..1.

    `text_to_image`: identities whose most similar image is their own; `image_to_text`: images whose most similar
    text is their own.
    """
    best = torch.full((len(bank),), -torch.inf, device=labels.device)  # [I] of the images so far
    nearest, own = torch.zeros_like(best, dtype=torch.long), torch.arange(len(bank), device=labels.device)
    right = torch.zeros((), device=labels.device)
    for rows in torch.arange(len(labels), device=labels.device).split(max(1, LOGITS // len(bank))):
        logits = image_text_logits(features[rows], bank, scale)  # [n, I]
        right += (logits.argmax(1) == labels[rows]).sum()
        found, at = logits.max(0)
        nearest, best = torch.where(found > best, labels[rows[at]], nearest), torch.maximum(found, best)
    return {
        "text_to_image": (nearest == own).float().mean().item(),
        "image_to_text": (right / len(labels)).item(),
    }


# Stage 2 -----------------------------------------------------------------------------------------------------------


class Tuning(nn.Module):
    """Stage 2 as a module: a batch of augmented images to the weighted losses (equation 9).

    bank: [I, E] fixed text features; None leaves out what needs texts.  scale: temperature of image-text logits.
    sampled: where a step sees some of the classes; the batches then have "classes".
    """

    def __init__(
        self,
        model: ReIDModel,
        bank: Tensor | None,
        scale: float | None,
        config: Config,
        sampled: SampledRows | None = None,
    ) -> None:
        super().__init__()
        self.model, self.bank, self.scale, self.config = model, bank, scale, config  # no buffers
        self.sampled = sampled

    def output(self, batch: Batch) -> Output:
        """Features and logits of all processes; the batch is this process's."""
        return self.model(batch, None if self.sampled is None else self.sampled(batch["classes"]))

    def forward(self, batch: Batch) -> Losses:
        """This process's "pixels" [B, 3, H, W] and "labels" [B] (and "cameras", "views") to the global losses."""
        return self.losses(self.output(batch), batch)

    def losses(self, output: Output, batch: Batch) -> Losses:
        """Features and logits of all processes to the losses; the batch is this process's."""
        labels, bank = place(gather(batch["labels"]), batch), self.bank
        with full_precision(labels.device):
            return tuning_loss(output, labels, None if bank is None else seen(bank, batch), self.scale, self.config)


def tuning_loss(output: Output, labels: Tensor, bank: Tensor | None, scale: float | None, config: Config) -> Losses:
    """ID on both necks, triplet on three taps, image-to-text, over I identities (all of them, or those sampled).

    Args:
        output: features and logits of the global batch.
        labels: [G] long, 0..I-1.
        bank: [I, E] fixed text features; None leaves the image-to-text term out.
        scale: temperature of image-text logits, None for raw dot products.
    """
    identity = [id_loss(x, labels, config.smoothing) for x in output.logits.values()]
    compared = output.features if config.triplet_taps == "all" else output.logits  # by name
    triplet = [triplet_of(output.features[name], labels, config) for name in compared]
    losses = {
        "id_loss": config.weight_id * sum(identity[1:], start=identity[0]),
        "triplet_loss": config.weight_triplet * sum(triplet[1:], start=triplet[0]),
    }
    if bank is not None:
        losses |= text_loss(output.features["projection"], labels, bank, scale, config)
    return losses


def text_loss(features: Tensor, labels: Tensor, bank: Tensor, scale: float | None, config: Config) -> Losses:
    """Image-to-text: features [G, E] in the text space against the text bank [I, E]; others as of `tuning_loss`."""
    logits = image_text_logits(features, bank, scale)  # [G, I]
    return {"i2t_loss": config.weight_i2t * id_loss(logits, labels, config.smoothing)}


def triplet_of(feature: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The triplet loss of one feature [G, D] as the settings want it."""
    unit = config.triplet_features == "unit"
    return triplet_loss(feature, labels, config.margin, normalise=unit, soft=config.soft_margin)


def tuning_stage(run: Run, model: ReIDModel, bank: Tensor | None, config: Config) -> Stage:
    """PK batches of augmented images, one optimiser."""
    sampled = sample_rows(run, model, config)
    module = Tuning(model, bank, text_scale(run.backbone), config, sampled)
    return Stage(
        name="stage2",
        module=module,
        batches=image_batches(run, change=occluding(config)),
        optimisers=(stage_optimiser(model, config, module),),
        rate=stage_rate(config),
        epochs=config.epochs,
        clip_norm=config.clip_norm,
        memory=memory_of(sampled),
        checkpoint_every=config.checkpoint_every,
    )
