"""DPM++ (Tan et al., arXiv 2605.06637) and DPM (arXiv 2207.09046): masks over dimensions, for occluded queries.

Every image gets a mask m in (0, 1)^D, one weight for each dimension of its feature f. An occluded image cannot be found
in all dimensions, so it is compared in those that its mask leaves, with prototypes W (the classifier's weights) in
training and with gallery features at test: s_ij = <f_i^, normalise(m_i w_j^)>, ^ = L2-normalised. Only the query's mask
counts (`clipreid.metric.MaskedCosine`). Losses, of the batch and with weights as published for DPM:

    0.5 CE(W BN(f)) + 0.5 CE(ArcFace(s; W)) + lambda |A A^T - I|^2 / H^2 + soft triplet(f)

A: scores of CLS with the patches in the heads of the last block, before the softmax ("head enrich"). Two optimisers
take turns on each batch: everything but the mask generator; then, in a second forward, the generator alone. DPM++ adds
CLIP-ReID's first stage, its image-to-text loss, the texts' relations transferred into the prototypes (these are not
replaced by texts), and patch transfer between images (`clipreid.hooks.patch_transfer`).

DPM's code was read in a description; DPM++'s was not found. Assumed, because nothing is known of it: how the relations
are transferred (`relation_loss`), its temperature and weight; saliency by attention of the tower as it was before
training (there GrabCut and texture, in SPT a learned predictor), the salient share and the probability of a transfer;
that the mask is made with gradient to the tower; plain cross-entropy smoothed as in CLIP-ReID; what ArcFace does beyond
pi. Other than there: CLIP's tower with LoRA or whole (DPM: ViT of ImageNet with SIE); Adam or AdamW, no SGD; cosine to
0; SigLIP, which has no CLS, takes its pooling probe's scores; a low-rank mask generator by default.

P identities x K images make the global batch G, of which this process has B; I identities, D width of the feature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from clipreid.aggregation import Taps
from clipreid.aggregation.mask_generator import LowRankMask, MaskAggregator, PublishedMask, mask_layers
from clipreid.backbones import Backbone, attention_rollout
from clipreid.config import Between, RunConfig
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.hooks import TokenHook
from clipreid.hooks.patch_transfer import PatchTransfer
from clipreid.losses import arcface_logits, head_likeness, id_loss, image_text_logits, relation_loss
from clipreid.methods import clip_reid
from clipreid.metric import MaskedCosine, masked_cosine
from clipreid.model import Output, ReIDModel, default_aggregator
from clipreid.training.batches import image_batches
from clipreid.training.drift import report_drift
from clipreid.training.occluding import occluding
from clipreid.training.optimisers import full_precision, stage_optimiser, stage_rate
from clipreid.training.run import Run
from clipreid.training.sampling import SampledRows, memory_of, place, sample_rows, seen
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/dpm.py"
INHERITED = clip_reid.TOWER_FLAGS


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, whose `stage 2` is this method's stage, and DPM's own."""

    mask: Literal["low-rank", "published", "none"] = "low-rank"
    """What makes the mask: low-rank (few parameters); published (three convolutions, one process only); none: the
    control, compared by cosine"""
    mask_rank: Annotated[int, Between(1, 1024)] = 32
    """--mask low-rank: dimensions r between the patches and the mask"""
    masked: Literal["final", "both"] = "final"
    """The feature that is masked and compared: final (as published); both: final and projection side by side"""
    mask_rate: Annotated[float, Between(1e-9, 1)] = 3.5e-4
    """Learning rate of the mask generator"""
    alternate: bool = True
    """Two optimisers take turns: everything but the mask generator, then the generator, in a second forward; no: one"""
    weight_id: float = 0.5
    """Weight of the identity loss"""
    weight_masked: Annotated[float, Between(0, 1e3)] = 0.5
    """Weight of the identity loss on masked cosines with the prototypes"""
    arc_scale: Annotated[float, Between(1e-3, 1e3)] = 30.0
    """Factor on these cosines"""
    arc_margin: Annotated[float, Between(0, 3)] = 0.5
    """Margin of these cosines, in radians (published: 0.3 for Market)"""
    weight_enrich: Annotated[float, Between(0, 1e3)] = 6.4
    """Weight of the likeness of the attention heads (published: 0.1 of the sum over 64 images)"""
    enrich_over: Literal["mean", "sum"] = "mean"
    """Over the images of a batch: mean; sum (as published, it grows with the batch)"""
    weight_relation: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of the texts' relations in the prototypes (assumed)"""
    relation_temperature: Annotated[float, Between(1e-3, 1e3)] = 0.1
    """Of the softmax over these relations (assumed)"""
    relation_itself: bool = False
    """Whether the cosine of an identity with itself is among its relations; without it, what all texts share does not
    count (assumed)"""
    patch_transfer: Annotated[float, Between(0, 1)] = 0.0
    """Probability that an image takes the patches around another's person, in training; 0: never (as released)"""
    saliency: Literal["attention", "centre"] = "attention"
    """What is a person there: attention rollout of the tower as it was before training; centre: patches near the middle
    (assumed)"""
    salient_share: Annotated[float, Between(0.01, 0.99)] = 0.3
    """Share of the patches that count as a person (in SPT the target of the mean)"""


