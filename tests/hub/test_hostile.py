"""Run folders and repositories made to harm: each is refused with a message, nothing runs, nothing is written.

`run` and `refused` are fixtures of conftest.py.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_hub import Trap, edit_config, edit_tensors, set_first

import clipreid
from clipreid.errors import UserError
from clipreid.hub import ADAPTER, CONFIG, HEADS
from clipreid.hub.checks import read_tensors

NAME = "alice/demo"
Change = Callable[[Path], Any]
Refused = Callable[[str, str], None]


def test_the_run_was_sound(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every refusal below is of what was changed."""
    hub.here(monkeypatch, tmp_path / "home")
    hub.put(NAME, run)
    assert torch.equal(clipreid.load(NAME).necks["final"].norm.weight, clipreid.load(run).necks["final"].norm.weight)


# Tensors -------------------------------------------------------------------------------------------------------------


def header(shape: list[int], offsets: list[int], name: str = "w", body: bytes = b"") -> Change:
    content = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return lambda run: (run / ADAPTER).write_bytes(struct.pack("<Q", len(content)) + content + body)


def pickled(file: Path, how: str) -> None:
    content = {
        "weight": Trap(file.parents[1] / "executed" if file.parent.name == "run" else file.parents[2] / "executed")
    }
    with open(file, "wb") as handle:
        pickle.dump(content, handle) if how == "pickle" else torch.save(content, handle)


def other_rank(run: Path) -> None:
    edit_config(run, lambda c: c["config"].update(lora_rank=2))


