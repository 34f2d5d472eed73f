"""The model card: the Hub's client reads it, every block in it runs, and what it says is so."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_answers import DATASET
from hub_server import Hub
from huggingface_hub import ModelCard
from PIL import Image
from test_hub import crops, edit_config
from test_package import FIGURES, ROOT, clone, content, entry, finished

import clipreid
from clipreid.errors import UserError
from clipreid.hub import CONFIG, HEADS, TOWER
from clipreid.hub.card import CURVES, LISTS, make_card
from clipreid.hub.files import METRICS
from clipreid.hub.licences import licence_of
from clipreid.hub.metadata import Facts
from clipreid.hub.package import CARD, package
from clipreid.hub.plain import plain_base
from clipreid.reports.training_curves import draw_curves, read_losses

PIXELS = ((0.4, 0.5, 0.6), (0.3, 0.2, 0.25), "bicubic")  # mean, std, interpolation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "run")


def test_the_card_is_read_by_the_hubs_own_client(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(clone(package(run, "me/demo"), tmp_path / "clone") / CARD, ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert {"clipreid", "re-identification", "person-re-identification", "lora"} <= set(card.data.tags)
    found = {(result.dataset_name, result.metric_type): result for result in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == 2 * len(FIGURES)
    for data in ("own data", "own data (val)"):
        for name, value in FIGURES.items():
            assert found[data, name].metric_value == pytest.approx(value)
            expected = {"protocol": "market1501", "interval_95": [round(value - 0.04, 4), round(value + 0.05, 4)]}
            assert found[data, name].metric_args == expected


def test_the_card_says_what_it_must(run: Path) -> None:
    card = content(package(run, "me/demo"), CARD).decode()
    for words in (
        "46.3 (42.3 to 51.3)",  # with its interval
        "30 queries of 15 identities against 90 images",
        "| own data | train | 3,600 | 3 | 2 | `0123456789abcdef` |",
        "not** for finding out who somebody is",
        "pretrained on painted images, for trying things out. A backbone that has seen photographs can",
        "look at the figures above",
        "personal data",
        'clipreid.load("me/demo")',
        "Licence of the backbone `tiny-clip`: `apache-2.0`",
        "resized to 128x64",
    ):
        assert words in card, words
    assert "untrained backbone has the higher mAP" not in card


def test_figures_on_the_street_are_no_evidence_and_none_are_not_pointed_at(run: Path) -> None:
    (run / METRICS).write_text(json.dumps({"synthetic:large": {"stage2": entry(), "stage2+k-reciprocal": entry()}}))
    edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
    card = content(package(run, "me/demo"), CARD).decode()
    assert "no evidence about pedestrians" in card
    assert 'pip install "transformers>=5"' in card
    assert "Re-ranked: the order takes all queries" in card
    assert "Scored after training, without a fingerprint: synthetic:large." in card
    (run / METRICS).unlink()
    card = content(package(run, "me/demo"), CARD).decode()
    assert "igures above" not in card
    assert "igures below" not in card
    assert "![Losses](curves.png)" in card
    assert "Re-ranked" not in card


def test_centred_rows_and_the_floor_are_explained(run: Path) -> None:
    models = ("stage2", "stage2+centred-train", "zero-shot+centred-gallery", "colour", "stage2+centred-train+aqe")
    (run / METRICS).write_text(json.dumps({"synthetic:large": {name: entry() for name in models[:4]}}))
    card = content(package(run, "me/demo"), CARD).decode()
    for words in (
        "| this model, centred by camera (train) |",
        "| zero-shot, centred by camera (gallery) |",
        "`colour`: stripes of colour, which know nothing of individuals.",
        "Centred: the mean feature of each camera is subtracted",
    ):
        assert words in card, words
    assert "Re-ranked" not in card
    (run / METRICS).write_text(json.dumps({"synthetic:large": {name: entry() for name in models}}))
    card = content(package(run, "me/demo"), CARD).decode()
    assert "| this model, centred by camera (train), re-ranked: aqe |" in card
    assert "Re-ranked: the order takes all queries" in card


def test_the_card_admits_where_training_made_it_worse(run: Path) -> None:
    (run / METRICS).write_text(json.dumps({"synthetic": {"zero-shot": entry(mAP=0.6), "stage2": entry()}}))
    card = content(package(run, "me/demo"), CARD).decode()
    assert "**On synthetic the untrained backbone has the higher mAP.** `clipreid.load(..., strength=s)`" in card


def test_the_card_says_how_the_features_lie(run: Path) -> None:
    state = {
        "different_5": 0.1,
        "different_50": 0.4,
        "different_95": 0.7,
        "dimension": 11.4,
        "width": 256,
        "int8": 0.021,
    }
    (run / METRICS).write_text(json.dumps({"synthetic": {"stage2": entry(health=state)}}))
    card = content(package(run, "me/demo"), CARD).decode()
    said = "Features: synthetic: cosine of different identities 0.40 (0.10 to 0.70), effective dimension 11 of 256, mAP"
    assert f"{said} lost as int8 2.1." in card
    assert json.loads(content(package(run, "me/demo"), METRICS))["synthetic"]["stage2"]["health"] == state


def test_unlike_figures_do_not_stand_side_by_side(run: Path) -> None:
    """As earlier versions wrote them: zero-shot with cameras, the trained model without, below one name."""
    before, after = entry(mAP=0.6, protocol="cross-camera"), entry(mAP=0.5, protocol="no-cameras")
    (run / METRICS).write_text(json.dumps({f"folder:{ROOT}": {"zero-shot": before, "stage2": after}}))
    files = package(run, "me/demo")
    card = content(files, CARD).decode()
    rows = [
        line.split(" | ")[:3]
        for line in card.splitlines()
        if (line.startswith("| own data") and "60." in line) or "50.0" in line
    ]
    assert ["| own data", "zero-shot", "cross-camera"] in rows
    assert ["| own data (no-cameras)", "this model", "no-cameras"] in rows
    assert "untrained backbone has the higher mAP" not in card  # nothing to compare
    assert "not to be compared" in card
    assert set(json.loads(content(files, METRICS))) == {"own data", "own data (no-cameras)"}


def test_withdrawn_data_are_named_as_such(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", data=f"dukemtmc:{ROOT}")
    assert "**dukemtmc was withdrawn by its authors" in content(package(run, "me/demo"), CARD).decode()
    edit_config(run, lambda config: config.update(fingerprint={}))
    assert "kept no fingerprint" in content(package(run, "me/demo"), CARD).decode()


def test_an_imported_checkpoint_is_published_without_the_backbone_it_never_had(tmp_path: Path) -> None:
    from test_import_checkpoint import published, save

    from clipreid.hub.import_checkpoint import import_checkpoint

    file = save(published(), tmp_path).rename(tmp_path / "secret-name.pth")
    import_checkpoint(file, tmp_path / "run")
    files = package(tmp_path / "run", "me/demo")
    assert files.keys() == {CARD, CONFIG, TOWER, HEADS}
    assert all(b"secret-name" not in content(files, name) for name in files)
    card = content(files, CARD).decode()
    assert "imported from a checkpoint" in card
    assert "Plain peft does not give the same features: it was imported" in card
    loaded = clipreid.load(clone(files, tmp_path / "clone"))
    assert torch.equal(loaded.embed(crops()), clipreid.load(tmp_path / "run").embed(crops()))


def test_why_plain_peft_cannot_stands_in_the_card(run: Path, tmp_path: Path) -> None:
    """`make_run` resizes positions bilinearly, which transformers does not."""
    assert (
        "Plain peft does not give the same features: its position table" in content(package(run, "a/b"), CARD).decode()
    )
    edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
    assert "Plain peft does not" not in content(package(run, "a/b"), CARD).decode()


def test_every_block_of_the_card_runs_as_it_stands(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone, without a letter changed, in a folder with two images; the run comes from the Hub by its name."""
    edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
    files = package(run, "me/demo")
    hub.put("me/demo", clone(files, tmp_path / "clone"))
    for name, crop in zip("ab", crops(), strict=False):
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.jpg")
    blocks = re.findall(r"```python\n(.*?)```", content(files, CARD).decode(), re.DOTALL)
    hub.here(monkeypatch, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    left = []
    for nth, block in enumerate(blocks):
        (tmp_path / f"{nth}.py").write_text(block)
        left.append(runpy.run_path(f"{nth}.py"))
    whole, tower, image = left
    model, images = clipreid.load(run), [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    expected = model.embed(images)
    assert f"float32 [2, {expected.shape[1]}]" in blocks[0]
    assert (whole["features"] - expected).abs().max() <= 1e-6
    with torch.no_grad():
        assert (tower["out"].pooler_output - model.features(tower["pixels"])["final"]).abs().max() <= 1e-4
    assert (image["feature"] - expected[:1]).abs().max() <= 1e-4
    assert (image["feature"] - clipreid.load(run, strength=0).embed(images[:1])).abs().max() > 1e-3


def test_what_is_needed_first_stands_first(run: Path) -> None:
    card = content(package(run, "me/demo"), CARD).decode()
    found = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert found[:3] == ["How to load it", "Results", "What it is for, and what not"]
    [project] = re.findall(r'^name = "(.*)"$', Path("pyproject.toml").read_text(), re.MULTILINE)
    assert card.index(f"pip install {project}") < card.index("import clipreid")


def facts_of(run: Path, name: str, **more: Any) -> Facts:
    """Of a run as if it had another backbone."""
    config = json.loads(content(package(run, "me/demo"), CONFIG))
    base, reason = plain_base(named := {**config, "backbone": {**config["backbone"], "name": name, **more}})
    return Facts("me/demo", named, {}, "clip", base, "" if reason else "lines", reason or "", 8, *PIXELS)


def test_only_where_the_stand_in_is_used_the_package_is_needed(run: Path) -> None:
    tiny, other = (make_card(facts_of(run, name, positions="bicubic")) for name in ("tiny-clip", "hf:openai/clip-b"))
    assert "the weights of this backbone lie in the clipreid package" in tiny
    assert "with transformers and peft alone" not in tiny
    assert "with transformers and peft alone" in other
    assert 'files("clipreid")' not in other


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ("tiny-clip", None),
        ("hf:openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("open_clip:ViT-B-16-quickgelu/openai", "openai/clip-vit-base-patch16"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        ("open_clip:ViT-B-16-SigLIP2-256/webli", "timm/ViT-B-16-SigLIP2-256"),
        ("open_clip:ViT-B-16/no-such-tag", None),
        ("timm:vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("timm:vit_small_patch16_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("timm:no_such_model", None),
    ],
)
def test_the_metadata_name_the_backbones_repository(run: Path, backbone: str, base: str | None) -> None:
    assert ModelCard(make_card(facts_of(run, backbone))).data.base_model == base


@pytest.mark.parametrize(("tuning", "relation"), [("lora", "adapter"), ("full", "finetune"), ("head", "adapter")])
def test_what_it_is_to_its_base_model(run: Path, tuning: str, relation: str) -> None:
    facts = facts_of(run, "hf:openai/clip-vit-base-patch16")
    named = {**facts.config, "config": {**facts.config["config"], "tuning": tuning}}
    data = ModelCard(make_card(replace(facts, config=named))).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("clipreid", relation)
    assert ({"peft", "lora"} <= set(data["tags"])) == (tuning == "lora")
    assert "base_model_relation" not in ModelCard(make_card(facts_of(run, "tiny-clip"))).data.to_dict()


def test_names_of_data_are_such_as_the_hub_takes(run: Path) -> None:
    """The server of these tests holds the Hub's rule: another name is refused there."""
    figures = {"stage2": entry()}
    names = [
        "synthetic",
        "synthetic:new-cameras",
        "synthetic:large (val)",
        "hub:alice/reid/part",
        "market1501 2",
        "own data",
        "own data (val)",
    ]
    facts = facts_of(run, "tiny-clip")
    named = {**facts.config, "run": {"data": ["synthetic:large", "hub:alice/reid/part", "market1501 2"]}}
    data = ModelCard(make_card(replace(facts, config=named, metrics=dict.fromkeys(names, figures)))).data
    found = list(dict.fromkeys(result.dataset_type for result in data.eval_results or []))
    assert found == [
        "synthetic",
        "synthetic-new-cameras",
        "synthetic-large-val",
        "alice/reid",
        "market1501-2",
        "own-data",
        "own-data-val",
    ]
    assert data.datasets == ["synthetic-large", "alice/reid", "market1501"]
    assert all(DATASET.fullmatch(name) for name in [*found, *data.datasets])


def test_a_licence_that_the_hub_does_not_take(run: Path) -> None:
    for licence in ("Apache 2.0", "Apache-2.0", ""):
        with pytest.raises(UserError, match=r"--license .*: give an identifier of the Hub, .* such as apache-2.0"):
            package(run, "me/demo", licence=licence)


def test_the_card_says_of_which_feature_the_zero_shot_row_is(run: Path) -> None:
    other = "(not the concatenation on synthetic: projection)"
    for feature, said in (("concat", "before any training."), ("projection", other)):
        rows = {"zero-shot": entry(feature=feature), "stage2": entry(feature="concat")}
        (run / METRICS).write_text(json.dumps({"synthetic": rows}))
        assert said in content(package(run, "me/demo"), CARD).decode()


@pytest.mark.parametrize("scored", [True, False])
def test_the_card_says_whether_crops_are_published(run: Path, scored: bool) -> None:
    if not scored:
        (run / METRICS).unlink()
    for curves in (True, False):
        if not curves:
            (run / "log.jsonl").unlink()
        for crops_too in (True, False):
            card = content(package(run, "me/demo", include_crops=crops_too), CARD).decode()
            assert (f"]({LISTS})" in card) == crops_too
            assert ("The ranked lists show crops." in card) == crops_too
            assert ("No crop of them is in it." in card) != crops_too
            assert (f"]({CURVES})" in card) == (curves or scored)


def test_licences_known_given_and_unknown(run: Path) -> None:
    assert licence_of("open_clip:ViT-B-16-quickgelu/openai") == ("mit", "")
    assert licence_of("hf:google/siglip2-base-patch16-256") == ("apache-2.0", "")
    assert licence_of("timm:vit_small_patch16_dinov3.lvd1689m") == ("other", "dinov3-license")
    assert licence_of("hf:somebody/clip") == ("unknown", "")
    card = ModelCard(content(package(run, "me/demo", licence="cc-by-nc-4.0"), CARD).decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert "These weights: `cc-by-nc-4.0`" in card.text
    config = json.loads(content(package(run, "me/demo"), CONFIG))
    unknown = {**config, "backbone": {**config["backbone"], "name": "hf:somebody/clip"}}
    text = make_card(Facts("me/demo", unknown, {}, "clip", None, "", "because", 8, *PIXELS))
    assert ModelCard(text).data.license == "unknown"
    assert "unknown to clipreid: look it up" in text
    assert ModelCard(text).data.eval_results is None
    assert "It was not scored" in text


def test_curves_are_drawn_from_what_there_is(run: Path, tmp_path: Path) -> None:
    losses = read_losses(run / "log.jsonl")
    assert [len(epochs) for epochs in losses.values()] == [3]  # the line that was cut short is left out
    assert draw_curves({}, {}, "stage2") is None
    assert read_losses(tmp_path / "nowhere") == {}
    share = np.linspace(0.4, 1, 20).tolist()
    images = [
        draw_curves(losses, {}, "stage2"),
        draw_curves({}, {"a": {"stage2": entry()}}, "stage2"),
        draw_curves(losses, {"a": {"stage2": entry(cmc=share), "zero-shot": entry()}}, "stage2"),
    ]
    for image in images:
        assert image is not None
        assert image.startswith(b"\x89PNG")
    assert len(set(images)) == 3