# As published for DPM, but for what the settings of this package cannot say: SGD of rate 0.008 with momentum 0.9, and a
# cosine to 0.002 of the rate. Market: --epochs 50 --arc-margin 0.3.
PUBLISHED: dict[str, Any] = {
    "mask": "published", "weight_id": 0.5, "enrich_over": "sum", "weight_enrich": 0.1, "soft_margin": True,
    "triplet_taps": "test", "schedule": "cosine", "warmup": 5, "epochs": 150, "smoothing": 0.0, "milestones": (),
    "relation_itself": True, "patch_transfer": 0.5,  # both assumed
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    "paper": {**clip_reid.PRESETS["paper"], **PUBLISHED},
}
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"], "mask_rate": 3.5e-3},
    "paper": {**clip_reid.TINY["paper"], "milestones": (), "mask_rate": 2e-4},
}
STAGE_FLAGS = {"stage1": clip_reid.STAGE_FLAGS["stage1"]}


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's.

    Raises:
        UserError: as CLIP-ReID's and `build`; `--mask published`, which has batch norms, on more than one process.
    """
    check_patches(backbone)
    if config.mask == "published" and processes > 1:
        raise UserError(
            f"--mask published: its batch norms would see the images of one process only, so results would depend on "
            f"their number ({processes}): train on one process, or take --mask low-rank"
        )
    fitted: Any = clip_reid.fit(config, data, backbone, flags, processes)
    return fitted


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model with a mask over one feature, compared by the masked cosine.

    identities: I; 0 for a model that only embeds. Raises `UserError` for a backbone without patch tokens.
    """
    check_patches(backbone)
    tower = backbone.image
    beside = default_aggregator(backbone, config.aggregation)
    assert isinstance(beside, Taps)
    layers, width = mask_layers(tower.depth), tower.width + tower.embed_dim * (config.masked == "both")
    generator: nn.Module | None = None
    if config.mask == "low-rank":
        generator = LowRankMask(len(layers), tower.width, width, config.mask_rank)
    elif config.mask == "published":
        generator = PublishedMask(len(layers), tower.width, width)
    hooks: dict[str, TokenHook] = clip_reid.side_hooks(backbone, config)
    if config.patch_transfer:
        hooks["transfer"] = PatchTransfer(tower.has_cls, tower.grid, config.patch_transfer)
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=hooks,
        aggregator=MaskAggregator(beside, generator, layers if generator else (), config.masked, tower.depth),
        metric=None if generator is None else MaskedCosine(),
        identities=identities,
    )


def check_patches(backbone: Backbone) -> None:
    """Raises `UserError` for a wrapped image-only tower."""
    if backbone.family == "image-only":
        raise UserError(f"{backbone.name} has no patch tokens to make a mask from: take a CLIP or SigLIP backbone")


