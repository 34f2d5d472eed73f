"""Pretraining: the recipe makes a loadable folder for both families, and the shipped weights know language."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from launching import load_recipe

from clipreid.backbones import load_backbone
from clipreid.backbones.load import WEIGHTS
from clipreid.data.synthetic.pretraining import captioned_images


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("pretrain_tiny")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_recipe_makes_a_backbone_folder(recipe: ModuleType, family: str, tmp_path: Path) -> None:
    small = {
        "images": 64,
        "held_out": 32,
        "steps": 2,
        "batch": 16,
        "width": 64,
        "depth": 2,
        "text_depth": 1,
        "threads": 1,
        "bf16": False,
    }
    recipe.main(recipe.Config(output=tmp_path / "a", family=family, **small))
    backbone = load_backbone(f"hf:{tmp_path / 'a'}")
    assert backbone.family == family
    assert backbone.image_size == (128, 64)
    state = backbone.encode_text(["a person wearing a red coat"])
    recipe.main(recipe.Config(output=tmp_path / "b", family=family, **small))
    again = load_backbone(f"hf:{tmp_path / 'b'}").encode_text(["a person wearing a red coat"])
    torch.testing.assert_close(state, again)  # the same seed, the same weights
    recipe.main(recipe.Config(output=tmp_path / "c", family=family, init=tmp_path / "a", **small))
    further = load_backbone(f"hf:{tmp_path / 'c'}").encode_text(["a person wearing a red coat"])
    assert not torch.allclose(state, further)


@pytest.fixture(scope="module")
def painted() -> Any:
    """People and cameras that pretraining never saw."""
    return captioned_images(300, seed=4711, processes=1)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2"])
def test_shipped_weights_know_language(recipe: ModuleType, name: str, painted: Any) -> None:
    found = recipe.probe(load_backbone(name), painted)
    assert found["text_to_image_rank1"] >= 0.25
    assert found["top_colour"] >= 0.70


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2"])
def test_shipped_weights_are_small_safetensors(name: str) -> None:
    folder = WEIGHTS / name
    assert {p.suffix for p in folder.iterdir()} <= {".safetensors", ".json", ".md"}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8 * 2**20
