"""The server of these tests against the client that everybody has: it is only worth what the client takes from it."""

from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

NAME, WRITE = "alice/demo", "alice-write"
LARGE = bytes(range(256)) * 4000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "adapter").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("---\nlicense: mit\n---\nhello")
    (made / "adapter" / "weights.safetensors").write_bytes(LARGE)
    return made


def api(hub: Hub, token: str | None = WRITE) -> HfApi:
    return HfApi(endpoint=hub.url, token=token or False)


@pytest.fixture(autouse=True)
def _here(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.here(monkeypatch, tmp_path / "home")


def test_what_is_uploaded_comes_back(hub: Hub, folder: Path) -> None:
    client = api(hub)
    assert client.whoami()["name"] == "alice"
    assert client.create_repo(NAME, private=True).repo_id == NAME
    assert client.create_repo(NAME, exist_ok=True).repo_id == NAME
    commit = client.upload_folder(repo_id=NAME, folder_path=folder)
    assert set(hub.files(NAME)) == {".gitattributes", "README.md", "config.json", "adapter/weights.safetensors"}
    client.create_tag(NAME, tag="v1")
    found = Path(snapshot_download(NAME, revision="v1", token=WRITE))
    assert found.name == commit.oid
    assert (found / "adapter" / "weights.safetensors").read_bytes() == LARGE
    asked = len(hub.requests)
    assert Path(snapshot_download(NAME, revision="v1", token=WRITE)) == found
    assert len(hub.requests) == asked + 1  # the revision; everything else is cached by its etag
    assert not any("authorization" in r.headers for r in hub.requests if r.path.startswith(("/cdn/", "/lfs/")))
    sizes = {f.rfilename: f.size for f in client.model_info(NAME, files_metadata=True).siblings or []}
    assert sizes["adapter/weights.safetensors"] == len(LARGE)
    (folder / "config.json").write_text('{"a": 1}')
    client.upload_folder(repo_id=NAME, folder_path=folder, delete_patterns="*")
    assert hub.asked("PUT /lfs/") == 1  # what is there is not sent again
    assert hub.files(NAME)["config.json"] == b'{"a": 1}'
    assert hub.files(NAME, "v1")["config.json"] == b"{}"


def test_who_may_do_what(hub: Hub, folder: Path) -> None:
    hub.put(NAME, folder, private=True)
    for token in (None, "bob-write"):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info(NAME)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "nonsense").whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, "alice-read").upload_folder(repo_id=NAME, folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, "bob-write").create_repo("alice/other")
    with pytest.raises(HfHubHTTPError, match="409"):
        api(hub).create_repo(NAME)
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(NAME, revision="v9")
    hub.put("alice/gated", folder, gated=True)
    with pytest.raises(GatedRepoError):
        hf_hub_download("alice/gated", "config.json", token="bob-write")
    hub.repos["alice/gated"].granted.add("bob")
    assert Path(hf_hub_download("alice/gated", "config.json", token="bob-write")).read_text() == "{}"


def test_faults_strike_as_often_as_asked(hub: Hub, folder: Path) -> None:
    client = api(hub)
    client.create_repo(NAME)
    hub.fault("POST .*/commit/", status=409)
    hub.fault("POST .*/preupload/", status=429, retry_after=0)  # the client waits a second, and tries again
    with pytest.raises(HfHubHTTPError, match="409"):
        client.upload_folder(repo_id=NAME, folder_path=folder)
    assert hub.asked("POST .*/preupload/") == 2
    hub.fault("POST .*/commit/", cut=10**9)
    with pytest.raises(Exception, match="disconnected"):
        client.upload_folder(repo_id=NAME, folder_path=folder)
    assert "config.json" in hub.files(NAME)  # it was done; only the answer was lost


def test_connections_that_break(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = api(hub)
    client.create_repo(NAME)
    hub.fault("PUT /lfs/", cut=1000)
    client.upload_folder(repo_id=NAME, folder_path=folder)  # the client tries again
    assert [r.size for r in hub.requests if r.path.startswith("/lfs/")] == [1000, len(LARGE)]
    hub.fault("GET /cdn/", cut=300_000)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # whole chunks are kept
    found = Path(snapshot_download(NAME))
    assert (found / "adapter" / "weights.safetensors").read_bytes() == LARGE
    again = [r for r in hub.requests if r.method == "GET" and r.path.startswith("/cdn/")][1]
    assert again.headers["range"] == "bytes=300000-"
    hub.stop()
    assert Path(snapshot_download(NAME)) == found  # from the cache
