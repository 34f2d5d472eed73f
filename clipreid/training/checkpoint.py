"""Checkpoints: safetensors and JSON of what training changes, complete or not there at all.

A checkpoint is a folder `checkpoints/STAGE-EPOCH/` with `tensors.safetensors` and `state.json`. The last one of every
stage is kept: a stage that is finished is taken from it when a later stage is continued. It is written under another
name, flushed to disk, checksummed and renamed, so a process killed at any moment leaves the previous one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipreid.errors import UserError
from clipreid.training.stage import Stage

TENSORS, STATE = "tensors.safetensors", "state.json"


def changing_state(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers of `module` by name, sharing memory with it; frozen weights are left out."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    persistent = module.state_dict().keys()
    found |= {name: b for name, b in module.named_buffers() if name in persistent}  # type: ignore[misc]
    return found  # type: ignore[return-value]


def _check_fits(target: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuses, with `UserError`, tensors of other names or shapes than those they are to replace."""
    if target.keys() != tensors.keys():
        odd = sorted(target.keys() ^ tensors.keys())[:5]
        raise UserError(f"the checkpoint is of another model: {', '.join(odd)} missing on one side")
    for name, tensor in tensors.items():
        if target[name].shape != tensor.shape:
            here, there = list(target[name].shape), list(tensor.shape)
            raise UserError(f"the checkpoint is of another model: {name} is {there} there, {here} here")


def save(folder: Path, stage: Stage, epoch: int) -> None:
    """Writes the checkpoint of a stage after `epoch` epochs, then removes its earlier ones."""
    tensors = {f"model.{name}": x.detach() for name, x in changing_state(stage.module).items()}
    if stage.memory is not None:
        tensors |= {f"memory.{name}": x.detach() for name, x in stage.memory.state_dict().items()}
    groups = []
    for turn, optimiser in enumerate(stage.optimisers):
        moments = optimiser.state_dict()
        groups.append(moments["param_groups"])
        for index, entries in moments["state"].items():
            tensors |= {f"optimiser.{turn}.{index}.{key}": torch.as_tensor(x) for key, x in entries.items()}
    name = f"{stage.name}-{epoch:05d}"
    scratch, target = folder / f"{name}.writing", folder / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({key: x.cpu().contiguous().clone() for key, x in tensors.items()}, scratch / TENSORS)
    record = {"stage": stage.name, "epoch": epoch, "groups": groups, "sha256": _digest(scratch / TENSORS)}
    (scratch / STATE).write_text(json.dumps(record, indent=1))
    for file in (scratch / TENSORS, scratch / STATE):
        _flush(file)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    _flush(folder)
    for other in _of_stage(folder, stage.name):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def _of_stage(folder: Path, stage: str) -> list[Path]:
    """The complete checkpoints of a stage, the oldest first."""
    pattern = re.compile(rf"{re.escape(stage)}-(\d{{5,}})")
    found = [path for path in folder.glob("*") if path.is_dir() and pattern.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest(folder: Path, stage: str) -> Path | None:
    """The last complete checkpoint of this stage in `folder`, if any."""
    found = _of_stage(folder, stage)
    return found[-1] if found else None


def load(path: Path, stage: Stage) -> int:
    """Restores module, memory and optimisers of the stage from a checkpoint; returns the epochs that it has done.

    Raises:
        UserError: damaged, or of another model.
    """
    try:
        state = json.loads((path / STATE).read_text())
        epoch, groups = state["epoch"], state["groups"]
        intact = _digest(path / TENSORS) == state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({error}): remove it, or start anew with --overwrite"
        ) from error
    if not intact:
        raise UserError(
            f"the checkpoint {path} is damaged (checksum differs): remove it, or start anew with --overwrite"
        )
    tensors = load_file(path / TENSORS)
    changing, memory = changing_state(stage.module), stage.memory or nn.Module()
    model, remembered = _under("model.", tensors), _under("memory.", tensors)
    _check_fits(changing, model)
    _check_fits(memory.state_dict(), remembered)
    _check_optimisers(stage, groups)
    with torch.no_grad():
        for name, tensor in model.items():
            changing[name].copy_(tensor)
    memory.load_state_dict(remembered)
    for turn, optimiser in enumerate(stage.optimisers):
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(f"optimiser.{turn}.", tensors).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": moments, "param_groups": groups[turn]})
    return int(epoch)


def _check_optimisers(stage: Stage, groups: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Refuses, with `UserError`, other optimisers, or other groups in them."""
    here = [[len(group["params"]) for group in optimiser.param_groups] for optimiser in stage.optimisers]
    there = [[len(group["params"]) for group in each] for each in groups]
    if here != there:
        raise UserError(f"the checkpoint is of another model: its optimisers have groups of {there}, here {here}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
