"""SAGA-ReID (Zheng et al., arXiv 2604.22190): aggregate the patches of a middle layer, guided by text anchors.

24 short phrases, partly learned, go through the frozen text tower; their features, mapped into the space of the tokens,
are the anchors. Two blocks in which the patches attend to them refine the patches, and the patches whose attention is
peaked count more in the feature `saga`, which is fused with the backbone's own. Built from a description of the
published code; `clipreid.aggregation.saga` and `clipreid.prompts.anchors` say where each value comes from.

Loss of the feature f: ID (smoothed cross-entropy behind a BNNeck) + triplet + 0.05 x likeness of the text anchors.
Test feature: f, CLS and projection, each L2-normalised, times the roots of weights: 0.3, 1 and 1, chosen on occluded
queries of a validation split; as published (`--preset paper`) 2, 0.2 and 0.05. By default f is standardised.

`--mode frozen` (as published): a third stage, on the frozen tower of a trained run (`--init RUN`), from tokens that are
computed once for a few augmented views. `--mode joint`: in one stage with CLIP-ReID's second, to which it adds a
feature with its own neck, identity and triplet loss and replaces nothing (the published code has no such stage that
runs).

Other than in the published code: one classifier (there 4 for most data, and a loss that keeps them apart), which is not
reset between the two phases; one optimiser for both phases; the phrases are our own; stages 1 and 2 are CLIP-ReID's
(there other prompts, and fewer losses); patches have the stride of the run that is continued (there 12: train that run
with `--stride 12`), and its side information; the last epoch is the result (there the best one on the test set).
Assumed: in the second phase, warm-up multiplies a cosine over the whole phase.

P identities x K images make the global batch G, of which this process has B; N patches, C tower width, V views.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from tyro.conf import Suppress

from clipreid.aggregation.base import patch_tokens
from clipreid.aggregation.saga import SAGA, SagaAggregator, default_layer
from clipreid.backbones import Backbone
from clipreid.config import Between, RunConfig, none_is
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.hub.checks import read_tensors
from clipreid.hub.download import find_run
from clipreid.hub.files import HEADS
from clipreid.losses import id_loss
from clipreid.losses.regularisers import anchor_diversity_loss
from clipreid.methods import clip_reid
from clipreid.model import ReIDModel, default_aggregator, need_text
from clipreid.prompts.anchors import PHRASES, FreeAnchors, TextAnchors, read_phrases
from clipreid.prompts.template import word_embeddings
from clipreid.training.batches import image_batches
from clipreid.training.drift import report_drift
from clipreid.training.occluding import occluding
from clipreid.training.optimisers import full_precision, stage_optimiser, stage_rate
from clipreid.training.run import Run
from clipreid.training.sampling import memory_of, place, sample_rows
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage
from clipreid.training.token_batches import token_batches

RECIPE = "recipes/saga.py"
NEEDS_INIT = True  # --mode frozen continues a trained run
SHAPE = ("kind", "anchors", "anchor_count", "learned_slots", "frozen_slots", "domain_anchors", "layer", "blocks",
         "feed_forward", "score", "centre", "standardise", "fuse_saga", "fuse_final", "fuse_projection")  # fmt: skip
INHERITED = (*clip_reid.TOWER_FLAGS, *SHAPE)  # from the run of --init, what it has of these


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, for `--mode joint` and for rates, schedule and batches of both modes, and SAGA's own."""

    mode: Literal["frozen", "joint"] = "frozen"
    """frozen: a stage of its own on the trained run of --init; joint: together with stage 2 of CLIP-ReID"""
    kind: Literal["saga", "repeated", "mean", "cls"] = "saga"
    """saga, or a control of the same size: repeated (the mean patch in the place of every text anchor); mean, cls (the
    mean patch or the CLS token instead of the patches)"""
    anchors: Literal["text", "free"] = "text"
    """text: learned phrases through the text tower; free: free vectors, the control without text"""
    anchor_count: Annotated[int | None, Between(1, 1000), none_is("as many as phrases, 24")] = None
    """Anchors, K: from the first K phrases; where there are fewer, phrases are taken again"""
    phrases: Annotated[Path | None, none_is("24 of our own, on parts, clothing, bags, pose")] = None
    """File with one phrase per line, for the text anchors. Neither it nor its path is published, but the tokens of the
    phrases are, as vectors: the words can be found from them"""
    learned_slots: Annotated[int, Between(1, 64)] = 4
    """Learned tokens of each phrase"""
    frozen_slots: Annotated[int, Between(0, 64)] = 12
    """Tokens of each phrase that stay as they are"""
    domain_anchors: Annotated[int, Between(0, 64)] = 3
    """Anchors computed from the mean patch of each image, M; 0: none"""
    noun_tokens: Suppress[Annotated[int, Between(0, 64)]] = 1
    anchor_noun: Suppress[str] = "person"
    """What the individuals are, behind each phrase; from the data, the first one of several sets"""
    layer: Annotated[int, Between(0, 256)] = 0
    """Layer whose patches are aggregated, from 1; 0: at three quarters of the depth (9 of 12)"""
    blocks: Annotated[int, Between(1, 12)] = 2
    """Refinement blocks"""
    feed_forward: bool = True
    """Whether the blocks have a feed-forward network"""
    copy_block: bool = True
    """Start new blocks from the tower's block at that layer (not for the kind cls; those of an --init by this method
    stay)"""
    score: Literal["max", "entropy", "uniform"] = "max"
    """What makes a patch count: its largest attention; how little its attention is spread; nothing"""
    centre: bool = False
    """Subtract the mean of the text anchors, which raw text features share, before they are mapped"""
    standardise: bool = True
    """Give every dimension of the feature saga the same spread, and no mean: else the features of all images are nearly
    the same (cosine .999), and no weight of the fusion lets them count"""
    fuse_saga: Annotated[float, Between(0, 1e3)] = 0.3
    """Weight of the feature saga in the test feature; 0 leaves it out"""
    fuse_final: Annotated[float, Between(0, 1e3)] = 1.0
    """The same of CLIP-ReID's final"""
    fuse_projection: Annotated[float, Between(0, 1e3)] = 1.0
    """The same of CLIP-ReID's projection"""
    weight_saga_id: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of the identity loss of the feature saga"""
    weight_saga_triplet: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of its triplet loss"""
    weight_diversity: Annotated[float, Between(0, 1e3)] = 0.05
    """Weight of the likeness of the text anchors"""
    token_views: Annotated[int, Between(1, 1000)] = 4
    """--mode frozen: augmented views of each image whose tokens are kept"""
    cache_gb: Annotated[float, Between(0, 1e6)] = 4.0
    """--mode frozen: memory for them in each process; fewer views are kept where these do not fit, and none, with the
    tower at work in every step, where not even one fits"""
    second_epochs: Annotated[int, Between(0, 1e6)] = 0
    """How many of --epochs, at the end, form a second phase (as published). First phase: warm-up, then constant rates.
    Second phase: warm-up again, to 4/7 of the rates, falling along a cosine to half of that. 0: one phase, by
    --schedule"""


