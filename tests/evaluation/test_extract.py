"""Every image is embedded exactly once, in order, on one process or two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import in_processes
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation import evaluate, extract


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 6, 4), dtype=np.uint8)


def embed(batch: Tensor) -> Tensor:
    assert batch.dtype == torch.uint8
    return batch.flatten(1)[:, :5].double() / 255


@pytest.mark.parametrize(("n", "batch_size"), [(1, 128), (10, 4), (12, 4), (13, 1)])
def test_one_row_for_each_image_in_order(n: int, batch_size: int) -> None:
    pixels = images(n)
    features = extract(embed, pixels, batch_size=batch_size)
    assert isinstance(features, Tensor)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, embed(torch.from_numpy(pixels)).float())
    torch.testing.assert_close(extract(embed, torch.from_numpy(pixels), batch_size=batch_size), features)


def test_named_features_progress_and_memory_mapped_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", images(7))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    seen: list[tuple[int, int]] = []
    features = extract(
        lambda batch: {"a": embed(batch), "b": -embed(batch)[:, :2]},
        pixels,
        batch_size=3,
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert isinstance(features, dict)
    assert {name: tuple(values.shape) for name, values in features.items()} == {"a": (7, 5), "b": (7, 2)}
    assert torch.equal(features["b"], -features["a"][:, :2])
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_features_need_no_gradient_but_can_be_trained_on() -> None:
    layer = torch.nn.Linear(5, 2)
    features = extract(lambda batch: layer(embed(batch).float()), images(4))
    assert not features.requires_grad
    torch.nn.Linear(2, 1)(features).sum().backward()  # inference tensors would refuse


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), r"pixels are float32 \[2, 3, 4, 4\]; extract needs uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"uint8 \[2, 4, 4, 3\]"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"with N > 0"),
    ],
)
def test_wrong_pixels_are_refused(pixels: np.ndarray | Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extract(embed, pixels)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(UserError, match=r"embed_batch has shape \[5\] for a batch of 3 images"):
        extract(lambda batch: torch.zeros(5), images(3))
    with pytest.raises(UserError, match=r"feature 'a' of embed_batch has shape \[2, 4\]"):
        extract(lambda batch: {"a": torch.zeros(2, 4)}, images(3))
    with pytest.raises(UserError, match=r"returned \['2'\], for earlier images \['3'\]"):
        extract(lambda batch: {str(len(batch)): embed(batch)}, images(5), batch_size=3)
    with pytest.raises(UserError, match="batch_size is 0"):
        extract(embed, images(3), batch_size=0)


class Repeats:
    """An accelerator whose gather returns this process's share twice, as a defect would."""

    num_processes, process_index, device = 2, 0, torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat([values, values])


def test_an_image_embedded_twice_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match=r"images \[0, 1, 2, 3\].* not embedded exactly once"):
        extract(embed, images(4), accelerator=Repeats())


def worker(folder: Path) -> None:
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    rng = np.random.default_rng(0)
    for n, batch_size in ((1, 4), (7, 2), (8, 4), (21, 4)):
        pixels = rng.integers(0, 256, (n, 3, 6, 4), dtype=np.uint8)

        def two(batch: Tensor) -> dict[str, Tensor]:
            return {"x": batch.flatten(1).float(), "y": batch.flatten(1).float()[:, :1]}

        features = extract(two, pixels, batch_size=batch_size, accelerator=accelerator)
        assert isinstance(features, dict)
        assert torch.equal(features["x"], torch.from_numpy(pixels).flatten(1).float()), n
        assert torch.equal(features["y"], features["x"][:, :1]), n
    table = {"identity": [0, 1, 2] * 7}
    report = evaluate(features["x"], features["x"], table, table)
    (folder / f"{accelerator.process_index}.txt").write_text(repr(report.metrics))
    accelerator.wait_for_everyone()
    accelerator.end_training()  # a process that leaves first would abort the other one


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    in_processes(2, worker, tmp_path)
    first, second = ((tmp_path / f"{i}.txt").read_text() for i in (0, 1))
    assert first == second
