"""IRRA (Jiang and Ye, CVPR 2023, arXiv 2303.12501): both towers learn from the captions of the training images.

One stage on images with a caption each. Similarity distribution matching (SDM): each image is to be as similar to the
texts of its identity as these share it, and each text to its images. Identity loss of both features by one classifier.
Masked language modelling (MLM): some words of the caption are hidden, and found again with the help of the image's
tokens (`clipreid.prompts.interaction`); this part is gone after training. If wanted, contrast of pairs (ITC). Images
without a caption take part in the identity loss of images only.

The image's feature is the tower's projection, the text's that of its end token (SigLIP: its own pooling of both); they
are compared by their cosine, as images are with images.

As published (`--preset paper`), with these differences: the mask is a learned vector instead of a token; random erasing
fills with noise, up to a third of the image (there: the mean, up to 40 %); a text in which no word was chosen has one
hidden at random (there: the first); all biases are decayed and have twice the rate (there: not those of the new
layers). CMPM, a further loss of its code, is left out.

P identities x K images make the global batch G, of which this process has B; E embedding, I identities, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from tyro.conf import arg

from clipreid.aggregation import Pooled
from clipreid.backbones import Backbone
from clipreid.config import Between, RunConfig, none_is
from clipreid.data import seed_for
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.losses import clip_loss, id_loss, mask_words, sdm_loss, word_loss
from clipreid.losses.words import IGNORED
from clipreid.model import ReIDModel, need_text
from clipreid.prompts.interaction import InteractionEncoder, image_tokens
from clipreid.training.batches import Batches, Lazy, fit_batches, image_batches
from clipreid.training.captions import said_of
from clipreid.training.drift import report_drift
from clipreid.training.optimisers import full_precision, stage_optimiser
from clipreid.training.run import Run
from clipreid.training.schedules import cosine_factor
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/irra.py"
DATA, TEST = ("synthetic:captions",), ("synthetic",)  # without --data: texts find images, images find images
MASKS = 7001  # keeps the draws of hidden words apart from others
PARTS = 7013  # and that of the first values of what is only trained


@dataclass(frozen=True)
class Config:
    """The settings of the one stage. Epochs, not iterations; rates per optimiser step at the global batch."""

    tuning: Literal["lora", "full"] = "lora"
    """Of the image tower: lora | full"""
    text_tuning: Literal["lora", "full", "frozen"] = "lora"
    """Of the text tower: lora | full | frozen, the control"""
    lora_rank: int = 8
    """Of both towers: rank r of the update B A of each weight matrix"""
    lora_alpha: float = 16.0
    """The update is multiplied by alpha / rank"""
    weight_sdm: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of similarity distribution matching"""
    weight_id: float = 1.0
    """Weight of the identity loss of images and texts"""
    weight_mlm: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of masked language modelling"""
    weight_itc: Annotated[float, Between(0, 1e3)] = 0.0
    """Weight of the contrast of pairs"""
    temperature: Annotated[float, Between(1e-3, 10)] = 0.02
    """Of SDM and ITC, which divides the cosines; fixed"""
    smoothing: float = 0.0
    """Of the labels in the identity loss"""
    mask_share: Annotated[float, Between(0.01, 1)] = 0.15
    """MLM: share of the words that are chosen; 80 % of them are hidden, 10 % replaced"""
    interaction_depth: Annotated[int, Between(0, 48)] = 4
    """MLM: blocks behind the cross-attention"""
    sampler: Literal["identities", "captions"] = "identities"
    """identities: P identities x K images; captions: as many images in random order, every caption once an epoch"""
    epochs: int = 60
    """Epochs"""
    least_steps: int = 0
    """Small data gets more epochs, until there are so many steps; 0 where --epochs is given"""
    rate: float = 1e-4
    """Learning rate of both towers (LoRA or all weights)"""
    head_rate: float = 5e-4
    """Learning rate of the classifier and of what MLM adds"""
    bias_rate_factor: float = 1.0
    """Factor on the rates of biases"""
    optimiser: Literal["adam", "adamw"] = "adamw"
    """adamw decays neither LoRA nor vectors"""
    adam_eps: Annotated[float, Between(1e-12, 1)] = 1e-8
    """Epsilon of the optimiser"""
    weight_decay: float = 1e-4
    """Weight decay"""
    warmup: float = 5
    """Epochs of linear warm-up, then cosine to 0"""
    warmup_factor: float = 0.1
    """Factor on the rates where the warm-up begins"""
    identities_per_batch: Annotated[int | None, arg(aliases=["-P"]), none_is("16, more where K is smaller")] = None
    """P, identities of a batch"""
    images_per_identity: Annotated[
        int | None, arg(aliases=["-K", "--pictures-per-identity"]), none_is("4, or 2 where most have fewer images")
    ] = None
    """K, images of each of them"""
    balance: Literal["proportional", "equal"] = "proportional"
    """With several --data: each set's share of the identities of a batch, by its number of identities or equal"""
    pad: int = 10
    """Augmentation: pixels of padding before a random crop, at a height of 256"""
    flip: float = 0.5
    """Augmentation: probability of mirroring; left and right in the text change places"""
    erase: float = 0.5
    """Augmentation: probability of random erasing"""
    tint: Annotated[float, Between(0, 1)] = 0.0
    """Augmentation: spread of a random gain of each colour channel; 0: none, for texts name colours"""
    tint_share: Annotated[float, Between(0, 1)] = 1.0
    """Augmentation: probability that an image gets such gains"""
    checkpoint_every: int = 1
    """Epochs between checkpoints"""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {"image_size": (384, 128), "rate": {"full": 1e-5, "lora": 1e-4}},
    "paper": {
        "image_size": (384, 128), "tuning": "full", "text_tuning": "full", "sampler": "captions", "optimiser": "adam",
        "adam_eps": 1e-3, "rate": 1e-5, "head_rate": 5e-5, "bias_rate_factor": 2.0, "weight_decay": 4e-5,
    },
}  # fmt: skip

