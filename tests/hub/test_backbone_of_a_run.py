"""The backbone that a run names: the commit it was trained on, whether others can load it, whose logits are raw.

`hub` and `alice` are fixtures of conftest.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file
from test_hub import crops, edit_config, make_run
from test_package import finished

import clipreid
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.hub import CONFIG
from clipreid.hub.package import CARD, package
from clipreid.hub.publish import upload
from clipreid.methods import clip_reid
from clipreid.training.run import open_run

NAME, BASE = "alice/demo", "alice/base"
MODEL, OLD = "model.safetensors", "pytorch_model.bin"
Folder = Callable[[str], Path]


def pickled(folder: Path, scratch: Path) -> dict[str, bytes]:
    """The files of a transformers folder as old repositories have them."""
    torch.save(load_file(folder / MODEL), scratch / OLD)
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != MODEL}
    return kept | {OLD: (scratch / OLD).read_bytes()}


def test_a_run_loads_with_the_commit_it_was_trained_on(
    alice: Hub, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = alice.put(BASE, tiny_folder("clip"))
    make_run(f"hf:{BASE}", tmp_path / "run")
    edit_config(tmp_path / "run", lambda config: config["backbone"].update(positions="bicubic"))
    expected = clipreid.load(tmp_path / "run").embed(crops())
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["backbone"]["revision"] == commit
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (BASE, commit)

    files = package(tmp_path / "run", NAME)
    upload(files, NAME, False, "again")
    assert f'from_pretrained("{BASE}", revision="{commit}"' in alice.files(NAME)[CARD].decode()
    state = load_file(tiny_folder("clip") / MODEL)
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / MODEL, metadata={"format": "pt"})
    alice.put(BASE, alice.files(BASE) | {MODEL: (tmp_path / MODEL).read_bytes()})  # its owner has trained it anew

    alice.here(monkeypatch, tmp_path / "another machine")
    assert torch.equal(clipreid.load(NAME).embed(crops()), expected)
    assert clipreid.load_backbone(f"hf:{BASE}").revision != commit
    assert clipreid.load_backbone(f"hf:{BASE}", revision=commit).revision == commit
    alice.stop()
    assert torch.equal(clipreid.load(NAME).embed(crops()), expected)  # all of it is in the cache


def test_a_revision_that_is_none(alice: Hub, tiny_folder: Folder, tmp_path: Path) -> None:
    make_run(tiny_folder("clip"), tmp_path / "run")
    edit_config(tmp_path / "run", lambda config: config["backbone"].update(revision="../../main"))
    with pytest.raises(UserError, match=r"config.json: backbone settings: revision '../../main' is no commit"):
        clipreid.load(tmp_path / "run")
    alice.put(BASE, tiny_folder("clip"))
    with pytest.raises(UserError, match=r"hf:alice/base cannot be downloaded"):
        clipreid.load_backbone(f"hf:{BASE}", revision="0" * 40)
    with pytest.raises(UserError, match=r"only hf:OWNER/NAME has revisions, tiny-clip has none"):
        clipreid.load_backbone("tiny-clip", revision="main")


def test_openais_old_repositories_serve_published_runs(
    alice: Hub, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "openai/clip-tiny"
    files = pickled(tiny_folder("clip"), tmp_path)
    config = json.loads(files["config.json"])
    for tower in ("vision_config", "text_config"):
        config[tower]["hidden_act"] = "quick_gelu"
    alice.put(base, files | {"config.json": json.dumps(config).encode()})
    expected = make_run(f"hf:{base}", tmp_path / "run").embed(crops())
    upload(package(tmp_path / "run", NAME), NAME, False, "again")
    alice.here(monkeypatch, tmp_path / "another machine")
    assert (clipreid.load(NAME).embed(crops()) - expected).abs().max() <= 1e-6
    alice.repos[base].sizes = {OLD: 10**12}
    with pytest.raises(UserError, match="a run's at most"):
        clipreid.load(NAME)


def test_what_nobody_could_load_is_not_published_and_not_trained_for(
    alice: Hub, tiny_folder: Folder, tmp_path: Path
) -> None:
    alice.put(BASE, pickled(tiny_folder("clip"), tmp_path))
    make_run(f"hf:{BASE}", tmp_path / "run")
    with pytest.raises(UserError, match=r"hf:alice/base has no model\*.safetensors: a published run takes no other"):
        upload(package(tmp_path / "run", NAME), NAME, False, "again")
    flags, config = configure(clip_reid, output=tmp_path / "next", backbone=f"hf:{BASE}", push=NAME)
    with pytest.raises(UserError, match=r"hf:alice/base has no model\*.safetensors"):
        open_run(clip_reid, flags, config)
    assert NAME not in alice.repos
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("raw", [True, False])
def test_a_copy_elsewhere_does_not_decide_whose_logits_are_raw(
    alice: Hub, tiny_folder: Folder, tmp_path: Path, raw: bool
) -> None:
    """The folder that the run was trained on says one thing, the public copy of the same weights another."""
    finished(tmp_path / "run", tiny_folder("clip"), data="synthetic")
    edit_config(tmp_path / "run", lambda config: config["backbone"].update(raw_logits=raw))
    expected = clipreid.load(tmp_path / "run")
    assert expected.raw_logits == raw
    config = json.loads((tiny_folder("clip") / "config.json").read_text())
    config["clipreid"]["raw_logits"] = not raw
    public = {file.name: file.read_bytes() for file in tiny_folder("clip").iterdir()}
    alice.put(BASE, public | {"config.json": json.dumps(config).encode()})
    assert clipreid.load_backbone(f"hf:{BASE}").raw_logits != raw
    upload(package(tmp_path / "run", NAME, base_model=f"hf:{BASE}"), NAME, False, "again")
    assert json.loads(alice.files(NAME)[CONFIG])["backbone"]["revision"] == alice.repos[BASE].refs["main"]
    assert torch.equal(clipreid.load(NAME).embed(crops()), expected.embed(crops()))
