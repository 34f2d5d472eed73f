"""The learned tokens of stage 1, together with the text tower that reads them.

I identities, M learned tokens of each, W text width, E embedding, N images. All features here have unit length: a
dot product is a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.backbones import Backbone
from clipreid.backbones.record import load_recorded
from clipreid.data import SCHEMA, Mixture, ReIDData, Split, load_data, pixel_cache, reader_flags
from clipreid.errors import UserError
from clipreid.evaluation import extract
from clipreid.hub import CONFIG, IDENTITIES, load_identities, read_config
from clipreid.hub.checks import backbone_settings
from clipreid.model import ReIDModel, untrained_model
from clipreid.prompts import IdentityPrompts

AGREE = 1e-3  # of unit length: how far the text bank may lie from what the prompts say today


@dataclass(frozen=True, eq=False)
class Learned:
    """Learned tokens, and the towers that they belong to.

    prompts: holds the tokens, `prompts.context` [I, M, W].  names: of the identities, [I].  bank: their texts [I, E].
    model: the backbone as stage 1 saw it, frozen and untuned; it embeds, and has attention maps.
    noun: of the prompts; of the first one, where they differ.
    """

    prompts: IdentityPrompts
    names: list[str]
    bank: Tensor
    model: ReIDModel
    noun: str

    @property
    def backbone(self) -> Backbone:
        (backbone,) = self.model.source
        return backbone

    @property
    def tokens(self) -> Tensor:
        """The learned tokens [I, M, W]."""
        return self.prompts.context.detach()

    @torch.no_grad()
    def read(self, tokens: Tensor, like: Tensor | None = None) -> Tensor:
        """Any tokens in the place of the learned ones, [n, m, W] with m <= M, to text features [n, E].

        A prompt with fewer tokens is as much shorter, as if the sentence had been written that way.

        like: [n] numbers of the identities whose sentence is used (default: the first one's; the sentences differ in
            the noun only).

        Raises ValueError for more tokens than were learned, or another width.
        """
        learned, p = self.tokens, self.prompts
        missing = learned.shape[1] - tokens.shape[1]
        if tokens.dim() != 3 or missing < 0 or tokens.shape[2] != learned.shape[2]:
            raise ValueError(f"tokens are {list(tokens.shape)}: [n, at most {learned.shape[1]}, {learned.shape[2]}]")
        kind = p.kind[torch.zeros(len(tokens), dtype=torch.long) if like is None else like]  # [n]
        template = p.template.with_slots(id=tokens.shape[1]) if missing else p.template
        return F.normalize(template.encode({"id": tokens}, kind), dim=1)

    def features(self, split: Split) -> Tensor:
        """Images [N] to features in the text space [N, E], by the untuned image tower, as stage 1 saw them.

        Raises UserError for images that cannot be decoded.
        """
        model = self.model
        pixels = pixel_cache(split, model.image_size, interpolation=model.interpolation).pixels
        found = extract(model.embed_parts, pixels, device=model.device)
        assert isinstance(found, dict)
        return found["projection"].cpu()


def open_prompts(run: str | Path, noun: Sequence[str] | None = None) -> Learned:
    """The prompts in a run folder in which stage 1 is finished (stage 2 may be, too).

    Args:
        run: the folder, with config.json and identities.safetensors.
        noun: one for each identity, where the run was trained on several kinds of individuals.

    Raises:
        UserError: not such a folder, or prompts that do not give the text bank beside them: another backbone.
    """
    folder = Path(run)
    config = read_config(folder)
    if not (folder / IDENTITIES).is_file():
        raise UserError(
            f"{folder} has no {IDENTITIES}: run recipes/clipreid_stage1.py --output {folder} (a published "
            "run leaves it out, for it belongs to single identities)"
        )
    tensors, names = load_identities(folder)
    if "prompts" not in tensors:
        raise UserError(f"{folder / IDENTITIES} holds no prompts: it was trained with --prompts none")
    kind = config.get("data", {}).get("noun")
    if kind is None:
        raise UserError(
            f"{folder} does not say how its prompts were learned: train stage 1 anew with "
            f"recipes/clipreid_stage1.py --output {folder} --overwrite"
        )
    source = backbone_settings(config, folder / CONFIG, folder)
    if noun is None and "," in kind:
        raise UserError(
            f"{folder} was trained on several kinds of individuals ({kind}): give noun=[...], one for each identity"
        )
    backbone = load_recorded(source)
    learned = learned_prompts(backbone, tensors["prompts"], names, noun or kind)
    saved = F.normalize(tensors["text_bank"], dim=1)
    if (apart := float((learned.bank - saved).norm(dim=1).max())) > AGREE:
        raise UserError(
            f"{folder / IDENTITIES}: its prompts do not give its text bank ({apart:.2g} apart): "
            f"{source['name']} is not the backbone that they were learned with"
        )
    return learned


def learned_prompts(
    backbone: Backbone,
    tokens: Tensor,
    names: Sequence[str],
    noun: str | Sequence[str] = "person",
) -> Learned:
    """Tokens [I, M, W] of I identities, wherever they come from, to be looked at as those of a run.

    noun: one, or one for each identity.
    """
    if tokens.dim() != 3 or len(tokens) != len(names):
        raise ValueError(f"tokens are {list(tokens.shape)} for {len(names)} names: [{len(names)}, M, W] is needed")
    prompts = IdentityPrompts(backbone, len(tokens), noun, tokens.shape[1])
    if tokens.shape != prompts.context.shape:
        raise ValueError(f"tokens of width {tokens.shape[2]}: {backbone.name} needs {prompts.context.shape[2]}")
    prompts.context.data.copy_(tokens)
    prompts.requires_grad_(False)
    model = untrained_model(backbone)
    first = noun if isinstance(noun, str) else noun[0]
    return Learned(prompts, list(names), F.normalize(prompts.bank(), dim=1), model, first)


def training_data(run: str | Path, data: Sequence[str] = ()) -> ReIDData:
    """The images that a run folder's prompts were learned from, named as the prompts are: one set, `train` only.

    data: where they lie now, if not where they were in training.  Several sets become one, as in training: identities
    are "SET/IDENTITY", cameras are renumbered; its name is those of the sets, separated by " + ".

    Raises UserError for data that cannot be read, or that lacks an individual a prompt was learned for.
    """
    folder = Path(run)
    config, (_, names) = read_config(folder), load_identities(folder)
    flags = config.get("run", {})
    specs = list(data or flags.get("data") or config["data"]["names"])
    asked = reader_flags(
        [*specs, *flags.get("data", []), *flags.get("test", [])],
        flags.get("pattern"),
        flags.get("columns"),
        flags.get("unknown"),
    )
    mixture = Mixture(tuple(load_data(spec, **asked[spec]) for spec in specs))
    if bare := [found.name for found in mixture.sets if "train" not in found.splits]:
        raise UserError(f"{bare[0]} has no train split: give the data that {folder} was trained on")
    if missing := sorted(set(names) - set(mixture.identities.tolist())):
        raise UserError(
            f"{' + '.join(specs)} is not what {folder} was trained on: it has no {missing[0]!r} (and "
            f"{len(missing) - 1} others)"
        )
    table = datasets.concatenate_datasets([split.table for split in mixture.splits])
    for column, values in (("identity", mixture.identities), ("camera", mixture.cameras), ("view", mixture.views)):
        table = table.remove_columns(column).add_column(column, values.tolist(), feature=SCHEMA[column])
    split = Split("train", table.select_columns(list(SCHEMA)))
    first = mixture.sets[0]
    return replace(first, name=" + ".join(found.name for found in mixture.sets), splits={"train": split})
