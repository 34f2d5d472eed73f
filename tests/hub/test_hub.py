"""Run folders: what is written loads again with the same features, and nothing else is ever accepted."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.errors import UserError
from clipreid.hub import (
    ADAPTER,
    CONFIG,
    HEADS,
    IDENTITIES,
    TOWER,
    backbone_record,
    load,
    load_identities,
    save_identities,
    save_model,
)
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel

Folder = Callable[[str], Path]
STRIDE = 6


@torch.no_grad()
def shake(model: ReIDModel) -> None:
    """Stands for training: every trainable weight and every buffer moves."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand(buffer.shape, generator=generator))


def make_model(name: str, tuning: Any = "lora", stride: int | None = None) -> ReIDModel:
    """As stage 2 leaves it, of another backbone than the settings say by default."""
    backbone = load_backbone(name, positions="bilinear", stride=stride)
    backbone.mean, backbone.interpolation = (0.4, 0.5, 0.6), "bilinear"
    return build(clip_reid, backbone, clip_reid.Config(tuning=tuning, lora_rank=4, lora_alpha=6), identities=3)


def make_run(weights: Path | str, folder: Path, tuning: Any = "lora", stride: int | None = None) -> ReIDModel:
    """A finished run as stage 2 leaves it, with the model that the training process had at its end."""
    model = make_model(weights if isinstance(weights, str) else f"hf:{weights}", tuning, stride)
    (backbone,) = model.source
    record = backbone_record(backbone, "bilinear")
    shake(model)
    write_run(model, folder, record)
    return model.eval()


def write_run(model: ReIDModel, folder: Path, record: dict[str, Any], stage: str = "stage2") -> None:
    """The folder of a finished run; record: of the backbone before it was trained."""
    folder.mkdir()
    save_model(model, folder)
    config = {"clipreid": clipreid.__version__, "method": model.method, "config": asdict(model.config)}
    config |= {"stages": [stage], "finished": True, "backbone": record}
    (folder / CONFIG).write_text(json.dumps(config, default=str))


def crops() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (4, 3, 70, 30), generator=generator, dtype=torch.uint8)


@pytest.fixture
def run(tiny_folder: Folder, tmp_path: Path) -> Path:
    make_run(tiny_folder("clip"), tmp_path / "run")
    return tmp_path / "run"


# Round trips ------------------------------------------------------------------------------------------------------

WRITTEN = {"lora": {"adapter"}, "full": {TOWER}, "head": set()}


@pytest.mark.parametrize("stride", [None, STRIDE])
@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_loaded_model_gives_the_features_it_was_saved_with(
    tiny_folder: Folder, tmp_path: Path, family: str, tuning: str, stride: int | None
) -> None:
    model = make_run(tiny_folder(family), tmp_path / "run", tuning, stride)
    again = clipreid.load(tmp_path / "run")
    assert not again.training
    assert again.config == model.config
    expected = model.embed(crops())
    assert (again.embed(crops()) - expected).abs().max() <= 1e-6
    assert (load(str(tmp_path / "run")).embed(crops()) - expected).abs().max() <= 1e-6
    assert (again.mean, again.std, again.interpolation) == (model.mean, model.std, model.interpolation)
    assert (again.method, again.tuning) == ("clip_reid", tuning)
    untrained = make_model(f"hf:{tiny_folder(family)}", tuning, stride)
    assert (untrained.eval().embed(crops()) - expected).abs().max() > 1e-3
    found = {file.name for file in (tmp_path / "run").iterdir()}
    assert found == {CONFIG, HEADS} | WRITTEN[tuning]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len({file.stat().st_mode for file in files}) == 1  # who may read the settings may read the weights
    for name, buffer in model.named_buffers():
        if name.startswith("necks."):
            assert torch.equal(dict(again.named_buffers())[name], buffer)


