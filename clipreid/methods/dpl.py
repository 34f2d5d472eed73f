"""DPL-ReID (Ji et al., arXiv 2605.19527): two prompts per identity, pasted occluders, and a CNN that gates the tower.

CLIP-ReID for occluded images. Each identity has two texts with the same learned tokens X: "a photo of a X X X X
person." and "a photo of a X X X X person occluded by O O."; the O are shared by all identities, as one set or one for
each class of occluders. Occluders are pasted into training images (`clipreid.data.occluders`), so that every image has
a clean and an occluded view.

Stage 1 (frozen towers): supervised contrast of clean images with the first text, and of occluded ones with the second.
Stage 2, on both views of a batch: identity and triplet loss as in CLIP-ReID; image-to-text of both views with the first
text, so that the occluded view recovers the whole individual; image-to-text of the occluded view with the second, so
that it knows its occluder; if wanted, the distance of the two views. WGFF (`--fusion gated`): a small CNN gates the
tower's feature and is added to it (`clipreid.aggregation.gated`). At test there are image features only: neither texts
nor pasted occluders.

Built from the paper's abstract and listings; neither its text nor its code was at hand. Assumed, besides what stands at
the flags: the wording of the second sentence; that only the O depend on the class of the occluder; positives of stage 1
are all images of the identity, whatever hides them; every loss is a mean over all rows of both views, and a row that it
does not concern counts 0. LSNet, the CNN of the paper, is in no package: other small ones stand in. A third-party note
says that texts are used at test; the abstract does not, and this version does not.

Controls: `--prompts identity` has the same occluders and only the first text; `--prompts identity --occluders none` has
two views with random erasing alone; `--fusion concat` has the same CNN without gate.

P identities x K images make the batch of each view; G rows of both views and all processes, of which this process has
B; N training images, V occluded draws of each, I identities, E embedding, k classes of occluders.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from clipreid.aggregation import Aggregator
from clipreid.aggregation.gated import GatedFusion
from clipreid.backbones import Backbone
from clipreid.backbones.partners import Partner, PartnerName, check_partner
from clipreid.config import Between, RunConfig
from clipreid.data import seed_for
from clipreid.data.occluders import Library
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.hub.checks import read_tensors
from clipreid.hub.download import find_run
from clipreid.hub.files import HEADS
from clipreid.losses import id_loss, image_text_logits
from clipreid.losses.contrastive import class_text_logits
from clipreid.losses.regularisers import consistency_loss
from clipreid.methods import clip_reid
from clipreid.model import Output, ReIDModel, default_aggregator
from clipreid.prompts.dual import DualPrompts
from clipreid.training.batches import image_batches
from clipreid.training.drift import report_drift
from clipreid.training.occluding import training_library
from clipreid.training.optimisers import full_precision, stage_optimiser, stage_rate
from clipreid.training.pairs import occluded_view, pair_batches, pair_features
from clipreid.training.run import Run
from clipreid.training.sampling import SampledRows, memory_of, place, sample_rows, seen
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/dpl.py"
INHERITED = (*clip_reid.TOWER_FLAGS, "fusion", "partner")  # from the run of --init, what it has of these


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, for both stages, and those of occluders, dual prompts and fusion."""

    prompts: Literal["identity", "dual", "none"] = "dual"  # type: ignore[assignment]
    """identity: one text per identity, as CLIP-ReID; dual: a second one with its occluder; none: without texts"""
    occluders: Literal["street", "none"] = "street"
    """street: painted things of classes that are not in the test sets; none: two views without any"""
    occlude_probability: Annotated[float, Between(0, 1)] = 1.0
    """How often the second view of an image gets an occluder in stage 2 (assumed)"""
    occluder_tokens: Annotated[int, Between(1, 32)] = 2
    """Stage 1: learned tokens O of an occluder (assumed)"""
    occluder_tokens_per: Literal["shared", "class"] = "shared"
    """shared: the same O for all occluders (assumed); class: other ones for each class of them"""
    occluded_draws: Annotated[int, Between(1, 64)] = 4
    """Stage 1: occluded versions of each image whose features are kept (assumed)"""
    weight_occluded_i2t: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of the image-to-text loss of the second view with the first text (assumed), as --weight-i2t is of the
    first view"""
    weight_occluder: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of the image-to-text loss of occluded images with the second text (assumed)"""
    weight_consistency: Annotated[float, Between(0, 1e3)] = 0.0
    """Weight of the distance between the two views' test features"""
    fusion: Literal["none", "gated", "concat"] = "none"
    """gated: WGFF, a CNN as gate and partner of the tower's feature; concat: the same CNN beside it, the control"""
    partner: PartnerName = "mobilenetv4_conv_small_050"
    """That CNN, by its name in timm: without a tag it starts from random weights, with one (behind the point) from
    those, which are downloaded once"""
    fusion_start: Annotated[float, Between(0.01, 0.99)] = 0.5
    """--fusion gated: weight of the tower's feature before training (assumed)"""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    "paper": {  # CLIP-ReID's, and all three parts; nothing else is known
        **clip_reid.PRESETS["paper"], "weight_id": {"identity": 0.25, "dual": 0.25, "none": 1.0}, "fusion": "gated",
        "partner": "repvit_m0_9.dist_450e_in1k",  # there: LSNet
    },
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"]},
    "paper": {**clip_reid.TINY["paper"], "partner": "mobilenetv4_conv_small_050"},
}
BOTH_STAGES = ("prompts", "occluders", "occluder_folder", "severity_least", "severity_most")  # what both of them read
STAGE_FLAGS = {
    "stage1": (*clip_reid.STAGE_FLAGS["stage1"], "occluder_tokens", "occluder_tokens_per", "occluded_draws"),
    "stage2": (
        *(name for name in clip_reid.STAGE_FLAGS["stage2"] if name not in BOTH_STAGES),
        "weight_occluded_i2t", "weight_occluder", "weight_consistency", "fusion", "partner", "fusion_start",
    ),
}  # fmt: skip


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's; refuses prompts, occluders and partners that cannot be.

    Raises:
        UserError: as CLIP-ReID's; dual prompts without occluders, or a sentence that does not fit; occluders that
            cannot be read; a partner that cannot be had.
    """
    fitted: Any = clip_reid.fit(config, data, backbone, flags, processes)
    library = training_library(config)
    if config.prompts == "dual":
        if library is None:
            raise UserError("--prompts dual needs occluders: take --prompts identity with --occluders none")
        nouns = list(dict.fromkeys(each.noun for each in data.mixture.sets))
        make_prompts(backbone, nouns, config, library)
    if config.fusion != "none":
        check_partner(config.partner, backbone.image_size, processes)
    return fitted


def by_parts(config: Config) -> bool:
    """Whether the features of an image depend on that image alone, as `--accumulate` needs it: a partner has
    batch norms."""
    return config.fusion == "none"


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model, with a fused feature if wanted; a partner's weights are random until training or loading.

    identities: I; 0 for a model that only embeds. Raises `UserError` where the backbone lacks what the settings need.
    """
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=clip_reid.side_hooks(backbone, config),
        aggregator=make_aggregator(backbone, config),
        identities=identities,
    )


