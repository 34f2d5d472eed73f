"""A Hub on this machine: what the unmodified `huggingface_hub` client asks for when models are published and fetched.

It keeps everything in memory, and speaks: whoami, repository creation, validate-yaml, preupload, LFS batch, upload and
verify, commit, tags, model info, tree, paths-info, and resolve with etags, ranges and the redirect to a "CDN" on
another port (to which a token must never be sent). Not Xet: its clients need HF_HUB_DISABLE_XET=1, which `env` sets.

    def test_it(hub, monkeypatch, tmp_path):                        # the fixture of conftest.py
        hub.put("alice/demo", run_folder, private=True)             # as if published: a folder or {path: bytes}
        done = hub.python("import clipreid; clipreid.load('alice/demo')", tmp_path / "home", token="alice-write")
        assert done.returncode == 0, done.stderr                    # a fresh process with an empty cache
        hub.here(monkeypatch, tmp_path / "home", token=None)        # or: this process talks to it, which is quicker
        hub.files("alice/demo")["config.json"]                      # what is published now
        assert hub.asked("PUT /lfs/") == 1                          # requests are recorded, see also hub.requests

Users and tokens: USERS. A read token cannot write; nobody writes to another one's repositories; a private one is "not
found" for everybody but its owner; the files of a gated one need `hub.repos[name].granted.add(user)`.

Faults, each on the next `times` requests whose "METHOD /path" matches the regex:
    hub.fault("POST .*/commit/", status=409)
    hub.fault("PUT /lfs/", status=429, times=2, retry_after=0)
    hub.fault("PUT /lfs/", cut=1000)      # the connection breaks when the server has read that many bytes
    hub.fault("POST .*/commit/", cut=10**9)  # more than there are: it is done, but the answer is lost
    hub.fault("GET /cdn/", cut=1000)      # the connection breaks when that many bytes of the body are sent
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_answers import ROUTES, Files, Refusal, Repo

USERS = {"alice-write": "alice", "alice-read": "alice", "bob-write": "bob"}  # token: whose


@dataclass
class Fault:
    pattern: str
    status: int = 0
    times: int = 1
    cut: int | None = None
    retry_after: int | None = None
    message: str = "a fault that was asked for"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    size: int  # bytes of the body


class Hub:
    """The server; a context manager. `url` is its endpoint, `cdn` where large files are sent from."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections: list[socket.socket] = []
        self.lock = threading.RLock()
        handler = type("Bound", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As if the network were gone: later requests find nobody."""
        for server in self.servers:
            server.shutdown()
            server.server_close()
        for connection in self.connections:  # those that are kept open would still be served
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # What tests do with it ----------------------------------------------------------------------------------------

    def put(self, name: str, content: Path | Files, revision: str = "main", **traits: bool) -> str:
        """Makes or updates a repository, past all checks; returns the commit."""
        if isinstance(content, Path):
            content = {str(f.relative_to(content)): f.read_bytes() for f in content.rglob("*") if f.is_file()}
        with self.lock:
            repo = self.repos.setdefault(name, Repo(**traits))
            return repo.commit(dict(content), "put", revision)

    def files(self, name: str, revision: str = "main") -> Files:
        repo = self.repos[name]
        return repo.commits[repo.refs.get(revision, revision)]

    def fault(self, pattern: str, **what: Any) -> None:
        self.faults.append(Fault(pattern, **what))

    def asked(self, pattern: str) -> int:
        """How many requests "METHOD /path" matched a regex."""
        return sum(bool(re.match(pattern, f"{r.method} {r.path}")) for r in self.requests)

    def env(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that takes this for the Hub and keeps its cache and token under `home`."""
        ours = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "HF_TOKEN"}
        ours |= {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        ours.pop("HF_HUB_CACHE", None)
        return ours | ({"HF_TOKEN": token} if token else {})

    def python(self, code: str, home: Path, token: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs code in a fresh process; `more` are further variables of its environment."""
        args = [sys.executable, "-c", code]
        return subprocess.run(args, env=self.env(home, token) | more, capture_output=True, text=True, timeout=300)

    def here(self, monkeypatch: Any, home: Path, token: str | None = None) -> None:
        """Points the client in this process here, by the settings that it reads from the environment when imported; it
        does not wait between its attempts."""
        from huggingface_hub import constants, hf_api

        settings = {"ENDPOINT": self.url, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": False}
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}
        for name, value in (settings | {"HF_TOKEN_PATH": str(home / "token")}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def answer(self) -> None:
        path = urlsplit(self.path).path
        asked = f"{self.command} {path}"
        with self.hub.lock:
            fault = next((f for f in self.hub.faults if f.times > 0 and re.match(f.pattern, asked)), None)
            if fault:
                fault.times -= 1
        headers = {name.lower(): value for name, value in self.headers.items()}
        cut, sending = fault.cut if fault else None, self.command in ("PUT", "POST")
        body, whole = self.body(cut if sending else None)
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, path, headers, len(body)))
            status, sent, content = self.found(asked, headers, body, fault) if whole else (0, {}, b"")
        if cut is not None and sending:
            self.hang_up()
            return
        span = re.match(r"bytes=(\d+)-", headers.get("range", ""))
        if status == 200 and span and self.command == "GET":
            start = int(span[1])
            status, sent = 206, sent | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        self.send_response(status)
        for name, value in (sent | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def found(self, asked: str, headers: dict[str, str], body: bytes, fault: Fault | None) -> tuple[int, dict, bytes]:
        try:
            if fault and fault.status:
                raise Refusal(fault.status, fault.message)
            token = headers.get("authorization", "").removeprefix("Bearer ") or None
            if token and token not in USERS:
                raise Refusal(401, "Invalid credentials in Authorization header")
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, asked):
                    groups = [unquote(group) for group in match.groups()]
                    made = method(self.hub, USERS.get(token or ""), bool(token and "write" in token), body, *groups)
                    return made if isinstance(made, tuple) else (200, {}, json.dumps(made).encode())
            raise Refusal(404, f"this server does not know {asked}")
        except Refusal as refusal:
            wait = {} if not fault or fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return refusal.status, refusal.headers | wait, json.dumps(refusal.body).encode()

    def body(self, most: int | None) -> tuple[bytes, bool]:
        """The body that was sent, or its first bytes; and whether that is all."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found[:most], most is None or most >= len(found)
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size if most is None else min(most, size)), most is None or most >= size

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what was asked is in `hub.requests`."""
