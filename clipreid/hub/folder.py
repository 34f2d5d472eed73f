"""A trained model <-> a run folder. Only safetensors and JSON are ever read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.backbones.imported import ImportedBackbone
from clipreid.errors import UserError
from clipreid.model import ModelConfig, ReIDModel

CONFIG, HEADS, IDENTITIES, TOWER = (
    "config.json",
    "heads.safetensors",
    "identities.safetensors",
    "image_tower.safetensors",
)
ADAPTER = Path("adapter") / "adapter_model.safetensors"
PARTS = ("necks.", "maps.", "side.")  # of a model, in heads.safetensors


def backbone_print(backbone: Backbone) -> str:
    """A short hash of the image tower's weights, so that an adapter is never put on another backbone unnoticed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.image.state_dict().items()):
        if "lora_" not in name:
            digest.update(tensor.detach().float().cpu().flatten()[:64].numpy().tobytes())
    return digest.hexdigest()[:16]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a run folder.

    Raises:
        UserError: no such folder, not a run folder, or a config that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a run folder, such as runs/demo")
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG}")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(config, dict) or "clipreid" not in config:
        raise UserError(f"{file} was not written by clipreid")
    return config


def save_model(model: ReIDModel, folder: Path) -> None:
    """Writes `adapter/` (plain peft) or `image_tower.safetensors`, and `heads.safetensors`."""
    if model.config.tuning == "lora":
        # without the word about embeddings peft would ask the Hub for the backbone's config
        model.image.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)  # type: ignore[operator]
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's empty template
    elif model.config.tuning == "full":
        save_file(_plain(model.tower.state_dict()), folder / TOWER)
    heads = {n: t for n, t in model.state_dict().items() if n.startswith(PARTS) and "classifier" not in n}
    save_file(_plain(heads), folder / HEADS)


def save_identities(folder: Path, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Writes what belongs to single identities (prompts, text bank, classifiers); it is not published."""
    scratch = folder / f"{IDENTITIES}.writing"
    save_file(_plain(tensors), scratch, metadata={"names": json.dumps(names)})
    scratch.replace(folder / IDENTITIES)  # a killed run keeps the old file or has the new one


def load_identities(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and the identity names that `save_identities` wrote."""
    file = folder / IDENTITIES
    tensors = _read(file)
    with safe_open(file, "pt") as handle:
        return tensors, json.loads((handle.metadata() or {}).get("names", "[]"))


def load(run: str | Path) -> ReIDModel:
    """A trained model from its run folder, ready to `embed`.

    Example:
        >>> model = clipreid.load("runs/demo")
        >>> features = model.embed(["a.jpg", "b.jpg"])  # float32 [2, D], L2-normalised

    Args:
        run: a run folder.

    Raises:
        UserError: not a run folder; an unfinished run; files that are missing, damaged, not safetensors, or made
            for another backbone; missing or unexpected weights.
    """
    folder = Path(run)
    config = read_config(folder)
    if "model" not in config:
        raise UserError(f"{folder} holds no trained model yet: run recipes/clipreid_stage2.py --output {folder}")
    record = config["model"]
    names = {f.name for f in fields(ModelConfig)}
    if not isinstance(record, dict) or record.keys() != names:
        odd = sorted(set(record) ^ names, key=str) if isinstance(record, dict) else ["(all)"]
        raise UserError(
            f"{folder / CONFIG}: model settings {', '.join(odd)} are unknown or missing: another version wrote it"
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    settings = ModelConfig(**values)
    model = ReIDModel(_read_backbone(folder, config.get("backbone")), settings)
    if settings.tuning == "lora":
        _fill_adapter(model, folder)
    elif settings.tuning == "full":
        _fill(model.tower, _read(folder / TOWER), folder / TOWER)
    heads = _read(folder / HEADS)
    wanted = {n for n in model.state_dict() if n.startswith(PARTS)}
    _compare(wanted, set(heads), folder / HEADS)
    _fill(model, heads, folder / HEADS, strict=False)
    return model.eval()


def _read_backbone(folder: Path, source: Any) -> Backbone:
    """The backbone of a run, the same weights as in training; of an imported run an empty tower of its shape."""
    if isinstance(source, dict) and source.keys() == {"name", "vision"}:
        try:
            return ImportedBackbone.from_record(source["vision"])
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / CONFIG}: the shape of the imported tower is unusable ({error})") from error
    if not isinstance(source, dict) or source.keys() != {"name", "image_size", "positions", "stride", "print"}:
        raise UserError(f"{folder / CONFIG}: the backbone is not described as this version does")
    backbone = load_backbone(source["name"], image_size=tuple(source["image_size"]), positions=source["positions"],
                             stride=source["stride"])  # fmt: skip
    if (now := backbone_print(backbone)) != source["print"]:
        raise UserError(
            f"{folder} was trained on other weights of {source['name']!r} (fingerprint {source['print']}, here {now}): "
            "load it with the backbone it was made for"
        )
    return backbone


def _fill_adapter(model: ReIDModel, folder: Path) -> None:
    file = folder / ADAPTER
    tensors = _read(file)
    own = get_peft_model_state_dict(model.image, save_embedding_layers=False)
    _compare(set(own), set(tensors), file)
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{file}: {name} is {list(tensor.shape)}, this backbone needs {list(own[name].shape)}: "
                            "the adapter was made for another backbone")  # fmt: skip
    set_peft_model_state_dict(model.image, tensors)


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], file: Path, strict: bool = True) -> None:
    try:
        module.load_state_dict(tensors, strict=strict)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]  # torch lists every weight
        raise UserError(f"{file} does not fit this backbone: {' '.join(first).strip()}") from error


def _compare(wanted: set[str], found: set[str], file: Path) -> None:
    """Refuses missing and unexpected weights: nothing is filled in silently."""
    problems = []
    for what, names in (("missing", sorted(wanted - found)), ("unexpected", sorted(found - wanted))):
        if names:
            problems.append(f"{len(names)} {what} (such as {names[0]})")
    if problems:
        raise UserError(f"{file} does not fit this model: weights {' and '.join(problems)}")


def _read(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, refused unless they are finite."""
    if not file.is_file():
        raise UserError(f"{file} is missing: the run folder is incomplete")
    try:
        tensors = load_file(file)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{file} is not a safetensors file ({error}): nothing else is loaded, for safety") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{file}: {name} has values that are not finite")
    return tensors


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def backbone_record(backbone: Backbone, positions: str) -> dict[str, Any]:
    """The part of `config.json` that `load` needs to build the backbone; to be taken before it is trained."""
    return {
        "name": backbone.name,
        "image_size": list(backbone.image_size),
        "positions": positions,
        "stride": None if backbone.family == "image-only" else backbone.image.config.stride,
        "print": backbone_print(backbone),
    }


def model_record(config: ModelConfig) -> dict[str, Any]:
    """The part of `config.json` that `load` needs to build the model."""
    return asdict(config)
