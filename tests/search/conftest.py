"""A run, images, and blocks so small that the images are several."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from galleries import BLOCK
from PIL import Image
from test_hub import make_run

import clipreid
from clipreid.model import ReIDModel
from clipreid.search import embedding


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(tiny_folder("clip"), folder)
    return folder


@pytest.fixture(scope="session")
def model(run: Path) -> ReIDModel:
    return clipreid.load(run)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "BLOCK", BLOCK)
    monkeypatch.setattr(embedding, "PAUSE", 0.02)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """60 images with names of Market-1501."""
    rng = np.random.default_rng(0)
    for n in range(60):
        folder = tmp_path / "crops" / f"part{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(
            folder / f"{n // 3:04d}_c{n % 3 + 1}s1_{n:06d}_00.png"
        )
    return tmp_path / "crops"
