"""`clipreid publish` and `--push` against a Hub on this machine: what arrives, and what goes wrong."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_xet import XetAuthenticationError
from hub_server import Hub
from huggingface_hub import HfApi, ModelCard
from test_hub import crops, edit_config
from test_package import content, finished

import clipreid
from clipreid.cli import main
from clipreid.errors import UserError
from clipreid.hub import CONFIG, IDENTITIES
from clipreid.hub.package import CARD, Files, package
from clipreid.hub.publish import check_repository, open_repository, upload

NAME = "alice/demo"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("publish") / "run", data="synthetic")


@pytest.fixture(scope="module")
def files(run: Path) -> Files:
    return package(run, NAME)


def publish(run: Path, name: str = NAME, *flags: str) -> None:
    main(["publish", str(run), name, *flags])


def refused(capsys: pytest.CaptureFixture[str], run: Path, name: str = NAME, *flags: str) -> str:
    """What a command that ends with status 2 says."""
    with pytest.raises(SystemExit) as ended:
        publish(run, name, *flags)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


# What arrives -----------------------------------------------------------------------------------------------------


def test_what_is_published_is_what_was_promised(
    alice: Hub, run: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(run)
    shown = capsys.readouterr().out
    there = alice.files(NAME)
    assert there.keys() - {".gitattributes"} == files.keys()
    assert all(there[name] == content(files, name) for name in files)
    assert all(name in shown for name in files)
    assert f"{alice.url}/{NAME}\n" in shown
    assert f'clipreid.load("{NAME}")' in shown
    assert not alice.repos[NAME].private
    assert ModelCard.load(NAME).data.to_dict()["library_name"] == "clipreid"
    assert "plain peft does not give the same features: its position table was resized bilinearly" in shown


def test_whether_plain_peft_can_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tuning, said in (
        ("lora", "with peft and transformers it gives the same features"),
        ("head", "plain peft does not give the same features: a linear map"),
    ):
        run = finished(tmp_path / tuning, tuning=tuning, data="synthetic")
        edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
        publish(run, NAME, "--dry-run")
        assert said in capsys.readouterr().out


def test_publishing_again_updates_and_removes_what_is_not_published_any_more(
    alice: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", run, copy], check=True)
    publish(copy, NAME, "--private", "--include-identities")
    first = HfApi().model_info(NAME)
    assert first.private
    assert "(private)" in capsys.readouterr().out
    assert IDENTITIES in alice.files(NAME)
    alice.put(NAME, alice.files(NAME) | {"examples/mine.txt": b"written by hand"})  # not ours
    edit_config(copy, lambda config: config["run"].update(seed=7))
    publish(copy)  # private as it is
    assert f"removed there: {IDENTITIES} (earlier revisions still have them)" in capsys.readouterr().out
    there = alice.files(NAME)
    assert IDENTITIES not in there
    assert there["examples/mine.txt"] == b"written by hand"
    assert json.loads(there[CONFIG])["run"]["seed"] == 7
    assert alice.repos[NAME].private
    sent = alice.asked("PUT /lfs/")
    publish(copy)
    assert ": was up to date" in capsys.readouterr().out
    assert alice.asked("PUT /lfs/") == sent  # nothing is sent twice


def test_a_published_run_loads_by_its_name(
    alice: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(run)
    alice.here(monkeypatch, tmp_path / "another machine")
    assert (clipreid.load(NAME).embed(crops()) - clipreid.load(run).embed(crops())).abs().max() <= 1e-6


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["demo", "a/b/c", "alice/", "/demo", "alice/my run", "alice/../x", "-/-", "alice/a--b"]
)
def test_names_that_are_none(name: str, run: Path) -> None:
    with pytest.raises(UserError, match=r"give OWNER/NAME"):
        check_repository(name)


def test_a_name_without_owner_is_said_before_anything_else(
    alice: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'demo' has no owner: give OWNER/NAME, such as alice/demo" in refused(capsys, tmp_path / "no run", "demo")
    assert not alice.requests


TOKENS = {
    None: r"needs a token of the Hub, and there is none on this machine: make one with the role `write` at https://",
    "wrong": r"the Hub does not accept your token.*: make one with the role `write`",
    "alice-read": r"your token may not write to alice/demo",
    "bob-write": r"your token may not write to alice/demo .*publish under your own name",
}


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_that_do_not_do(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], token: Any
) -> None:
    hub.here(monkeypatch, tmp_path / "home", token=token)
    said = refused(capsys, run)
    assert re.search(TOKENS[token], said), said
    assert NAME not in hub.repos
    assert hub.asked("PUT") == 0


@pytest.mark.parametrize("token", ["alice-read", "bob-write"])
def test_a_token_that_may_only_read_what_is_there_is_found_out_before_training(
    alice: Hub, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    """Making a repository that exists already is no question to the Hub whether it may be written."""
    upload(files, NAME, False, "again")
    alice.here(monkeypatch, tmp_path / "home", token=token)
    with pytest.raises(UserError, match=r"^your token may not write to alice/demo"):
        open_repository(NAME, False, "again")


def test_a_repository_with_something_else_is_not_touched(
    alice: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for files in ({"model.safetensors": b"x", CARD: b"# mine"}, {CONFIG: b'{"model_type": "bert"}'}):
        alice.put(NAME, files)
        before = dict(alice.files(NAME))
        said = refused(capsys, run)
        assert "exists and holds something else than a run of clipreid" in said
        assert "Give another name" in said
        assert alice.files(NAME) == before
        del alice.repos[NAME]


def test_private_is_not_promised_where_all_can_look(alice: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(run)
    before = alice.asked("POST .*/commit/")
    assert "--private: alice/demo exists and is public" in refused(capsys, run, NAME, "--private")
    assert alice.asked("POST .*/commit/") == before


# What goes wrong on the way ---------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "401": ("POST .*/commit/", {"status": 401}, "token"),
    "404": ("POST .*/commit/", {"status": 404}, "the Hub knows no alice/demo"),
    "409": ("POST .*/commit/", {"status": 409}, "was changed by somebody else at the same time"),
    "412": ("POST .*/commit/", {"status": 412}, "was changed by somebody else at the same time"),
    "429": ("POST .*/commit/", {"status": 429, "times": 99}, "asks for fewer requests"),
    "429 for an hour": ("POST /api/repos/create", {"status": 429, "retry_after": 3600}, "asks for fewer requests"),
    "500": ("POST .*/commit/", {"status": 500, "times": 99}, "the Hub answered 500"),
    "cut before": ("POST /api/repos/create", {"cut": 0, "times": 99}, "broke off"),
    "cut in mid-upload": ("PUT /lfs/", {"cut": 20_000, "times": 99}, "broke off"),
    "cut at the commit": ("POST .*/commit/", {"cut": 200, "times": 99}, "broke off"),
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_failed_upload_says_so_and_goes_on_when_repeated(alice: Hub, files: Files, how: str) -> None:
    pattern, fault, message = FAULTS[how]
    alice.fault(pattern, **fault)
    with pytest.raises(UserError, match=message) as failed:
        upload(files, NAME, False, "clipreid publish again")
    assert str(failed.value).endswith("Nothing is lost; to go on: clipreid publish again")
    alice.faults.clear()
    sent = alice.asked("PUT /lfs/")
    upload(files, NAME, False, "clipreid publish again")
    assert {name: content(files, name) for name in files}.items() <= alice.files(NAME).items()
    if pattern.startswith("POST .*/commit/"):
        assert alice.asked("PUT /lfs/") == sent  # what had arrived is not sent again


def test_what_the_hub_refuses_for_good_is_not_to_be_repeated(alice: Hub, files: Files) -> None:
    alice.fault("POST .*/commit/", status=400, message="no such licence")
    for changed, message in (({}, "no such licence"), ({CARD: b"---\nlicense: My Own\n---\n\n# x\n"}, "license")):
        with pytest.raises(UserError, match=rf"the Hub refuses what was to be published.*{message}") as failed:
            upload(files | changed, NAME, False, "again")
        assert str(failed.value).endswith("Nothing is lost")


def test_a_transfer_that_is_not_allowed_is_no_broken_network(
    alice: Hub, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Hub's other way of moving large files raises, which this server does not speak."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise XetAuthenticationError("token expired")

    monkeypatch.setattr(HfApi, "create_commit", fail)
    with pytest.raises(UserError, match=r"your token may not write to alice/demo \(token expired\): make one"):
        upload(files, NAME, False, "again")

    def full(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")  # of a folder of this machine

    monkeypatch.setattr(HfApi, "create_commit", full)
    with pytest.raises(UserError, match="Permission denied") as failed:
        upload(files, NAME, False, "again")
    assert "token" not in str(failed.value)


def test_a_busy_hub_is_waited_for(alice: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    for pattern in ("POST /api/repos/create", "GET /api/models/", "POST .*/commit/", "PUT /lfs/"):
        alice.fault(pattern, status=429, retry_after=7)
    upload(files, NAME, False, "again")
    assert alice.files(NAME)[WEIGHTS]
    assert waited.count(7) >= 3


def test_without_network(alice: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice.stop()
    said = refused(capsys, run)
    assert f"the connection to {alice.url} broke off" in said


def test_offline_by_choice(
    alice: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it" in refused(capsys, run)


def test_a_change_by_somebody_else_in_between_is_not_undone(
    alice: Hub, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(files, NAME, False, "again")
    from clipreid.hub import publish as module

    opened: Callable[..., Any] = module.open_repository

    def slow(*args: Any) -> Any:
        info = opened(*args)
        alice.put(NAME, alice.files(NAME) | {"new.txt": b"meanwhile"})
        return info

    monkeypatch.setattr(module, "open_repository", slow)
    with pytest.raises(UserError, match="was changed by somebody else at the same time"):
        upload(files | {CARD: b"# a new card"}, NAME, False, "again")
    assert alice.files(NAME)["new.txt"] == b"meanwhile"
