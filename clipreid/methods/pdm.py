"""PDM (Li et al., arXiv 2511.05092): the text of an identity is read off its images, by textual inversion.

CLIP-ReID without learned tokens of identities. Two small networks turn the feature of an image into pseudo-words: one
for its content, "a photo of a [c] person.", one for its style, "a [s] style photo." (`clipreid/prompts/inversion.py`).

Stage 1 (frozen towers) trains both networks: supervised contrast of images with the content texts of the same identity,
and with the style texts of the same camera; the two texts of an image are made orthogonal, so that the content text
does not tell the style. No parameter of this stage belongs to an identity, and any image has its texts, also of
identities that no training has seen (`content_texts`). Stage 2 is that of CLIP-ReID: images are pulled to the content
text of their identity, the mean over its training images, computed once.

Built from the paper's abstract and listings; neither its text nor its code was at hand. Assumed, besides what stands at
the flags: the two sentences; that all losses of stage 1 are CLIP-ReID's supervised contrast, with the own image among
the positives; the squared cosine as measure of orthogonality; Adam with decay 1e-4 for the networks. The shape of the
networks is that of Pic2Word (arXiv 2302.03084). The other half of the paper, images painted by a diffusion model, is no
method.

The style network reaches the content network through the orthogonality alone. Without one of them the other half is
idle: `--style none` and `--weight-disentangle 0` give the same content network, bit for bit. Other controls:
`--prompts identity` is CLIP-ReID, `--prompts none` has no text.

P identities x K images make a batch; N training images, I identities, E embedding, H hidden width, n styles.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from clipreid.aggregation import Aggregator
from clipreid.aggregation.base import HasTokens
from clipreid.backbones import Backbone
from clipreid.config import Between, RunConfig
from clipreid.data.images import Images
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.losses import image_text_logits, supcon_loss
from clipreid.losses.regularisers import orthogonality_loss
from clipreid.methods import clip_reid
from clipreid.model import Output, ReIDModel, default_aggregator, need_text
from clipreid.prompts.identity import shared_out
from clipreid.prompts.inversion import Inversion, InversionPrompts
from clipreid.training.drift import report_drift
from clipreid.training.inversion import identity_means, inversion_batches, nouns_of, styles_of, texts_of
from clipreid.training.optimisers import full_precision
from clipreid.training.run import Run
from clipreid.training.sampling import SampledRows
from clipreid.training.schedules import prompt_rate
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/pdm.py"


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, for both stages, and those of the inversion networks."""

    prompts: Literal["inversion", "identity", "none"] = "inversion"  # type: ignore[assignment]
    """inversion: texts read off the images; identity: learned tokens per identity, as CLIP-ReID; none: without texts"""
    style: Literal["camera", "set", "none"] = "camera"
    """Which images share a style: those of a camera (assumed), or of a data set; none: no style network"""
    targets: Literal["identity", "image"] = "identity"
    """Stage 2: pulled to the mean content text of the identity (assumed), or to those of the images in the batch"""
    content_words: Annotated[int, Between(1, 32)] = 1
    """Pseudo-words of the content text"""
    style_words: Annotated[int, Between(1, 32)] = 1
    """Pseudo-words of the style text"""
    inversion_width: Annotated[int, Between(1, 16_384)] = 512
    """Hidden width of the networks, as Pic2Word's"""
    inversion_dropout: Annotated[float, Between(0, 0.9)] = 0.1
    """Dropout in them, as Pic2Word's"""
    inversion_input: Literal["standardised", "unit"] = "standardised"
    """standardised: each dimension of a feature by its mean and deviation over the training images (assumed); unit: of
    unit length alone"""
    inversion_rate: Annotated[float, Between(1e-7, 1)] = 1e-4
    """Stage 1: learning rate of the networks, as Pic2Word's; the schedule is that of prompts"""
    weight_style: Annotated[float, Between(0, 1e3)] = 1.0
    """Stage 1: weight of the contrast with style texts (assumed)"""
    weight_disentangle: Annotated[float, Between(0, 1e3)] = 1.0
    """Stage 1: weight of the squared cosine of the two texts of an image (assumed)"""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    # CLIP-ReID's; nothing else is known
    "paper": {**clip_reid.PRESETS["paper"], "weight_id": {"identity": 0.25, "inversion": 0.25, "none": 1.0}},
}
# Of 1e-3 and 4e-3, after 6 epochs: more separable texts, and as good ones for the identities of val.
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"], "inversion_rate": 4e-3},
    "paper": {**clip_reid.TINY["paper"], "inversion_rate": 4e-3},
}
OWN = (  # settings of stage 1
    "style", "content_words", "style_words", "inversion_width", "inversion_dropout", "inversion_input",
    "inversion_rate", "weight_style", "weight_disentangle",
)  # fmt: skip
BOTH_STAGES = ("prompts", "targets", "images_per_identity", "balance")  # what both of them read
STAGE_FLAGS = {
    "stage1": (*clip_reid.STAGE_FLAGS["stage1"], *OWN),
    "stage2": tuple(name for name in clip_reid.STAGE_FLAGS["stage2"] if name not in BOTH_STAGES),
}


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's; refuses styles that nobody knows and sentences that do not fit.

    Raises:
        UserError: as CLIP-ReID's; a single style; too many pseudo-words for the context of the text tower.
    """
    fitted: Any = clip_reid.fit(config, data, backbone, flags, processes)
    if config.prompts != "inversion":
        return fitted
    if config.style != "none" and int(styles_of(data, config.style).max()) == 0:
        what = "camera" if config.style == "camera" else "data set"
        raise UserError(
            f"--style {config.style}: all training images are of one {what}, or of none that is known, so there is no "
            "style to tell: take --style none"
        )
    InversionPrompts(backbone, *networks(backbone, config), nouns_of(data)[0])
    return fitted


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model; with `prompts` inversion the networks lie in its aggregator, which gives the same features.

    identities: I; 0 for a model that only embeds. Raises `UserError` where the backbone lacks what the settings need.
    """
    taps = default_aggregator(backbone, config.aggregation)
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=clip_reid.side_hooks(backbone, config),
        aggregator=WithInversion(taps, *networks(backbone, config)) if config.prompts == "inversion" else taps,
        identities=identities,
    )


