"""One image tower for images and for sentences that look for images (Kvanchiani and Mamedov, arXiv 2606.02242).

Trained together, the two tasks pull the image tower apart. Decoupled (`--order decoupled`): first the image tower is
trained, as CLIP-ReID trains it; then it stays as it is, and the text tower is trained towards its features, from the
captions of the training images. So finding images with images cannot lose by the second stage: its figures do not move
by a bit. Textual supervision of the image tower is said to help both: the learned texts of CLIP-ReID (`--prompts
identity`), the captions (`--weight-captions`), both, or neither.

Text stage: similarity distribution matching (SDM) of the images' fixed features with those of their captions, and if
wanted the contrast of pairs (ITC). The features of every image, and of its mirror image, are computed once.

Built from the paper's abstract; neither its text nor its code was at hand. Assumed: that the second stage trains the
text tower alone, as LiT does (Zhai et al., CVPR 2022); its losses, which are IRRA's; LoRA; all values.

Controls: `--order together` trains both towers with all losses in one stage, and with `--compare apart` texts are
compared with the projection, images with each other by `final` alone, as methods with a token for each task do (HPL,
here with one token and two taps); `--order image` leaves the text tower as it is, `--order text` the image tower (with
`--init RUN` that of a trained run).

P identities x K images make the global batch G, of which this process has B; N training images, E embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.config import Between, RunConfig
from clipreid.data import process_slice, seed_for
from clipreid.data.augment import mirrored_rows
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.losses import clip_loss, sdm_loss
from clipreid.methods import clip_reid
from clipreid.model import Output, ReIDModel, default_aggregator, need_text
from clipreid.training.batches import Batches, Lazy, image_batches
from clipreid.training.captions import each_once, odd_captions, said_of, tokenised
from clipreid.training.drift import report_drift
from clipreid.training.occluding import occluding
from clipreid.training.optimisers import full_precision, stage_optimiser, stage_rate
from clipreid.training.run import Run
from clipreid.training.sampling import memory_of, place, sample_rows, seen
from clipreid.training.schedules import cosine_factor
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Losses, Stage

RECIPE = "recipes/joint.py"
DATA, TEST = ("synthetic", "synthetic:captions"), ("synthetic:new-cameras",)  # without --data
INHERITED = clip_reid.TOWER_FLAGS
CHUNK = 64  # images through the frozen tower at a time
MIRRORS = 7103  # keeps the draws of mirrored images apart from others


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, for the image tower, and those of the text tower."""

    order: Literal["decoupled", "together", "image", "text"] = "decoupled"
    """decoupled: the image tower first, then the text tower towards it; together: both in one stage; image, text: this
    tower alone"""
    compare: Literal["alike", "apart"] = "alike"
    """--order together: alike: identity and triplet loss on all features; apart: not on the projection, which is left
    to the texts"""
    weight_captions: Annotated[float, Between(0, 1e3)] = 0.0
    """--order decoupled, image: weight of SDM with the captions, as the untrained text tower reads them, while the
    image tower is trained"""
    text_tuning: Literal["lora", "full"] = "lora"
    """Of the text tower: lora | full"""
    text_epochs: Annotated[int, Between(1, 1e6)] = 30
    """Text stage: epochs, in each of which every caption comes once"""
    text_rate: Annotated[float, Between(1e-9, 1)] = 1e-4
    """Learning rate of the text tower (LoRA or all weights)"""
    text_batch: Annotated[int, Between(2, 1e6)] = 128
    """Text stage: captions in a batch"""
    text_warmup: Annotated[float, Between(0, 1e6)] = 1.0
    """Text stage: epochs of linear warm-up, then cosine to 0"""
    weight_sdm: Annotated[float, Between(0, 1e3)] = 1.0
    """Text stage, or --order together: weight of SDM"""
    weight_itc: Annotated[float, Between(0, 1e3)] = 0.0
    """The same of the contrast of pairs"""
    temperature: Annotated[float, Between(1e-3, 10)] = 0.02
    """Of SDM and ITC, which divides the cosines; fixed"""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    "paper": {**clip_reid.PRESETS["paper"]},
}
OF_TEXT = {"text_epochs": 10, "text_rate": 2e-3, "text_warmup": 0.5}
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"], **OF_TEXT},
    "paper": {**clip_reid.TINY["paper"], **OF_TEXT},
}
STAGE_FLAGS = clip_reid.STAGE_FLAGS | {
    "text": ("text_tuning", "text_epochs", "text_rate", "text_batch", "text_warmup", "weight_sdm", "weight_itc"),
}  # fmt: skip
PLAIN: dict[str, tuple[Any, ...]] = {**clip_reid.PLAIN, "text_tuning": ("lora", "full")}


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's; refuses what the captions do not allow.

    Raises:
        UserError: as CLIP-ReID's; a backbone without text, data without captions; a text stage without a loss.
    """
    need_text(backbone, "joint training")
    prompts = "none" if config.order == "text" else config.prompts
    fitted: Any = clip_reid.fit(replace(config, prompts=prompts), data, backbone, flags, processes)
    fitted = replace(fitted, prompts=config.prompts)
    if config.order == "image" and not config.weight_captions:
        return fitted
    count = sum(map(len, said_of(data.captions)))
    if count < 2:
        names = ", ".join(each.name for each in data.mixture.sets)
        raise UserError(
            f"{count} of the {len(data.captions):,d} training images of {names} have a caption, and the text tower "
            "learns from captions: add a column caption (docs/data.md) or a --data that has one, or take --order image"
        )
    if config.order != "image" and not config.weight_sdm + config.weight_itc:
        raise UserError("--weight-sdm and --weight-itc are 0: nothing trains the text tower; give one of them a weight")
    batch_size(config, count, processes)  # refuses what cannot be shared
    return fitted


def batch_size(config: Config, count: int, processes: int) -> int:
    """Captions in a batch of the text stage: as many for each process, and no more than there are.

    Raises `UserError` for fewer captions than processes.
    """
    size = min(config.text_batch, count) // processes * processes
    if not size:
        raise UserError(
            f"{min(config.text_batch, count)} captions in a batch (--text-batch) cannot be shared by {processes} "
            "processes: raise it, or start fewer"
        )
    return size


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model with a text tower that is trained, too (but for `--order image`).

    identities: I; 0 for a model that only embeds. Raises `UserError` for a backbone without text.
    """
    need_text(backbone, "joint training")
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        text_tuning="frozen" if config.order == "image" else config.text_tuning,
        hooks=clip_reid.side_hooks(backbone, config),
        aggregator=default_aggregator(backbone, config.aggregation),
        identities=identities,
    )


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """CLIP-ReID's two, of which the second may see captions, then `text`; or what `--order` leaves of them."""
    texts = text_parameters(model)
    if config.order != "text":
        hold(texts, config.order != "together")
        bank = None
        if config.prompts == "identity":
            bank = yield from clip_reid.learned_bank(run, model, config)  # [I, E]
        yield image_stage(run, model, bank, config)
        report_drift(run, model)
    if config.order in ("decoupled", "text"):
        model.requires_grad_(False)
        hold(texts, False)
        yield text_stage(run, model, config)


