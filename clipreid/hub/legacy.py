"""Run folders of clipreid 0.1.0: their `config.json` in today's form. Their tensors are the same, but for two names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreid.errors import UserError
from clipreid.hub.shapes import check_table

if TYPE_CHECKING:
    from clipreid.model import ReIDModel

TEXTS = tuple[str, ...]
TABLES: dict[str, dict[str, Any]] = {  # of config.json then: what is read of them below
    "backbone": {}, "model": {}, "flags": {}, "stage2": {"prompts": str},
    "values": {"tuning": str, "rate": dict[str, float]},
    "stage1": {"data": TEXTS, "noun": str, "pictures": int, "identities": int},
}  # fmt: skip
REST = {"status": str, "fingerprint": dict[str, dict[str, dict]]}
RENAMED = {"hooks.side.": "side."}  # of tensors in heads.safetensors: today's name, the name of then
METHOD = "clip_reid"  # the only one there was
FROM_VALUES = (
    "tuning", "prompt_epochs", "prompt_rate", "prompt_batch", "prompt_warmup", "optimiser", "epochs", "head_rate",
    "bias_rate_factor", "weight_decay", "schedule", "warmup", "warmup_factor", "milestones", "least_steps",
    "identities_per_batch", "smoothing", "margin", "weight_id", "weight_triplet", "weight_i2t", "pad", "flip", "erase",
)  # fmt: skip
STAGES = {"new": (), "running": (), "prompts": ("stage1",), "tuning": ("stage1",)}  # finished, by the word of then


def old_name(name: str) -> str:
    """What a tensor of the heads was called in 0.1.0."""
    for now, then in RENAMED.items():
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def of_tower() -> tuple[str, ...]:
    """The settings that 0.1.0 kept of a model beside its pixels."""
    names: tuple[str, ...] = import_module(f"clipreid.methods.{METHOD}").TOWER_FLAGS
    return names


def converted(record: dict[str, Any], file: Path) -> dict[str, Any]:
    """`config.json` in today's form, marked `converted`; as it is where it is in that form already.

    Raises:
        UserError: it is in neither form, or a value in it is of another type.
    """
    if "method" in record:
        return record
    check_table(record, REST, f"{file}: config")
    for key, hints in TABLES.items():
        check_table(record.get(key, {}), hints, f"{file}: {key}")
    try:
        return _convert(record)
    except KeyError as error:
        raise UserError(
            f"{file} is not in a form that clipreid has ever written (it lacks {error}): restore it, or train again"
        ) from error


def _convert(record: dict[str, Any]) -> dict[str, Any]:
    status = record["status"]
    values = record.get("values", {})
    model = record["model"] if status == "finished" else record.get("model", {})
    stage1, stage2, flags = record.get("stage1", {}), record.get("stage2", {}), record.get("flags", {})
    source = dict(record["backbone"])
    config = {name: values[name] for name in FROM_VALUES if name in values}
    config |= {name: model[name] for name in of_tower() if name in model or status == "finished"}
    config |= {name: stage2[name] for name in ("prompts", "balance", "checkpoint_every") if name in stage2}
    if "rate" in values:
        config["rate"] = values["rate"][values["tuning"]]
    if "pictures_per_identity" in values:
        config["images_per_identity"] = values["pictures_per_identity"]
    if "tokens" in stage1:
        config["prompt_tokens"] = stage1["tokens"]
    if "vision" not in source:
        half = [0.5, 0.5, 0.5] if values.get("pixels") == "half" else None  # None: the backbone's own
        pixels = {"mean": half, "std": half, "interpolation": values.get("test_interpolation")}
        source |= {name: model[name] for name in pixels} if status == "finished" else pixels
    run = {name: value for name, value in flags.items() if name not in ("threads", "track")}
    run |= {
        name: values[name]
        for name in ("pixels", "positions", "train_interpolation", "test_interpolation")
        if name in values
    }
    prompts = stage2.get("prompts")
    done = ["stage1"] * (prompts == "identity") + ["stage2"] if status == "finished" else list(STAGES[status])
    found = {
        "clipreid": record["clipreid"],
        "method": METHOD,
        "config": config,
        "converted": True,
        "stages": done,
        "finished": status == "finished",
        "training": _current(status),
        "backbone": source,
    }
    if run:
        found["run"] = run
    if stage1:
        found["data"] = {
            "names": stage1["data"],
            "noun": stage1["noun"],
            "images": stage1["pictures"],
            "identities": stage1["identities"],
        }
    if "fingerprint" in record:
        found["fingerprint"] = {
            spec: {
                split: {"images" if key == "pictures" else key: value for key, value in part.items()}
                for split, part in splits.items()
            }
            for spec, splits in record["fingerprint"].items()
        }
    for key in ("offsets", "local", "pooling", "separability", "imported"):
        if key in record:
            found[key] = record[key]
    return found


def _current(status: str) -> str | None:
    """The stage that an interrupted run of then was in."""
    return {"running": "stage1", "tuning": "stage2"}.get(status)


def model_settings(model: ReIDModel) -> dict[str, Any]:
    """The settings of a model as 0.1.0 kept them, for the prints of models in galleries of then."""
    own = {name: getattr(model.config, name) for name in of_tower()}
    pixels = {"mean": model.mean, "std": model.std, "interpolation": model.interpolation}
    return own | pixels