def aggregator_of(model: ReIDModel) -> MaskAggregator:
    assert isinstance(model.aggregator, MaskAggregator)
    return model.aggregator


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """CLIP-ReID's first stage (unless `prompts` is none), then `dpm`."""
    bank = None
    if config.prompts == "identity":
        bank = yield from clip_reid.learned_bank(run, model, config)  # [I, E]
    saliency = Saliency(model, config) if config.patch_transfer else None
    sampled = sample_rows(run, model, config)
    module = Objective(model, bank, clip_reid.text_scale(run.backbone), config, saliency, sampled)
    yield Stage(
        name="dpm",
        module=module,
        batches=image_batches(run, change=occluding(config)),
        optimisers=optimisers(model, module, config),
        rate=stage_rate(config),
        epochs=config.epochs,
        clip_norm=config.clip_norm,
        memory=memory_of(sampled),
        checkpoint_every=config.checkpoint_every,
    )
    report_drift(run, model)


# Turns -------------------------------------------------------------------------------------------------------------


def optimisers(model: ReIDModel, module: Objective, config: Config) -> tuple[torch.optim.Optimizer, ...]:
    """One of everything but the mask generator and one of the generator; a single one without turns."""
    generator, masks = aggregator_of(model).generator, replace(config, head_rate=config.mask_rate)
    if generator is None:
        return (stage_optimiser(model, config, module),)
    with resting(module.turns[1]):
        first = stage_optimiser(model, config, module)
    with resting(module.turns[0]):
        second = stage_optimiser(model, masks, module)
    if config.alternate:
        return first, second
    for group in second.param_groups:
        first.add_param_group(group)
    return (first,)


@contextmanager
def resting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Meanwhile these trained parameters take part as they are, without gradient."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


# Losses ------------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """A batch of augmented images to the weighted losses; with turns, to those that the turn's parameters act on.

    Args:
        bank: [I, E] fixed text features; None leaves out what needs texts.
        scale: temperature of image-text logits, None for raw dot products.
        saliency: for patch transfer.
        sampled: where a step sees some of the classes; the batches then have "classes".
    """

    def __init__(
        self,
        model: ReIDModel,
        bank: Tensor | None,
        scale: float | None,
        config: Config,
        saliency: Saliency | None = None,
        sampled: SampledRows | None = None,
    ) -> None:
        super().__init__()
        self.model, self.bank, self.scale, self.config = model, bank, scale, config  # no buffers
        self.saliency, self.sampled = saliency, sampled
        generator = aggregator_of(model).generator
        masks = [] if generator is None else list(generator.parameters())
        others = {id(p) for p in masks}
        trained = [p for p in self.parameters() if p.requires_grad and id(p) not in others]
        self.turns = (trained, masks)  # what each turn trains

    def forward(self, batch: Batch, turn: int | None = None) -> Losses:
        """This process's "pixels" [B, 3, H, W], "labels", "rows" [B] (and "cameras", "views") to the global losses.

        turn: 0: everything but the mask generator is trained; 1: the generator alone; None: both.
        """
        if self.saliency is not None:
            batch = batch | {"salient": self.saliency(batch["pixels"])}
        with resting([] if turn is None else self.turns[1 - turn]):
            output = self.model(batch, None if self.sampled is None else self.sampled(batch["classes"]))
            labels = place(gather(batch["labels"]), batch)
            with full_precision(labels.device):
                if turn == 1:
                    return {"mask_loss": self.masked_loss(output, labels)}
                return self.losses(output, labels, batch)

    def losses(self, output: Output, labels: Tensor, batch: Batch) -> Losses:
        """Features and logits [G, ...] of all processes to the losses; the batch is this process's."""
        config, aggregator, features = self.config, aggregator_of(self.model), output.features
        ((name, logits),) = output.logits.items()
        compared = (name,) if config.triplet_taps == "test" else aggregator.beside.widths
        triplet = [clip_reid.triplet_of(features[each], labels, config) for each in compared]
        losses = {
            "id_loss": config.weight_id * id_loss(logits, labels, config.smoothing),
            "masked_loss": self.masked_loss(output, labels),
            "triplet_loss": config.weight_triplet * sum(triplet[1:], start=triplet[0]),
        }
        if config.weight_enrich and aggregator.last_input is not None:
            likeness = head_likeness(gather(head_scores(self.model.tower, aggregator.last_input)))  # [G]
            reduced = likeness.sum() if config.enrich_over == "sum" else likeness.mean()
            losses["enrich_loss"] = config.weight_enrich * reduced
        if self.bank is not None:
            losses |= self.text_losses(features["projection"], labels, seen(self.bank, batch))
        return losses

    def prototypes(self, name: str) -> Tensor:
        """The classifier of a neck, [I, D]: all of it, or what this step has sampled."""
        neck: Any = self.model.necks[name]
        return neck.classifier.weight if self.sampled is None else self.sampled.rows[name]

    def masked_loss(self, output: Output, labels: Tensor) -> Tensor:
        """Weighted cross-entropy over masked cosines with the prototypes, which are the classifier's weights [I, D]."""
        config, (name,) = self.config, output.logits
        feature = output.features[name]
        mask = output.features.get("mask", torch.ones_like(feature))
        cosine = masked_cosine(feature, mask, self.prototypes(name))
        logits = arcface_logits(cosine, labels, config.arc_scale, config.arc_margin)  # [G, I]
        return config.weight_masked * id_loss(logits, labels, config.smoothing)

    def text_losses(self, projection: Tensor, labels: Tensor, bank: Tensor) -> Losses:
        """Images [G, E] to texts, and the relations of these into the prototypes."""
        config, (name,) = self.config, self.model.aggregator.necks
        logits = image_text_logits(projection, bank, self.scale)  # [G, I]
        losses = {"i2t_loss": config.weight_i2t * id_loss(logits, labels, config.smoothing)}
        if config.weight_relation:
            temperature, itself = config.relation_temperature, config.relation_itself
            relation = relation_loss(self.prototypes(name), bank, labels.unique(), temperature, itself=itself)
            losses["relation_loss"] = config.weight_relation * relation
        return losses