def text_parameters(model: ReIDModel) -> list[nn.Parameter]:
    """What is trained of the text tower, where it is not held still."""
    return [] if model.text is None else [x for x in model.text.parameters() if x.requires_grad]


def text_group(texts: list[nn.Parameter], config: Config) -> dict[str, Any]:
    """Their group of an optimiser; nothing is decayed."""
    return {"params": texts, "lr": config.text_rate, "base": config.text_rate, "weight_decay": 0.0}


def hold(parameters: Sequence[nn.Parameter], still: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(not still)


# The image tower, alone or with the texts ----------------------------------------------------------------------------


class WithCaptions(clip_reid.Tuning):
    """CLIP-ReID's second stage as a module, and SDM of images with their captions; images without one leave it out."""

    config: Config

    def losses(self, output: Output, batch: Batch) -> Losses:
        """Features and logits of all processes to the losses; of the batch also "captions" [B, L], "captioned" [B]."""
        config, kept = self.config, output
        if config.order == "together" and config.compare == "apart":
            parts = ({k: x for k, x in each.items() if k != "projection"} for each in (output.features, output.logits))
            kept = Output(*parts)
        texts = gather(self.model.text_tower.encode(batch["captions"]).float())  # [G, E]
        captioned, labels, features = gather(batch["captioned"]), gather(batch["labels"]), output.features["projection"]
        with full_precision(labels.device):
            classes = place(labels, batch)
            losses = clip_reid.tuning_loss(kept, classes, None, None, config)
            if self.bank is not None:
                losses |= clip_reid.text_loss(features, classes, seen(self.bank, batch), self.scale, config)
            pairs = features[captioned], texts[captioned], labels[captioned]
            return losses | caption_losses(*pairs, config, *weights_of(config))


def weights_of(config: Config) -> tuple[float, float]:
    """Of SDM and ITC, while the image tower is trained."""
    return (config.weight_sdm, config.weight_itc) if config.order == "together" else (config.weight_captions, 0.0)


def caption_losses(images: Tensor, texts: Tensor, labels: Tensor, config: Config, sdm: float, itc: float) -> Losses:
    """SDM and ITC, times these weights, of n images and their texts [n, E]; 0, with gradients of 0, where n is 0."""
    scale, losses = 1 / config.temperature, {}
    if sdm:
        losses["sdm_loss"] = sdm * (sdm_loss(images, texts, labels, scale) if len(images) else none_of(images, texts))
    if itc:
        found = clip_loss(images, texts, images.new_tensor(scale)) if len(images) else none_of(images, texts)
        losses["itc_loss"] = itc * found
    return losses


def none_of(images: Tensor, texts: Tensor) -> Tensor:
    return images.sum() + texts.sum()


def image_stage(run: Run, model: ReIDModel, bank: Tensor | None, config: Config) -> Stage:
    """CLIP-ReID's second stage, with captions where they are to be seen."""
    if config.order != "together" and not config.weight_captions:
        return clip_reid.tuning_stage(run, model, bank, config)
    if config.order != "together":
        model.text_tower.requires_grad_(False).to(run.device).eval()
    sampled = sample_rows(run, model, config)
    module = WithCaptions(model, bank, clip_reid.text_scale(run.backbone), config, sampled)
    texts = text_parameters(model)
    hold(texts, True)
    optimiser = stage_optimiser(model, config, module)  # of all but the text tower
    hold(texts, False)
    if texts:
        optimiser.add_param_group(text_group(texts, config))
    return Stage(
        name="stage2",
        module=module,
        batches=image_batches(run, change=occluding(config), captions=run.data.captions),
        optimisers=(optimiser,),
        rate=stage_rate(config),
        epochs=config.epochs,
        clip_norm=config.clip_norm,
        memory=memory_of(sampled),
        checkpoint_every=config.checkpoint_every,
    )


# The text tower ------------------------------------------------------------------------------------------------------


class Alignment(nn.Module):
    """The text stage as a module: fixed features of images and their captions to the losses; trains the text tower."""

    def __init__(self, model: ReIDModel, config: Config) -> None:
        super().__init__()
        assert model.text is not None
        self.text, self.config = model.text, config
        self.tower = (model.text_tower,)  # the same without the wrapper of its adapters

    def forward(self, batch: Batch) -> Losses:
        """This process's "features" [B, E], "captions" [B, L] and "labels" [B] to the global losses."""
        config, (tower,) = self.config, self.tower
        texts = gather(tower.encode(batch["captions"]).float())  # [G, E]
        images, labels = gather(batch["features"]), gather(batch["labels"])
        with full_precision(labels.device):
            return caption_losses(images, texts, labels, config, config.weight_sdm, config.weight_itc)


def text_stage(run: Run, model: ReIDModel, config: Config) -> Stage:
    """Adam on the text tower alone; the image tower is frozen, and its features are computed once."""
    module = Alignment(model, config)
    optimiser = torch.optim.AdamW([text_group(text_parameters(model), config)])
    epochs = config.text_epochs
    return Stage(
        name="text",
        module=module,
        batches=caption_batches(run, config, functools.cache(lambda: projections(run, model))),
        optimisers=(optimiser,),
        rate=lambda at: cosine_factor(at, epochs, config.text_warmup, config.warmup_factor),
        epochs=epochs,
        clip_norm=config.clip_norm,
        line_every=max(1, epochs // 10),
        checkpoint_every=max(1, epochs // 10),
    )


@torch.no_grad()
def projections(run: Run, model: ReIDModel) -> Tensor:
    """What texts are compared with, of every training image and of its mirror image: [N, 2, E], by the model as it is.

    Every process computes all of them, without augmentation.
    """
    crops, (cameras, views), found = run.crops(training=False), run.data.sides, []
    with model.evaluating():
        for rows in torch.arange(len(run.data.labels)).split(CHUNK):
            pixels = model.normalise(crops.index_select(0, rows.to(crops.device)))  # [b, 3, H, W]
            about = {"cameras": cameras[rows], "views": views[rows]}
            pair = [model.features(each, about)["projection"].float() for each in (pixels, pixels.flip(3))]
            found.append(torch.stack(pair, 1))
    return torch.cat(found)


def caption_batches(run: Run, config: Config, features: Callable[[], Tensor]) -> Batches:
    """Every caption once an epoch, in random order, with its image's feature, as often mirrored as `flip` says:
    "features" [B, E], "captions" [B, L] token ids, "labels", "rows" [B]."""
    said, tokenizer = said_of(run.data.captions), run.backbone.tokenizer
    assert tokenizer is not None
    for note in odd_captions(run.data.captions, tokenizer):
        run.log.say(f"note: captions: {note}")
    images = torch.tensor([nth for nth, each in enumerate(said) if each])  # those that have a caption
    spoken = [said[nth] for nth in images.tolist()]
    size = batch_size(config, sum(map(len, spoken)), run.processes)

    def batches(epoch: int) -> Sequence[Batch]:
        drawn, which = each_once(spoken, size, run.seed, epoch)  # [steps, G] both
        mine = [process_slice(x, *run.share, K=1) for x in (images[drawn], which)]  # [steps, B]

        def make(nth: int) -> Batch:
            rows, sentence = (x[nth] for x in mine)
            generator = torch.Generator().manual_seed(seed_for(run.seed, epoch, nth, MIRRORS))
            mirrored = mirrored_rows(len(rows), config.flip, generator, run.share)
            found = {"captions": tokenised(said, tokenizer, rows, sentence, mirrored)["captions"]}
            found |= {"labels": run.data.labels[rows], "rows": rows}
            batch = {name: x.to(run.device) for name, x in found.items()}
            return batch | {"features": features()[rows.to(run.device), mirrored.long().to(run.device)]}

        return Lazy(len(drawn), make)

    return batches
