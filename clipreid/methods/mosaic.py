"""MoSAIC-ReID (Psalta, Tsironis and Karantzalos, arXiv 2512.08697): a LoRA expert for every attribute, to measure
which attributes matter.

CLIP-ReID's model and stages; the linear layers of the last blocks get one low-rank expert for each attribute, and the
true attributes of an image decide which of them work on it (an oracle router):

    y = W x + alpha / r * sum_{a in A(x)} B_a A_a x / |A(x)|

Attributes are columns of the data (docs/data.md), in training and at test. **This is an analysis, no way to a better
figure.** Attributes are the same for all images of an individual, so the oracle leaks its identity: two people whose
attributes differ are told apart without a look at the image. Logs, tables and cards say so.
`recipes/mosaic_analysis.py` switches experts off and says what that costs.

Known from the paper: LoRA experts in the last layers of a CLIP-based transformer, one for each attribute, an oracle
router at test too. Assumed, for the code is not available: ranks, blocks and layers (8; the queries, values and both
MLP layers of the last 4), an expert for every value (`--experts attribute`: one for each attribute, whatever its
value; values such as `none` have none), their mean, zero as start of B, no expert for what is unknown, everything
of CLIP-ReID around it.

P identities x K images make the global batch G, of which this process has B; E experts, A attributes of an image.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor
from tyro.conf import Suppress

from clipreid.backbones import Backbone
from clipreid.config import Between, RunConfig
from clipreid.data import Mixture
from clipreid.data.attributes import ABSENT, ORACLE, attribute_codes, attribute_note, attribute_values, code, pack
from clipreid.data.crops import Attributes
from clipreid.errors import UserError
from clipreid.hooks.experts import AttributeExperts
from clipreid.methods import clip_reid
from clipreid.model import ReIDModel, default_aggregator
from clipreid.training.batches import Batches, Lazy
from clipreid.training.drift import report_drift
from clipreid.training.run import Run
from clipreid.training.sets import RunData
from clipreid.training.stage import Batch, Stage

RECIPE = "recipes/mosaic.py"


@dataclass(frozen=True)
class Config(clip_reid.Config):
    """CLIP-ReID's settings, and those of the experts."""

    experts: Literal["value", "attribute"] = "value"
    """value: an expert for each value that an attribute has in training (assumed); attribute: one for each attribute"""
    expert_blocks: Annotated[int, Between(1, 256)] = 4
    """The last so many blocks have experts (assumed); all blocks where there are fewer"""
    expert_rank: Annotated[int, Between(1, 1024)] = 8
    """Rank r of each expert (assumed)"""
    expert_alpha: Annotated[float, Between(0, 1e6)] = 16.0
    """An expert's update is multiplied by alpha / r (assumed)"""
    expert_mix: Literal["mean", "sum"] = "mean"
    """What the experts of an image are together (assumed)"""
    hide_attributes: Annotated[float, Between(0, 1)] = 0.1
    """In training: how often an attribute of an image is hidden from the router, so that the model knows how to do
    without it (assumed; 0: never)"""
    expert_codes: Suppress[Annotated[tuple[int, ...], Between(0, 2**32)]] = ()
    """What each expert is for, from the data: the code of a value or of an attribute (`clipreid.data.attributes`)"""
    attributes_sum: Suppress[Annotated[int, Between(0, 2**32)]] = 0
    """A checksum of the training images' attributes: a run is continued with the same ones only"""


PRESETS: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.PRESETS["default"]},
    "paper": {**clip_reid.PRESETS["paper"], "hide_attributes": 0.0},  # CLIP-ReID's; nothing else is known
}
TINY: dict[str, dict[str, Any]] = {
    "default": {**clip_reid.TINY["default"]},
    "paper": {**clip_reid.TINY["paper"], "hide_attributes": 0.0},
}
INHERITED = (*clip_reid.TOWER_FLAGS, "experts", "expert_blocks", "expert_rank", "expert_alpha", "expert_mix")
STAGE_FLAGS = {
    "stage1": clip_reid.STAGE_FLAGS["stage1"],
    "stage2": (
        *clip_reid.STAGE_FLAGS["stage2"], "experts", "expert_blocks", "expert_rank", "expert_alpha", "expert_mix",
        "hide_attributes", "expert_codes", "attributes_sum",
    ),
}  # fmt: skip


