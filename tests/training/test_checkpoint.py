"""Checkpoints: everything comes back to the last bit, and what is not whole is never taken."""

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from clipreid.errors import UserError
from clipreid.training import checkpoint
from clipreid.training.checkpoint import Done
from clipreid.training.stage import Stage

KINDS = ("adam", "adamw", "sgd")


def make_module(seed: int = 0, width: int = 5) -> nn.Sequential:
    """A frozen layer, a batch norm with frozen bias, a trained layer."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    module[0].requires_grad_(False)
    module[1].bias.requires_grad_(False)
    return module


def make_optimiser(module: nn.Module, kind: str = "adam") -> torch.optim.Optimizer:
    """Two groups with their own settings, as stage 2 has them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": trained[:1], "lr": 1e-3, "base": 1e-3, "weight_decay": 0.0},
        {"params": trained[1:], "lr": 1 / 3, "base": 1 / 3, "weight_decay": 1e-4},
    ]
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(groups)


class Queue(nn.Module):
    """A memory of everything that a method may keep: weights that look trainable, buffers, and counters."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.teacher = nn.Linear(2, 2)
        self.register_buffer("rows", torch.zeros(size, 2))
        self.register_buffer("next", torch.tensor(0))


def make_stage(
    module: nn.Module, *optimisers: torch.optim.Optimizer, name: str = "stage2", memory: nn.Module | None = None
) -> Stage:
    return Stage(name, module, lambda epoch: [], optimisers, lambda at: 1.0, epochs=5, memory=memory)


def step(module: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    optimiser.zero_grad()
    module(x).square().sum().backward()
    optimiser.step()


def trained(kind: str = "adam", steps: int = 3, name: str = "stage2") -> Stage:
    module = make_module()
    optimiser = make_optimiser(module, kind)
    for i in range(steps):
        step(module, optimiser, i)
    return make_stage(module, optimiser, name=name)


def fresh(seed: int = 0, width: int = 5, kind: str = "adam") -> Stage:
    """A stage before training, to be filled from a checkpoint."""
    module = make_module(seed, width)
    return make_stage(module, make_optimiser(module, kind))


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{i}.{k}": torch.as_tensor(v) for i, s in optimiser.state_dict()["state"].items() for k, v in s.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal_and_so_is_the_next_step(tmp_path: Path, kind: str) -> None:
    stage, other = trained(kind), fresh(seed=9, kind=kind)
    checkpoint.save(tmp_path, stage, Done(3))
    other.module[0].load_state_dict(stage.module[0].state_dict())  # frozen: from the backbone, not from checkpoints
    assert checkpoint.load(tmp_path / "stage2-00003", other) == Done(3)
    (optimiser,), (filled,) = stage.optimisers, other.optimisers
    assert_same(stage.module.state_dict(), other.module.state_dict())
    assert moments(optimiser)
    assert_same(moments(optimiser), moments(filled))
    for ours, theirs in zip(optimiser.param_groups, filled.param_groups, strict=True):
        for key in ("lr", "base", "weight_decay"):
            assert ours[key] == theirs[key]
    for i in (10, 11):
        step(stage.module, optimiser, i)
        step(other.module, filled, i)
    assert_same(stage.module.state_dict(), other.module.state_dict())
    assert_same(moments(optimiser), moments(filled))


def test_several_optimisers_and_the_memory_come_back_whole(tmp_path: Path) -> None:
    """Each optimiser has its own moments; of the memory also what looks like a frozen weight is kept."""

    def make() -> Stage:
        module, memory = make_module(), Queue()
        memory.requires_grad_(False)
        first = torch.optim.Adam([module[2].weight], lr=1e-3)
        second = torch.optim.SGD([module[2].bias, module[1].weight], lr=1e-2, momentum=0.9)
        return make_stage(module, first, second, memory=memory)

    stage, other = make(), make()
    for i, optimiser in enumerate(stage.optimisers):
        step(stage.module, optimiser, i)
    for value in stage.memory.state_dict().values():
        value += 7
    checkpoint.save(tmp_path, stage, Done(1))
    assert checkpoint.load(tmp_path / "stage2-00001", other) == Done(1)
    assert_same(stage.module.state_dict(), other.module.state_dict())
    assert_same(stage.memory.state_dict(), other.memory.state_dict())
    assert int(other.memory.next) == 7
    for ours, theirs in zip(stage.optimisers, other.optimisers, strict=True):
        assert moments(ours)
        assert_same(moments(ours), moments(theirs))
    before = copy.deepcopy(trained().module.state_dict())
    for memory, message in (
        (Queue(size=4), r"rows is \[3, 2\] there, \[4, 2\] here"),
        (nn.Linear(2, 2), r"missing on one"),
    ):
        other = make()
        other.module.load_state_dict(before)
        other.memory = memory
        with pytest.raises(UserError, match=rf"the checkpoint is of another model: .*{message}"):
            checkpoint.load(tmp_path / "stage2-00001", other)
        assert_same(other.module.state_dict(), before)  # nothing was half restored


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, trained(steps=0, name="stage1"), Done(0))
    assert checkpoint.load(tmp_path / "stage1-00000", fresh()) == Done(0)


def test_only_what_changes_is_kept() -> None:
    module = make_module()
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    found = checkpoint.changing_state(module)
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert found.keys() == {"1.weight", "2.weight", "2.bias"} | buffers
    assert found["2.weight"].data_ptr() == module[2].weight.data_ptr()  # shared, not copied


def test_the_last_two_of_every_stage_are_kept(tmp_path: Path) -> None:
    """An earlier stage is taken from its own when a later one is continued."""
    first, second, folder = trained(name="stage1"), trained(name="stage2"), tmp_path / "c"
    assert checkpoint.resume(folder, first, print) == Done(0)
    for stage, epoch, kept in (
        (first, 2, ["stage1-00002"]),
        (first, 10, ["stage1-00002", "stage1-00010"]),
        (first, 11, ["stage1-00010", "stage1-00011"]),
        (second, 1, ["stage1-00010", "stage1-00011", "stage2-00001"]),
        (second, 100_000, ["stage1-00010", "stage1-00011", "stage2-00001", "stage2-100000"]),
    ):
        checkpoint.save(folder, stage, Done(epoch))
        assert sorted(os.listdir(folder)) == kept
    assert checkpoint.resume(folder, first, print) == Done(11)
    assert checkpoint.resume(folder, trained(name="stage"), print) == Done(0)
    for name in ("stage2-00009.writing", "stage2-x-00012"):
        (folder / name).mkdir()
    assert checkpoint.resume(folder, second, print) == Done(100_000)
    assert checkpoint.where_last(tmp_path) == "there is no checkpoint yet"
    (folder / "stage2-x-00012").rmdir()
    folder.rename(tmp_path / "checkpoints")
    assert str(tmp_path / "checkpoints" / "stage2-100000") in checkpoint.where_last(tmp_path)
    assert "is gone" in checkpoint.where_last(tmp_path / "nowhere")


@pytest.mark.parametrize("dies_in", ["save_file", "_digest", "_flush", "rename"])
def test_killed_while_writing_the_previous_one_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """Whatever the moment, a half-written folder is ignored and the next run cleans up."""
    stage = trained()
    checkpoint.save(tmp_path, stage, Done(1))
    kept = copy.deepcopy(stage.module.state_dict())
    step(stage.module, stage.optimisers[0], 5)

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if dies_in == "rename" else checkpoint, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, stage, Done(2))
    assert (tmp_path / "stage2-00002.writing").is_dir()
    other = fresh()
    assert checkpoint.resume(tmp_path, other, print) == Done(1)
    state = checkpoint.changing_state(other.module)
    assert_same(state, {name: kept[name] for name in state})

    checkpoint.save(tmp_path, stage, Done(2))
    assert sorted(os.listdir(tmp_path)) == ["stage2-00001", "stage2-00002"]


@pytest.mark.parametrize("fails_in", ["save_file", "_flush", "write_text"])
def test_a_full_disk_loses_nothing_older_and_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    stage = trained()
    for epoch in (1, 2):
        checkpoint.save(tmp_path, stage, Done(epoch))
    written = checkpoint.save_file

    def full(*args: Any, **kwargs: Any) -> None:
        if fails_in == "save_file":  # a part of it was written
            written({}, args[1])
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if fails_in == "write_text" else checkpoint, fails_in, full)
        with pytest.raises((OSError, SafetensorError), match="No space left"):
            checkpoint.save(tmp_path, stage, Done(3))
    assert sorted(os.listdir(tmp_path)) == ["stage2-00001", "stage2-00002"]
    assert checkpoint.resume(tmp_path, fresh(), print) == Done(2)


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "gone" / "checkpoints", trained(), Done(1))
    assert not (tmp_path / "gone").exists()


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        flushed.append("rename")
        return rename(self, target)

    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append(path.name))
    monkeypatch.setattr(Path, "rename", watched)
    checkpoint.save(tmp_path / "c", trained(), Done(1))
    assert flushed == [checkpoint.TENSORS, checkpoint.STATE, "rename", "c"]


# Refusals ---------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    checkpoint.save(folder, trained(), Done(1))
    return folder / "stage2-00001"


def break_checkpoint(path: Path, how: str) -> None:
    tensors, state = path / checkpoint.TENSORS, path / checkpoint.STATE
    if how == "one byte":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif how == "cut off":
        os.truncate(tensors, 100)
    elif how == "no tensors":
        tensors.unlink()
    elif how == "no state":
        state.unlink()
    elif how == "bad json":
        os.truncate(state, 20)
    elif how == "no checksum":
        state.write_text(json.dumps({"epoch": 1}))
    elif how == "another epoch":
        state.write_text(state.read_text().replace('"epoch": 1', '"epoch": 3'))
    elif how == "another rate":
        state.write_text(state.read_text().replace('"lr": 0.001', '"lr": 0.003'))
    else:
        state.write_text("[]")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one byte", r"stage2-00001 is damaged \(checksum differs\)"),
        ("cut off", r"stage2-00001 is damaged \(checksum differs\)"),
        ("no tensors", r"stage2-00001 cannot be read \(.*tensors"),
        ("no state", r"stage2-00001 cannot be read"),
        ("bad json", r"stage2-00001 cannot be read"),
        ("no checksum", r"stage2-00001 cannot be read"),
        ("a list", r"stage2-00001 cannot be read"),
        ("another epoch", r"stage2-00001 is damaged \(checksum differs\)"),
        ("another rate", r"stage2-00001 is damaged \(checksum differs\)"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, how: str, message: str) -> None:
    path, stage = saved(tmp_path), fresh(seed=3)
    before = copy.deepcopy(stage.module.state_dict())
    break_checkpoint(path, how)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path, stage)
    assert_same(stage.module.state_dict(), before)  # nothing was half restored
    with pytest.raises(UserError, match=rf"{message}.*, and no older one is whole: start anew with --overwrite"):
        checkpoint.resume(tmp_path, stage, print)


def test_the_older_one_is_taken_where_the_last_is_damaged(tmp_path: Path) -> None:
    """Which is said; what is saved then takes the place of the damaged ones, whatever their numbers."""
    stage = trained()
    checkpoint.save(tmp_path, stage, Done(2))
    before = copy.deepcopy(stage.module.state_dict())
    step(stage.module, stage.optimisers[0], 5)
    checkpoint.save(tmp_path, stage, Done(4))
    break_checkpoint(tmp_path / "stage2-00004", "another rate")
    said: list[str] = []
    other = fresh()
    assert checkpoint.resume(tmp_path, other, said.append) == Done(2)
    assert_same(
        checkpoint.changing_state(other.module),
        {name: before[name] for name in checkpoint.changing_state(other.module)},
    )
    (line,) = said
    assert "stage2-00004 is damaged (checksum differs): the one before it is taken" in line
    checkpoint.save(tmp_path, other, Done(3))
    assert sorted(os.listdir(tmp_path)) == ["stage2-00002", "stage2-00003"]


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    path, wider = saved(tmp_path), fresh(width=6)
    before = copy.deepcopy(wider.module.state_dict())
    with pytest.raises(UserError, match=r"the checkpoint is of another model: .* is \[5\] there, \[6\] here"):
        checkpoint.load(path, wider)
    assert_same(wider.module.state_dict(), before)
    longer = nn.Sequential(*make_module(), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"of another model: 3.bias, 3.weight missing on one side"):
        checkpoint.load(path, make_stage(longer, make_optimiser(longer)))
    shorter = make_module()
    shorter[2].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"of another model: 2.bias missing on one side"):
        checkpoint.load(path, make_stage(shorter, make_optimiser(shorter)))
    merged = fresh()
    merged.optimisers = (torch.optim.Adam([p for p in merged.module.parameters() if p.requires_grad]),)
    with pytest.raises(UserError, match=r"another model: its optimisers have groups of \[\[1, 2\]\], here \[\[3\]\]"):
        checkpoint.load(path, merged)
