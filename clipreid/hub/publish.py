"""The files of a run -> a repository on the Hub, through huggingface_hub's own client."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from clipreid.errors import UserError
from clipreid.hub.download import check_backbone
from clipreid.hub.folder import CONFIG
from clipreid.hub.package import PUBLISHED, Files

PARTS = re.compile(r"[A-Za-z0-9][\w.-]*")
HAVE_TOKEN = (
    "make one with the role `write` at https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN"
)
PATIENCE = 60  # seconds at most that "too many requests" is waited for, each of TRIES times
TRIES = 4
Result = TypeVar("Result")


@dataclass(frozen=True)
class Published:
    url: str  # of the repository
    private: bool
    removed: list[str]  # files of an earlier time that are not published any more
    changed: bool  # False: everything was there already


def publish_command(run: Path, repository: str, *flags: str) -> str:
    """The command line that publishes a run; repeated it continues, or updates."""
    return shlex.join(["clipreid", "publish", str(run), repository, *flags])


def check_repository(repository: str) -> None:
    """Refuses what is no OWNER/NAME.

    Raises:
        UserError: with an example.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    owner, slash, name = repository.partition("/")
    if not slash:
        raise UserError(
            f"{repository!r} has no owner: give OWNER/NAME, such as alice/{repository or 'demo'}, the owner being your "
            "user name on the Hub, or an organisation you may write to"
        )
    try:
        validate_repo_id(repository)
        sound = bool(PARTS.fullmatch(owner) and PARTS.fullmatch(name))
    except HFValidationError:
        sound = False
    if not sound:
        raise UserError(
            f"{repository!r} is no name for a repository: give OWNER/NAME of letters, digits, '-', '_' and '.', such "
            "as alice/market-lora"
        )


def check_account(repository: str, again: str) -> None:
    """Refuses a name without owner, and checks the token with the Hub.

    Raises:
        UserError: no OWNER/NAME; no token, or one that is not accepted; no network.
    """
    from huggingface_hub import HfApi

    _check_token(repository)
    with _as_user_errors(repository, again):
        _patiently(HfApi().whoami)


def _check_token(repository: str) -> None:
    from huggingface_hub import get_token

    check_repository(repository)
    if get_token() is None:
        raise UserError(f"publishing needs a token of the Hub, and there is none on this machine: {HAVE_TOKEN}")