# As in the published code: 20 epochs, then 80 with another schedule (there a new optimiser, here the same one).
PUBLISHED = {
    "weight_id": 0.25, "epochs": 100, "second_epochs": 80, "warmup": 5, "optimiser": "adamw", "schedule": "cosine",
    "head_rate": 3.5e-4, "bias_rate_factor": 1.0, "milestones": (), "standardise": False,
    "fuse_saga": 2.0, "fuse_final": 0.2, "fuse_projection": 0.05,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    "paper": {**clip_reid.PRESETS["paper"], **PUBLISHED},
}
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"], "least_steps": 450, "head_rate": 1e-3},  # 3e-3: the feature collapses
    "paper": {**clip_reid.TINY["paper"], **PUBLISHED, "epochs": 10, "second_epochs": 8, "warmup": 1,
              "head_rate": 3.5e-4},
}  # fmt: skip
STAGE_FLAGS = {"stage1": clip_reid.STAGE_FLAGS["stage1"]}


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's, and what text anchors take from data and phrases.

    Raises:
        UserError: as CLIP-ReID's and `make_aggregator`; `--mode frozen` without a run to continue.
    """
    if config.mode == "frozen" and flags.init is None:
        raise UserError(
            "--mode frozen trains on the frozen tower of a trained run: name it with --init RUN, or take --mode joint"
        )
    if config.mode == "frozen" and config.sample_classes < 1:
        raise UserError("--sample-classes: --mode frozen compares all identities; leave it out, or take --mode joint")
    need_text(backbone, "saga")
    prompts = config.prompts if config.mode == "joint" else "none"
    fitted: Any = clip_reid.fit(replace(config, prompts=prompts), data, backbone, flags, processes)
    phrases, noun = read_phrases(config.phrases), data.mixture.noun.partition(",")[0]
    fitted = replace(
        fitted,
        prompts=config.prompts,
        anchor_count=config.anchor_count or len(phrases),
        anchor_noun=noun,
        noun_tokens=len(word_embeddings(backbone, noun)),
    )
    return replace(fitted, layer=make_aggregator(backbone, fitted, phrases).layer)  # and refuses what cannot be


def by_parts(config: Config) -> bool:
    """Whether the features of an image depend on that image alone, as `--accumulate` needs it; in frozen mode there
    is no batch of images."""
    return config.mode == "joint"


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model with one feature more.

    identities: I; 0 for a model that only embeds: its anchors come from the run, and the file of phrases is not read.
    Raises `UserError` as `make_aggregator`.
    """
    phrases = read_phrases(config.phrases) if identities else PHRASES
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=clip_reid.side_hooks(backbone, config),
        aggregator=make_aggregator(backbone, config, phrases),
        identities=identities,
    )


