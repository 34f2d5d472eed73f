"""What the Hub of `hub_server` answers to each request.

Every answer takes (hub, user or None, whether the token may write, body, *groups of its route) and returns what is to
be JSON, or (status, headers, bytes); errors are raised as `Refusal`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from hub_server import Hub

LARGE = (".safetensors", ".bin", ".pt", ".onnx", ".png", ".jpg", ".parquet", ".npy")  # kept as LFS, as on the Hub
Files = dict[str, bytes]
DATASET = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
LICENCE = re.compile(r"[a-z0-9.+-]+")


class Refusal(Exception):
    """An answer that is an error; `code` is what the client tells them apart by."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # users who may read a gated one, beside its owner
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags
    sizes: dict[str, int] = field(default_factory=dict)  # lies about a path's size, in listings
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str, revision: str = "main") -> str:
        made = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{message}".encode()).hexdigest()
        self.commits[made] = files
        self.refs[revision] = made
        self.messages.append(message)
        return made


def whoami(hub: Hub, user: str | None, *_: Any) -> Any:
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}}


def create(hub: Hub, user: str | None, write: bool, body: bytes) -> Any:
    asked = json.loads(body)
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    if not write or owner != user:
        raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    if name in hub.repos:
        raise Refusal(409, "You already created this model repo", url=f"{hub.url}/{name}")
    hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial")
    return {"url": f"{hub.url}/{name}", "name": name, "id": name}


def validate_yaml(hub: Hub, user: str | None, write: bool, body: bytes) -> Any:
    """What is known of the Hub's rules for the metadata of a model card."""
    found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
    card = yaml.safe_load(found[1]) if found else {}
    results = [result for model in card.get("model-index", []) for result in model["results"]]
    named = [("dataset.type", result["dataset"]["type"]) for result in results]
    named += [("datasets", name) for name in card.get("datasets", [])]
    errors = [
        f'"{key}" with value "{name}" fails to match the required pattern: {DATASET.pattern}'
        for key, name in named
        if not DATASET.fullmatch(name)
    ]
    if not LICENCE.fullmatch(licence := card.get("license", "unknown")):
        errors.append(f'"license" must be one of the known ones, not "{licence}"')
    said = {"errors": [{"message": error} for error in errors], "warnings": []}
    return 400 if errors else 200, {}, json.dumps(said).encode()


def auth_check(hub: Hub, user: str | None, write: bool, body: bytes, name: str) -> Any:
    open_repo(hub, user, name, "main", write=write)
    return {}


def preupload(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str) -> Any:
    _, files = open_repo(hub, user, name, revision, write=write)
    return {
        "files": [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": remote_oid(f["path"], files),
            }
            for f in json.loads(body)["files"]
        ]
    }


