"""Captions that ask: text features, how queries are made of captions, and what is said where there is no text."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipreid.backbones import Backbone, load_backbone
from clipreid.config import configure
from clipreid.data import ReIDData, Split
from clipreid.data.synthetic import SETS
from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.gaps import caption_queries
from clipreid.evaluation.score import score
from clipreid.methods import clip_reid
from clipreid.model import ReIDModel, untrained_model
from clipreid.training.run import open_run

COLOURS = ("red", "blue", "green", "black")


@pytest.fixture(params=["clip", "siglip"])
def backbone(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder(request.param)}")


@pytest.fixture
def model(backbone: Backbone) -> ReIDModel:
    return untrained_model(backbone)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))


def captioned(folder: Path, captions: list[str], query: list[int]) -> ReIDData:
    """Eight noisy images of four identities on disk; the query takes these rows with these captions."""
    rng, files = np.random.default_rng(0), []
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        files.append({"path": str(folder / f"{i}.png")})
    names = [str(i // 2) for i in range(8)]
    asked = Split.from_columns("query", [files[i] for i in query], [names[i] for i in query], caption=captions)
    return ReIDData("mine", {"query": asked, "gallery": Split.from_columns("gallery", files, names)}, "text-to-image")


def test_text_features_are_the_backbones_and_no_part_of_the_model(model: ReIDModel, backbone: Backbone) -> None:
    texts = [f"a person in {colour}" for colour in COLOURS] * 3
    with torch.no_grad():
        expected = F.normalize(backbone.encode_text(texts), dim=1)
    torch.testing.assert_close(model.embed_text(texts, batch_size=5), expected)
    assert model.embed_text([]).shape == (0, expected.shape[1])
    with pytest.raises(ValueError, match="embed_text takes sentences, and text 1 is None"):
        model.embed_text(["a", None])  # type: ignore[list-item]
    towers = {id(parameter) for parameter in backbone.text.parameters()}
    assert not towers & {id(parameter) for parameter in model.parameters()}
    assert not [name for name in model.state_dict() if "text" in name or "source" in name]


def test_captions_are_compared_with_the_projection(model: ReIDModel, tmp_path: Path) -> None:
    captions = [f"a person in {colour}" for colour in COLOURS]
    data = captioned(tmp_path, captions, [0, 2, 4, 6])
    found = score(data, model)
    images = model.embed_parts(model.crops([str(tmp_path / f"{i}.png") for i in range(8)]))["projection"]
    gallery = {"identity": [i // 2 for i in range(8)]}
    expected = evaluate(model.embed_text(captions), images, {"identity": range(4)}, gallery, protocol="no-cameras")
    assert found.reports["projection"].metrics == pytest.approx(expected.metrics)
    assert found.reports["projection"].per_query["n_positives"].tolist() == [2] * 4  # the described image too
    assert found.feature == "projection"
    assert found.entry()["feature"] == "projection"
    assert found.entry()["protocol"] == "text-to-image"
    assert found.best(("concat", "projection")) == "projection"
    assert found.similarity().shape == (4, 8)


def test_each_caption_of_an_image_asks(model: ReIDModel, tmp_path: Path) -> None:
    data = captioned(tmp_path, ["a red person\na person in red", "a blue person"], [0, 5])
    found = score(data, model)
    assert found.query.identities.tolist() == ["0", "0", "2"]
    single = captioned(tmp_path, ["a red person", "a person in red", "a blue person"], [0, 0, 5])
    assert found.reports["projection"].metrics == score(single, model).reports["projection"].metrics


def test_images_may_still_ask(model: ReIDModel, tmp_path: Path) -> None:
    data = captioned(tmp_path, ["", ""], [0, 5])
    found = score(data, model, protocol="no-cameras")
    assert found.feature == "concat"


def test_blank_lines_and_images_without_a_caption_ask_nothing_and_are_counted(model: ReIDModel, tmp_path: Path) -> None:
    captions = ["a red person\n\n a person in red \n", "", "a blue person", "  \n"]
    found = score(captioned(tmp_path, captions, [0, 3, 5, 7]), model)
    assert found.query.identities.tolist() == ["0", "0", "2"]
    single = captioned(tmp_path, ["a red person", "a person in red", "a blue person"], [0, 0, 5])
    report = found.reports["projection"]
    assert report.metrics == score(single, model).reports["projection"].metrics
    notes = "2 of 4 query images have no caption, and ask nothing", "1 blank lines in captions are left out"
    assert report.notes[-2:] == notes
    assert report.counts["queries"] == 3


@pytest.mark.parametrize(
    ("captions", "asked", "blank"),
    [
        (["a\n\nb\n", "c"], [(0, "a"), (0, "b"), (1, "c")], 1),
        (["a\r\n b ", "\nc"], [(0, "a"), (0, "b"), (1, "c")], 0),
        (["a\n \n\nb"], [(0, "a"), (0, "b")], 2),
    ],
)
def test_captions_of_an_image_are_its_lines(captions: list[str], asked: list[tuple[int, str]], blank: int) -> None:
    found, notes = caption_queries(captions, "mine")
    assert found == asked
    assert notes == ([f"{blank} blank lines in captions are left out"] if blank else [])


LONG = "a person " + "with a red hat and a blue bag " * 30


def test_what_of_a_long_text_was_read_is_said(model: ReIDModel, recwarn: pytest.WarningsRecorder) -> None:
    context = model.source[0].text.context_length
    short = model.embed_text(["a person in red", "a blue person"])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=rf"1 of 3 texts are longer than the {context} tokens .* up to '") as warned:
        features = model.embed_text(["a person in red", LONG, "a blue person"])
    assert torch.allclose(features[[0, 2]], short, atol=1e-6)
    assert warned[0].filename == __file__
    found = re.search(r"\((\d+) tokens\) (\d+) of (\d+) characters", str(warned[0].message))
    assert found is not None
    tokens, read, whole = map(int, found.groups())
    assert (tokens > context, whole) == (True, len(LONG))
    said: list[str] = []
    again = model.embed_text([LONG[:read], LONG], say=said.append)  # what was read gives the feature
    assert len(said) == 1
    assert said[0].startswith("1 of 2 texts are longer")
    torch.testing.assert_close(again[0], again[1])


def test_captions_that_are_too_long_are_in_the_notes(model: ReIDModel, tmp_path: Path) -> None:
    report = score(captioned(tmp_path, [LONG, "a blue person"], [0, 5]), model).reports["projection"]
    assert report.notes[-1].startswith("1 of 2 texts are longer than the")


def test_missing_captions_and_missing_text_towers_are_named(model: ReIDModel, tmp_path: Path) -> None:
    data = captioned(tmp_path, ["", " "], [0, 5])
    with pytest.raises(UserError, match="mine: 2 of 2 query images have no caption"):
        score(data, model)
    data = captioned(tmp_path, ["a red person", "a blue person"], [0, 5])
    model.source[0].tokenizer = None
    with pytest.raises(UserError, match="has no tokenizer: captions cannot be compared"):
        score(data, model)
    model.source[0].text = None  # type: ignore[assignment]  # as in a wrapped image-only tower
    with pytest.raises(UserError, match="has no text tower: captions cannot be compared"):
        score(data, model)


def test_training_without_text_refuses_such_a_test_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captioned(tmp_path, ["a red person"], [0])
    data = replace(data, splits={**data.splits, "train": data.splits["gallery"]})
    monkeypatch.setattr("clipreid.training.sets.load_data", lambda *_, **__: data)
    given = {"backbone": "timm:vit_tiny_patch16_224", "data": ("mine",), "output": tmp_path / "run", "prompts": "none"}
    with pytest.raises(UserError, match=r"mine is scored with captions \(text-to-image\), and --backbone timm:"):
        open_run(clip_reid, *configure(clip_reid, **given))


def test_the_captioned_street_is_asked_by_captions() -> None:
    assert SETS["synthetic:captions"].protocol == "text-to-image"
    assert {named.protocol for name, named in SETS.items() if name != "synthetic:captions"} == {"market1501"}
