"""Downloaded runs whose backbone is made to harm, or names what lies on this machine.

`run` is a fixture of conftest.py.
"""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file
from test_hub import crops, edit_config, edit_tensors, make_run

import clipreid
from clipreid.errors import UserError
from clipreid.hub import HEADS, find_run, read_config
from clipreid.hub.checks import HEADER

NAME, BASE = "eve/demo", "eve/base"
MODEL, INDEX, OLD = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


@pytest.fixture(autouse=True)
def _here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    hub.here(monkeypatch, tmp_path / "home")


@pytest.fixture
def published(hub: Hub, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A run on the Hub, the backbone that it names there too; its folder, whose model gives the same."""
    folder = tiny_folder("clip")
    make_run(folder, tmp_path / "run")
    hub.put(BASE, folder)
    edit_config(tmp_path / "run", lambda c: c["backbone"].update(name=f"hf:{BASE}"))
    hub.put(NAME, tmp_path / "run")
    return tmp_path / "run"


def spoil(hub: Hub, files: dict[str, bytes], *without: str) -> None:
    hub.put(BASE, {k: v for k, v in hub.files(BASE).items() if k not in without} | files)


def test_the_backbone_was_sound(hub: Hub, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = clipreid.load(NAME)
    assert model.embed(crops()).isfinite().all()
    hub.stop()
    assert torch.equal(clipreid.load(NAME).embed(crops()), model.embed(crops()))  # the cache has all of it


def test_weights_that_are_not_finite(hub: Hub, published: Path, tmp_path: Path) -> None:
    """One value in the position table, which the fingerprint does not see."""
    file = tmp_path / MODEL
    file.write_bytes(hub.files(BASE)[MODEL])
    name = next(k for k in load_file(file) if k.startswith("vision_model") and k.endswith("position_embedding.weight"))
    edit_tensors(file, lambda t: t[name].view(-1)[-1:].fill_(float("nan")))
    spoil(hub, {MODEL: file.read_bytes()})
    with pytest.raises(UserError, match=r"^hf:eve/base: .*position_embedding.weight has values that are not finite"):
        clipreid.load(NAME)


def test_only_safetensors(hub: Hub, published: Path, tmp_path: Path) -> None:
    torch.save(load_file(_file(hub, tmp_path)), tmp_path / OLD)
    spoil(hub, {OLD: (tmp_path / OLD).read_bytes()}, MODEL)
    with pytest.raises(UserError, match=r"hf:eve/base has no model\*\.safetensors: .* than safetensors"):
        clipreid.load(NAME)
    assert not hub.asked(f"(GET|HEAD) .*{OLD}")
    assert clipreid.load_backbone(f"hf:{BASE}").family == "clip"  # its owner may
    hub.stop()
    with pytest.raises(UserError, match=r"hf:eve/base has no model\*\.safetensors"):  # nor from the cache
        clipreid.load(NAME)


def test_sizes_are_looked_at_before_downloading(hub: Hub, published: Path) -> None:
    hub.repos[BASE].sizes = {MODEL: 10**12}
    with pytest.raises(UserError, match=r"hf:eve/base has 1,000,00\d MB, a run's at most 17,180: it is not read"):
        clipreid.load(NAME)
    assert not hub.asked(f"(GET|HEAD) /{BASE}/resolve/")


@pytest.mark.parametrize("shard", ["{secret}", "../../../../../../cwd/secret.safetensors"])
def test_shards_that_lie_elsewhere(hub: Hub, published: Path, tmp_path: Path, shard: str) -> None:
    secret = tmp_path / "cwd" / "secret.safetensors"
    secret.write_bytes(hub.files(BASE)[MODEL])
    index = {"weight_map": dict.fromkeys(load_file(secret), shard.format(secret=secret))}
    spoil(hub, {INDEX: json.dumps(index).encode(), "model-1.safetensors": b"x"}, MODEL)
    with pytest.raises(UserError, match=r"index.json names .*secret.safetensors', which does not lie beside it"):
        clipreid.load(NAME)


def nonsense(file: str, content: Any) -> tuple[str, bytes]:
    return file, content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        nonsense("config.json", [1]),
        nonsense("config.json", {"model_type": "clip", "vision_config": 5}),
        nonsense("config.json", {"model_type": "clip", "vision_config": {"patch_size": 0}}),
        nonsense("config.json", {"model_type": "clip", "vision_config": {"num_hidden_layers": 10**9}}),
        nonsense("config.json", {"model_type": "clip", "text_config": {"num_hidden_layers": 10**9}}),
        nonsense("preprocessor_config.json", {"image_mean": {"a": 1}}),
        nonsense(MODEL, pickle.dumps({"a": 1})),
        nonsense(MODEL, struct.pack("<Q", 2**62) + b"{}"),
    ],
)
def test_nonsense_is_said_and_not_raised(hub: Hub, published: Path, file: str, content: bytes) -> None:
    spoil(hub, {file: content})
    with pytest.raises(UserError):
        clipreid.load(NAME)


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hf:models/private", "models/private"),
        ("open_clip:ViT-B-16-quickgelu/secret.bin", "secret.bin"),
        ("open_clip:ViT-B-16-quickgelu/openai", "openai"),
        ("open_clip:private/tag", "private/tag"),
    ],
)
def test_public_names_that_are_also_places_here(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args))
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_bytes(b"mine")
    edit_config(run, lambda c: c["backbone"].update(name=name))
    hub.put(NAME, run)
    with pytest.raises(UserError, match=r"is also a file or folder here, and a downloaded run reads none: start from"):
        clipreid.load(NAME)
    assert not opened


def test_a_downloaded_run_loads_no_backbone_from_a_folder_of_the_same_name(
    hub: Hub, run: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """As above with a folder that would load, and a fingerprint that would fit."""
    Path("models").mkdir()
    Path("models/private").symlink_to(tiny_folder("clip"))
    make_run(Path("models/private"), Path("mine"))
    assert read_config(Path("mine"))["backbone"]["name"] == "hf:models/private"
    clipreid.load("mine")
    hub.put(NAME, Path("mine"))
    with pytest.raises(UserError, match="'hf:models/private' is also a file or folder here"):
        clipreid.load(NAME)


def test_a_downloaded_run_is_not_scored_on_a_folder_of_the_same_name(hub: Hub, run: Path) -> None:
    specs = ["hub:models/private", "hub:models/private/config", "hub:models/public", "synthetic"]
    edit_config(run, lambda c: c.update(run={"data": specs, "test": specs[:2]}))
    hub.put(NAME, run)
    assert read_config(find_run(NAME))["run"] == {"data": specs, "test": specs[:2]}
    Path("models/private").mkdir(parents=True)
    assert read_config(find_run(NAME))["run"] == {"data": specs[2:], "test": []}


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["folder", "repository"])
def test_more_patches_than_any_crop_has(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Each number is in its range, and together they would take all memory."""

    def never(*args: Any) -> None:
        raise AssertionError("memory was taken")

    monkeypatch.setattr("clipreid.backbones.build.resize_positions", never)
    edit_config(run, lambda c: c["backbone"].update(image_size=[4096, 4096], stride=1))
    hub.put(NAME, run)
    with pytest.raises(UserError, match=r"tiny-clip: 4,0\d\d x 4,0\d\d patches are 16,\d+,\d+, and at most 16,384 are"):
        clipreid.load({"folder": run, "repository": NAME}[where])


def test_a_header_that_would_take_all_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("it was parsed")

    said = json.dumps({f"{i:0100d}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)})
    assert len(said) > HEADER
    (run / HEADS).write_bytes(struct.pack("<Q", len(said)) + said.encode())
    real = clipreid.hub.checks.safe_open
    monkeypatch.setattr(
        "clipreid.hub.checks.safe_open", lambda file, kind: never() if file.name == HEADS else real(file, kind)
    )
    with pytest.raises(UserError, match=r"heads.safetensors is not a safetensors file \(its header has 5 MB, a"):
        clipreid.load(run)


def _file(hub: Hub, folder: Path) -> Path:
    (folder / MODEL).write_bytes(hub.files(BASE)[MODEL])
    return folder / MODEL
