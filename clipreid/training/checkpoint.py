"""Checkpoints: safetensors and JSON of what training changes, complete or not there at all.

A checkpoint is a folder `checkpoints/NAME/` with `tensors.safetensors` and `state.json`. It is written under another
name, flushed to disk, checksummed and renamed, so a process killed at any moment leaves the previous one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipreid.errors import UserError

TENSORS, STATE = "tensors.safetensors", "state.json"


def changing_state(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers of `module` by name, sharing memory with it; frozen weights are left out."""
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    persistent = module.state_dict().keys()
    found |= {name: b for name, b in module.named_buffers() if name in persistent}  # type: ignore[misc]
    return found  # type: ignore[return-value]


def restore(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies `tensors` into the trainable parameters and buffers of `module`; refuses other names or shapes."""
    target = changing_state(module)
    if target.keys() != tensors.keys():
        odd = sorted(target.keys() ^ tensors.keys())[:5]
        raise UserError(f"the checkpoint is of another model: {', '.join(odd)} missing on one side")
    for name, tensor in tensors.items():
        if target[name].shape != tensor.shape:
            here, there = list(target[name].shape), list(tensor.shape)
            raise UserError(f"the checkpoint is of another model: {name} is {there} there, {here} here")
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)


def save(folder: Path, name: str, module: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Writes checkpoint `name`, then removes the other ones in `folder`."""
    moments = optimiser.state_dict()
    tensors = {f"model.{k}": v.detach() for k, v in changing_state(module).items()}
    for index, entries in moments["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    scratch, target = folder / f"{name}.writing", folder / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, scratch / TENSORS)
    record = state | {"groups": moments["param_groups"], "sha256": _digest(scratch / TENSORS)}
    (scratch / STATE).write_text(json.dumps(record, indent=1))
    for file in (scratch / TENSORS, scratch / STATE):
        _flush(file)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    _flush(folder)
    for other in folder.iterdir():
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def latest(folder: Path, kind: str) -> Path | None:
    """The complete checkpoint of this kind ("stage1", "stage2") in `folder`, if any."""
    found = [p for p in folder.glob(f"{kind}-*") if p.is_dir() and not p.name.endswith(".writing")]
    return max(found, key=lambda p: p.name) if found else None


def load(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores module and optimiser from a checkpoint; returns the state it was saved with.

    Raises:
        UserError: damaged, or of another model.
    """
    try:
        state = json.loads((path / STATE).read_text())
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
    restore(module, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": moments, "param_groups": state["groups"]})
    return state


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
