"""Checkpoints: everything comes back to the last bit, and what is not whole is never taken."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipreid.errors import UserError
from clipreid.training import checkpoint

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


def step(module: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    optimiser.zero_grad()
    module(x).square().sum().backward()
    optimiser.step()


def trained(kind: str = "adam", steps: int = 3) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    module = make_module()
    optimiser = make_optimiser(module, kind)
    for i in range(steps):
        step(module, optimiser, i)
    return module, optimiser


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{i}.{k}": torch.as_tensor(v) for i, s in optimiser.state_dict()["state"].items() for k, v in s.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal_and_so_is_the_next_step(tmp_path: Path, kind: str) -> None:
    module, optimiser = trained(kind)
    checkpoint.save(tmp_path, "stage2-00003", module, optimiser, {"epoch": 3, "note": "é"})

    other = make_module(seed=9)
    other[0].load_state_dict(module[0].state_dict())  # frozen weights come from the backbone, not from checkpoints
    fresh = make_optimiser(other, kind)
    state = checkpoint.load(tmp_path / "stage2-00003", other, fresh)
    assert (state["epoch"], state["note"]) == (3, "é")
    assert_same(module.state_dict(), other.state_dict())
    assert moments(optimiser)
    assert_same(moments(optimiser), moments(fresh))
    for ours, theirs in zip(optimiser.param_groups, fresh.param_groups, strict=True):
        for key in ("lr", "base", "weight_decay"):
            assert ours[key] == theirs[key]
    for i in (10, 11):
        step(module, optimiser, i)
        step(other, fresh, i)
    assert_same(module.state_dict(), other.state_dict())
    assert_same(moments(optimiser), moments(fresh))


def test_before_the_first_step_there_are_no_moments(tmp_path: Path) -> None:
    module, optimiser = trained(steps=0)
    checkpoint.save(tmp_path, "stage1-00000", module, optimiser, {"epoch": 0})
    other = make_module()
    assert checkpoint.load(tmp_path / "stage1-00000", other, make_optimiser(other))["epoch"] == 0


def test_only_what_changes_is_kept() -> None:
    module = make_module()
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    found = checkpoint.changing_state(module)
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert found.keys() == {"1.weight", "2.weight", "2.bias"} | buffers
    assert found["2.weight"].data_ptr() == module[2].weight.data_ptr()  # shared, not copied


def test_a_new_checkpoint_replaces_the_old_ones(tmp_path: Path) -> None:
    module, optimiser = trained()
    assert checkpoint.latest(tmp_path, "stage1") is None
    for name in ("stage1-00002", "stage1-00010", "stage2-00001"):
        checkpoint.save(tmp_path / "c", name, module, optimiser, {"epoch": 1})
        assert os.listdir(tmp_path / "c") == [name]
    assert checkpoint.latest(tmp_path / "c", "stage1") is None
    assert checkpoint.latest(tmp_path / "c", "stage2") == tmp_path / "c" / "stage2-00001"
    for name in ("stage2-00009", "stage2-00010", "stage2-00011.writing"):
        (tmp_path / "c" / name).mkdir()
    assert checkpoint.latest(tmp_path / "c", "stage2") == tmp_path / "c" / "stage2-00010"


@pytest.mark.parametrize("dies_in", ["save_file", "_digest", "_flush", "rename"])
def test_killed_while_writing_the_previous_one_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """Whatever the moment, a half-written folder is ignored and the next run cleans up."""
    module, optimiser = trained()
    checkpoint.save(tmp_path, "stage2-00001", module, optimiser, {"epoch": 1})
    kept = copy.deepcopy(module.state_dict())
    step(module, optimiser, 5)

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if dies_in == "rename" else checkpoint, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, "stage2-00002", module, optimiser, {"epoch": 2})
    assert (tmp_path / "stage2-00002.writing").is_dir()
    found = checkpoint.latest(tmp_path, "stage2")
    assert found == tmp_path / "stage2-00001"
    other = make_module()
    assert checkpoint.load(found, other, make_optimiser(other))["epoch"] == 1
    assert_same(checkpoint.changing_state(other), {k: kept[k] for k in checkpoint.changing_state(other)})

    checkpoint.save(tmp_path, "stage2-00002", module, optimiser, {"epoch": 2})
    assert os.listdir(tmp_path) == ["stage2-00002"]


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        flushed.append("rename")
        return rename(self, target)

    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append(path.name))
    monkeypatch.setattr(Path, "rename", watched)
    checkpoint.save(tmp_path / "c", "stage2-00001", *trained(), {"epoch": 1})
    assert flushed == [checkpoint.TENSORS, checkpoint.STATE, "rename", "c"]


# Refusals ---------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    checkpoint.save(folder, "stage2-00001", *trained(), {"epoch": 1})
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
    else:
        state.write_text("[]")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("one byte", r"stage2-00001 is damaged \(checksum differs\): remove it, or start anew with --overwrite"),
        ("cut off", r"stage2-00001 is damaged \(checksum differs\)"),
        ("no tensors", r"stage2-00001 cannot be read .*: remove it, or start anew with --overwrite"),
        ("no state", r"stage2-00001 cannot be read"),
        ("bad json", r"stage2-00001 cannot be read"),
        ("no checksum", r"stage2-00001 cannot be read"),
        ("a list", r"stage2-00001 cannot be read"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, how: str, message: str) -> None:
    path, module = saved(tmp_path), make_module(seed=3)
    before = copy.deepcopy(module.state_dict())
    break_checkpoint(path, how)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path, module, make_optimiser(module))
    assert_same(module.state_dict(), before)  # nothing was half restored


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    path, wider = saved(tmp_path), make_module(width=6)
    before = copy.deepcopy(wider.state_dict())
    with pytest.raises(UserError, match=r"the checkpoint is of another model: .* is \[5\] there, \[6\] here"):
        checkpoint.load(path, wider, make_optimiser(wider))
    assert_same(wider.state_dict(), before)
    longer = nn.Sequential(*make_module(), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"of another model: 3.bias, 3.weight missing on one side"):
        checkpoint.load(path, longer, make_optimiser(longer))
    shorter = make_module()
    shorter[2].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"of another model: 2.bias missing on one side"):
        checkpoint.load(path, shorter, make_optimiser(shorter))