def networks(backbone: Backbone, config: Config) -> tuple[Inversion, Inversion | None]:
    """The networks of content and style, untrained. Raises `UserError` for a backbone without text tower."""
    width: Any = need_text(backbone, "--prompts inversion").width
    features = backbone.image.embed_dim
    content = Inversion(features, width, config.content_words, config.inversion_width)
    if config.style == "none":
        return content, None
    return content, Inversion(features, width, config.style_words, config.inversion_width)


class WithInversion(Aggregator):
    """The features of another aggregator as they are; holds the networks, so that they are saved with the heads."""

    def __init__(self, beside: Aggregator, content: Inversion, style: Inversion | None) -> None:
        super().__init__()
        self.beside, self.content, self.style = beside, content, style
        self.taps, self.widths, self.necks, self.test = beside.taps, beside.widths, beside.necks, beside.test
        self.scored, self.reads, self.pixels = beside.scored, beside.reads, beside.pixels

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of B images to the features of `beside`."""
        found: dict[str, Tensor] = self.beside(tokens, about)
        return found

    def bake(self) -> None:
        self.beside.bake()


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """Stage 1 (unless `prompts` is none), then stage 2 towards the texts that it left."""
    texts = None
    if config.prompts == "identity":
        texts = yield from clip_reid.learned_bank(run, model, config)  # [I, E]
    elif config.prompts == "inversion":
        texts = yield from inverted_texts(run, model, config)  # [I, E] or [N, E]
    stage = clip_reid.tuning_stage(run, model, texts, config)
    if config.prompts == "inversion" and config.targets == "image":
        assert texts is not None
        tuned: Any = stage.module
        stage.module = ImageTexts(model, texts, tuned.scale, config, tuned.sampled)
    yield stage
    report_drift(run, model)


@torch.no_grad()
def content_texts(model: ReIDModel, images: Images, noun: str = "person", batch_size: int = 64) -> Tensor:
    """Images, also of identities that no training has seen, to their content texts, float32 [N, E] of unit length.

    They are to be compared with the feature `projection` of images.

    Args:
        model: of a run of this method, loaded with `strength=0`: the networks read the tower as stage 1 saw it. (Not
            of one started with `--init`: strength 0 is the backbone before that.)
        images: as for `ReIDModel.embed`.
        noun: what the individuals are.
        batch_size: images at a time.

    Raises:
        UserError: a model without such networks, or of another strength.
    """
    networks = model.aggregator
    if not isinstance(networks, WithInversion):
        raise UserError("content_texts needs a run of recipes/pdm.py with --prompts inversion")
    if model.strength != 0:
        raise UserError("content_texts reads the tower as it was before stage 2: load the run with strength=0")
    (backbone,) = model.source
    prompts = InversionPrompts(backbone, networks.content, nouns=(noun,)).to(model.device)
    found = []
    with model.evaluating():
        for crops in model.crops(images).split(batch_size):
            feature = model.features(model.normalise(crops))["projection"]
            kind = torch.zeros(len(crops), dtype=torch.long, device=model.device)
            found.append(nn.functional.normalize(prompts.content_texts(feature, kind), dim=1).cpu())
    return torch.cat(found)


# Stage 1 -------------------------------------------------------------------------------------------------------------


class InversionLearning(nn.Module):
    """Stage 1 as a module: cached image features to the losses of both networks.

    texts: what stage 2 is pulled to, [I, E] or [N, E]; filled at the end of the stage, and kept in its checkpoint.
    """

    texts: Tensor

    def __init__(self, prompts: InversionPrompts, scale: float | None, config: Config, texts: Tensor) -> None:
        super().__init__()
        self.prompts, self.scale, self.config = prompts, scale, config
        self.register_buffer("texts", texts)

    def forward(self, batch: Batch) -> Losses:
        """ "features" [B, E], "labels", "styles", "kinds" [B], perhaps "kept" [B, 2, 2, H]; alike in every process."""
        features, labels, kinds, kept = batch["features"], batch["labels"], batch["kinds"], batch.get("kept")
        rows = torch.arange(len(labels), device=labels.device)

        def of(network: int, at: Tensor) -> Tensor | None:
            return None if kept is None else kept[at, network]

        prompts, config = self.prompts, self.config
        texts = shared_out(lambda at: prompts.content_texts(features[at], kinds[at], of(0, at)), rows)  # [B, E]
        losses = clip_reid.prompt_loss(features, texts, labels, self.scale)
        if prompts.style is None:
            return losses
        styles = shared_out(lambda at: prompts.style_texts(features[at], of(1, at)), rows)  # [B, E]
        found = clip_reid.prompt_loss(features, styles, batch["styles"], self.scale)
        losses |= {f"style_{name}": config.weight_style * loss for name, loss in found.items()}
        with full_precision(features.device):
            losses["disentangle_loss"] = config.weight_disentangle * orthogonality_loss(texts, styles)
        return losses


def inverted_texts(run: Run, model: ReIDModel, config: Config) -> Generator[Stage, None, Tensor]:
    """Stage 1; returns the texts that stage 2 is pulled to: of identities [I, E], or of images [N, E]."""
    if "stage1" in run.record["stages"]:  # by an earlier command, whose output is gone
        clip_reid.doubt_texts(run, run.record.get("separability", {}), "--inversion-rate")
    networks: Any = model.aggregator
    prompts = InversionPrompts(run.backbone, networks.content, networks.style, nouns_of(run.data)[0]).to(run.device)
    rows = len(run.data.names if config.targets == "identity" else run.data.labels)
    texts = torch.zeros(rows, run.backbone.image.embed_dim, device=run.device)
    module = InversionLearning(prompts, clip_reid.text_scale(run.backbone), config, texts)
    yield inversion_stage(run, model, module, config)
    networks.requires_grad_(False)  # in stage 2 the networks rest
    return module.texts.clone()


def inversion_stage(run: Run, model: ReIDModel, module: InversionLearning, config: Config) -> Stage:
    """Adam on both networks; the images' features are computed once, without augmentation."""
    prompts, labels, epochs = module.prompts, run.data.labels.to(run.device), config.prompt_epochs

    @cache
    def features() -> Tensor:  # [N, E]
        found = clip_reid.image_features(run, model)
        for network in (prompts.content, prompts.style):
            if network is not None and config.inversion_input == "standardised":
                network.standardise(found)
        return found

    def after_epoch(done: int) -> None:
        if done < epochs:
            return
        texts = texts_of(prompts, features(), nouns_of(run.data)[1].to(run.device))  # [N, E]
        bank = identity_means(texts, run.data.labels, len(run.data.names))  # [I, E]
        module.texts.copy_(bank if config.targets == "identity" else texts)
        found = clip_reid.separability(features(), bank, labels, module.scale)
        run.log.write("stage1", epochs, **found)
        run.log.say(
            f"stage1  text finds its own images {found['text_to_image']:.1%}, "
            f"image finds its own text {found['image_to_text']:.1%}"
        )
        clip_reid.doubt_texts(run, found, "--inversion-rate")
        run.note(separability=found)

    parameters = [p for network in (prompts.content, prompts.style) if network for p in network.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=config.inversion_rate, weight_decay=1e-4)
    optimiser.param_groups[0]["base"] = 1.0  # the schedule gives the rate itself
    every = max(1, epochs // 10)
    kept = {"text_bank": module.texts} if config.targets == "identity" else {"image_texts": module.texts}
    return Stage(
        name="stage1",
        module=module,
        batches=inversion_batches(run, features, config),
        optimisers=(optimiser,),
        rate=lambda at: prompt_rate(int(at) + 1, epochs, config.inversion_rate, config.prompt_warmup),
        epochs=epochs,
        shared=True,
        after_epoch=after_epoch,
        identities=lambda: kept,
        line_every=every,
        checkpoint_every=every,
    )


# Stage 2 -------------------------------------------------------------------------------------------------------------


class ImageTexts(clip_reid.Tuning):
    """Stage 2 with `targets` image: CLIP-ReID's losses, but images are pulled to the texts of the images in the batch.

    texts: [N, E] fixed content texts of the training images.
    """

    def __init__(
        self, model: ReIDModel, texts: Tensor, scale: float | None, config: Config, sampled: SampledRows | None = None
    ) -> None:
        super().__init__(model, None, scale, config, sampled)
        self.texts = texts

    def losses(self, output: Output, batch: Batch) -> Losses:
        """Features and logits of all processes; of the batch, which is this process's, also "rows"."""
        losses = super().losses(output, batch)
        labels, rows = gather(batch["labels"]), gather(batch["rows"])
        with full_precision(labels.device):
            logits = image_text_logits(output.features["projection"], self.texts[rows], self.scale)  # [G, G]
            losses["i2t_loss"] = self.config.weight_i2t * supcon_loss(logits, labels, labels)
        return losses
