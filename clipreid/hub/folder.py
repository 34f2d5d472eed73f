"""A trained model <-> a run folder. Only safetensors and JSON are ever read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipreid.backbones import Backbone
from clipreid.backbones.imported import ImportedBackbone
from clipreid.backbones.record import backbone_print, backbone_record, load_recorded
from clipreid.errors import UserError
from clipreid.hub.checks import check_finite, read_settings, read_tensors
from clipreid.hub.download import check_backbone, find_run
from clipreid.hub.files import ADAPTER, CONFIG, HEADS, IDENTITIES, TOWER, check_file, share, snapshot_of
from clipreid.hub.plain import mark_adapter
from clipreid.model import ModelConfig, ReIDModel
from clipreid.strength import check_strength, set_strength

PARTS = ("necks.", "maps.", "side.")  # of a model, in heads.safetensors


def save_model(model: ReIDModel, folder: Path) -> None:
    """Writes `adapter/` (plain peft) or `image_tower.safetensors`, and `heads.safetensors`.

    Raises:
        ValueError: the model's strength is not 1: the files are those of the whole run.
    """
    if model.strength != 1:
        raise ValueError(f"a model of strength {model.strength} is not saved: set_strength(model, 1) first")
    if model.config.tuning == "lora":
        # without the word about embeddings peft would ask the Hub for the backbone's config
        model.image.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)  # type: ignore[operator]
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # peft's empty template
        (backbone,) = model.source
        source = backbone_record(backbone, backbone.positions)
        mark_adapter(folder / "adapter", {"backbone": source, "model": model_record(model.config)}, model.family)
    elif model.config.tuning == "full":
        save_file(_plain(model.tower.state_dict()), folder / TOWER)
    heads = {n: t for n, t in model.state_dict().items() if n.startswith(PARTS) and "classifier" not in n}
    save_file(_plain(heads), folder / HEADS)
    for file in (folder / HEADS, folder / TOWER, folder / ADAPTER):
        if file.is_file():
            share(file)


def save_identities(folder: Path, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Writes what belongs to single identities (prompts, text bank, classifiers); it is not published."""
    scratch = folder / f"{IDENTITIES}.writing"
    save_file(_plain(tensors), scratch, metadata={"names": json.dumps(names)})
    scratch.replace(folder / IDENTITIES)  # a killed run keeps the old file or has the new one


def load_identities(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and the identity names that `save_identities` wrote; raises `UserError` where others did."""
    file = folder / IDENTITIES
    tensors = read_tensors(file, folder)
    with safe_open(file, "pt") as handle:
        text = (handle.metadata() or {}).get("names", "[]")
    try:
        names = json.loads(text)
        sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{file}: the names in it are not a list of texts: it is damaged, or clipreid did not write it")
    return tensors, names


def load(run: str | Path, *, revision: str | None = None, strength: float = 1.0) -> ReIDModel:
    """A trained model from its run folder or from the Hugging Face Hub, ready to `embed`.

    What is downloaded is kept in the Hub's cache, from which it loads without network. Nothing in a run folder or
    repository is executed: JSON and safetensors are read, and checked before they are believed (`checks`).

    Example:
        >>> model = clipreid.load("runs/demo")
        >>> features = model.embed(["a.jpg", "b.jpg"])  # float32 [2, D], L2-normalised
        >>> model = clipreid.load("owner/name", revision="v1")

    Args:
        run: a run folder, or the name of a published run: OWNER/NAME (see `find_run`).
        revision: of a published run: a branch, tag or commit; None is its main branch.
        strength: how much of what training changed takes part, from 0 (zero-shot) to 1 (`set_strength`).

    Raises:
        UserError: neither a run folder nor a repository that can be had; an unfinished run; no such strength;
            settings that are unknown, missing or absurd; files that are missing, damaged, not safetensors, lead out
            of the folder, or were made for another backbone; missing or unexpected weights.
    """
    check_strength(strength)
    folder = find_run(run, revision)
    _, settings, source = read_settings(folder)
    weights = {"lora": find_adapter(folder), "full": folder / TOWER, "head": folder / HEADS}[settings.tuning]
    for file in (weights, folder / HEADS):
        check_file(file, folder)  # before the backbone is read, which takes longer
    model = ReIDModel(_read_backbone(folder, source), settings)
    if settings.tuning == "lora":
        wanted = get_peft_model_state_dict(model.image, save_embedding_layers=False)
        set_peft_model_state_dict(model.image, read_tensors(weights, folder, wanted))
    elif settings.tuning == "full":
        model.tower.load_state_dict(read_tensors(weights, folder, model.tower.state_dict()))
    wanted = {n: t for n, t in model.state_dict().items() if n.startswith(PARTS)}
    model.load_state_dict(read_tensors(folder / HEADS, folder, wanted), strict=False)
    return set_strength(model.eval(), strength)


def _read_backbone(folder: Path, source: dict[str, Any]) -> Backbone:
    """The backbone of a run, the same weights as in training; of an imported run an empty tower of its shape."""
    if "vision" in source:
        try:
            return ImportedBackbone.from_record(source["vision"])
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
            raise UserError(f"{folder / CONFIG}: the shape of the imported tower is unusable ({error})") from error
    if snapshot_of(folder) is not None:
        check_backbone(source["name"], source["revision"])
    try:
        backbone = load_recorded(source)
    except Exception as error:  # what others wrote goes through several libraries, each with its own errors
        if isinstance(error, UserError) or snapshot_of(folder) is None:
            raise
        raise UserError(f"{folder / CONFIG}: its backbone {source['name']} cannot be read ({error})") from error
    if (now := backbone_print(backbone)) != source["print"]:
        raise UserError(
            f"{folder} was trained on other weights of {source['name']!r} (fingerprint {source['print']}, here {now}): "
            "load it with the backbone it was made for"
        )
    check_finite(backbone.state_dict(), source["name"])  # the print of a hostile run may be that of bad weights
    return backbone


def find_adapter(folder: Path) -> Path:
    """The adapter's weights: below adapter/ in a run folder, at the root of a published one."""
    root = folder / ADAPTER.name
    return root if root.is_file() and not (folder / ADAPTER).is_file() else folder / ADAPTER


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def model_record(config: ModelConfig) -> dict[str, Any]:
    """The part of `config.json` that `load` needs to build the model."""
    return asdict(config)
