"""MoSAIC-ReID: its experts come from the data, its oracle is named wherever a figure stands."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import paint_street, run_recipe, write_attributes
from short_runs import short_run

import clipreid
from clipreid.backbones import load_backbone
from clipreid.data import load_data
from clipreid.data.attributes import ABSENT, ORACLE, attribute_codes, code, split_with
from clipreid.errors import UserError
from clipreid.evaluation.attributes import EVERY, ablations
from clipreid.evaluation.results import results_table
from clipreid.evaluation.score import about_images, score
from clipreid.export.merge import bake
from clipreid.hub.package import package
from clipreid.methods import mosaic
from clipreid.methods.mosaic import expert_codes, with_codes
from clipreid.model import untrained_model
from clipreid.training.batches import Lazy

KNOWN = [{"hat": "cap", "top": "red|blue"}, {"hat": "none"}, {}]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attributes(paint_street(tmp_path_factory.mktemp("mosaic") / "crops", train=6, test=4))


@pytest.fixture(scope="module")
def run(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mosaic") / "run"
    short_run(mosaic, street, folder, prompts="none")
    return folder


def test_experts_are_the_values_or_the_attributes_of_the_training_images() -> None:
    values = {"hat=cap": ("hat", "cap"), "hat=none": ("hat", "none"), "top=blue": ("top", "blue"),
              "top=red": ("top", "red")}  # fmt: skip
    assert expert_codes(KNOWN, "value") == {words: code(*both) for words, both in values.items()}
    assert expert_codes(KNOWN, "attribute") == {"hat": code("hat"), "top": code("top")}
    assert "none" in ABSENT
    assert expert_codes([{"hat": "none"}], "attribute") == {}


def test_two_attributes_of_one_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "code", lambda *words: 7)
    with pytest.raises(UserError, match="hat=cap and hat=none have the same code: rename one"):
        expert_codes(KNOWN, "value")


def test_data_without_attributes_are_refused(tmp_path: Path) -> None:
    bare = paint_street(tmp_path / "crops", train=4, test=2)
    with pytest.raises(UserError, match=r"none is known of any training image: .* attributes\.csv"):
        short_run(mosaic, bare, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tower_that_is_not_ours_is_refused_and_a_shallow_one_has_experts_everywhere(
    tiny_folder: Callable[[str], Path],
) -> None:
    wrapped: Any = SimpleNamespace(family="image-only", name="resnet")
    with pytest.raises(UserError, match="resnet has no blocks that experts could be put into"):
        mosaic.build(wrapped, mosaic.Config())
    backbone = load_backbone(f"hf:{tiny_folder('siglip')}")
    model = mosaic.build(backbone, mosaic.Config(expert_blocks=99, expert_codes=(1, 2)))
    assert len(model.hooks["experts"].experts) == 4 * backbone.image.depth  # type: ignore[arg-type]


def test_batches_carry_the_attributes_of_their_rows() -> None:
    codes, rows = attribute_codes(KNOWN), torch.tensor([2, 0, 0])
    batches = with_codes(lambda epoch: Lazy(2, lambda nth: {"rows": rows + nth * 0, "labels": rows}), codes)(0)
    assert len(batches) == 2
    assert torch.equal(batches[1]["attributes"], codes[rows])
    assert torch.equal(batches[1]["labels"], rows)


def test_a_loaded_run_takes_attributes_in_the_words_of_training(run: Path, street: Path) -> None:
    model = clipreid.load(run)
    crops = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = load_data(f"folder:{street}").splits["train"]
    trained = split.attributes[0]
    found = model.embed(crops, attributes=[trained, {}, {"hat": "a crown"}])
    alone = model.embed(crops)
    assert (found[0] - alone[0]).abs().max() > 1e-4
    torch.testing.assert_close(found[1:], alone[1:], atol=1e-6, rtol=0)
    for odd in ([trained], ["hat", "cap", "none"]):
        with pytest.raises(ValueError, match="attributes must be 3 dictionaries"):
            model.embed(crops, attributes=odd)  # type: ignore[arg-type]


def test_the_oracle_is_named_in_notes_tables_logs_and_cards(run: Path, street: Path) -> None:
    found = score(load_data(f"folder:{street}"), clipreid.load(run))
    notes = found.reports[found.feature].notes
    assert ORACLE in notes
    assert "of 0 of 16 images no attribute is known: they had no expert" in notes
    assert f"stage2: {ORACLE}" in results_table(run)
    assert not any(f"zero-shot: {ORACLE}" in line for line in results_table(run).splitlines())
    assert ORACLE in bytes(package(run, "alice/demo")["README.md"]).decode()  # type: ignore[arg-type]
    assert "leak its identity" in (mosaic.__doc__ or "").replace("leaks", "leak")


def test_images_without_attributes_are_counted(run: Path, street: Path, tmp_path: Path) -> None:
    data = load_data(f"folder:{street}")
    split = data.splits["gallery"]
    assert about_images(split, None, ("attributes",))["attributes"].shape == (16, 2, 2)
    assert about_images(split, (0, 0), ("cameras",)).keys() == {"cameras", "views"}
    bare = load_data(f"folder:{paint_street(tmp_path / 'bare', train=2, test=2)}")
    found = score(bare, clipreid.load(run))
    assert "of 8 of 8 images no attribute is known: they had no expert" in found.reports[found.feature].notes


def test_it_cannot_be_exported(run: Path) -> None:
    with pytest.raises(UserError, match="attribute experts need the attributes of each image"):
        bake(clipreid.load(run))


def test_a_run_goes_on_with_the_same_attributes_only(street: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killed(*args: Any) -> None:
        raise Killed

    table = street / "attributes.csv"
    kept = table.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipreid.training.launch.train", killed)
        with pytest.raises(Killed):
            short_run(mosaic, street, tmp_path / "run", prompts="none")
    lines = kept.splitlines()
    lines[1], lines[2] = lines[1][:5] + lines[2][5:], lines[2][:5] + lines[1][5:]  # two people exchange their clothes
    table.write_text("\n".join(lines))
    try:
        with pytest.raises(UserError, match="begun with another attributes_sum"):
            short_run(mosaic, street, tmp_path / "run", prompts="none", resume=True)
    finally:
        table.write_text(kept)


# The analysis --------------------------------------------------------------------------------------------------------


def test_experts_are_switched_off_one_attribute_after_the_other(run: Path, street: Path) -> None:
    data, model = load_data(f"folder:{street}"), clipreid.load(run)
    found = dict(ablations(data, model))
    assert list(found) == ["", "hat", "top_colour", EVERY]
    whole = score(data, model).query_features["concat"]
    assert torch.equal(found[""].query_features["concat"], whole)  # and nothing is muted any more
    bare = {name: split_with(split, [{}] * len(split)) for name, split in data.splits.items()}
    alone = score(replace(data, splits=bare), model).query_features["concat"]
    torch.testing.assert_close(found[EVERY].query_features["concat"], alone, atol=1e-6, rtol=0)
    for name in ("hat", "top_colour"):
        features = found[name].query_features["concat"]
        assert not torch.allclose(features, whole, atol=1e-5)
        assert not torch.allclose(features, alone, atol=1e-5)


def test_what_has_nothing_to_switch_off_is_refused(run: Path, street: Path) -> None:
    data, model = load_data(f"folder:{street}"), clipreid.load(run)
    with pytest.raises(UserError, match=r"no attribute experts .* recipes/mosaic\.py"):
        list(ablations(data, untrained_model(model.source[0])))
    bare = {name: split_with(split, [{"shoes": "red"}] * len(split)) for name, split in data.splits.items()}
    with pytest.raises(UserError, match=r"no attribute that the run has an expert for .* \(known: shoes\)"):
        list(ablations(replace(data, splits=bare), model))
    with pytest.raises(UserError, match="image against image"):
        list(ablations(replace(data, protocol="text-to-image"), model))


def test_the_analysis_as_it_is_typed(run: Path, street: Path, tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    flags = ("--run", str(run), "--data", f"folder:{street}", "--threads", "1", "--output", str(tmp_path / "study"))
    run_recipe("mosaic_analysis.py", *flags)
    with open(tmp_path / "study" / "effects.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["attribute"], row["metric"]) for row in rows if not row["value"]} == {
        (name, metric) for name in ("hat", "top_colour") for metric in ("ap", "rank1")
    }
    assert all(float(row["low"]) <= float(row["effect"]) <= float(row["high"]) for row in rows)
    assert all(float(row["p"]) <= float(row["p_holm"]) <= 1 for row in rows)
    text = (tmp_path / "study" / "attributes.md").read_text()
    assert ORACLE in text
    assert "rank correlation of the gain in AP with resolves" in text
    assert "without any expert: mAP" in text
    assert (tmp_path / "study" / "attributes.png").stat().st_size > 5000
