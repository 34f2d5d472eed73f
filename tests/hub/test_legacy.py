"""`config.json` of clipreid 0.1.0 in today's form, and what is refused. Whole runs of then: test_runs_of_0_1_0.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from test_hub import crops, edit_config

import clipreid
from clipreid.errors import UserError
from clipreid.hub import CONFIG, find_run, read_config
from clipreid.hub.legacy import converted, old_name

RUNS = Path(__file__).parent / "runs-0.1.0"
CONFIG_OF_CLIP_SIE = {
    "tuning": "lora", "prompt_epochs": 2, "prompt_rate": 0.0035, "prompt_batch": 64, "prompt_warmup": 1,
    "optimiser": "adamw", "epochs": 2, "head_rate": 0.0035, "bias_rate_factor": 1.0, "weight_decay": 0.0001,
    "schedule": "cosine", "warmup": 0.5, "warmup_factor": 0.1, "milestones": [], "least_steps": 180,
    "identities_per_batch": 3, "images_per_identity": 4, "smoothing": 0.1, "margin": 0.3, "weight_id": 0.25,
    "weight_triplet": 1.0, "weight_i2t": 1.0, "pad": 10, "flip": 0.5, "erase": 0.5, "aggregation": "cls",
    "lora_rank": 2, "lora_alpha": 16.0, "sie": "camera", "sie_coefficient": 5.0, "cameras": [1, 2, 3, 4], "views": [],
    "prompts": "identity", "balance": "proportional", "checkpoint_every": 1, "prompt_tokens": 4,
    "rate": 0.002,  # of the tuning that was used
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "clip-sie", tmp_path / "run")


def test_a_finished_run_in_todays_form() -> None:
    found, then = read_config(RUNS / "clip-sie"), json.loads((RUNS / "clip-sie" / CONFIG).read_text())
    assert found["config"] == CONFIG_OF_CLIP_SIE
    assert (found["clipreid"], found["method"], found["finished"]) == ("0.1.0", "clip_reid", True)
    assert (found["stages"], found["training"]) == (["stage1", "stage2"], None)
    pixels = {name: then["model"][name] for name in ("mean", "std", "interpolation")}
    assert found["backbone"] == then["backbone"] | pixels
    assert found["data"] == {"names": ["folder:crops"], "noun": "person", "images": 24, "identities": 6}
    assert found["run"] == {
        "backbone": "tiny-clip", "data": ["folder:crops"], "test": [], "validate": False, "preset": "default",
        "seed": 0, "skip_bad": False, "pattern": None, "columns": None, "noun": None, "image_size": None,
        "stride": None, "precision": "no", "pixels": "backbone", "positions": "bicubic",
        "train_interpolation": "bicubic", "test_interpolation": "bicubic",
    }  # fmt: skip
    [splits] = found["fingerprint"].values()
    assert splits["train"] == {"images": 24, "identities": 6, "cameras": 4, "hash": "794599b709a9fc80"}
    for key in ("offsets", "local", "separability"):
        assert found[key] == then[key]
    assert not {"status", "values", "model", "stage1", "stage2", "flags"} & found.keys()


@pytest.mark.parametrize(
    ("status", "stages", "training"),
    [("new", [], None), ("running", [], "stage1"), ("prompts", ["stage1"], None), ("tuning", ["stage1"], "stage2")],
)
def test_a_run_that_is_not_finished(run: Path, status: str, stages: list[str], training: str | None) -> None:
    def change(config: dict[str, Any]) -> None:
        config["status"] = status
        config.pop("model")  # was written at the end

    edit_config(run, change)
    found = read_config(run)
    assert (found["stages"], found["training"], found["finished"]) == (stages, training, False)
    again = " --resume" if training else ""
    with pytest.raises(UserError, match=rf"holds no trained model yet: .* --output {run}{again} and the flags"):
        clipreid.load(run)


def test_stage1_knows_its_pixels_by_the_flag(tmp_path: Path) -> None:
    run = shutil.copytree(RUNS / "stage1", tmp_path / "run")
    assert {read_config(run)["backbone"][name] for name in ("mean", "std")} == {None}  # those of the backbone
    edit_config(run, lambda config: config["values"].update(pixels="half", test_interpolation="bilinear"))
    found = read_config(run)["backbone"]
    assert (found["mean"], found["std"], found["interpolation"]) == ([0.5] * 3, [0.5] * 3, "bilinear")


def test_without_prompts_there_is_one_stage() -> None:
    found = read_config(RUNS / "siglip-head")
    assert (found["stages"], found["config"]["tuning"], found["config"]["prompts"]) == (["stage2"], "head", "none")


def test_tensors_are_called_as_then() -> None:
    assert old_name("hooks.side.table") == "side.table"
    assert old_name("necks.final.norm.weight") == "necks.final.norm.weight"


def test_what_has_todays_form_stays(tmp_path: Path) -> None:
    record = {"clipreid": "0.2.0", "method": "clip_reid", "config": {}, "status": 5}
    assert converted(record, tmp_path) is record


def test_a_run_of_then_on_the_hub(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = clipreid.load(run).embed(crops())
    for file in (run / "adapter").iterdir():  # as it was published
        file.rename(run / file.name)
    (run / "adapter").rmdir()
    hub.here(monkeypatch, tmp_path / "home")
    hub.put("alice/old", run)
    assert torch.equal(clipreid.load("alice/old").embed(crops()), expected)
    assert read_config(find_run("alice/old"))["run"]["data"] == []  # a folder of another machine
    hub.stop()
    assert torch.equal(clipreid.load("alice/old").embed(crops()), expected)


NEVER = r"config.json is not in a form that clipreid has ever written \(it lacks '{}'\): restore it, or train again"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no status": (lambda c: c.pop("status"), NEVER.format("status")),
    "an unknown status": (lambda c: c.update(status="odd"), NEVER.format("odd")),
    "a status of another kind": (lambda c: c.update(status=["finished"]), r"config.status is \[\"finished\"\]"),
    "no backbone": (lambda c: c.pop("backbone"), NEVER.format("backbone")),
    "a backbone of another kind": (lambda c: c.update(backbone=5), "backbone is 5: clipreid writes a table there"),
    "no model": (lambda c: c.pop("model"), NEVER.format("model")),
    "a model of another kind": (lambda c: c.update(model=[1]), r"model is \[1\]: clipreid writes a table there"),
    "no rank": (lambda c: c["model"].pop("lora_rank"), NEVER.format("lora_rank")),
    "no mean": (lambda c: c["model"].pop("mean"), NEVER.format("mean")),
    "no mean at all": (lambda c: c["model"].update(mean="grey"), r"backbone settings mean is .grey."),
    "a huge rank": (lambda c: c["model"].update(lora_rank=10**9), "lora_rank is 1000000000: it must be an integer"),
    "an unknown tuning": (lambda c: c["model"].update(tuning="dora"), "--tuning dora: choose one of lora, full, head"),
    "an unknown interpolation": (lambda c: c["model"].update(interpolation="../x"), "unknown interpolation '../x'"),
    "values of another kind": (lambda c: c.update(values="x"), "values is .x.: clipreid writes a table there"),
    "a rate in words": (lambda c: c["values"].update(rate={"lora": "x"}), "values.rate is .*: it must be a table"),
    "one rate": (lambda c: c["values"].update(rate=5), "values.rate is 5: it must be a table, each value a number"),
    "no rate of the tuning": (lambda c: c["values"].update(rate={"full": 1e-4}), NEVER.format("lora")),
    "no tuning": (lambda c: c["values"].pop("tuning"), NEVER.format("tuning")),
    "a tuning of another kind": (lambda c: c["values"].update(tuning=[]), r"values.tuning is \[\]: it must be a short"),
    "an epoch in words": (lambda c: c["values"].update(epochs="x"), "config epochs is .x.: it must be an integer"),
    "stage 1 of another kind": (lambda c: c.update(stage1=[]), r"stage1 is \[\]: clipreid writes a table there"),
    "no data": (lambda c: c["stage1"].pop("data"), NEVER.format("data")),
    "no images": (lambda c: c["stage1"].pop("pictures"), NEVER.format("pictures")),
    "data of another kind": (lambda c: c["stage1"].update(data="x"), "stage1.data is .x.: it must be a list of texts"),
    "prompts of another kind": (lambda c: c["stage2"].update(prompts=5), "stage2.prompts is 5: it must be a short"),
    "flags of another kind": (lambda c: c.update(flags=5), "flags is 5: clipreid writes a table there"),
    "a pattern of another kind": (lambda c: c["flags"].update(pattern=5), "run.pattern is 5: it must be a short text"),
    "a fingerprint of another kind": (lambda c: c.update(fingerprint={"x": {"train": 5}}), "config.fingerprint is"),
    "half a fingerprint": (
        lambda c: c.update(fingerprint={"x": {"train": {"pictures": 5}}}),
        "fingerprint, train lacks identities, cameras, hash",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_settings_are_refused_in_one_line(run: Path, how: str) -> None:
    change, message = DAMAGES[how]
    clipreid.load(run)
    edit_config(run, change)
    with pytest.raises(UserError, match=message) as refused:
        clipreid.load(run)
    assert "\n" not in str(refused.value)
    assert str(run / CONFIG) in str(refused.value) or how == "an unknown interpolation"