def head_scores(tower: Any, x: Tensor) -> Tensor:
    """Scores of CLS with the patches in each head of the last block, before the softmax and its scale: [B, H, N].

    SigLIP, which has no CLS: those of the pooling head's probe (assumed).

    Args:
        tower: a `VisionTower`, adapters included.
        x: what goes into the last block, [B, 1+N, C]; for SigLIP the patches behind the final norm [B, N, C].
    """
    if tower.has_cls:
        block = tower.encoder.layers[-1]
        attention, x = block.self_attn, block.layer_norm1(x)
        q, k, heads = attention.q_proj(x[:, :1]), attention.k_proj(x[:, 1:]), attention.heads
    else:
        attention, width = tower.head.attention, tower.width
        weights, biases = attention.in_proj_weight.split(width), attention.in_proj_bias.split(width)
        q = nn.functional.linear(tower.head.probe.to(x.dtype), weights[0], biases[0]).expand(len(x), 1, -1)
        k, heads = nn.functional.linear(x, weights[1], biases[1]), attention.num_heads
    q, k = (rearrange(each.float(), "b n (h d) -> b h n d", h=heads) for each in (q, k))
    return (q @ k.mT)[:, :, 0]


# Saliency ----------------------------------------------------------------------------------------------------------


class Saliency:
    """Which patches show a person: the given share of them with the largest saliency (assumed; see `Config.saliency`).

    It is no module: what it holds is neither trained nor saved.
    """

    def __init__(self, model: ReIDModel, config: Config) -> None:
        self.share, self.grid = config.salient_share, model.tower.grid
        self.tower = copy.deepcopy(model.tower).requires_grad_(False).eval() if config.saliency == "attention" else None

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to [B, N], 1 for a salient patch, else 0."""
        if self.tower is not None:
            maps = attention_rollout(self.tower, pixels).flatten(1)  # [B, N]
        else:
            maps = centre_map(self.grid).to(pixels.device).expand(len(pixels), -1)
        count = max(1, round(self.share * maps.shape[1]))
        return torch.zeros_like(maps).scatter(1, maps.topk(count, dim=1).indices, 1.0)


def centre_map(grid: tuple[int, int]) -> Tensor:
    """[N], larger nearer to the middle, distances measured in heights and widths of the grid (h, w)."""
    rows, columns = ((torch.arange(size) + 0.5) / size - 0.5 for size in grid)
    return -(rows[:, None].square() + columns.square()).flatten()
