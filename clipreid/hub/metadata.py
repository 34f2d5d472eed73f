"""What a model card is made of, and its first part: the metadata block that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipreid.backbones.load import TINY
from clipreid.evaluation.tables import TITLES
from clipreid.hub.files import last_stage
from clipreid.hub.licences import licence_of

RELATIONS = {"lora": "adapter", "full": "finetune", "head": "adapter"}  # to the base model, by tuning


@dataclass(frozen=True)
class Facts:
    """What a card is made of; there is no path and no name of an identity in it."""

    repository: str  # OWNER/NAME
    config: Mapping[str, Any]  # public
    metrics: Mapping[str, Mapping[str, Any]]  # public: {data: {model: figures}}
    family: str  # of the backbone: clip, siglip, image-only
    base: str | None  # the backbone in transformers' layout (`transformers_base`)
    plain: str  # Python that gives the features with peft and transformers alone, or
    reason: str  # why there is none
    width: int  # D of the test feature
    mean: Sequence[float]  # of the pixels, 0..1
    std: Sequence[float]
    interpolation: str  # of the crops
    reads: Sequence[str] = ()  # what the model wants to know of the images: cameras, views
    licence: str | None = None  # given by the user
    images: Sequence[str] = ()  # files to show: curves.png, ranked_lists.png
    identities: bool = False  # whether per-identity tensors are published
    calibration: Mapping[str, Any] | None = None  # public: calibration.json
    metric: str = "cosine"  # by which the test features are compared

    @property
    def backbone(self) -> str:
        return str(self.config["backbone"]["name"])

    @property
    def method(self) -> str:
        return str(self.config["method"])

    @property
    def stage(self) -> str:
        """What metrics.json calls this model."""
        return last_stage(self.config)

    @property
    def tuning(self) -> str:
        return str(self.config["config"].get("tuning", "head"))

    @property
    def noun(self) -> str:
        return str(self.config.get("data", {}).get("noun", "individual"))


def metadata(facts: Facts) -> str:
    """The YAML block, its results as a model-index that the Hub checks."""
    from huggingface_hub import ModelCardData

    identifier, name = (facts.licence, "") if facts.licence else licence_of(facts.backbone)
    adapter, base = facts.tuning == "lora", _base_model(facts)
    data = [_identifier(numberless(spec)) for spec in facts.config.get("run", {}).get("data", [])]
    nouns, results = [f"{noun.strip()}-re-identification" for noun in facts.noun.split(",")], _eval_results(facts)
    card = ModelCardData(
        model_name=facts.repository if results else None,
        license=identifier,
        license_name=name or None,
        library_name="clipreid",  # the Hub's lines for peft would load no tower of an adapter like this
        pipeline_tag="image-feature-extraction",
        tags=["clipreid", "re-identification", *nouns, "image-retrieval", *["lora", "peft"] * adapter],
        datasets=list(dict.fromkeys(data)) or None,
        base_model=base,
        base_model_relation=RELATIONS[facts.tuning] if base else None,
        metrics=["mAP", "mINP", "CMC"] if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _base_model(facts: Facts) -> str | None:
    """The backbone's repository on the Hub: in transformers' layout, else where open_clip or timm takes it from."""
    if facts.base is not None:
        return None if facts.base in TINY else facts.base
    kind, _, rest = facts.backbone.partition(":")
    found = ""
    if kind == "open_clip":
        from open_clip import get_pretrained_cfg

        found = get_pretrained_cfg(*rest.split("/", 1)).get("hf_hub") or ""
    elif kind == "timm":
        from timm.models import get_pretrained_cfg as get_timm_cfg

        settings = get_timm_cfg(rest)
        found = (settings and settings.hf_hub_id) or ""
    parts = found.split("/")[:2]
    return "/".join(parts) if len(parts) == 2 and all(parts) else None


def numberless(name: str) -> str:
    """`market1501 2` -> `market1501`: the same public set from another place."""
    return re.sub(r" \d+$", "", name)


def _identifier(name: str) -> str:
    """The name of data as the Hub takes it, NAME or OWNER/NAME: `hub:alice/reid/part` -> `alice/reid`,
    `synthetic:captions (val)` -> `synthetic-captions-val`."""
    if name.startswith("hub:"):
        return "/".join(name.removeprefix("hub:").partition(" ")[0].split("/")[:2])
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")


def _eval_results(facts: Facts) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Re-identification",
            dataset_type=_identifier(data),
            dataset_name=data,
            dataset_split="query and gallery",
            metric_type=key,
            metric_name=TITLES[key],
            metric_value=round(entry[key], 4),
            metric_args={"protocol": entry.get("protocol", ""), **_interval(entry, key)},
        )
        for data, models in facts.metrics.items()
        for entry in [models.get(facts.stage, {})]
        for key in TITLES
        if key in entry
    ]


def _interval(entry: Mapping[str, Any], key: str) -> dict[str, list[float]]:
    both = entry.get("intervals", {}).get(key)
    return {"interval_95": [round(float(value), 4) for value in both]} if both else {}
