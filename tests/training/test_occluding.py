"""Occluders in front of training images: how many, how much, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipreid.data.occluders import street_library
from clipreid.errors import UserError
from clipreid.methods import clip_reid
from clipreid.training.occluding import occluding, paste, training_library

CUTOUTS = Path(__file__).parents[1] / "methods" / "two_cutouts"


def images(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def changed(config: Any, share: tuple[int, int] = (0, 1), crops: torch.Tensor | None = None) -> torch.Tensor:
    change = occluding(config)
    assert change is not None
    pixels, more = change(0, images() if crops is None else crops, torch.Generator().manual_seed(5), share)
    assert more == {}
    return pixels


def test_without_occluders_nothing_is_changed() -> None:
    assert occluding(clip_reid.Config()) is None


def test_as_many_images_are_occluded_as_the_settings_say() -> None:
    for probability, low, high in ((0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)):
        config = clip_reid.Config(occluders="street", occlude_probability=probability)
        touched = (changed(config) != images()).flatten(1).any(1).sum()
        assert low <= touched <= high


def test_what_is_hidden_lies_between_the_severities() -> None:
    config = SimpleNamespace(severity_least=0.2, severity_most=0.3)
    found = paste(images(), street_library("train"), config, 1.0, torch.Generator().manual_seed(1))
    assert found.severity.min() > 0.17
    assert found.severity.max() < 0.33
    assert found.severity.std() > 0.01


def test_two_processes_occlude_as_one() -> None:
    config = clip_reid.Config(occluders="street")
    parts = [changed(config, (rank, 2), part) for rank, part in enumerate(images().chunk(2))]
    assert torch.equal(torch.cat(parts), changed(config))


def test_a_folder_of_cutouts_takes_the_place_of_the_street() -> None:
    library = training_library(clip_reid.Config(occluder_folder=CUTOUTS))
    assert library is not None
    assert set(library.kinds).isdisjoint(street_library("train").kinds)


def test_severities_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match=r"--severity-least 0.6 is above --severity-most 0.5: exchange them"):
        occluding(clip_reid.Config(occluders="street", severity_least=0.6))
