"""A small street on disk, and recipes launched as a user launches them."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import ROOT, command, paint_street

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("street") / "crops")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_DIR": cache}
    return os.environ | offline | {"CLIPREID_CACHE": cache, "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="session")
def launch(environment: dict[str, str]) -> Launch:
    """`launch("clipreid_stage2.py", flags..., processes=1)` -> the finished process, with its output as text."""

    def run(recipe: str, *flags: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(recipe, *flags, processes=processes), env=environment, cwd=ROOT, capture_output=True, text=True
        )

    return run