def fit(config: Config, data: RunData, backbone: Backbone, flags: RunConfig, processes: int) -> Config:
    """As CLIP-ReID's, and the experts that the training images' attributes ask for.

    Raises:
        UserError: as CLIP-ReID's; no attribute is known, or two have the same code.
    """
    known = attributes_of(data.mixture)
    codes = expert_codes(known, config.experts)
    if not codes:
        raise UserError(
            "mosaic needs attributes, and none is known of any training image: give columns attribute.NAME of a csv: "
            "or hub: table (--columns attribute.NAME=COLUMN), or a file attributes.csv in the folder of the data "
            "(docs/data.md)"
        )
    check_blocks(backbone)
    fitted: Any = clip_reid.fit(config, data, backbone, flags, processes)
    print_of = zlib.crc32("\n".join(map(pack, known)).encode())
    return replace(fitted, expert_codes=tuple(codes.values()), attributes_sum=print_of)


def attributes_of(mixture: Mixture) -> list[Attributes]:
    """What is known of each training image [N]; attributes of one name are the same in all sets."""
    return [each for split in mixture.splits for each in split.attributes]


def expert_codes(known: list[Attributes], by: Literal["value", "attribute"]) -> dict[str, int]:
    """What the experts are for, in words, and as codes; sorted. Raises `UserError` for two with the same code."""
    values = attribute_values(known)
    if by == "value":
        found = {f"{name}={value}": code(name, value) for name, each in values.items() for value in each}
    else:
        found = {name: code(name) for name, each in values.items() if any(v.lower() not in ABSENT for v in each)}
    taken: dict[int, str] = {}
    for words, number in found.items():
        if taken.setdefault(number, words) != words:
            raise UserError(f"the attributes {taken[number]} and {words} have the same code: rename one of them")
    return found


def check_blocks(backbone: Backbone) -> None:
    """Raises `UserError` for a backbone without blocks of ours."""
    if backbone.family == "image-only":
        raise UserError(f"{backbone.name} has no blocks that experts could be put into: take CLIP or SigLIP")


def build(backbone: Backbone, config: Config, identities: int = 0) -> ReIDModel:
    """CLIP-ReID's model with experts in its tower.

    identities: I; 0 for a model that only embeds. Raises `UserError` where the backbone lacks what the settings need.
    """
    check_blocks(backbone)
    experts = AttributeExperts(
        backbone.image,
        config.expert_codes,
        min(config.expert_blocks, backbone.image.depth),
        config.expert_rank,
        config.expert_alpha,
        config.experts,
        config.expert_mix,
        config.hide_attributes,
    )
    return ReIDModel(
        backbone,
        config.tuning,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        hooks=clip_reid.side_hooks(backbone, config) | {"experts": experts},
        aggregator=default_aggregator(backbone, config.aggregation),
        identities=identities,
    )


def stages(run: Run, model: ReIDModel, config: Config) -> Iterator[Stage]:
    """CLIP-ReID's stages; in the second one batches carry the images' attributes."""
    known = attributes_of(run.data.mixture)
    run.log.say(f"{len(config.expert_codes)} experts; {attribute_note(known, 'training')}")
    run.log.say(f"note: {ORACLE}")
    bank = None
    if config.prompts == "identity":
        bank = yield from clip_reid.learned_bank(run, model, config)  # [I, E]
    stage = clip_reid.tuning_stage(run, model, bank, config)
    yield replace(stage, batches=with_codes(stage.batches, attribute_codes(known).to(run.device)))
    report_drift(run, model)


def with_codes(batches: Batches, codes: Tensor) -> Batches:
    """The same batches with "attributes" [B, A, 2]; codes: of all training images [N, A, 2]."""

    def of_epoch(epoch: int) -> Lazy:
        plain = batches(epoch)

        def make(nth: int) -> Batch:
            batch = plain[nth]
            return {**batch, "attributes": codes[batch["rows"]]}

        return Lazy(len(plain), make)

    return of_epoch
