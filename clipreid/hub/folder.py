"""A trained model <-> a run folder. Only safetensors and JSON are ever read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipreid.backbones import Backbone
from clipreid.backbones.imported import ImportedBackbone
from clipreid.backbones.record import backbone_print, backbone_record, load_recorded
from clipreid.disk import parse_json, whole_file
from clipreid.errors import UserError
from clipreid.hub.checks import Settings, check_finite, read_settings, read_tensors
from clipreid.hub.download import check_backbone
from clipreid.hub.files import (
    ADAPTER,
    CONFIG,
    HEADS,
    IDENTITIES,
    TEXT_ADAPTER,
    TEXT_TOWER,
    TOWER,
    check_file,
    share,
    snapshot_of,
)
from clipreid.hub.plain import mark_adapter, plain_facts
from clipreid.hub.untrained import find_model, load_untrained
from clipreid.methods import build
from clipreid.model import ReIDModel
from clipreid.strength import check_strength, set_strength

ROLES = ("image.", "text.")  # of a model: towers, in files of their own


def head_state(model: ReIDModel) -> dict[str, Tensor]:
    """What of a model belongs to the heads: everything but the towers and what belongs to single identities."""
    own = _identity_prefixes(model)
    state = model.state_dict()
    return {name: x for name, x in state.items() if not name.startswith((*ROLES, *own))}


def identity_state(model: ReIDModel) -> dict[str, Tensor]:
    """What of a model belongs to single identities: modules that are marked `per_identity`."""
    own = _identity_prefixes(model)
    return {name: x for name, x in model.state_dict().items() if own and name.startswith(own)}


def _identity_prefixes(model: ReIDModel) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in model.named_modules() if getattr(module, "per_identity", False))


def save_model(model: ReIDModel, folder: Path) -> None:
    """Writes `adapter/` (plain peft) or `image_tower.safetensors`, the same of a trained text tower, and the heads.

    Raises:
        ValueError: the model's strength is not 1: the files are those of the whole run.
    """
    if model.strength != 1:
        raise ValueError(f"a model of strength {model.strength} is not saved: set_strength(model, 1) first")
    _save_tower(model.image, model.tuning, folder, ADAPTER, TOWER)
    if model.tuning == "lora":
        (backbone,) = model.source
        facts = plain_facts(backbone_record(backbone, backbone.positions), model)
        mark_adapter(folder / ADAPTER.parent, facts, model.family)
    if model.text is not None:
        _save_tower(model.text, model.text_tuning, folder, TEXT_ADAPTER, TEXT_TOWER)
    save_file(_plain(head_state(model)), folder / HEADS)
    for file in (folder / HEADS, folder / TOWER, folder / ADAPTER, folder / TEXT_TOWER, folder / TEXT_ADAPTER):
        if file.is_file():
            share(file)


def _save_tower(tower: Any, tuning: str, folder: Path, adapter: Path, whole: str) -> None:
    if tuning == "lora":
        # without the word about embeddings peft would ask the Hub for the backbone's config
        tower.save_pretrained(str(folder / adapter.parent), save_embedding_layers=False)
        (folder / adapter.parent / "README.md").unlink(missing_ok=True)  # peft's empty template
    elif tuning == "full":
        save_file(_plain(tower.state_dict()), folder / whole)


def save_identities(folder: Path, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Writes what belongs to single identities (prompts, text bank, classifiers), checksummed; it is not published."""
    plain = _plain(tensors)
    with whole_file(folder / IDENTITIES) as scratch:  # a killed run keeps the old file or has the new one
        save_file(plain, scratch, metadata={"names": json.dumps(names), "sha256": _digest(plain, names)})


def add_identities(folder: Path, tensors: dict[str, Tensor], names: list[str]) -> None:
    """The same beside what an earlier stage wrote. Raises `UserError` as `load_identities`."""
    kept = load_identities(folder)[0] if (folder / IDENTITIES).is_file() else {}
    save_identities(folder, kept | tensors, names)


