"""Runs by name: the unmodified client of the Hub against the server of `hub_server`, with and without network."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub
from huggingface_hub import constants
from test_hub import crops, make_run

import clipreid
from clipreid.errors import UserError
from clipreid.hub import CONFIG, HEADS, IDENTITIES, TOWER, find_run, run_name, snapshot_of
from clipreid.hub.download import WANTED

NAME = "alice/demo"
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of tiny-clip, with what else lies in run folders. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_run("tiny-clip", folder)
    for name in ("README.md", "log.jsonl", "metrics.json", IDENTITIES, "pytorch_model.bin", "modeling.py"):
        (folder / name).write_text("raise SystemExit")
    return folder


@pytest.fixture
def home(hub: Hub, monkeypatch: Patch, tmp_path: Path) -> Path:
    """This process talks to the server; its cache lies here."""
    monkeypatch.chdir(tmp_path)
    hub.here(monkeypatch, tmp_path / "home")
    return tmp_path / "home"


def below(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def flatten(run: Path, folder: Path) -> Path:
    """The layout of a published run: the adapter at the root."""
    shutil.copytree(run, folder)
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    (folder / "adapter").rmdir()
    return folder


def test_a_published_run_gives_the_features_of_its_folder(
    hub: Hub, home: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.put(NAME, finished)
    expected = clipreid.load(finished).embed(crops())
    assert torch.equal(clipreid.load(NAME).embed(crops()), expected)
    found = find_run(NAME)
    assert found.name == commit
    assert found.is_relative_to(home)
    assert below(found) == {CONFIG, HEADS, "adapter/adapter_model.safetensors"}  # and nothing else was downloaded
    assert (run_name(found), run_name(finished)) == (NAME, "run")
    assert snapshot_of(finished) is None
    downloads = hub.asked("GET /cdn/")
    hub.stop()
    capsys.readouterr()
    assert torch.equal(clipreid.load(NAME).embed(crops()), expected)
    assert f"note: {NAME} is taken from the cache, commit {commit[:12]} (the Hub did not answer: " in (
        capsys.readouterr().err
    )
    assert downloads == hub.asked("GET /cdn/") == 2


def test_the_adapter_may_lie_at_the_root(hub: Hub, home: Path, finished: Path, tmp_path: Path) -> None:
    published = flatten(finished, tmp_path / "published")
    hub.put(NAME, published)
    expected = clipreid.load(finished).embed(crops())
    for run in (NAME, published):  # a clone of the repository is a run folder too
        assert torch.equal(clipreid.load(run).embed(crops()), expected)


def test_a_fresh_process_loads_a_private_run_and_then_without_network(hub: Hub, finished: Path, tmp_path: Path) -> None:
    hub.put(NAME, finished, private=True)
    code = (
        "import clipreid, torch\n"
        f"model = clipreid.load({NAME!r})\n"
        "print(model.embed(torch.full((1, 3, 40, 20), 90, dtype=torch.uint8)).sum().item())\n"
        "import huggingface_hub.constants as c; c.HF_HUB_OFFLINE = True\n"
        f"clipreid.load({NAME!r})"
    )
    done = hub.python(code, tmp_path / "home", token="alice-read")
    assert done.returncode == 0, done.stderr
    expected = clipreid.load(finished).embed(torch.full((1, 3, 40, 20), 90, dtype=torch.uint8)).sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-6)
    assert not any("authorization" in r.headers for r in hub.requests if r.path.startswith("/cdn/"))


def test_revisions(hub: Hub, home: Path, finished: Path, tmp_path: Path) -> None:
    first = hub.put(NAME, finished)
    hub.repos[NAME].refs["v1"] = first
    other = tmp_path / "other"
    make_run("tiny-clip", other, "head")
    second = hub.put(NAME, other)
    assert clipreid.load(NAME).config.tuning == "head"
    for asked in ("v1", first):
        assert clipreid.load(NAME, revision=asked).config.tuning == "lora"
    assert find_run(f"{NAME}@v1").name == first
    assert find_run(f"hub:{NAME}").name == find_run(Path(NAME)).name == second
    with pytest.raises(UserError, match=r"demo has no revision 'v9': it has main, v1 \(or give a commit\)"):
        find_run(NAME, "v9")
    with pytest.raises(UserError, match=r"'../../x' cannot be a revision"):
        find_run(NAME, "../../x")
    assert not hub.asked("GET .*x")
    hub.stop()
    assert find_run(NAME, "v1").name == first
    hub.put(NAME, other)
    assert find_run(NAME).name == second


def test_a_folder_comes_first(hub: Hub, home: Path, finished: Path, tmp_path: Path) -> None:
    hub.put(NAME, finished)
    shutil.copytree(finished, tmp_path / NAME)
    assert find_run(NAME) == Path(NAME)
    with pytest.raises(UserError, match=r"alice/demo is a folder here, which has no revisions"):
        find_run(NAME, "v1")
    assert not hub.requests
    with pytest.raises(UserError, match=r"alice/dmeo is not a folder, and alice is one: .* write hub:alice/dmeo"):
        find_run("alice/dmeo")
    assert not hub.requests  # a mistyped path is no question for the Hub
    assert find_run(f"hub:{NAME}").is_relative_to(home)
    for odd in ("demo", "a/b/c", "../demo", "bob/..", "hub:", "-a/b", "alice/de mo", "/nowhere/x"):
        with pytest.raises(UserError, match="is not a folder: give a run folder, such as runs/demo, or the name of"):
            find_run(odd)


def test_who_has_no_access_is_told_what_to_do(hub: Hub, home: Path, finished: Path, monkeypatch: Patch) -> None:
    hub.put(NAME, finished, private=True)
    hub.put("alice/gated", finished, gated=True)
    with pytest.raises(UserError, match=r"or a private one \(no token is set here\): .*hf auth"):
        find_run("alice/nothing")
    monkeypatch.setenv("HF_TOKEN", "bob-write")
    with pytest.raises(UserError, match=r"private one \(the token that is set here cannot see it\)"):
        find_run(NAME)
    with pytest.raises(UserError, match=rf"alice/gated is gated: ask for access on {hub.url}/alice/gated, log in"):
        find_run("alice/gated")
    hub.repos["alice/gated"].granted.add("bob")
    assert find_run("alice/gated").is_dir()
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(UserError, match=r"the Hub refused the token \(401, .*HF_TOKEN"):
        find_run(NAME)
    hub.fault("GET /api/models/", status=403, message="no such scope")
    with pytest.raises(UserError, match=r"the Hub refused the token \(403, .*HF_TOKEN"):
        find_run(NAME)
    monkeypatch.setenv("HF_TOKEN", "alice-read")
    assert find_run(NAME).is_dir()


def test_what_holds_no_run_is_not_downloaded(hub: Hub, home: Path) -> None:
    hub.put(NAME, {"model.safetensors": b"x", "README.md": b"y"})
    with pytest.raises(UserError, match=r"is not a run of clipreid: it has no config.json. It has: README.md, model"):
        find_run(NAME)
    hub.put("alice/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    with pytest.raises(UserError, match=r"config.json was not written by clipreid"):
        clipreid.load("alice/bert")
    assert not hub.asked("(GET|HEAD) .*model.safetensors")


def test_without_network_and_cache(hub: Hub, home: Path, finished: Path, monkeypatch: Patch) -> None:
    hub.put(NAME, finished)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"demo is no folder here, not in the cache \({home}/hub\), .*HF_HUB_OFFLINE"):
        find_run(NAME)
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    with pytest.raises(UserError, match=r"demo@v1 is no folder here, not in the cache .*Hub did not answer: .*again"):
        find_run(NAME, "v1")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub(hub: Hub, home: Path, finished: Path, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    hub.put(NAME, finished)
    hub.fault("GET /api/models/", status=status, retry_after=0)
    with pytest.raises(UserError, match=rf"not in the cache .*Hub did not answer: .*{status}.*: wait and try again"):
        find_run(NAME)
    hub.fault(r"GET .*/tree/", status=status, retry_after=0)  # the client asks again by itself
    found = find_run(NAME)
    assert hub.asked("GET .*/tree/") == 2
    hub.fault("GET /api/models/", status=status)
    assert find_run(NAME) == found
    assert "is taken from the cache" in capsys.readouterr().err


def test_an_interrupted_download_goes_on(hub: Hub, home: Path, finished: Path) -> None:
    hub.put(NAME, finished)
    adapter = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    assert len(adapter) > 50_000 > (finished / HEADS).stat().st_size
    hub.fault("GET /cdn/", cut=50_000)  # once: the client itself goes on
    assert (find_run(NAME) / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    shutil.rmtree(home)
    hub.fault("GET /cdn/", cut=50_000, times=100)
    with pytest.raises(
        UserError, match=r"only partly in the cache .* \(.*peer closed.*\): connect and try again; files that"
    ):
        find_run(NAME)
    hub.faults.clear()
    assert not any(len(blob.read_bytes()) == 50_000 for blob in home.rglob("blobs/*"))
    before = hub.asked("GET /cdn/")
    assert (find_run(NAME) / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert hub.asked("GET /cdn/") == before + 1  # the necks were complete


def test_a_partly_downloaded_run_is_not_loaded_offline(hub: Hub, home: Path, finished: Path) -> None:
    hub.put(NAME, finished)
    hub.fault("GET /cdn/", status=404, times=100)
    with pytest.raises(UserError, match="the download failed"):
        find_run(NAME)
    hub.stop()
    with pytest.raises(UserError, match="only partly in the cache"):
        find_run(NAME)


def test_a_repository_that_changes_meanwhile(hub: Hub, home: Path, finished: Path, monkeypatch: Patch) -> None:
    """What was looked at is what is downloaded, whatever is pushed in between."""
    commit = hub.put(NAME, finished)
    import clipreid.hub.download as module

    real = module.snapshot_download

    def late(*args: Any, **kwargs: Any) -> str:
        hub.put(NAME, {CONFIG: b"{}", HEADS: b"evil", "adapter/adapter_model.safetensors": b"evil"})
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "snapshot_download", late)
    found = find_run(NAME)
    clipreid.load(found)
    assert found.name == commit
    assert {r.path.split("/resolve/")[1].split("/")[0] for r in hub.requests if "/resolve/" in r.path} == {commit}
    hub.stop()
    assert find_run(NAME) == found  # what the branch was is known without network too


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_only_the_weights_that_its_tuning_needs_are_downloaded(
    hub: Hub, home: Path, tmp_path: Path, tuning: str
) -> None:
    make_run("tiny-clip", tmp_path / "run", tuning)
    adapter = "adapter/adapter_model.safetensors"
    needed = {"lora": {adapter}, "full": {TOWER}, "head": set()}[tuning] | {CONFIG, HEADS}
    for name in {adapter, "adapter_model.safetensors", TOWER} - needed:
        (tmp_path / "run" / "adapter").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"junk")
    hub.put(NAME, tmp_path / "run")
    clipreid.load(NAME)
    assert below(find_run(NAME)) == needed
    hub.stop()
    clipreid.load(NAME)


def test_names_of_the_allow_list_match_nothing_else() -> None:
    assert not any(set(name) & set("*?[]!") for name in WANTED)


def test_evaluate_and_compare_take_names(
    hub: Hub, home: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launching import paint_street

    from clipreid.cli import main

    crops = paint_street(tmp_path / "crops", train=2)
    hub.put(NAME, finished)
    local = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.json"))
    data = ["--data", f"folder:{crops}", "--threads", "1"]
    main(["evaluate", NAME, *data])
    said = capsys.readouterr().out
    assert f"nothing is written: {NAME} is on the Hub" in said
    assert not list(home.rglob("metrics.json"))
    main(["evaluate", str(local), *data])
    again = capsys.readouterr().out
    assert f"written: {local}/metrics.json" in again
    row = next(line for line in said.splitlines() if "stage2" in line)
    assert row in again.splitlines()
    main(["compare", NAME, "run", *data])
    assert "no query changed" in (told := capsys.readouterr().out)
    assert NAME in told