def open_repository(repository: str, private: bool, again: str) -> Any:
    """Makes the repository unless it is there, and checks that we may write to it.

    Args:
        repository: OWNER/NAME.
        private: make it private; an existing one must be.
        again: the command line that continues, for messages.

    Returns:
        What the Hub knows of it (`huggingface_hub.ModelInfo`).

    Raises:
        UserError: no token, or one that is not accepted or may not write there; a repository that holds something
            else; a public one where --private was asked for; no network; a Hub that is busy.
    """
    from huggingface_hub import HfApi

    _check_token(repository)
    with _as_user_errors(repository, again):
        api = HfApi()
        _patiently(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
        _patiently(lambda: api.auth_check(repository, write=True))  # one that was there already may be others'
        info = _patiently(lambda: api.model_info(repository))
        _check_contents(api, info, repository)
        if private and not info.private:
            raise UserError(
                f"--private: {repository} exists and is public. Make it private on its settings page, or leave the "
                "flag out to publish there for everybody"
            )
    return info


def upload(files: Files, repository: str, private: bool, again: str) -> Published:
    """One commit with all files, and without those of an earlier time that are not published any more.

    What the Hub has already is not sent again, so an upload that was cut off can be repeated. Files that clipreid never
    writes are left alone.

    Args:
        files: of `package`.  repository, private, again: as for `open_repository`.

    Raises:
        UserError: as `open_repository`; a backbone that a published run cannot be loaded with; a change by somebody
            else at the same time.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    import clipreid

    source = json.loads(cast(bytes, files[CONFIG]))["backbone"]
    check_backbone(source["name"], source.get("revision"))
    info = open_repository(repository, private, again)
    there = {file.rfilename for file in info.siblings or ()}
    removed = sorted(there & set(PUBLISHED) - files.keys())

    def commit() -> Any:
        changes: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in removed]
        changes += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
        message = f"Publish with clipreid {clipreid.__version__}"
        return HfApi().create_commit(repository, changes, commit_message=message, parent_commit=info.sha)

    with _as_user_errors(repository, again):
        done = _patiently(commit)
    return Published(f"{HfApi().endpoint}/{repository}", bool(info.private), removed, done.oid != info.sha)


def describe(done: Published, repository: str) -> str:
    """Where it is, what changed, how to load it."""
    lines = [done.url + " (private)" * done.private + ": was up to date" * (not done.changed)]
    if done.removed:
        lines.append(f"removed there: {', '.join(done.removed)} (earlier revisions still have them)")
    return "\n".join([*lines, "load it:", f'  import clipreid; model = clipreid.load("{repository}")'])


def _check_contents(api: Any, info: Any, repository: str) -> None:
    """Refuses to write into a repository that holds something else than a run."""
    from huggingface_hub import hf_hub_download

    names = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    if not names:
        return
    ours = False
    if CONFIG in names:
        file = _patiently(lambda: hf_hub_download(repository, CONFIG, revision=info.sha))
        ours = '"clipreid"' in Path(file).read_text(encoding="utf-8", errors="replace")
    if not ours:
        raise UserError(
            f"{repository} exists and holds something else than a run of clipreid ({', '.join(sorted(names)[:4])}): "
            "nothing in it is overwritten. Give another name, or empty it on its page first"
        )


def _patiently(call: Callable[[], Result]) -> Result:
    """`call()`, again after the time that the Hub names where it is busy (429, 503)."""
    from huggingface_hub.errors import HfHubHTTPError

    for left in reversed(range(TRIES)):
        try:
            return call()
        except HfHubHTTPError as error:
            seconds = _retry_after(error)
            if not left or seconds is None or seconds > PATIENCE:
                raise
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def _retry_after(error: Any) -> float | None:
    """Seconds to wait; None where the error is another one."""
    if error.response.status_code not in (429, 503):
        return None
    given = error.response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 2.0


@contextmanager
def _as_user_errors(repository: str, again: str) -> Iterator[None]:
    """What the Hub or the network refuses, as a `UserError` that says what to do."""
    from huggingface_hub import constants, errors

    transport: Any = errors.HfHubHTTPError.__mro__[1]  # httpx's own base, whichever httpx the client uses
    try:
        yield
    except UserError:
        raise
    except (errors.HfHubHTTPError, transport, OSError, RuntimeError, ValueError) as error:
        first: BaseException | None = error
        while first is not None and not isinstance(first, errors.HfHubHTTPError):
            first = first.__cause__  # uploads wrap what went wrong
        if isinstance(error, errors.OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it"
        elif isinstance(first, errors.HfHubHTTPError):
            reason = _refusal(first, repository)
        elif isinstance(error, PermissionError) and error.errno is None:  # the transfer of large files, not a disk
            reason = _no_access(repository, f" ({error})")
        elif isinstance(error, ValueError):  # the client found out itself
            reason = f"the Hub refuses what was to be published: {error}"
        else:
            shown = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            reason = f"the connection to {constants.ENDPOINT} broke off ({shown[0]}): check the network"
        final = isinstance(error, ValueError) or (first is not None and first.response.status_code == 400)
        raise UserError(f"{reason}. Nothing is lost{'' if final else f'; to go on: {again}'}") from error


def _no_access(repository: str, quoted: str) -> str:
    owner = repository.partition("/")[0]
    return (
        f"your token may not write to {repository}{quoted}: {HAVE_TOKEN}, of an account that may write for "
        f"{owner}, or publish under your own name"
    )


def _refusal(error: Any, repository: str) -> str:
    status, owner = error.response.status_code, repository.partition("/")[0]
    said = (error.server_message or "").strip().splitlines()
    quoted = f" ({said[0]})" if said else ""
    if status == 401:
        return f"the Hub does not accept your token{quoted}: {HAVE_TOKEN} (HF_TOKEN goes before `hf auth login`)"
    if status == 403:
        return _no_access(repository, quoted)
    if status == 400:
        return f"the Hub refuses what was to be published{quoted or f' ({error})'}"
    if status == 404:
        return f"the Hub knows no {repository} that your token may write to{quoted}: check the owner, {owner}"
    if status in (409, 412):
        return f"{repository} was changed by somebody else at the same time{quoted}: look at it, then repeat"
    if status == 429:
        return f"the Hub asks for fewer requests{quoted}: wait some minutes"
    return f"the Hub answered {status}{quoted or f' ({error})'}" + (": try again later" if status >= 500 else "")