def load_identities(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and the identity names that `save_identities` wrote; raises `UserError` where they are not that."""
    file = folder / IDENTITIES
    tensors = read_tensors(file, folder)
    with safe_open(file, "pt") as handle:
        about = handle.metadata() or {}
    try:
        names = parse_json(about.get("names", "[]"))
        sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{file}: the names in it are not a list of texts: it is damaged, or clipreid did not write it")
    if "sha256" in about and about["sha256"] != _digest(tensors, names):  # earlier versions wrote none
        raise UserError(f"{file} is damaged (checksum differs): train its run anew with --overwrite")
    return tensors, names


def _digest(tensors: dict[str, Tensor], names: list[str]) -> str:
    """A hash of names, kinds, shapes and values."""
    digest = hashlib.sha256(json.dumps(names).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(run: str | Path, *, revision: str | None = None, strength: float = 1.0) -> ReIDModel:
    """A trained model from its run folder or from the Hugging Face Hub, or an untrained one by name, ready to `embed`.

    What is downloaded is kept in the Hub's cache, from which it loads without network. Nothing in a run folder or
    repository is executed: JSON and safetensors are read, and checked before they are believed (`checks`).

    Example:
        >>> model = clipreid.load("runs/demo")
        >>> features = model.embed(["a.jpg", "b.jpg"])  # float32 [2, D], L2-normalised
        >>> model = clipreid.load("owner/name", revision="v1")
        >>> model = clipreid.load("tiny-clip")  # the backbone before any training

    Args:
        run: a run folder, the name of a published run: OWNER/NAME (see `find_run`), or of an untrained model, as
            everywhere on the command line (see `find_model`).
        revision: of a published run: a branch, tag or commit; None is its main branch.
        strength: how much of what training changed takes part, from 0 (zero-shot) to 1 (`set_strength`).

    Raises:
        UserError: neither a run folder nor a repository that can be had, nor an untrained model; an unfinished run;
            no such strength, or one for an untrained model;
            settings that are unknown, missing or absurd; files that are missing, damaged, not safetensors, lead out
            of the folder, or were made for another backbone; missing or unexpected weights.
    """
    check_strength(strength)
    folder = find_model(run, revision)
    if isinstance(folder, str):
        return load_untrained(folder, revision=revision, strength=strength)
    settings = check_run(folder)  # before the backbone is read, which takes longer
    backbone = _read_backbone(folder, settings.backbone)
    model = build(settings.method, backbone, settings.config)
    weights = _weights_of(folder, settings)
    load_tower(model.image, model.tuning, weights, folder)
    if model.text is not None:
        texts = {"lora": find_adapter(folder, TEXT_ADAPTER), "full": folder / TEXT_TOWER}[model.text_tuning]
        load_tower(model.text, model.text_tuning, texts, folder)
    wanted = {settings.renamed(name): x for name, x in head_state(model).items()}
    found = read_tensors(folder / HEADS, folder, wanted)
    model.load_state_dict({name: found[settings.renamed(name)] for name in head_state(model)}, strict=False)
    return set_strength(model.eval(), strength)


def check_run(folder: Path) -> Settings:
    """The settings of a run; raises `UserError` for what `load` would refuse before it reads any weights."""
    settings = read_settings(folder)
    for file in (_weights_of(folder, settings), folder / HEADS):
        check_file(file, folder)
    return settings


def _weights_of(folder: Path, settings: Settings) -> Path:
    """The file of the image tower; that of the heads where it is frozen."""
    files = {"lora": find_adapter(folder), "full": folder / TOWER, "head": folder / HEADS}
    return files[tuning_of(settings.config)]


def load_tower(tower: Any, tuning: str, file: Path, folder: Path) -> None:
    """Fills an image or text tower from the file of its adapter or of all its weights; nothing for "head"."""
    if tuning == "lora":
        from peft import get_peft_model_state_dict, set_peft_model_state_dict  # loaded with the adapters already

        wanted = get_peft_model_state_dict(tower, save_embedding_layers=False)
        set_peft_model_state_dict(tower, read_tensors(file, folder, wanted))
    elif tuning == "full":
        tower.load_state_dict(read_tensors(file, folder, tower.state_dict()))


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


def find_adapter(folder: Path, adapter: Path = ADAPTER) -> Path:
    """The adapter's weights: below adapter/ in a run folder; that of the image tower is at the root of a published
    one."""
    root = folder / adapter.name
    published = adapter == ADAPTER and root.is_file() and not (folder / adapter).is_file()
    return root if published else folder / adapter


def tuning_of(config: Any) -> str:
    """What of the image tower a method's settings train."""
    return getattr(config, "tuning", "head")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