def make_aggregator(backbone: Backbone, config: Config) -> Aggregator:
    """CLIP-ReID's three taps, of which the first test feature is fused with the partner's."""
    taps = default_aggregator(backbone, config.aggregation)
    if config.fusion == "none":
        return taps
    partner = Partner(config.partner, backbone.mean, backbone.std)
    return GatedFusion(taps, partner, partner.width, config.fusion, config.fusion_start)


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """Stage 1 (unless `prompts` is none), then stage 2 towards the text banks that it left."""
    prepare_partner(run, model)
    library, banks = training_library(config), Banks(None, None)
    if config.prompts == "identity":
        banks = Banks((yield from clip_reid.learned_bank(run, model, config)), None)
    elif config.prompts == "dual":
        assert library is not None
        banks = yield from learned_banks(run, model, config, library)
    yield tuning_stage(run, model, banks, config, library)
    report_drift(run, model)


def prepare_partner(run: Run, model: ReIDModel) -> None:
    """A new partner starts from the weights that its name means; that of the run of `--init` stays."""
    if not isinstance(model.aggregator, GatedFusion):
        return
    folder = None if run.flags.init is None else find_run(run.flags.init)
    trained = {} if folder is None else read_tensors(folder / HEADS, folder)
    if not any(name.startswith("aggregator.partner.") for name in trained):
        partner: Any = model.aggregator.partner
        partner.load_pretrained()


class Banks(NamedTuple):
    """Fixed text features: of all identities [I, E], and of them behind each class of occluders [k, I, E] (k = 1:
    behind any); None where there are none."""

    texts: Tensor | None
    occluded: Tensor | None


