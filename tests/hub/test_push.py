"""`--push OWNER/NAME`: checked before training, done at its end; what fails says how to publish later."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from launching import paint_street
from test_hub import edit_config
from test_package import finished
from test_publish import NAME

from clipreid.cli import main
from clipreid.config import RunConfig, configure
from clipreid.errors import UserError
from clipreid.hub import CONFIG
from clipreid.hub.files import METRICS
from clipreid.hub.package import CARD
from clipreid.hub.publish import publish_command
from clipreid.methods import clip_reid
from clipreid.training import launch
from clipreid.training.push import push
from clipreid.training.run import open_run


def test_push_is_refused_before_training_where_it_could_not_be_done(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.here(monkeypatch, tmp_path / "home", token="wrong")
    output = tmp_path / "run"

    def opened(whole: bool = True, **flags: Any) -> None:
        open_run(clip_reid, *configure(clip_reid, output=output, **flags), whole=whole)

    for flags, message in (
        ({"push": NAME, "whole": False}, "this stage alone has nothing to publish"),
        ({"private": True}, "--private is for --push"),
        ({"push": "demo"}, "has no owner"),
        (
            {"push": NAME, "backbone": "hf:./clip"},
            "lies on this machine.*: train without --push, then `clipreid publish RUN OWNER/NAME --base-model",
        ),
        ({"push": NAME}, "does not accept your token"),
    ):
        with pytest.raises(UserError, match=message):
            opened(**flags)
    assert not output.exists()


def test_a_run_is_pushed_at_its_end(
    alice: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe: the repository is there before training; a failed upload keeps the run and names the command."""
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    street, output = paint_street(tmp_path / "crops", train=4, test=3), tmp_path / "run"
    there: list[set[str]] = []
    trained = launch.train

    def train(*args: Any) -> None:
        there.append(set(alice.files(NAME)))
        trained(*args)

    monkeypatch.setattr(launch, "train", train)
    flags = {"data": (f"folder:{street}",), "output": output, "image_size": (64, 32), "push": NAME, "private": True}
    steps = {"prompt_epochs": 2, "epochs": 2, "identities_per_batch": 4, "threads": 1}
    alice.fault("POST .*/commit/", status=409)
    with pytest.raises(UserError, match="changed by somebody else") as failed:
        launch.run_method(clip_reid, *configure(clip_reid, **flags, **steps))
    assert there == [{".gitattributes"}] * 2  # made before training, and empty
    assert alice.repos[NAME].private
    again = publish_command(output, NAME, "--private")
    assert str(failed.value).endswith(again)
    record = json.loads((output / CONFIG).read_text())
    assert (record["finished"], record["stages"]) == (True, ["stage1", "stage2"])
    assert not {"push", "private", "output"} & record["run"].keys()
    (data,) = record["fingerprint"]
    assert record["fingerprint"][data]["train"]["images"] == 16
    assert record["fingerprint"][data].keys() == {"train", "query", "gallery"}
    main(shlex.split(again)[1:])
    for name, there_now in alice.files(NAME).items():
        assert str(tmp_path).encode() not in there_now, name
    assert "own data" in json.loads(alice.files(NAME)[METRICS])
    assert "| own data | train | 16 | 4 | 4 |" in alice.files(NAME)[CARD].decode()


def test_what_cannot_be_packaged_keeps_the_run_and_names_the_command(alice: Hub, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", data="synthetic")
    edit_config(run, lambda config: config["data"].update(noun=f"person of {run}"))
    with pytest.raises(UserError, match="would show a path") as failed:
        push(run, RunConfig(push=NAME, private=True))
    assert str(failed.value).endswith(publish_command(run, NAME, "--private"))
    edit_config(run, lambda config: config["data"].update(noun="person"))
    assert "plain peft does not give the same features: its position table" in push(run, RunConfig(push=NAME))
    assert alice.files(NAME)[CARD]
