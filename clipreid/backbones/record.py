"""A backbone in `config.json`: its name, settings and a hash of its weights; and how it is reloaded."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from clipreid.backbones.backbone import Backbone
from clipreid.backbones.load import load_backbone

RESIZED = re.compile(r"pos(ition)?_embed")  # position tables: made for the crop, and CPUs round that differently


def backbone_record(backbone: Backbone, positions: str) -> dict[str, Any]:
    """What `load_recorded` needs to load it again; to be taken before it is trained."""
    return {
        "name": backbone.name,
        "revision": backbone.revision,
        "image_size": list(backbone.image_size),
        "positions": positions,
        "stride": None if backbone.family == "image-only" else backbone.image.config.stride,
        "raw_logits": backbone.raw_logits,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "interpolation": backbone.interpolation,
        "print": backbone_print(backbone),
    }


def load_recorded(record: Mapping[str, Any]) -> Backbone:
    """The backbone of a `backbone_record`, its print not compared. Raises `UserError` as `load_backbone`."""
    backbone = load_backbone(
        record["name"],
        revision=record["revision"],
        image_size=tuple(record["image_size"]),
        positions=record["positions"],
        stride=record["stride"],
    )
    backbone.raw_logits = record["raw_logits"]  # a copy of the weights elsewhere may not say so
    for name in ("mean", "std", "interpolation"):  # None: the backbone's own
        if (value := record[name]) is not None:
            setattr(backbone, name, tuple(value) if isinstance(value, list) else value)
    return backbone


def weights_print(weights: Iterable[tuple[str, Tensor]], about: Any) -> str:
    """24 hexadecimal digits for named weights, bit by bit, and for `about`, which JSON must be able to hold.

    Left out are position tables: they are resized when a tower is built for a crop, and the last bits of that depend on
    the machine; so the settings that decide them (crop size, mode) must be in `about` where they matter.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(weights):
        if not RESIZED.search(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


def backbone_print(backbone: Backbone) -> str:
    """The hash of the image tower before training, so that an adapter is never put on another backbone unnoticed: all
    its weights, and the settings that change what they compute (size of the crop, heads, activation, eps, ...)."""
    weights = [
        (name.replace("base_model.model.", "").replace(".base_layer", ""), tensor)  # as peft calls them
        for name, tensor in backbone.image.named_parameters()
        if "lora_" not in name
    ]
    return weights_print(weights, settings_of(backbone))


def settings_of(backbone: Backbone) -> dict[str, Any]:
    """The fields of its image tower's config; of a wrapped tower none, whose name says all."""
    return {} if backbone.family == "image-only" else asdict(backbone.image.config)