def lfs_batch(hub: Hub, user: str | None, write: bool, body: bytes, name: str) -> Any:
    open_repo(hub, user, name, "main", write=write)
    objects = []
    for wanted in json.loads(body)["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.objects:
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/verify"}
            answer["actions"] = {"upload": {"href": f"{hub.cdn}/lfs/{wanted['oid']}"}, "verify": verify}
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


def lfs_upload(hub: Hub, user: str | None, write: bool, body: bytes, oid: str) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(400, "the content does not have this SHA-256")
    hub.objects[oid] = body
    return {}


def lfs_verify(hub: Hub, user: str | None, write: bool, body: bytes, name: str) -> Any:
    asked = json.loads(body)
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refusal(404, "no such object")
    return {}


def commit(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str) -> Any:
    repo, files = open_repo(hub, user, name, revision, write=write)
    files, message = dict(files), ""
    for line in map(json.loads, body.splitlines()):
        kind, value = line["key"], line["value"]
        if kind == "header":
            message = value["summary"]
            if value.get("parentCommit") not in (None, repo.refs["main"]):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        elif kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, f"the LFS object of {value['path']} was never uploaded")
            files[value["path"]] = hub.objects[value["oid"]]
        elif kind == "deletedFile":
            files.pop(value["path"])
        elif kind == "deletedFolder":
            files = {p: c for p, c in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
    made = repo.commit(files, message, revision)
    return {"commitUrl": f"{hub.url}/{name}/commit/{made}", "commitOid": made, "success": True}


def tag(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str) -> Any:
    repo, _ = open_repo(hub, user, name, revision, write=write)
    repo.refs[json.loads(body)["tag"]] = repo.refs.get(revision, revision)
    return {}


def refs(hub: Hub, user: str | None, write: bool, body: bytes, name: str) -> Any:
    repo, _ = open_repo(hub, user, name, "main")
    found = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": made} for ref, made in repo.refs.items()]
    return {"branches": found, "tags": [], "converts": []}


def info(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str | None = None) -> Any:
    repo, files = open_repo(hub, user, name, revision or "main")
    listed = [(path, entry(repo, path, files)) for path in files]
    siblings = [{"rfilename": path, "size": e["size"], "blobId": e["oid"], "lfs": sibling_lfs(e)} for path, e in listed]
    return {
        "id": name,
        "modelId": name,
        "sha": repo.refs.get(revision or "main", revision),
        "tags": [],
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "siblings": siblings,
    }


def tree(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str) -> Any:
    repo, files = open_repo(hub, user, name, revision)
    return [entry(repo, path, files) for path in files]


def paths_info(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str) -> Any:
    repo, files = open_repo(hub, user, name, revision)
    return [entry(repo, path, files) for path in json.loads(body)["paths"] if path in files]


def resolve(hub: Hub, user: str | None, write: bool, body: bytes, name: str, revision: str, path: str) -> Any:
    repo, files = open_repo(hub, user, name, revision)
    if repo.gated and user not in repo.granted | {name.split("/")[0]}:
        raise Refusal(403 if user else 401, f"Access to model {name} is restricted.", "GatedRepo")
    headers = {"X-Repo-Commit": repo.refs.get(revision, revision)}
    if path not in files:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    content = files[path]
    if not path.endswith(LARGE):
        return 200, headers | {"ETag": f'"{git_hash(content)}"'}, content
    oid = hashlib.sha256(content).hexdigest()
    hub.objects[oid] = content
    headers |= {
        "X-Linked-Etag": f'"{oid}"',
        "X-Linked-Size": str(len(content)),
        "Location": f"{hub.cdn}/cdn/{oid}",
    }
    return 302, headers, b""


def cdn_file(hub: Hub, user: str | None, write: bool, body: bytes, oid: str) -> Any:
    return 200, {"ETag": f'"{oid}"'}, hub.objects[oid]


def open_repo(hub: Hub, user: str | None, name: str, revision: str, write: bool | None = None) -> tuple[Repo, Files]:
    """A repository and the files of a revision, for who may see it, and with write=True|False may change it."""
    repo = hub.repos.get(name)
    if repo is None or (repo.private and user != name.split("/")[0]):
        raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
    if write is not None and (not write or user != name.split("/")[0]):
        raise Refusal(403 if user else 401, "you have no write access to this repository")
    commit = repo.refs.get(revision, revision)
    if commit not in repo.commits:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return repo, repo.commits[commit]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def remote_oid(path: str, files: Files) -> str | None:
    if path not in files:
        return None
    return hashlib.sha256(files[path]).hexdigest() if path.endswith(LARGE) else git_hash(files[path])


def entry(repo: Repo, path: str, files: Files) -> dict[str, Any]:
    size = repo.sizes.get(path, len(files[path]))
    found = {"type": "file", "path": path, "size": size, "oid": git_hash(files[path])}
    large = {"lfs": {"oid": remote_oid(path, files), "size": size, "pointerSize": 130}}
    return found | (large if path.endswith(LARGE) else {})


def sibling_lfs(listed: dict[str, Any]) -> dict[str, Any] | None:
    """The Hub's two listings call the same thing by two names."""
    return {**listed["lfs"], "sha256": listed["lfs"]["oid"]} if "lfs" in listed else None


MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., Any]]] = [
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate_yaml),
    (rf"GET {MODEL}/auth-check/write", auth_check),
    (rf"POST {MODEL}/preupload/(.+)", preupload),
    (rf"POST {MODEL}/commit/(.+)", commit),
    (rf"POST {MODEL}/tag/(.+)", tag),
    (rf"POST {MODEL}/paths-info/(.+)", paths_info),
    (rf"GET {MODEL}/tree/([^/]+)", tree),
    (rf"GET {MODEL}/refs", refs),
    (rf"GET {MODEL}", info),
    (rf"GET {MODEL}/revision/(.+)", info),
    (r"POST /(.+)\.git/info/lfs/objects/batch", lfs_batch),
    (r"POST /(.+)\.git/info/lfs/verify", lfs_verify),
    (r"PUT /lfs/(\w+)", lfs_upload),
    (r"(?:GET|HEAD) /cdn/(\w+)", cdn_file),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
]
