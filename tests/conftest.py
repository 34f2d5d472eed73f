"""For every test: one thread, a fixed seed, and random tiny models in transformers' format."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

for room in ("backbones", "cli", "hub", "recipes"):  # their helpers serve the tests of other rooms too
    sys.path.insert(0, str(Path(__file__).parent / room))

# What takes its share of the cores where --threads is not given (commands, runs, also in processes that tests start)
# takes one of them: several workers with all of them each would fight.
os.environ.setdefault("LOCAL_WORLD_SIZE", str(os.cpu_count() or 1))


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores, at most 4: many tests wait for another process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores + 1, 4)


LONGEST = (
    "test_notebooks.py", "test_contract.py", "test_whole_way.py", "test_two_stage.py", "test_backbone_parity.py",
    "test_pretrain_tiny.py", "test_saga.py", "test_dpm.py", "test_code_blocks.py", "test_cli.py", "test_cli_compare.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that begins one last would keep the others waiting. xdist is told to keep this
    order (`--no-loadscope-reorder`); its own puts the files with the most tests first, which are not the longest."""

    def late(item: pytest.Item) -> tuple[int, bool]:
        name, room = item.path.name, item.path.parent.name
        return LONGEST.index(name) if name in LONGEST else 99, room not in ("recipes", "methods", "explore")

    items.sort(key=late)


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    """Threads cost more than they bring on tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder("clip")` or `("siglip")`: a folder that `load_backbone(f"hf:{folder}")` takes. Not to be changed."""
    from tiny_models import write_tiny_folder

    written: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp("weights") / f"tiny-{family}"
            write_tiny_folder(written[family], family, clipreid={"image_size": [64, 32], "raw_logits": False})
        return written[family]

    return write


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`tests/hub/toy_methods/toy.py`, as a method of `clipreid.methods`, where it is found by its name."""
    from clipreid import methods

    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(Path(__file__).parent / "hub" / "toy_methods")])
    yield methods.get_method("toy")
    sys.modules.pop("clipreid.methods.toy")
    del methods.toy  # type: ignore[attr-defined]
