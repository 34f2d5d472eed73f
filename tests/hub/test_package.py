"""What is published of a run: it loads again with the same features, and nothing private is in it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_hub import crops, edit_config, make_run

import clipreid
from clipreid.backbones.load import WEIGHTS
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.hub import ADAPTER, CONFIG, HEADS, IDENTITIES, TOWER, save_identities
from clipreid.hub.card import CURVES, LISTS
from clipreid.hub.files import CAMERA_MEANS, METRICS
from clipreid.hub.package import ADAPTER_CONFIG, CARD, Files, package, shown_size

ROOT = "/srv/clients/northgate-mall/crops"
PEOPLE = ["Aurelia Quist", "Bertram Osei", "Kunigunde Vey"]
FIGURES = {"mAP": 0.4627, "mINP": 0.27, "rank1": 0.5, "rank5": 0.85, "rank10": 0.94}


def entry(**more: Any) -> dict[str, Any]:
    counts = {"queries": 30, "valid_queries": 30, "gallery": 90, "query_identities": 15}
    intervals = {name: [value - 0.04, value + 0.05] for name, value in FIGURES.items()}
    return {**FIGURES, "counts": counts, "protocol": "market1501", "intervals": intervals, **more}


def finished(
    folder: Path, weights: Path | str = "tiny-clip", tuning: Any = "lora", data: str = f"folder:{ROOT}"
) -> Path:
    """A finished run with everything that must stay at home: paths, names, checkpoints, a report with crops."""
    make_run(weights, folder, tuning)
    split = {"images": 3600, "identities": 3, "cameras": 2, "hash": "0123456789abcdef"}
    more = {
        "stages": ["stage1", "stage2"],
        "separability": {"text_to_image": 0.7, "image_to_text": 0.6},
        "data": {"names": [data], "noun": "person", "images": 12, "identities": 3},
        "run": {
            "backbone": "tiny-clip",
            "data": [data],
            "test": [],
            "pattern": f"{ROOT}/(?P<identity>.*)" if data.startswith("folder:") else None,
            "columns": None,
            "init": f"{ROOT}/run",
            "noun": PEOPLE[0],
            "preset": "default",
            "seed": 0,
            "image_size": [128, 64],
            "precision": "no",
            "skip_bad": True,
        },
        "offsets": {data: [0, 0]},
        "fingerprint": {data: {"train": split}},
        "local": [data],
        "notes": f"what a later version keeps of {PEOPLE[0]} in {ROOT}",
    }
    edit_config(folder, lambda config: config.update(more))
    note = f"{ROOT}/{PEOPLE[0]}/1.jpg is the only image of {PEOPLE[0]}"
    metrics = {data: {"zero-shot": entry(mAP=0.3), "stage2": entry(notes=[note])}, f"{data} (val)": {"stage2": entry()}}
    (folder / METRICS).write_text(json.dumps(metrics))
    losses = [{"stage": "stage2", "step": n, "loss": 3.0 / n, "id_loss": 2.0 / n, "note": ROOT} for n in (1, 2, 3)]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in losses) + "\n{cut")
    save_identities(folder, {"prompts": torch.randn(3, 4, 8), "text_bank": torch.randn(3, 6)}, PEOPLE)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.json").write_text(note)
    for file in (Path("report", "index.html"), Path("profile", "stage2.json")):
        (folder / file.parent).mkdir()
        (folder / file).write_text(note)
    Image.new("RGB", (8, 8)).save(folder / "report" / LISTS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "run")


def content(files: Files, name: str) -> bytes:
    found = files[name]
    return found.read_bytes() if isinstance(found, Path) else found


def clone(files: Files, folder: Path) -> Path:
    """As the repository would lie on another machine."""
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content(files, name))
    return folder


# What is in it ----------------------------------------------------------------------------------------------------

ALWAYS = {CARD, CONFIG, METRICS, CURVES, HEADS}
WEIGHT_FILES = {"lora": {"adapter_config.json", "adapter_model.safetensors"}, "full": {TOWER}, "head": set()}


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_a_clone_of_what_is_published_gives_the_same_features(tmp_path: Path, tuning: str) -> None:
    run = finished(tmp_path / "run", tuning=tuning)
    expected = clipreid.load(run).embed(crops())
    files = package(run, "me/demo")
    assert files.keys() == ALWAYS | WEIGHT_FILES[tuning]
    copy = clone(files, tmp_path / "clone")
    assert (clipreid.load(copy).embed(crops()) - expected).abs().max() <= 1e-6
    again = package(copy, "you/demo")  # a clone is a run folder: it can be published in turn
    assert again.keys() == files.keys()
    public = json.loads(content(files, CONFIG))
    config = json.loads((run / CONFIG).read_text())["config"]
    assert config.pop("occluder_folder") is None
    assert public["config"] == config  # numbers, and words of our own
    assert public["run"] == {"backbone": "tiny-clip", "data": [], "test": [], "preset": "default", "seed": 0,
                             "image_size": [128, 64], "precision": "no", "skip_bad": True}  # fmt: skip
    assert content(again, CONFIG) == content(files, CONFIG)


@pytest.mark.parametrize("flags", [{}, {"include_identities": True}, {"include_crops": True}])
def test_no_uploaded_byte_tells_where_the_data_lie_or_who_is_in_them(run: Path, flags: dict[str, bool]) -> None:
    files = package(run, "me/demo", **flags)
    words = [ROOT, "northgate", "srv", str(run), str(run.parent), str(Path.home()), *PEOPLE, *" ".join(PEOPLE).split()]
    for name in files:
        for word in words:
            assert word.encode() not in content(files, name), f"{word} in {name}"
    everything = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert all(word.encode() in everything for word in (ROOT, *PEOPLE))  # they were there to be found
    assert b"own data" in content(files, CARD)


def test_identities_only_when_asked_for_and_without_their_names(run: Path, tmp_path: Path) -> None:
    assert IDENTITIES not in package(run, "me/demo")
    files = package(run, "me/demo", include_identities=True)
    with safe_open(clone(files, tmp_path / "clone") / IDENTITIES, "pt") as handle:
        assert set(handle.keys()) == {"prompts", "text_bank"}
        assert json.loads(handle.metadata()["names"]) == ["0", "1", "2"]
    assert "are part of this repository, without their names" in content(files, CARD).decode()


def test_camera_means_stay_at_home(run: Path) -> None:
    before = set(package(run, "me/demo"))
    means = {"cameras": torch.tensor([1]), "concat": torch.ones(1, 4)}
    save_file(means, run / CAMERA_MEANS, {"data": f"folder:{ROOT}"})
    assert set(package(run, "me/demo")) == before


def test_crops_only_when_asked_for_and_never_those_of_a_public_set(run: Path, tmp_path: Path) -> None:
    assert LISTS not in package(run, "me/demo")
    files = package(run, "me/demo", include_crops=True)
    (tmp_path / LISTS).write_bytes(content(files, LISTS))
    with Image.open(tmp_path / LISTS) as sent, Image.open(run / "report" / LISTS) as drawn:
        assert np.array_equal(np.asarray(sent), np.asarray(drawn))
    assert f"]({LISTS})" in content(files, CARD).decode()
    (run / "report" / LISTS).write_bytes(b"no image")
    with pytest.raises(UserError, match="is not an image"):
        package(run, "me/demo", include_crops=True)
    (run / "report" / LISTS).unlink()
    with pytest.raises(UserError, match=r"there is no .*ranked_lists.png: draw it with clipreid evaluate .* --report"):
        package(run, "me/demo", include_crops=True)
    tested = finished(tmp_path / "market")
    (tested / METRICS).write_text(json.dumps({f"msmt17:{ROOT}": {"stage2": entry()}}))  # shown in the report, perhaps
    with pytest.raises(
        UserError, match=r"--include-crops: .* tested on msmt17. .*forbid redistributing their images, or"
    ):
        package(tested, "me/demo", include_crops=True)
    assert package(tested, "me/demo")


def test_dry_run_needs_no_network_and_no_token_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", refuse)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    main(["publish", str(run), "me/demo", "--dry-run"])
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    shown = capsys.readouterr().out
    assert "would be uploaded to me/demo:" in shown
    assert 'clipreid.load("me/demo")' in shown
    for name, inside in package(run, "me/demo").items():
        size = len(inside.read_bytes() if isinstance(inside, Path) else inside)
        assert any(line.split()[:1] == [name] and line.endswith(shown_size(size)) for line in shown.splitlines()), name


NOTE = f"{PEOPLE[0]} at /srv/secret"


def annotate(file: Path) -> None:
    """A note in the header of a safetensors file, which loads as before."""
    save_file(load_file(file), file, metadata={"format": "pt", "note": NOTE})


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_notes_in_the_runs_files_are_not_published(tmp_path: Path, tuning: str) -> None:
    run = finished(tmp_path / "run", tuning=tuning)
    for key in ("separability", "data", "run"):
        edit_config(run, lambda c, key=key: c[key].update(note=NOTE, nested={"a": [NOTE]}))
    edit_config(run, lambda config: config["offsets"].update({NOTE: [0, 0]}))
    metrics = {"synthetic": {"stage2": entry(parts={"final": {"mAP": 0.5, NOTE: 1, "note": NOTE}}), NOTE: entry()}}
    (run / METRICS).write_text(json.dumps(metrics))
    annotate(run / HEADS)
    annotate(run / (ADAPTER if tuning == "lora" else TOWER))
    if tuning == "lora":
        file = run / "adapter" / ADAPTER_CONFIG
        file.write_text(json.dumps({**json.loads(file.read_text()), "revision": NOTE, "note": NOTE}))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", NOTE)
    Image.new("RGB", (8, 8)).save(run / "report" / LISTS, pnginfo=notes)
    files = package(run, "me/demo", include_identities=True, include_crops=True)
    for name in files:
        for word in (PEOPLE[0], "Quist", "secret"):
            assert word.encode() not in content(files, name), f"{word} in {name}"
    assert json.loads(content(files, METRICS)) == {"synthetic": {"stage2": entry(parts={"final": {"mAP": 0.5}})}}
    loaded = clipreid.load(clone(files, tmp_path / "clone"))
    assert torch.equal(loaded.embed(crops()), clipreid.load(run).embed(crops()))


def test_adapter_config_says_what_config_json_says(run: Path) -> None:
    """As which the run loads and was scored, whatever has become of adapter/adapter_config.json."""
    file = run / "adapter" / ADAPTER_CONFIG
    sound = json.loads(file.read_text())
    assert json.loads(content(package(run, "me/demo"), ADAPTER_CONFIG)) == sound
    file.write_text(json.dumps({**sound, "lora_alpha": 160, "r": 2, "use_rslora": True, "target_modules": ["k_proj"]}))
    assert json.loads(content(package(run, "me/demo"), ADAPTER_CONFIG)) == sound
    assert (sound["lora_alpha"], sound["r"]) == (6, 4)


# Refusals ---------------------------------------------------------------------------------------------------------


def test_runs_that_are_not_finished_are_refused(run: Path, tmp_path: Path) -> None:
    edit_config(run, lambda config: config.update(finished=False))
    with pytest.raises(UserError, match=r"run is not finished: .* --resume"):
        package(run, "me/demo")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        package(tmp_path / "nowhere", "me/demo")


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", HEADS, CONFIG, METRICS, "log.jsonl", "adapter", "report"]
)
def test_links_out_of_the_run_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    shutil.move(run / name, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run / name)
    with pytest.raises(UserError, match=r"is a link that leads out of the run folder"):
        package(run, "me/demo", include_crops=True)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no backbone": lambda config: config.pop("backbone"),
    "no name": lambda config: config["backbone"].pop("name"),
    "a list for a tower": lambda config: config.update(backbone={"name": "imported", "vision": []}),
    "no settings": lambda config: config.pop("config"),
    "no method": lambda config: config.pop("method"),
    "no stages": lambda config: config.update(stages=[]),
    "a sentence for a stage": lambda config: config.update(stages=["stage of Aurelia"]),
    "local": lambda config: config.update(local=5),
    "settings": lambda config: config.update(config=5),
    "other settings": lambda config: config["config"].update(a=1),
    "a text for a word": lambda config: config["config"].update(optimiser="adam and eve"),
    "a text for a number": lambda config: config["config"].update(margin="x"),
    "a text for a word of the run": lambda config: config["run"].update(preset="adam and eve"),
    "a word that is none of ours": lambda config: config["run"].update(precision="aurelia"),
    "a text for a size": lambda config: config["run"].update(image_size=["a", "b"]),
    "separability": lambda config: config.update(separability=5),
    "fingerprint": lambda config: config.update(fingerprint=5),
    "parts": lambda config: config.update(fingerprint={"synthetic": {"train": {"images": "many"}}}),
    "no data": lambda config: config["data"].pop("names"),
    "noun": lambda config: config["data"].update(noun=5),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_settings_are_refused_with_a_message(run: Path, how: str) -> None:
    edit_config(run, DAMAGES[how])
    with pytest.raises(UserError):
        package(run, "me/demo")


WRONG = (5, {"mAP": "x"}, entry(counts=5), entry(intervals={"mAP": 5}), entry(cmc="x y"))


@pytest.mark.parametrize("figures", WRONG)
def test_damaged_figures_are_refused_with_a_message(run: Path, figures: Any) -> None:
    (run / METRICS).write_text(json.dumps({"synthetic": {"stage2": figures}}))
    with pytest.raises(UserError):
        package(run, "me/demo")


def test_base_model_gives_the_local_backbone_its_public_name(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    run = finished(tmp_path / "run", WEIGHTS / "tiny-clip")
    with pytest.raises(UserError, match=r"lies on this machine"):
        package(run, "me/demo")
    files = package(run, "me/demo", base_model="tiny-clip")
    assert json.loads(content(files, CONFIG))["backbone"]["name"] == "tiny-clip"
    assert json.loads(content(files, "adapter_config.json"))["base_model_name_or_path"] == "tiny-clip"
    loaded = clipreid.load(clone(files, tmp_path / "clone"))
    assert (loaded.embed(crops()) - clipreid.load(run).embed(crops())).abs().max() <= 1e-6
    other = finished(tmp_path / "other", tiny_folder("clip"))
    with pytest.raises(UserError, match=r"--base-model tiny-clip: its weights are not those|tiny-clip: .*size"):
        package(other, "me/demo", base_model="tiny-clip")
