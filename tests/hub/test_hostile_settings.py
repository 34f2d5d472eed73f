"""Settings made to harm, in run folders and repositories: each is refused with a message, nothing is written.

`run` and `refused` are fixtures of conftest.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file
from test_hub import edit_config

import clipreid
from clipreid.errors import UserError
from clipreid.hub import CONFIG, TOWER, find_run, read_config
from clipreid.hub.checks import PUBLIC
from clipreid.hub.files import METRICS, read_metrics
from clipreid.hub.package import package

NAME = "alice/demo"
Refused = Callable[[str, str], None]


def backbone(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: c["backbone"].update(values)


def config(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: c["config"].update(values)


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a huge image": (
        backbone(image_size=[1_000_000, 1_000_000]),
        r"image_size is \[1000000, 1000000\]: it must be a list of 2 integers, numbers from 8 to 4096",
    ),
    "an image of nothing": (backbone(image_size=[0, -5]), r"image_size is \[0, -5\]"),
    "a cube": (backbone(image_size=[64, 32, 3]), r"image_size is \[64, 32, 3\]: it must be a list of 2 integers"),
    "a huge rank": (config(lora_rank=10**9), r"lora_rank is 1000000000: it must be an integer, numbers from 1 to 1024"),
    "no rank": (config(lora_rank=0), r"lora_rank is 0"),
    "a rank in words": (config(lora_rank="8"), r"lora_rank is \"8\""),
    "a true rank": (config(lora_rank=True), r"lora_rank is true"),
    "a broken rank": (config(lora_rank=4.5), r"lora_rank is 4.5"),
    "an alpha beyond floats": (config(lora_alpha=10**400), r"lora_alpha is 1000.*\.\.\.: it must be a number"),
    "an alpha that is none": (config(lora_alpha=float("nan")), r"lora_alpha is NaN"),
    "a std of zero": (backbone(std=[0, 0, 0]), r"std is \[0, 0, 0\]: .* numbers from 0.001 to 10"),
    "an endless list": (config(cameras=[1] * 20_000), r"cameras is \[1, 1.*\.\.\.: it must be a list of integers"),
    "a table for a number": (config(sie_coefficient={"a": 1}), r"sie_coefficient is"),
    "an unknown interpolation": (backbone(interpolation="../x"), r"unknown interpolation '../x'"),
    "an unknown key": (
        config(auto_map={"AutoModel": "modeling.Evil"}),
        r"config auto_map are unknown or missing",
    ),
    "another tuning": (config(tuning="../x"), r"config: --tuning ../x: choose one of lora, full, head"),
    "a tuning of another kind": (config(tuning=["lora"]), r"config tuning is \[\"lora\"\]: it must be a short text"),
    "a list of words": (config(optimiser=["adam", "x"]), r"config optimiser is"),
    "no settings": (lambda c: c.pop("config"), r"config is null: clipreid writes a table there"),
    "a missing mean": (lambda c: c["backbone"].pop("mean"), r"backbone settings mean are unknown or missing"),
    "a method that is a module": (lambda c: c.update(method="os"), r"no method 'os': this version of clipreid has"),
    "a method that is a path": (lambda c: c.update(method="../../evil"), r"no method '../../evil'"),
    "a method in a package": (lambda c: c.update(method="clip_reid.os"), r"no method 'clip_reid.os'"),
    "a method of another kind": (lambda c: c.update(method=["clip_reid"]), r"config.method is \[\"clip_reid\"\]"),
    "no stages": (lambda c: c.update(stages=[]), r"stages is \[\]: a finished run names the stages it went through"),
    "stages of another kind": (
        lambda c: c.update(stages=[{}]),
        r"config.stages is \[\{\}\]: it must be a list",
    ),
    "half finished": (lambda c: c.update(finished="yes"), r"config.finished is .yes.: it must be true or false"),
    "an unknown key of the backbone": (backbone(trust_remote_code=True), r"settings trust_remote_code are unknown or"),
    "a missing key of the backbone": (lambda c: c["backbone"].pop("stride"), r"settings stride are unknown or missing"),
    "unknown positions": (backbone(positions="cubist"), r"positions 'cubist': clipreid has bicubic, bilinear"),
    "a backbone of another kind": (lambda c: c.update(backbone=["tiny-clip"]), r"backbone is \[\"tiny-clip\"\]"),
    "flags of another kind": (lambda c: c.update(run=[1]), r"run is \[1\]"),
    "data of another kind": (lambda c: c.update(run={"data": [1]}), r"run.data is \[1\]"),
    "another fingerprint": (backbone(print="0" * 16), r"trained on other weights of 'tiny-clip'"),
    "another backbone": (backbone(name="tiny-siglip2"), r"trained on other weights of 'tiny-siglip2'"),
    "a backbone that is not there": (backbone(name="hf:../../secret"), r"no folder|not a public name"),
}


def finished(config: dict[str, Any]) -> None:
    """What training writes besides method, settings and backbone."""
    part = {"images": 8, "identities": 2, "cameras": 2, "hash": "0" * 16}
    config |= {"data": {"names": ["synthetic"], "noun": "person", "images": 8, "identities": 2}, "local": []}
    config |= {"run": {"data": ["synthetic"], "test": [], "preset": "default", "seed": 0}, "pooling": "cls"}
    config |= {"offsets": {"synthetic": [0, 0]}, "fingerprint": {"synthetic": {"train": part}}, "training": None}


def test_the_tables_were_sound(run: Path) -> None:
    edit_config(run, finished)
    (run / METRICS).write_text(json.dumps({"synthetic": {"stage2": SOUND}}))
    clipreid.load(run)
    assert read_metrics(run)["synthetic"]["stage2"] == SOUND
    package(run, NAME)


@pytest.mark.parametrize("where", ["folder", "repository"])
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        *(
            (key, value, rf"config.json: (config.)?{key} is {shown}")
            for key in ("local", "data", "run", "stages", "offsets", "fingerprint", "backbone", "config")
            for value, shown in ((5, "5"), ("x", '"x"'), ([None], r"\[null\]"))
        ),
        ("pooling", [], r"config.pooling is \[\]"),
        ("training", 5, "config.training is 5: it must be a short text or null"),
        ("config.rate", {"lora": 1e-4}, "config rate is .*: it must be a number"),
        ("config.rate", "x", "config rate is .x.: it must be a number"),
        ("config.rate", 2, "config rate is 2: it must be a number, numbers from 0 to 1"),
        ("config.rate", 1, "config: --rate 1: a learning rate lies between 0 and 1"),
        ("config.margin", "x", "config margin is .x.: it must be a number"),
        ("config.epochs", None, "config epochs is null: it must be an integer"),
        ("config.prompts", ["identity"], "config prompts is"),
        ("config.sie", None, "config sie is null"),
        ("data", {}, "data lacks names: another version wrote it"),
        ("data.names", "synthetic", "data.names is .synthetic.: it must be a list of texts"),
        ("data.noun", 5, "data.noun is 5"),
        ("data.images", "many", "data.images is .many.: it must be an integer"),
        ("run.pattern", 5, "run.pattern is 5: it must be a short text or null"),
        ("run.columns", {}, "run.columns is"),
        ("run.seed", "x", "run.seed is .x.: it must be an integer"),
        ("local", [5], r"config.local is \[5\]"),
        ("offsets", {"synthetic": 5}, "config.offsets is"),
        ("offsets", {"synthetic": [1, "x"]}, "config.offsets is"),
        ("fingerprint", {"synthetic": {"train": 5}}, "config.fingerprint is"),
        ("fingerprint", {"synthetic": {"train": {"images": 5}}}, "train lacks identities, cameras, hash"),
        ("fingerprint.synthetic.train.images", "x", "fingerprint, train.images is .x.: it must be an integer"),
        ("backbone", {}, "backbone settings .* are unknown or missing"),
        ("backbone.name", 5, "backbone.name is 5: it must be a short text"),
        ("backbone", {"name": "imported", "vision": []}, r"vision: \(all\) are unknown or missing"),
        ("backbone", {"name": ["timm:"], "vision": {}}, "backbone.name is"),
    ],
)
def test_tables(run: Path, refused: Refused, path: str, value: Any, message: str, where: str) -> None:
    """What is read of the config is of the kind that training writes, before anything is done with it."""

    def change(config: dict[str, Any]) -> None:
        finished(config)
        *tables, last = path.split(".")
        for table in tables:
            config = config[table]
        config[last] = value

    edit_config(run, change)
    refused(where, message)


SOUND = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), 0.5) | {
    "protocol": "market1501",
    "counts": {"valid_queries": 8, "query_identities": 2, "gallery": 9},
    "cmc": [0.4, 0.5],
    "intervals": {"mAP": [0.4, 0.6]},
}


@pytest.mark.parametrize(
    "metrics",
    [
        5,
        [1],
        {"synthetic": 5},
        {"synthetic": {"stage2": 5}},
        {"synthetic": {"stage2": {}}},
        {"synthetic": {"stage2": {"mAP": "x"}}},
        *(
            {"synthetic": {"stage2": SOUND | {key: value}}}
            for key, value in (
                ("mAP", "x"),
                ("mAP", float("nan")),
                ("rank1", None),
                ("counts", 5),
                ("counts", {"gallery": "x"}),
                ("cmc", 5),
                ("cmc", ["x"]),
                ("intervals", [1, 2]),
                ("intervals", {"mAP": [1]}),
                ("std", {"mAP": "x"}),
                ("protocol", ["market1501"]),
            )
        ),
    ],
)
def test_figures(run: Path, metrics: Any) -> None:
    edit_config(run, finished)
    (run / METRICS).write_text(json.dumps(metrics))
    for use in (read_metrics, lambda folder: package(folder, NAME)):
        with pytest.raises(UserError, match=r"metrics.json is damaged, or was not written by clipreid \("):
            use(run)


@pytest.mark.parametrize("where", ["folder", "repository"])
@pytest.mark.parametrize("how", SETTINGS)
def test_settings(run: Path, refused: Refused, how: str, where: str) -> None:
    change, message = SETTINGS[how]
    edit_config(run, change)
    refused(where, message)


def test_a_config_that_is_no_config(run: Path, refused: Refused) -> None:
    for content, message in (
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b'{"clipreid": "1", "config": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"null", "was not written by clipreid"),
        (b'{"clipreid": "' + b"x" * (5 << 20) + b'"}', "config.json has 5 MB, a run's at most 4: it is not read"),
    ):
        (run / CONFIG).write_bytes(content)
        for where in ("folder", "repository"):
            refused(where, message)


VISION = {
    "image_size": [64, 32],
    "patch_size": 16,
    "stride": None,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "mlp_width": 64,
    "embed_dim": 16,
    "pooling": "cls",
    "activation": "quick_gelu",
    "eps": 1e-5,
}


@pytest.mark.parametrize("where", ["folder", "repository"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"width": 16_384, "depth": 256},
            r"is too small for the tower that config.json describes",
        ),
        ({"width": 10**12}, r"vision: width is 1000000000000"),
        ({"patch_size": 1, "image_size": [4096, 4096]}, r"is too small for the tower"),
        ({"heads": 5}, r"the shape of the imported tower is unusable"),
        ({"patch_size": 100}, r"the shape of the imported tower is unusable|does not fit"),
        ({"activation": "__import__('os')"}, r"the shape of the imported tower is unusable"),
        ({"evil": 1}, r"vision: evil are unknown or missing"),
    ],
)
def test_towers_described_in_the_config(
    run: Path, refused: Refused, change: dict[str, Any], message: str, where: str
) -> None:
    save_file({"x": torch.zeros(20_000)}, run / TOWER)
    edit_config(run, lambda c: c.update(backbone={"name": "imported", "vision": VISION | change}))
    edit_config(run, lambda c: c["config"].update(tuning="full"))
    refused(where, message)


@pytest.mark.parametrize(
    "name",
    [
        "hf:{here}",
        "hf:./weights",
        "hf:~/weights",
        "hf:../x/y",
        "open_clip:ViT-B-16/{here}/w.pt",
        "open_clip:{here}",
        "timm:vit_small_patch16_224/{here}/w.pth",
        "osnet:x1_0/w.pth",
        "osnet:x1_0/../w.pth",
        "hf:owner/..",
        "{here}",
        "open_clip:local-dir:{here}",
        "open_clip:hf-hub:evil/repo",
    ],
)
def test_a_downloaded_run_names_no_file_of_this_machine(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[[str], Path], name: str
) -> None:
    hub.here(monkeypatch, tmp_path / "home")
    named = name.format(here=tiny_folder("clip"))
    edit_config(run, backbone(name=named))
    hub.put(NAME, run)
    with pytest.raises(UserError, match=r"is not a public name: a downloaded run may only use tiny-clip, "):
        clipreid.load(NAME)


def test_public_names_are_taken() -> None:
    for name in (
        "tiny-clip",
        "hf:openai/clip-vit-base-patch16",
        "open_clip:ViT-B-16-quickgelu/openai",
        "open_clip:ViT-B-16-SigLIP2-256/webli",
        "timm:vit_small_patch14_dinov2.lvd142m",
    ):
        assert PUBLIC.fullmatch(name)


def test_a_downloaded_run_names_no_data_of_this_machine(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.here(monkeypatch, tmp_path / "home")
    specs = ["folder:/etc", "synthetic", "hub:/etc", "hub:a/b", "market1501:/x", "synthetic:new-cameras", "hub:../a"]
    edit_config(run, lambda c: c.update(run={"data": specs, "test": specs[:1]}))
    assert read_config(run)["run"]["data"] == specs
    hub.put(NAME, run)
    assert read_config(find_run(NAME))["run"] == {
        "data": ["synthetic", "hub:a/b", "synthetic:new-cameras"],
        "test": [],
    }