def make_aggregator(backbone: Backbone, config: Config, phrases: Sequence[str]) -> SagaAggregator:
    """SAGA beside CLIP-ReID's three taps.

    Raises:
        UserError: a backbone without text, a layer that it does not have, texts that do not fit into its context
            (--frozen-slots), or no feature with a weight.
    """
    text, tower = need_text(backbone, "saga"), backbone.image
    count = config.anchor_count or len(phrases)
    saga = SAGA.like(
        tower.encoder.layers[0],
        tower.embed_dim,
        copy=False,
        blocks=config.blocks,
        domain=config.domain_anchors,
        score=config.score,
        kind=config.kind,
        count=count,
        feed_forward=config.feed_forward,
        centre=config.centre,
    )
    anchors: nn.Module | None = None
    if saga.needs_anchors and config.anchors == "free":
        anchors = FreeAnchors(count, text.embed_dim)  # type: ignore[arg-type]
    elif saga.needs_anchors:
        anchors = TextAnchors(
            backbone, phrases, config.anchor_noun, config.learned_slots, config.frozen_slots, count, config.noun_tokens
        )
    fusion = (config.fuse_saga, config.fuse_final, config.fuse_projection)
    if not sum(fusion):
        raise UserError("--fuse-saga 0 --fuse-final 0 --fuse-projection 0: no feature is left, give one a weight")
    if (layer := config.layer or default_layer(tower.depth)) > tower.depth:
        raise UserError(f"--layer {layer}: {backbone.name} has layers 1 to {tower.depth}")
    return SagaAggregator(
        saga, anchors, layer, default_aggregator(backbone, config.aggregation), fusion, config.standardise
    )


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """One stage, `saga`; in joint mode behind CLIP-ReID's first (unless `prompts` is none)."""
    bank, joint, sampled = None, config.mode == "joint", None
    if joint and config.prompts == "identity":
        bank = yield from clip_reid.learned_bank(run, model, config)  # [I, E]
    prepare_blocks(run, model, config)
    if joint:
        sampled = sample_rows(run, model, config)
        module: nn.Module = Joint(model, bank, clip_reid.text_scale(run.backbone), config, sampled)
        batches = image_batches(run, change=occluding(config))
    else:
        model.requires_grad_(False)
        module = OnFrozenTower(model, config)
        module.requires_grad_(True)
        module.neck.norm.bias.requires_grad_(False)  # type: ignore[union-attr]
        batches = token_batches(run, functools.partial(frozen_tokens, model), occluding(config))
    yield Stage(
        name="saga",
        module=module,
        batches=batches,
        optimisers=(stage_optimiser(model, config, module),),
        rate=two_phases(config),
        epochs=config.epochs,
        clip_norm=config.clip_norm,
        memory=memory_of(sampled),
        checkpoint_every=config.checkpoint_every,
    )
    if joint:
        report_drift(run, model)


