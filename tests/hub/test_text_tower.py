"""A text tower that was trained: saved beside the image tower, loaded, published and downloaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hub_server import Hub
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hub import crops, edit_config, edit_tensors, set_first, shake, write_run
from test_package import NOTE, clone, content

import clipreid
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.hub import CONFIG, HEADS, backbone_record, find_run
from clipreid.hub.files import TEXT_ADAPTER, TEXT_TOWER
from clipreid.hub.package import ADAPTER_CONFIG, package
from clipreid.hub.plain import plain_lines, plain_text_lines
from clipreid.methods import build
from clipreid.model import ReIDModel
from clipreid.strength import set_strength

NAME = "alice/demo"
TEXTS = ["a photo of a person in a red coat", "a person with a blue bag"]
SECRET = "/srv/clients/northgate"


def make_toy(toy: ModuleType, folder: Path, backbone: str = "tiny-clip", **settings: Any) -> ReIDModel:
    """A finished run of the toy method, and the model as it was at the end of training."""
    source = load_backbone(backbone)
    record = backbone_record(source, "bicubic")
    model = build(toy, source, toy.Config(**settings), identities=3)
    shake(model)
    write_run(model, folder, record, "toy")
    return model.eval()


@pytest.fixture
def run(toy: ModuleType, tmp_path: Path) -> Path:
    make_toy(toy, tmp_path / "run")
    return tmp_path / "run"


WRITTEN = {"lora": {"text_adapter"}, "full": {TEXT_TOWER}, "frozen": set()}


@pytest.mark.parametrize("backbone", ["tiny-clip", "tiny-siglip2"])
@pytest.mark.parametrize("text_tuning", ["lora", "full", "frozen"])
def test_a_loaded_model_gives_the_texts_and_features_it_was_saved_with(
    toy: ModuleType, tmp_path: Path, text_tuning: str, backbone: str
) -> None:
    model = make_toy(toy, tmp_path / "run", backbone, text_tuning=text_tuning)
    again = clipreid.load(tmp_path / "run")
    assert (again.method, again.text_tuning) == ("toy", text_tuning)
    assert torch.equal(again.embed_text(TEXTS), model.embed_text(TEXTS))
    assert (again.embed(crops()) - model.embed(crops())).abs().max() <= 1e-6
    fresh = clipreid.load_backbone(backbone)
    fresh.image.eval(), fresh.text.eval()
    before = torch.nn.functional.normalize(fresh.encode_text(TEXTS), dim=1)
    moved = (again.embed_text(TEXTS) - before).abs().max()
    assert moved <= 1e-6 if text_tuning == "frozen" else moved > 1e-3
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert written == {CONFIG, HEADS, "adapter"} | WRITTEN[text_tuning]
    assert not any(name.startswith("text") for name in load_file(tmp_path / "run" / HEADS))
    set_strength(again, 0)
    assert (again.embed_text(TEXTS) - before).abs().max() <= 1e-6
    set_strength(again, 1)
    assert torch.equal(again.embed_text(TEXTS), model.embed_text(TEXTS))


def test_half_of_a_trained_text_tower(toy: ModuleType, tmp_path: Path) -> None:
    """Weights half way between those before and after training (WiSE-FT)."""
    model = make_toy(toy, tmp_path / "run", text_tuning="full")
    half, before = clipreid.load(tmp_path / "run", strength=0.5), load_backbone("tiny-clip")
    after = dict(model.text.named_parameters())  # type: ignore[union-attr]
    for name, weight in half.text.named_parameters():  # type: ignore[union-attr]
        torch.testing.assert_close(weight, (dict(before.text.named_parameters())[name] + after[name]) / 2)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: f.unlink(), r"adapter_model.safetensors is missing: the run folder is incomplete"),
    "cut off": (lambda f: os.truncate(f, 500), r"adapter_model.safetensors is not a safetensors file"),
    "extra": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=torch.zeros(2))),
        r"text_adapter.* does not fit this model: weights 1 unexpected \(such as extra\)",
    ),
    "of another shape": (
        lambda f: edit_tensors(f, lambda t: t.update({min(t): torch.zeros(3, 3)})),
        r"is \[3, 3\], this backbone needs",
    ),
    "nan": (lambda f: edit_tensors(f, lambda t: set_first(t, float("nan"))), "has values that are not finite"),
}


@pytest.mark.parametrize("how", FILES)
def test_text_adapters_that_are_refused(run: Path, how: str) -> None:
    change, message = FILES[how]
    change(run / TEXT_ADAPTER)
    with pytest.raises(UserError, match=message):
        clipreid.load(run)


# Without clipreid, and in words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2", "clip"])
def test_the_second_adapter_on_transformers_gives_the_texts(
    toy: ModuleType, tmp_path: Path, tiny_folder: Callable[[str], Path], name: str
) -> None:
    base = name if name.startswith("tiny-") else str(tiny_folder(name))
    model = make_toy(toy, tmp_path / "run", name if base == name else f"hf:{base}")
    image, run = tmp_path / "a.png", tmp_path / "run"
    Image.new("RGB", (20, 40), "red").save(image)
    for text in (TEXTS[0], "A Man, in BLUE: " * 20):
        lines = plain_lines(model, base, str(run / "adapter"), str(image)) + plain_text_lines(
            model, base, str(run), text
        )
        assert "clipreid." not in lines
        found: dict[str, Any] = {}
        exec(lines, found)
        expected = model.embed_text([text], say=lambda note: None)
        assert found["words"].shape == expected.shape
        assert (found["words"] - expected).abs().max() <= 1e-4
    before = torch.nn.functional.normalize(load_backbone(model.source[0].name).encode_text([text]), dim=1)
    assert (before - expected).abs().max() > 1e-3


def test_what_has_no_second_adapter_shows_no_lines(toy: ModuleType, tiny_folder: Callable[[str], Path]) -> None:
    for tuning in ("full", "frozen"):
        model = build(toy, load_backbone("tiny-clip"), toy.Config(text_tuning=tuning))
        assert plain_text_lines(model, "tiny-clip", "run") == ""
    folder = tiny_folder("siglip")
    model = build(toy, load_backbone(f"hf:{folder}"), toy.Config())
    assert plain_text_lines(model, str(folder), "run") == ""  # its tokenizer is not shown to be transformers'


def test_searching_in_words_asks_the_trained_text_tower(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_toy(toy, tmp_path / "run")
    for n, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 128), colour).save(tmp_path / f"{n}.png")
    images, gallery = sorted(tmp_path.glob("*.png")), tmp_path / "g.parquet"
    main(["embed", str(tmp_path / "run"), *map(str, images), "--output", str(gallery)])
    capsys.readouterr()
    main(["search", str(tmp_path / "run"), "--gallery", str(gallery), "--text", TEXTS[0], "--json"])
    (entry,) = json.loads(capsys.readouterr().out)["queries"]
    found = {hit["path"]: hit["similarity"] for hit in entry["results"]}
    parts = torch.cat([model.embed_parts(model.crops([image]))["projection"] for image in images])
    (expected,) = (model.embed_text(TEXTS[:1]) @ parts.T).tolist()
    assert [found[str(image)] for image in images] == pytest.approx(expected, abs=2e-3)
    (untrained,) = (clipreid.load("tiny-clip").embed_text(TEXTS[:1]) @ parts.T).tolist()
    assert max(abs(a - b) for a, b in zip(untrained, expected, strict=True)) > 0.01  # another answer


# Published --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_tuning", ["lora", "full"])
def test_what_is_published_embeds_the_same_texts(toy: ModuleType, tmp_path: Path, text_tuning: str) -> None:
    model = make_toy(toy, tmp_path / "run", text_tuning=text_tuning)
    files = package(tmp_path / "run", NAME)
    texts = {"lora": {TEXT_ADAPTER.as_posix(), f"text_adapter/{ADAPTER_CONFIG}"}, "full": {TEXT_TOWER}}[text_tuning]
    assert {name for name in files if "text" in name} == texts
    copy = clone(files, tmp_path / "clone")
    again = clipreid.load(copy)
    assert torch.equal(again.embed_text(TEXTS), model.embed_text(TEXTS))
    assert (again.embed(crops()) - model.embed(crops())).abs().max() <= 1e-6
    assert package(copy, NAME).keys() == files.keys()


def test_no_text_and_no_path_of_the_settings_is_published(toy: ModuleType, tmp_path: Path) -> None:
    settings = {"note": f"of {SECRET}", "place": Path(SECRET)}
    run = tmp_path / "run"
    expected = make_toy(toy, run, **settings).embed_text(TEXTS)
    assert clipreid.load(run).config == toy.Config(**settings)  # at home they stay
    text = run / TEXT_ADAPTER
    save_file(load_file(text), text, metadata={"format": "pt", "note": NOTE})
    file = text.with_name(ADAPTER_CONFIG)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": NOTE, "base_model_name_or_path": SECRET}))
    files = package(run, NAME)
    for name in files:
        for word in (SECRET, "northgate", "Quist", "secret"):
            assert word.encode() not in content(files, name), f"{word} in {name}"
    public = json.loads(content(files, CONFIG))
    assert public["config"] == {"tuning": "lora", "text_tuning": "lora", "lora_rank": 4, "metric": "cosine"}
    assert public["method"] == "toy"
    again = clipreid.load(clone(files, tmp_path / "clone"))
    assert again.config == toy.Config()
    assert torch.equal(again.embed_text(TEXTS), expected)


@pytest.mark.parametrize("name", [TEXT_ADAPTER.as_posix(), f"text_adapter/{ADAPTER_CONFIG}", "text_adapter"])
def test_links_out_of_the_run_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    shutil.move(run / name, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run / name)
    with pytest.raises(UserError, match=r"is a link that leads out of the run folder"):
        package(run, NAME)


def test_the_card_of_an_unknown_method_promises_no_plain_peft(run: Path) -> None:
    card = content(package(run, NAME), "README.md").decode()
    assert "Plain peft does not give the same features: its method, toy, is not among those" in card
    assert "PeftModel" not in card
    settings = json.loads((run / "adapter" / ADAPTER_CONFIG).read_text())
    assert settings["auto_mapping"] is None


# Downloaded -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.chdir(tmp_path)
    hub.here(monkeypatch, tmp_path / "home")
    return hub


@pytest.mark.parametrize("text_tuning", ["lora", "full"])
def test_a_downloaded_run_embeds_the_same_texts(toy: ModuleType, home: Hub, tmp_path: Path, text_tuning: str) -> None:
    model = make_toy(toy, tmp_path / "run", text_tuning=text_tuning)
    home.put(NAME, clone(package(tmp_path / "run", NAME), tmp_path / "clone"))
    assert torch.equal(clipreid.load(NAME).embed_text(TEXTS), model.embed_text(TEXTS))
    home.stop()
    assert torch.equal(clipreid.load(NAME).embed_text(TEXTS), model.embed_text(TEXTS))
    found = find_run(NAME)
    (found / (TEXT_TOWER if text_tuning == "full" else TEXT_ADAPTER)).unlink()
    with pytest.raises(UserError, match=r"demo is no folder here, only partly in the cache"):
        clipreid.load(NAME)


@pytest.mark.parametrize(("text_tuning", "name"), [("lora", TEXT_ADAPTER.as_posix()), ("full", TEXT_TOWER)])
def test_sizes_of_text_towers_are_looked_at_before_downloading(
    toy: ModuleType, home: Hub, tmp_path: Path, text_tuning: str, name: str
) -> None:
    make_toy(toy, tmp_path / "run", text_tuning=text_tuning)
    home.put(NAME, tmp_path / "run")
    home.repos[NAME].sizes = {name: 10**12}
    with pytest.raises(UserError, match=rf"{name} has 1,000,000 MB, a run's at most .*: it is not read"):
        clipreid.load(NAME)
    assert not home.asked("(GET|HEAD) .*/resolve/")


@pytest.mark.parametrize(("name", "value"), [("note", "x"), ("place", "/etc/passwd"), ("place", 5)])
def test_a_downloaded_run_brings_no_texts_and_no_paths(home: Hub, run: Path, name: str, value: Any) -> None:
    home.put(NAME, run)
    clipreid.load(NAME)  # where they are the defaults
    edit_config(run, lambda config: config["config"].update({name: value}))
    home.put(NAME, run)
    with pytest.raises(UserError, match=rf"config {name} is .*: a downloaded run has no texts and no paths there"):
        clipreid.load(NAME)
