"""Weights by Hub id: what is asked for, whose logits are raw, and what is said when it fails."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clipreid.backbones import load_backbone
from clipreid.errors import UserError

Folder = tuple[Path, nn.Module]


@pytest.mark.parametrize(("repo", "raw"), [("openai/clip-tiny", True), ("laion/CLIP-tiny", False)])
def test_hub_id(clip_folder: Folder, monkeypatch: pytest.MonkeyPatch, repo: str, raw: bool) -> None:
    """Raw logits for OpenAI's own weights only."""
    asked: list[Any] = []

    def download(name: str, revision: None, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(clip_folder[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    backbone = load_backbone(f"hf:{repo}")
    assert backbone.raw_logits is raw
    [(name, patterns)] = asked
    assert name == repo
    assert "model.safetensors" in patterns
    assert not any(pattern in ("*", "*.bin", "*.safetensors") for pattern in patterns)


def test_hub_repository_with_old_weights_only(clip_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clip_folder[0]
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()

    def download_file(name: str, file: str, revision: str) -> str:
        assert revision == folder.name
        torch.save(state, folder / file)
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_file)
    assert load_backbone("hf:some/clip").family == "clip"


def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    error: list[Exception] = []

    def fail(name: str, revision: None, allow_patterns: list[str]) -> str:
        raise error[-1]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for offline in (LocalEntryNotFoundError("x"), OfflineModeIsEnabled("x"), ConnectionError("x")):
        error.append(offline)
        with pytest.raises(UserError, match=r"hf:some/clip is not in the local cache .* connect once, or give hf:"):
            load_backbone("hf:some/clip")
    not_found = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    not_found.args = ("401 Client Error.\nmore",)
    error.append(not_found)
    with pytest.raises(UserError, match=r"hf:some/clip cannot be downloaded .*: check the name on huggingface.co"):
        load_backbone("hf:some/clip")
    for missing in ("./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"):
        with pytest.raises(UserError, match=r"there is no folder .*; give a folder or a Hub id OWNER/NAME"):
            load_backbone(f"hf:{missing}")