# Small crops, larger rates and fewer epochs, as for CLIP-ReID; not tuned.
TINY: dict[str, dict[str, Any]] = {
    "default": {
        "image_size": None, "epochs": 3, "least_steps": 150, "warmup": 0.5, "rate": {"full": 2e-4, "lora": 2e-3},
        "head_rate": 3e-3,
    },
    "paper": {
        "image_size": None, "epochs": 6, "warmup": 1, "adam_eps": 1e-8, "rate": 2e-4, "head_rate": 1e-3,
    },
}  # fmt: skip

# The image's feature is shown by tests/methods/test_irra.py to be that of peft and transformers with these values.
PLAIN: dict[str, tuple[Any, ...]] = {"tuning": ("lora",), "text_tuning": ("lora", "full", "frozen")}


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """P, K and epochs, as the data allow.

    Raises:
        UserError: a backbone without text; data without captions; no loss at all; batches that cannot be drawn.
    """
    need_text(backbone, "IRRA learns from captions")
    if not any(said_of(data.captions)):
        names = ", ".join(each.name for each in data.mixture.sets)
        raise UserError(
            f"none of the {len(data.captions):,d} training images of {names} has a caption, and IRRA learns from "
            "captions: add a column caption (docs/data.md), or train with recipes/clipreid_stage2.py"
        )
    if not config.weight_sdm + config.weight_id + config.weight_itc:
        raise UserError(
            "--weight-sdm, --weight-id and --weight-itc are all 0: nothing trains the features that are compared; give "
            "one of them a weight"
        )
    fitted = fit_batches(config, data, flags, processes)
    if config.sampler == "identities":
        return fitted
    P, K = fitted.identities_per_batch, fitted.images_per_identity
    count = sum(max(1, len(each)) for each in said_of(data.captions))
    if count < P * K:
        raise UserError(
            f"--sampler captions: {count} captions do not fill a batch of {P} x {K} images: choose a smaller P "
            "(-P / --identities-per-batch)"
        )
    return replace(fitted, epochs=max(config.epochs, -(-config.least_steps // (count // (P * K)))))


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """Both towers with what is trained of them. The classifier belongs to the stage, for texts share it.

    Raises `UserError` for a backbone without text.
    """
    need_text(backbone, "IRRA learns from captions")
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        text_tuning=config.text_tuning,
        aggregator=Pooled(backbone.image.embed_dim, neck=False),
        identities=identities,
    )


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """The one stage."""
    with torch.random.fork_rng():  # what is new starts alike, whatever was drawn before
        torch.manual_seed(seed_for(run.seed, 0, 0, PARTS))
        module = Matching(model, len(run.data.names), config).to(run.device)
    yield Stage(
        name="irra",
        module=module,
        batches=masked_batches(run, config),
        optimisers=(stage_optimiser(model, config, module),),
        rate=lambda at: cosine_factor(at, config.epochs, config.warmup, config.warmup_factor),
        epochs=config.epochs,
        identities=module.kept,
        checkpoint_every=config.checkpoint_every,
    )
    report_drift(run, model)


def masked_batches(run: Run, config: Config) -> Batches:
    """Captioned images; with MLM also "masked" [B, L] token ids, "hidden" [B, L] bool and "wanted" [B, L], as of
    `MaskedWords`, drawn by seed, epoch, step and image."""
    plain = image_batches(run, captions=run.data.captions, every_caption=config.sampler == "captions")
    if not config.weight_mlm:
        return plain
    tokenizer, tower = run.backbone.tokenizer, run.backbone.text
    assert tokenizer is not None
    assert tower is not None
    special = tokenizer([""])[0].unique()  # start, end and padding
    ordinary = torch.arange(tower.config.vocab_size)
    ordinary, special = ordinary[~torch.isin(ordinary, special)].to(run.device), special.to(run.device)

    def batches(epoch: int) -> Sequence[Batch]:
        parts = plain(epoch)

        def make(nth: int) -> Batch:
            batch = parts[nth]
            ids, drawn = batch["captions"], []
            for row in batch["rows"].tolist():
                generator = torch.Generator().manual_seed(seed_for(run.seed, epoch, nth, MASKS + row))
                drawn.append(torch.rand(3, ids.shape[1], generator=generator))
            words = ~torch.isin(ids, special)
            masked = mask_words(ids, words, torch.stack(drawn, 1).to(ids.device), ordinary, config.mask_share)
            return batch | {"masked": masked.ids, "hidden": masked.hidden, "wanted": masked.wanted}

        return Lazy(len(parts), make)

    return batches


class Matching(nn.Module):
    """A batch of images with captions to the weighted losses; holds the shared classifier and what MLM needs."""

    def __init__(self, model: ReIDModel, identities: int, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.texts = (model.text_tower,)  # in a tuple: where it is trained it is a part of the model already
        if config.text_tuning == "frozen":
            model.text_tower.requires_grad_(False).to(model.device).eval()
        self.classifier: nn.Linear | None = None
        self.interaction: InteractionEncoder | None = None
        if config.weight_id:
            self.classifier = nn.Linear(model.widths["projection"], identities)
            nn.init.normal_(self.classifier.weight, std=0.001)
            nn.init.zeros_(self.classifier.bias)
        if config.weight_mlm:
            self.interaction = InteractionEncoder(model.text_tower, config.interaction_depth)

    def kept(self) -> dict[str, Tensor]:
        """The classifier, one row for each identity: never published unless asked."""
        return {} if self.classifier is None else {f"classifier.{n}": x for n, x in self.classifier.named_parameters()}

    def forward(self, batch: Batch) -> Losses:
        """This process's "pixels", "labels", "captions", "captioned" (and "masked", ...) to the global losses."""
        (tower,) = self.texts
        tokens = self.model.image(batch["pixels"])
        images, texts = gather(tokens.pooled.float()), gather(tower.encode(batch["captions"]).float())  # [G, E]
        losses = self.matched(images, texts, gather(batch["labels"]), gather(batch["captioned"]))
        if self.interaction is not None:
            asked = batch["wanted"] != IGNORED  # [B, L]
            masked = tower(self.interaction.embed(tower, batch["masked"], batch["hidden"]), None)  # [B, L, E]
            logits = self.interaction(masked, image_tokens(self.model.tower, tokens), asked)  # [n, V]
            with full_precision(asked.device):
                total, count = (gather(x.reshape(1)).sum() for x in word_loss(logits, batch["wanted"][asked]))
                losses["mlm_loss"] = self.config.weight_mlm * total / count.clamp_min(1)
        return losses

    def matched(self, images: Tensor, texts: Tensor, labels: Tensor, captioned: Tensor) -> Losses:
        """Features of all G images and texts [G, E] to SDM, identity loss and ITC; captioned: [G] bool."""
        config, scale, losses = self.config, 1 / self.config.temperature, {}
        with full_precision(labels.device):
            paired = images[captioned], texts[captioned]  # [n, E] both
            if config.weight_sdm:
                losses["sdm_loss"] = config.weight_sdm * mean_of(sdm_loss, *paired, labels[captioned], scale)
            if self.classifier is not None:
                found = [(images, labels), (paired[1], labels[captioned])]
                both = [mean_of(id_loss, self.classifier(x), y, config.smoothing) for x, y in found]
                losses["id_loss"] = config.weight_id * torch.stack(both).mean()
            if config.weight_itc:
                losses["itc_loss"] = config.weight_itc * mean_of(clip_loss, *paired, images.new_tensor(scale))
        return losses


def mean_of(loss: Any, x: Tensor, y: Tensor, *more: Any) -> Tensor:
    """`loss(x, y, ...)` of n rows; 0, with gradients of 0, where there are none, whose mean is no number."""
    return loss(x, y, *more) if len(x) else x.sum() + y.sum()