def test_only_what_belongs_to_nobody_is_in_the_published_files(run: Path) -> None:
    """Classifiers have a row for every identity: they are kept apart."""
    names = {*load_file(run / HEADS), *load_file(run / ADAPTER)}
    assert not any("classifier" in name or "bank" in name or "prompt" in name for name in names)
    assert sorted(os.listdir(run / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]


def test_saving_and_loading_ask_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft would look the backbone up on the Hub to see whether its vocabulary grew."""
    import peft.utils.save_and_load as peft_files

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"the Hub was asked: {args}")

    monkeypatch.setattr(peft_files, "check_file_exists_on_hf_hub", refuse)
    make_run("tiny-clip", tmp_path / "run")
    load(tmp_path / "run")


def test_the_adapter_is_a_plain_peft_adapter(tiny_folder: Folder, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import CLIPVisionModel

    model = make_run(tiny_folder("clip"), tmp_path / "run")
    theirs: Any = CLIPVisionModel.from_pretrained(tiny_folder("clip"))
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "run" / "adapter").eval()
    pixels = torch.randn(3, 3, 64, 64)
    square = load_backbone(f"hf:{tiny_folder('clip')}", image_size=64)  # transformers' own positions
    ours = build(clip_reid, square, model.config)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    set_peft_model_state_dict(ours.image, get_peft_model_state_dict(model.image, save_embedding_layers=False))
    with torch.no_grad():
        found, expected = ours.eval().features(pixels)["final"], theirs(pixels).pooler_output
        plain = load_backbone(f"hf:{tiny_folder('clip')}", image_size=64).tokens(pixels).cls
    assert (found - expected).abs().max() <= 1e-4
    assert (found - plain).abs().max() > 1e-2  # type: ignore[operator]


def test_identities_round_trip(tmp_path: Path) -> None:
    tensors = {"prompts": torch.randn(2, 4, 8), "text_bank": torch.randn(2, 6).T[:, :2]}
    save_identities(tmp_path, tensors, ["0007", "Zoë"])
    found, names = load_identities(tmp_path)
    assert names == ["0007", "Zoë"]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    (tmp_path / IDENTITIES).unlink()
    with pytest.raises(UserError, match=rf"{IDENTITIES} is missing: the run folder is incomplete"):
        load_identities(tmp_path)


@pytest.mark.parametrize("names", ["[1, 2]", "{", '"a"'])
def test_names_that_are_not_names(tmp_path: Path, names: str) -> None:
    save_file({"prompts": torch.zeros(1)}, tmp_path / IDENTITIES, metadata={"names": names})
    with pytest.raises(UserError, match="not a list of texts"):
        load_identities(tmp_path)


# Refusals ---------------------------------------------------------------------------------------------------------


def edit_config(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((run / CONFIG).read_text())
    change(config)
    (run / CONFIG).write_text(json.dumps(config))


def edit_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def set_first(tensors: dict[str, Tensor], value: float) -> None:
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = value


def rank_of(run: Path, rank: int) -> None:
    edit_config(run, lambda c: c["config"].update(lora_rank=rank))


CONFIG_REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not ours": (lambda c: c.pop("clipreid"), r"config.json was not written by clipreid"),
    "unfinished": (
        lambda c: c.update(finished=False),
        r"run holds no trained model yet: run the recipe of its method \(clip_reid\) with --output .*run and the flags",
    ),
    "interrupted": (
        lambda c: c.update(finished=False, training="stage2"),
        r"run holds no trained model yet: .*run --resume and the flags it was begun with",
    ),
    "no stages": (lambda c: c.pop("stages"), r"config.json: stages is \[\]: a finished run names the stages"),
    "no method": (lambda c: c.pop("method"), r"config.json is not in a form that clipreid has ever written"),
    "unknown method": (
        lambda c: c.update(method="magic"),
        r"no method 'magic': this version of clipreid has clip_reid",
    ),
    "unknown key": (lambda c: c["config"].update(sparkle=1), r"config sparkle are unknown or missing: another version"),
    "missing key": (
        lambda c: c["backbone"].pop("std"),
        r"backbone settings std are unknown or missing: another version",
    ),
    "unknown tuning": (
        lambda c: c["config"].update(tuning="dora"),
        r"config.json: config: --tuning dora: choose one of lora, full, head",
    ),
    "unknown aggregation": (lambda c: c["config"].update(aggregation="max"), r"--aggregation max: choose one of cls"),
    "out of range": (
        lambda c: c["config"].update(margin=-1),
        r"config margin is -1: it must be a number, numbers from 0",
    ),
    "no backbone": (lambda c: c.pop("backbone"), r"config.json: backbone settings \(all\) are unknown or missing"),
    "odd backbone": (
        lambda c: c["backbone"].update(extra=1),
        r"config.json: backbone settings extra are unknown or missing",
    ),
    "unknown backbone": (lambda c: c["backbone"].update(name="tiny-clop"), r"unknown backbone 'tiny-clop'"),
    "another size": (lambda c: c["backbone"].update(image_size=[32, 32]), r"was trained on other weights of 'hf:"),
    "settings that are a list": (
        lambda c: c.update(config=[1]),
        r"config.json: config is \[1\]: clipreid writes a table there",
    ),
}


@pytest.mark.parametrize("how", CONFIG_REFUSALS)
def test_configs_that_are_refused(run: Path, how: str) -> None:
    change, message = CONFIG_REFUSALS[how]
    edit_config(run, change)
    with pytest.raises(UserError, match=message):
        load(run)


def test_settings_that_an_earlier_version_did_not_know_have_their_defaults(run: Path) -> None:
    expected = load(run)
    edit_config(run, lambda c: [c["config"].pop(name) for name in ("margin", "aggregation", "cameras", "milestones")])
    assert load(run).config == expected.config


@pytest.mark.parametrize(
    "name",
    ["os", "__init__", "clip_reid.py", ".clip_reid", "clip_reid.Config", "../clip_reid", "clip reid", "", "é", 5],
)
def test_nothing_but_a_method_is_imported(run: Path, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    def never(*args: Any) -> None:
        raise AssertionError(f"imported: {args}")

    edit_config(run, lambda c: c.update(method=name))
    monkeypatch.setattr("clipreid.methods.import_module", never)
    with pytest.raises(
        UserError, match=r"no method '.*': this version of clipreid has|method is 5: it must be a short"
    ):
        load(run)


FILE_REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no adapter": (lambda r: shutil.rmtree(r / "adapter"), r"adapter_model.safetensors is missing: the run folder is"),
    "no heads": (lambda r: (r / HEADS).unlink(), r"heads.safetensors is missing: the run folder is incomplete"),
    "bad json": (lambda r: (r / CONFIG).write_text("{"), r"config.json is not valid JSON"),
    "json list": (lambda r: (r / CONFIG).write_text("[1]"), r"config.json was not written by clipreid"),
    "extra adapter weight": (
        lambda r: edit_tensors(r / ADAPTER, lambda t: t.update(extra=torch.zeros(2))),
        r"adapter_model.safetensors does not fit this model: weights 1 unexpected \(such as extra\)",
    ),
    "missing adapter weight": (
        lambda r: edit_tensors(r / ADAPTER, lambda t: t.pop(min(t))),
        r"does not fit this model: weights 1 missing \(such as base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight",
    ),
    "extra head weight": (
        lambda r: edit_tensors(r / HEADS, lambda t: t.update({"necks.final.classifier.weight": torch.zeros(3, 32)})),
        r"heads.safetensors does not fit this model: weights 1 unexpected \(such as necks.final.classifier.weight\)",
    ),
    "missing head weight": (
        lambda r: edit_tensors(r / HEADS, lambda t: t.pop("necks.final.norm.bias")),
        r"heads.safetensors does not fit this model: weights 1 missing \(such as necks.final.norm.bias\)",
    ),
    "adapter shape": (
        lambda r: rank_of(r, 2),
        r"lora_A.weight is \[4, 32\], this backbone needs \[2, 32\]: the weights were made for another backbone",
    ),
    "head shape": (
        lambda r: edit_tensors(r / HEADS, lambda t: t.update({"necks.final.norm.bias": torch.zeros(5)})),
        r"heads.safetensors does not fit this backbone: .*necks.final.norm.bias",
    ),
    "nan": (
        lambda r: edit_tensors(r / ADAPTER, lambda t: set_first(t, float("nan"))),
        r"has values that are not",
    ),
    "inf": (lambda r: edit_tensors(r / HEADS, lambda t: set_first(t, float("inf"))), r"has values that are not"),
    "cut off": (lambda r: os.truncate(r / ADAPTER, 500), r"adapter_model.safetensors is not a safetensors file"),
    "empty": (lambda r: os.truncate(r / HEADS, 0), r"heads.safetensors is not a safetensors file"),
}


@pytest.mark.parametrize("how", FILE_REFUSALS)
def test_files_that_are_refused(run: Path, how: str) -> None:
    change, message = FILE_REFUSALS[how]
    load(run)
    change(run)
    with pytest.raises(UserError, match=message):
        load(run)


def test_folders_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a folder: give a run folder, such as runs/demo"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.json is not a folder"):
        load(run / CONFIG)
    with pytest.raises(UserError, match=r"adapter is not a run folder: it has no config.json"):
        load(run / "adapter")


def test_the_tower_of_another_backbone_is_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    make_run(tiny_folder("clip"), tmp_path / "run", "full")
    edit_tensors(tmp_path / "run" / TOWER, lambda t: t.update({"visual_projection.weight": torch.zeros(9, 32)}))
    with pytest.raises(UserError, match=rf"{TOWER} does not fit this backbone: .*visual_projection"):
        load(tmp_path / "run")
    edit_tensors(tmp_path / "run" / TOWER, lambda t: t.pop("visual_projection.weight"))
    with pytest.raises(UserError, match=rf"{TOWER} does not fit this model: weights 1 missing .*visual_projection"):
        load(tmp_path / "run")


@pytest.mark.parametrize("tuning", ["lora", "head"])
def test_weights_of_another_backbone_are_noticed(tiny_folder: Folder, tmp_path: Path, tuning: str) -> None:
    """The shapes agree, the weights do not: an adapter means nothing there."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny_folder("clip"), weights)
    make_run(weights, tmp_path / "run", tuning)
    load(tmp_path / "run")
    key = "vision_model.encoder.layers.1.mlp.fc2.weight"
    edit_tensors(weights / "model.safetensors", lambda t: t[key].mul_(1.01))
    with pytest.raises(UserError, match=r"run was trained on other weights of 'hf:.*' \(fingerprint \w+, here \w+\): "):
        load(tmp_path / "run")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", [str(ADAPTER), HEADS])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_opened(run: Path, tmp_path: Path, name: str, how: str) -> None:
    mark, content = tmp_path / "executed", {"weight": Trap(tmp_path / "executed")}
    with open(run / name, "wb") as file:
        pickle.dump(content, file) if how == "pickle" else torch.save(content, file)
    with pytest.raises(UserError, match=r"is not a safetensors file .*: nothing else is loaded, for safety"):
        load(run)
    assert not mark.exists()
    # other files beside them are not even looked at
    shutil.copy(run / name, run / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="is not a safetensors file"):
        load(run)
    assert not mark.exists()
    with open(run / name, "rb") as file:  # the trap would have worked
        pickle.load(file) if how == "pickle" else torch.load(file, weights_only=False)
    assert mark.exists()