def prepare_blocks(run: Run, model: ReIDModel, config: Config) -> None:
    """New blocks start from the tower's (`copy_block`); phrases that were cut are named."""
    aggregator, folder = aggregator_of(model), None if run.flags.init is None else find_run(run.flags.init)
    trained = {} if folder is None else read_tensors(folder / HEADS, folder)
    for nth, block in enumerate(aggregator.saga.blocks):
        if config.copy_block and config.kind != "cls" and f"aggregator.saga.blocks.{nth}.q_proj.weight" not in trained:
            block.copy_from(model.tower.encoder.layers[aggregator.layer - 1])  # type: ignore[operator]
    if cut := getattr(aggregator.anchors, "cut", ()):
        run.log.say(
            f"note: phrases cut to {config.frozen_slots} tokens: {len(cut)}, such as {cut[0]!r}; "
            "--frozen-slots gives them more"
        )


def aggregator_of(model: ReIDModel) -> SagaAggregator:
    assert isinstance(model.aggregator, SagaAggregator)
    return model.aggregator


def two_phases(config: Config) -> Callable[[float], float]:
    """`stage_rate`, or the published schedule in two phases where there are `second_epochs`."""
    if not config.second_epochs:
        return stage_rate(config)
    second = min(config.second_epochs, config.epochs)
    first = config.epochs - second

    def factor(at: float) -> float:  # at: epochs done, fractional
        warm = min(1.0, (at if at < first else at - first) / config.warmup) if config.warmup else 1.0
        warm = config.warmup_factor + (1 - config.warmup_factor) * warm
        if at < first:
            return warm
        return 4 / 7 * warm * (0.75 + 0.25 * math.cos(math.pi * (at - first) / second))

    return factor


# The losses --------------------------------------------------------------------------------------------------------


def saga_losses(feature: Tensor, logits: Tensor, labels: Tensor, anchors: Tensor | None, config: Config) -> Losses:
    """ID and triplet of the feature, and the likeness of the text anchors.

    Args:
        feature, logits: [G, C], [G, I] of the global batch.
        labels: [G] long.
        anchors: [K, C] text anchors in the space of the tokens; None where there are none.
    """
    losses = {
        "saga_id_loss": config.weight_saga_id * id_loss(logits, labels, config.smoothing),
        "saga_triplet_loss": config.weight_saga_triplet * clip_reid.triplet_of(feature, labels, config),
    }
    if anchors is not None:
        losses["diversity_loss"] = config.weight_diversity * anchor_diversity_loss(anchors)
    return losses


class OnFrozenTower(nn.Module):
    """`--mode frozen` as a module: cached tokens to the losses of the feature `saga`."""

    def __init__(self, model: ReIDModel, config: Config) -> None:
        super().__init__()
        self.saga, self.neck, self.config = aggregator_of(model), model.necks["saga"], config

    def forward(self, batch: Batch) -> Losses:
        """This process's "patches" [B, N, C], "final" [B, C] and "labels" [B] to the global losses."""
        found = self.saga.align(batch["patches"].float(), batch["final"].float())
        with full_precision(batch["patches"].device):
            feature, labels = self.saga.standardised(gather(found.feature.float())), gather(batch["labels"])
            return saga_losses(feature, self.neck(feature), labels, found.anchors, self.config)


class Joint(clip_reid.Tuning):
    """`--mode joint` as a module: the losses of CLIP-ReID's second stage, and those of the feature `saga`."""

    config: Config

    def forward(self, batch: Batch) -> Losses:
        """This process's "pixels" [B, 3, H, W] and "labels" [B] to the global losses."""
        output, aggregator = self.output(batch), aggregator_of(self.model)
        aligned, aggregator.aligned = aggregator.aligned, None  # it holds the graph of this step
        assert aligned is not None
        feature, logits = output.features.pop("saga"), output.logits.pop("saga")
        losses = self.losses(output, batch)
        with full_precision(batch["pixels"].device):
            labels, feature = place(gather(batch["labels"]), batch), aggregator.standardised(feature.float())
            return losses | saga_losses(feature, logits, labels, aligned.anchors, self.config)


# Tokens of the frozen tower ------------------------------------------------------------------------------------------


@torch.no_grad()
def frozen_tokens(model: ReIDModel, pixels: Tensor, about: Batch) -> Batch:
    """Normalised pixels [B, 3, H, W] to "patches" [B, N, C] of SAGA's layer and "final" [B, C]."""
    aggregator, hooks = aggregator_of(model), tuple(model.hooks.values())
    tokens = model.image.eval()(pixels, taps=aggregator.taps, hooks=hooks, about=about)
    return {"patches": patch_tokens(tokens, aggregator.layer), "final": aggregator.beside(tokens, about)["final"]}
