"""Checkpoints: safetensors and JSON of what training changes, complete or not there at all.

A checkpoint is a folder `checkpoints/STAGE-EPOCH/`, within an epoch `STAGE-EPOCH+STEP/` (whole epochs, and steps of the
next one), with `tensors.safetensors` and `state.json`. The last two of every stage are kept: the older one for the
case that the disk spoils the newer, and of a finished stage because a later stage is continued from it. It is written
under another name, flushed to disk, checksummed and renamed, so a process killed at any moment leaves the previous ones
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipreid.disk import read_json
from clipreid.errors import UserError
from clipreid.hub.files import CHECKPOINTS
from clipreid.training.stage import Stage

TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT = 2  # of every stage
NEW = "start anew with --overwrite"


@dataclass(frozen=True)
class Done:
    """How far a stage has come: whole epochs, steps of the next one, and what was counted since the last line of the
    log."""

    epoch: int = 0
    step: int = 0
    counted: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        return (self.epoch, self.step) != (0, 0)

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + f" and {self.step} steps of the next" * bool(self.step)


class Damaged(UserError):
    """A checkpoint that is not what was written."""


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


def save(folder: Path, stage: Stage, done: Done) -> None:
    """Writes the checkpoint of a stage, then removes all but this and the one before it.

    Raises:
        OSError, SafetensorError: it cannot be written, as on a full disk; the earlier ones are left as they are.
    """
    tensors = {f"model.{name}": x.detach() for name, x in changing_state(stage.module).items()}
    if stage.memory is not None:
        tensors |= {f"memory.{name}": x.detach() for name, x in stage.memory.state_dict().items()}
    groups = []
    for turn, optimiser in enumerate(stage.optimisers):
        moments = optimiser.state_dict()
        groups.append(moments["param_groups"])
        for index, entries in moments["state"].items():
            tensors |= {f"optimiser.{turn}.{index}.{key}": torch.as_tensor(x) for key, x in entries.items()}
    tensors |= {f"counted.{key}": x for key, x in done.counted.items()}
    name = f"{stage.name}-{done.epoch:05d}" + f"+{done.step:05d}" * bool(done.step)
    scratch, target = folder / f"{name}.writing", folder / name
    shutil.rmtree(scratch, ignore_errors=True)
    folder.mkdir(exist_ok=True)  # without parents: a run folder that was removed is not made again
    scratch.mkdir()
    try:
        save_file({key: x.cpu().contiguous().clone() for key, x in tensors.items()}, scratch / TENSORS)
        record = {
            "stage": stage.name,
            "epoch": done.epoch,
            "step": done.step,
            "groups": groups,
            "sha256": _digest(scratch / TENSORS),
        }
        text = json.dumps(record | {"seal": _seal(record)}, indent=1)
        (scratch / STATE).write_text(text, encoding="utf-8")
        for file in (scratch / TENSORS, scratch / STATE):
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except (OSError, SafetensorError):
        shutil.rmtree(scratch, ignore_errors=True)  # gives its room back
        raise
    _flush(folder)
    kept = [path for path in _of_stage(folder, stage.name) if _place(path) <= (done.epoch, done.step)][-KEPT:]
    for path in set(_of_stage(folder, stage.name)) - set(kept):  # also later ones, which were damaged
        shutil.rmtree(path, ignore_errors=True)


def _of_stage(folder: Path, stage: str) -> list[Path]:
    """The complete checkpoints of a stage, the oldest first."""
    return sorted(_complete(folder, re.escape(stage)), key=_place)


def _complete(folder: Path, stages: str) -> list[Path]:
    """The complete checkpoints of the stages whose name fits a pattern."""
    pattern = re.compile(rf"{stages}-\d{{5,}}(\+\d{{5,}})?")
    return [path for path in folder.glob("*") if path.is_dir() and pattern.fullmatch(path.name)]


def _place(path: Path) -> tuple[int, int]:
    """Whole epochs, and steps of the next one."""
    epoch, _, step = path.name.rpartition("-")[2].partition("+")
    return int(epoch), int(step or 0)


def where_last(run: Path) -> str:
    """A phrase for people: which checkpoint of a run folder is the last one."""
    if not run.is_dir():
        return f"{run} is gone, and its checkpoints with it"
    last = max(_complete(run / CHECKPOINTS, ".+"), key=lambda path: path.stat().st_mtime, default=None)
    return "there is no checkpoint yet" if last is None else f"the last checkpoint is {last}"


def resume(folder: Path, stage: Stage, say: Callable[[str], None]) -> Done:
    """Restores a stage from its last checkpoint that is whole, and says how far it had come.

    say: is told of each that is damaged, in favour of an older one.

    Raises:
        UserError: all of them are damaged, or one is of another model.
    """
    found = _of_stage(folder, stage.name)
    for path in reversed(found):
        try:
            return load(path, stage)
        except Damaged as error:
            if path == found[0]:
                raise UserError(f"{error}, and no older one is whole: {NEW}") from error
            say(f"{stage.name}  {error}: the one before it is taken, and what came after it is trained again")
    return Done()


def load(path: Path, stage: Stage) -> Done:
    """Restores module, memory and optimisers of the stage from a checkpoint, and says how far it had come.

    Raises:
        Damaged: it is not what was written. UserError: it is of another model.
    """
    try:
        state = read_json(path / STATE)
        epoch, step, groups = int(state["epoch"]), int(state.get("step", 0)), state["groups"]  # 0: an older version
        seal = state.pop("seal")
        intact = _seal(state) == seal and _digest(path / TENSORS) == state["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"the checkpoint {path} cannot be read ({error})") from error
    if not intact:
        raise Damaged(f"the checkpoint {path} is damaged (checksum differs)")
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
    return Done(epoch, step, _under("counted.", tensors))


def _check_optimisers(stage: Stage, groups: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Refuses, with `UserError`, other optimisers, or other groups in them."""
    here = [[len(group["params"]) for group in optimiser.param_groups] for optimiser in stage.optimisers]
    there = [[len(group["params"]) for group in each] for each in groups]
    if here != there:
        raise UserError(f"the checkpoint is of another model: its optimisers have groups of {there}, here {here}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _seal(record: Mapping[str, Any]) -> str:
    """A hash of what state.json says, which names that of the tensors."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