def narrower(run: Path) -> None:
    """As the adapter of an architecture of half the width."""
    edit_tensors(run / ADAPTER, lambda t: t.update({k: v[:, : v.shape[1] // 2].contiguous() for k, v in t.items()}))


def shallower(run: Path) -> None:
    """As the adapter of an architecture of fewer blocks."""
    last = max(name.split("layers.")[1][0] for name in load_file(run / ADAPTER))
    edit_tensors(run / ADAPTER, lambda t: [t.pop(name) for name in list(t) if f"layers.{last}." in name])


def wide(run: Path) -> None:
    edit_tensors(run / HEADS, lambda t: t.update({"necks.final.norm.bias": torch.zeros(5)}))


NO_SAFETENSORS = r"is not a safetensors file .*: nothing else is loaded, for safety"
NOT_FINITE = "values that are not finite"
FILES: dict[str, tuple[Change, str]] = {
    "a pickle": (lambda r: pickled(r / ADAPTER, "pickle"), NO_SAFETENSORS),
    "a torch file": (lambda r: pickled(r / ADAPTER, "torch"), NO_SAFETENSORS),
    "a pickle of heads": (lambda r: pickled(r / HEADS, "torch"), NO_SAFETENSORS),
    "10^12 elements": (header([10**6, 10**6], [0, 4 * 10**12]), NO_SAFETENSORS),
    "10^12 elements in 4 bytes": (header([10**6, 10**6], [0, 4], body=b"1234"), NO_SAFETENSORS),
    "more than 2^64 elements": (header([2**40, 2**40], [0, 4], body=b"1234"), NO_SAFETENSORS),
    "a negative shape": (header([-1], [0, 4], body=b"1234"), NO_SAFETENSORS),
    "offsets outside": (header([1], [2**40, 2**40 + 4]), NO_SAFETENSORS),
    "a huge header": (lambda r: (r / ADAPTER).write_bytes(struct.pack("<Q", 2**62) + b"{}"), NO_SAFETENSORS),
    "deep nesting": (
        lambda r: (r / ADAPTER).write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
        NO_SAFETENSORS,
    ),
    "a path as a name": (header([1], [0, 4], "../../x", b"1234"), r"missing .* 1 unexpected \(such as ../../x\)"),
    "truncated": (lambda r: os.truncate(r / ADAPTER, 5000), NO_SAFETENSORS),
    "truncated by a byte": (lambda r: os.truncate(r / HEADS, (r / HEADS).stat().st_size - 1), NO_SAFETENSORS),
    "bytes behind the end": (lambda r: (r / HEADS).write_bytes((r / HEADS).read_bytes() + b"more"), NO_SAFETENSORS),
    "empty": (lambda r: os.truncate(r / ADAPTER, 0), NO_SAFETENSORS),
    "nan": (lambda r: edit_tensors(r / ADAPTER, lambda t: set_first(t, float("nan"))), NOT_FINITE),
    "infinite": (
        lambda r: edit_tensors(r / HEADS, lambda t: set_first(t, -float("inf"))),
        "values that are not finite",
    ),
    "other shape": (wide, r"necks.final.norm.bias is \[5\], this backbone needs \[\d+\]"),
    "integers": (
        lambda r: edit_tensors(r / HEADS, lambda t: t.update({k: v.long() for k, v in t.items()})),
        r"is of kind I64, not torch.float32",
    ),
    "other rank": (other_rank, r"lora_A.weight is \[4, \d+\], this backbone needs \[2, \d+\]"),
    "other width": (narrower, r"this backbone needs \[\d+, \d+\]: the weights were made for another backbone"),
    "other depth": (shallower, r"does not fit this model: weights 12 missing"),
    "no heads": (lambda r: (r / HEADS).unlink(), r"heads.safetensors is missing: the run folder is incomplete"),
    "no adapter": (lambda r: (r / ADAPTER).unlink(), r"adapter_model.safetensors is missing: the run folder is"),
}


@pytest.mark.parametrize("where", ["folder", "repository"])
@pytest.mark.parametrize("how", FILES)
def test_files(run: Path, refused: Refused, how: str, where: str) -> None:
    change, message = FILES[how]
    change(run)
    refused(where, message)


def test_the_traps_would_have_worked(run: Path, tmp_path: Path) -> None:
    for how, opened in (("pickle", pickle.load), ("torch", lambda f: torch.load(f, weights_only=False))):
        pickled(run / ADAPTER, how)
        with open(run / ADAPTER, "rb") as file:
            opened(file)
        assert (tmp_path / "executed").exists()
        (tmp_path / "executed").unlink()


def test_a_sparse_file_of_the_size_it_claims_is_not_read(run: Path, refused: Refused) -> None:
    """Its header is true: only what the model needs tells that it is absurd."""
    name, numbers = min(load_file(run / ADAPTER)), 900_000_000
    rest = {k: v for k, v in load_file(run / ADAPTER).items() if k != name}
    said = {name: {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    end = 4 * numbers
    for key, tensor in rest.items():
        said[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    content = json.dumps(said).encode()
    (run / ADAPTER).write_bytes(struct.pack("<Q", len(content)) + content)
    os.truncate(run / ADAPTER, 8 + len(content) + end)
    refused("folder", rf"is \[{numbers}\], this backbone needs")
    os.truncate(run / ADAPTER, 5 << 30)
    refused("folder", r"has 5,369 MB, a run's at most 4,295: it is not read")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_gives_finite_tensors_of_the_right_shape(data: st.DataObject) -> None:
    wanted = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    folder = Path(os.environ["PYTEST_TMP"])
    file = folder / HEADS
    save_file(wanted, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        found = read_tensors(file, folder, wanted)
    except UserError:
        return
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


# Paths ---------------------------------------------------------------------------------------------------------------


LINKS = {CONFIG: CONFIG, str(ADAPTER): ADAPTER.name, HEADS: HEADS}


@pytest.mark.parametrize("name", LINKS)
def test_links_that_leave_the_run_folder(run: Path, refused: Refused, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / name).rename(elsewhere / LINKS[name])
    (run / name).symlink_to(elsewhere / LINKS[name])
    refused("folder", r"is a link that leads out of .*run: nothing outside of a run folder is read")


def test_other_links(run: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run)
    clipreid.load(tmp_path / "latest")  # a link to a whole run is fine
    (run / HEADS).rename(run / "kept.safetensors")
    (run / HEADS).symlink_to("kept.safetensors")
    clipreid.load(run)  # and so is one within it
    (run / HEADS).unlink()
    (run / HEADS).symlink_to(HEADS)
    refused("folder", r"heads.safetensors is missing")
    (run / HEADS).unlink()
    os.mkfifo(run / HEADS)
    refused("folder", r"heads.safetensors is not a regular file")
    shutil.copytree(run / "adapter", tmp_path / "elsewhere")
    shutil.rmtree(run / "adapter")
    (run / "adapter").symlink_to(tmp_path / "elsewhere")
    refused("folder", r"is a link that leads out of")


def test_links_that_leave_the_cache(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipreid.hub import find_run

    hub.here(monkeypatch, tmp_path / "home")
    hub.put(NAME, run)
    hub.put("bob/other", run)
    snapshot, other = find_run(NAME), find_run("bob/other")
    clipreid.load(NAME)
    for target in (run / HEADS, other / HEADS):
        (snapshot / HEADS).unlink()
        (snapshot / HEADS).symlink_to(target)
        with pytest.raises(UserError, match=r"is a link that leads out of .*models--alice--demo: nothing outside"):
            clipreid.load(NAME)


@pytest.mark.parametrize("path", ["../evil.safetensors", "adapter/../../../evil", "/etc/evil", "..\\evil", "a/.."])
def test_names_that_lead_out_of_the_cache(run: Path, hub: Hub, refused: Refused, path: str) -> None:
    sound = {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    hub.put("alice/odd", sound | {path: b"evil"})
    refused("alice/odd", r"lists a file .*, a name that leads elsewhere: the repository is refused")
    assert not hub.asked("(GET|HEAD) .*/resolve/")


def test_sizes_are_looked_at_before_downloading(hub: Hub, run: Path, refused: Refused) -> None:
    hub.put(NAME, run)
    hub.repos[NAME].sizes = {str(ADAPTER): 10**12}
    refused("repository", r"alice/demo: adapter/.*has 1,000,000 MB, a run's at most 4,295: it is not read")
    assert not hub.asked("(GET|HEAD) .*/resolve/")


def test_code_in_a_repository_is_not_even_downloaded(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = f"open({str(tmp_path / 'executed')!r}, 'w')"
    for name in ("modeling.py", "clipreid.py", "__init__.py", "adapter/__init__.py", "sitecustomize.py"):
        (run / name).write_text(evil)
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    settings |= {"auto_mapping": {"base_model_class": "Evil", "parent_library": "modeling"}, "peft_type": "EVIL"}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    hub.here(monkeypatch, tmp_path / "home")
    hub.put(NAME, run)
    for place in (NAME, run):
        clipreid.load(place)
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "home").rglob("*.py"))