# Stage 1 -------------------------------------------------------------------------------------------------------------


def make_prompts(
    backbone: Backbone, nouns: Sequence[str], config: Config, library: Library, drawn: torch.Generator | None = None
) -> DualPrompts:
    """The prompts of as many identities as nouns. Raises `UserError` for sentences that do not fit (`Template`)."""
    return DualPrompts(
        backbone,
        len(nouns),
        nouns,
        config.prompt_tokens,
        drawn,
        classes=len(library.kinds) if config.occluder_tokens_per == "class" else 1,
        occluder_tokens=config.occluder_tokens,
    )


def learned_banks(run: Run, model: ReIDModel, config: Config, library: Library) -> Generator[Stage, None, Banks]:
    """Stage 1 with dual prompts; returns the text banks that it left."""
    drawn = torch.Generator().manual_seed(seed_for(run.seed, 0, 0, 0))
    prompts = make_prompts(run.backbone, run.data.mixture.nouns(run.data.names), config, library, drawn).to(run.device)
    if "stage1" in run.record["stages"]:  # by an earlier command, whose output is gone
        clip_reid.doubt_texts(run, run.record.get("separability", {}))
    yield pair_stage(run, model, prompts, config, library)
    return Banks(prompts.bank(), prompts.occluded_bank())


class PairLearning(nn.Module):
    """Stage 1 as a module: cached features of clean and occluded images to the losses of CLIP-ReID's, for each pair."""

    def __init__(self, prompts: DualPrompts, scale: float | None) -> None:
        super().__init__()
        self.prompts, self.scale = prompts, scale

    def forward(self, batch: Batch) -> Losses:
        """ "clean", "occluded" [B, E], "kinds" and "labels" [B], the same in every process."""
        labels = batch["labels"]
        identities, place = labels.unique(return_inverse=True)  # each text is encoded once
        texts = self.prompts(identities).index_select(0, place)  # [B, E]
        behind = occluded_texts(self.prompts, labels, batch["kinds"])
        behind = torch.where((batch["kinds"] < 0)[:, None], texts, behind)  # where nothing could be hidden
        clean = clip_reid.prompt_loss(batch["clean"], texts, labels, self.scale)
        occluded = clip_reid.prompt_loss(batch["occluded"], behind, labels, self.scale)
        return clean | {f"occluded_{name}": loss for name, loss in occluded.items()}


def occluded_texts(prompts: DualPrompts, labels: Tensor, kinds: Tensor) -> Tensor:
    """Identities and classes of occluders [B] to their texts [B, E], each encoded once; -1 counts as class 0."""
    kinds = kinds.clamp(0, len(prompts.occluder) - 1)
    pairs, place = torch.stack([labels, kinds], 1).unique(dim=0, return_inverse=True)  # [n, 2], [B]
    return prompts.forward_occluded(pairs[:, 0], pairs[:, 1]).index_select(0, place)


def pair_stage(run: Run, model: ReIDModel, prompts: DualPrompts, config: Config, library: Library) -> Stage:
    """CLIP-ReID's first stage with pairs of images, and two texts for each identity."""
    labels, scale = run.data.labels.to(run.device), clip_reid.text_scale(run.backbone)
    found = functools.cache(lambda: pair_features(run, model, config, library))
    stage = clip_reid.prompt_stage(run, model, prompts, config, lambda: found()[0][:, 0])

    def after_epoch(done: int) -> None:
        assert stage.after_epoch is not None
        stage.after_epoch(done)
        if done == stage.epochs:
            share = own_text(*found(), prompts.occluded_bank(), labels, scale)
            run.log.write("stage1", done, occluded_image_to_text=share)
            run.log.say(f"stage1  occluded image finds its own text with its occluder {share:.1%}")

    optimiser = torch.optim.Adam([prompts.context, prompts.occluder], lr=config.prompt_rate, weight_decay=1e-4)
    optimiser.param_groups[0]["base"] = 1.0  # the schedule gives the rate itself
    return replace(
        stage,
        module=PairLearning(prompts, scale),
        batches=pair_batches(found, labels, config.prompt_batch, run.seed),
        optimisers=(optimiser,),
        after_epoch=after_epoch,
        identities=lambda: {
            "prompts": prompts.context,
            "text_bank": prompts.bank(),
            "occluder_prompts": prompts.occluder,
            "occluded_text_bank": prompts.occluded_bank(),
        },
    )


