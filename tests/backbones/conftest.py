from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import write_tiny_folder
from torch import nn


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clip_folder(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A tiny CLIP in transformers' format, and transformers' model of the same weights."""
    folder = tmp_path / "tiny-clip"
    return folder, write_tiny_folder(folder, "clip")


@pytest.fixture
def siglip_folder(tmp_path: Path) -> tuple[Path, nn.Module]:
    folder = tmp_path / "tiny-siglip"
    return folder, write_tiny_folder(folder, "siglip")