@torch.no_grad()
def own_text(features: Tensor, kinds: Tensor, bank: Tensor, labels: Tensor, scale: float | None) -> float:
    """The share of occluded versions (of `pair_features`) whose most similar text, of all identities [k, I, E] behind
    the same class of occluder, is their own."""
    logits = class_text_logits(features[:, 1:].flatten(0, 1), bank, kinds.flatten().clamp(0, len(bank) - 1), scale)
    own = labels.repeat_interleave(kinds.shape[1])
    return (logits.argmax(1) == own).float().mean().item()


# Stage 2 -------------------------------------------------------------------------------------------------------------


class Pairs(clip_reid.Tuning):
    """Stage 2 as a module: both views of a batch to the losses of CLIP-ReID's second stage and those of their texts."""

    config: Config

    def __init__(
        self,
        model: ReIDModel,
        banks: Banks,
        scale: float | None,
        config: Config,
        sampled: SampledRows | None = None,
    ) -> None:
        super().__init__(model, banks.texts, scale, config, sampled)
        self.banks = banks

    def losses(self, output: Output, batch: Batch) -> Losses:
        """Features and logits of all processes; of the batch, which has both views of this process, also "kinds"."""
        with full_precision(batch["labels"].device):
            labels, kinds, second = (gather(x) for x in (batch["labels"], batch["kinds"], second_view(batch["labels"])))
            labels = place(labels, batch)
            losses = clip_reid.tuning_loss(output, labels, None, None, self.config)
            texts, occluded = self.banks
            if texts is not None:
                features = output.features["projection"]
                banks = Banks(seen(texts, batch), None if occluded is None else seen(occluded, batch, 1))
                losses |= text_losses(features, labels, kinds, second, banks, self.scale, self.config)
            if self.config.weight_consistency:
                compared = {name: output.features[name] for name in self.model.aggregator.test}
                losses["consistency_loss"] = self.config.weight_consistency * apart(compared, second)
            return losses


def second_view(labels: Tensor) -> Tensor:
    """Which rows of a batch of this process are of the second view, [B] long, 0 or 1."""
    return (torch.arange(len(labels), device=labels.device) >= len(labels) // 2).long()


def text_losses(
    features: Tensor, labels: Tensor, kinds: Tensor, second: Tensor, banks: Banks, scale: float | None, config: Config
) -> Losses:
    """Image-to-text of both views with the first text, and of occluded images with the second.

    Each is a mean over all G rows; the second counts 0 where nothing is hidden.

    Args:
        features: [G, E] in the text space.
        labels, kinds, second: [G] long; the class of the occluder (-1: none); 1 for rows of the second view.
        banks: with texts; without `occluded` there is no second term.
        scale: temperature of image-text logits, None for raw dot products.
    """
    assert banks.texts is not None
    weights = torch.where(second > 0, config.weight_occluded_i2t, config.weight_i2t)
    logits = image_text_logits(features, banks.texts, scale)  # [G, I]
    losses = {"i2t_loss": id_loss(logits, labels, config.smoothing, weights)}
    if banks.occluded is not None:
        behind = class_text_logits(features, banks.occluded, kinds.clamp(0, len(banks.occluded) - 1), scale)  # [G, I]
        occluded = config.weight_occluder * (kinds >= 0).float()
        losses["occluder_loss"] = id_loss(behind, labels, config.smoothing, occluded)
    return losses


def apart(features: dict[str, Tensor], second: Tensor) -> Tensor:
    """The distance of the two views of each image, the mean over these features [G, D]."""
    rows = [(second == view).nonzero()[:, 0] for view in (0, 1)]  # in the same order, process by process
    found = [consistency_loss(*(x.index_select(0, each) for each in rows)) for x in features.values()]
    return torch.stack(found).mean()


def tuning_stage(run: Run, model: ReIDModel, banks: Banks, config: Config, library: Library | None) -> Stage:
    """PK batches of augmented images in two views, one optimiser."""
    sampled = sample_rows(run, model, config)
    module = Pairs(model, banks, clip_reid.text_scale(run.backbone), config, sampled)
    return Stage(
        name="stage2",
        module=module,
        batches=image_batches(run, views=2, change=occluded_view(config, library)),
        optimisers=(stage_optimiser(model, config, module),),
        rate=stage_rate(config),
        epochs=config.epochs,
        clip_norm=config.clip_norm,
        memory=memory_of(sampled),
        checkpoint_every=config.checkpoint_every,
    )
