"""A run by its folder, or by its name on the Hugging Face Hub: downloaded once, then taken from the cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from clipreid.backbones.hf import OPENAI, PICKLED, WANTED_FILES
from clipreid.backbones.load import is_backbone
from clipreid.errors import UserError
from clipreid.hub.checks import read_config
from clipreid.hub.files import (
    ADAPTER,
    CALIBRATION,
    CONFIG,
    HEADS,
    LARGEST,
    TEXT_ADAPTER,
    TEXT_TOWER,
    TOWER,
    WEIGHTS,
    check_size,
)

PREFIX = "hub:"
TEXTS = (TEXT_TOWER, TEXT_ADAPTER.as_posix())
WANTED = (
    CONFIG,
    CALIBRATION,
    HEADS,
    TOWER,
    WEIGHTS,
    ADAPTER.as_posix(),
    *TEXTS,
)  # all that is ever downloaded, and not all of it
SAFE = "model*.safetensors"  # a backbone's weights
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)
BUSY = (408, 429, 500, 502, 503, 504)  # the Hub is there, but cannot answer now
LOG_IN = "log in with `hf auth login`, or put a token that may read it into HF_TOKEN"
KEPT = "; files that are complete are not downloaded twice"


def find_run(run: str | Path, revision: str | None = None, also: str = "") -> Path:
    """The folder of a run: a local one, else a repository of the Hub, downloaded or from the cache.

    Only the files that `load` needs are downloaded, of the commit that was looked at, and only if the repository lists
    sensible sizes for them. Without network, what was downloaded before is taken; an interrupted download is continued
    when asked for again.

    Args:
        run: a run folder; else OWNER/NAME, OWNER/NAME@REVISION or, where a folder OWNER is here too, hub:OWNER/NAME.
        revision: of a repository: a branch, tag or commit; None is its main branch.
        also: what else could have been given, for the message (`find_model`).

    Raises:
        UserError: neither a folder nor a name; an untrained backbone; no such repository or revision, or no access to
            it; a repository that holds no run; no network and nothing in the cache; a download that failed.
    """
    text = run.as_posix() if isinstance(run, Path) else run
    folder = Path(text).expanduser()
    if not text.startswith(PREFIX) and folder.exists():
        if revision is not None:
            raise UserError(
                f"{text} is a folder here, which has no revisions: leave out revision={revision!r}, or "
                f"write {PREFIX}OWNER/NAME for what is on the Hub"
            )
        return folder
    name, _, own = text.removeprefix(PREFIX).partition("@")
    if not also and is_backbone(text):
        raise UserError(
            f"{text} is an untrained backbone, and a run is needed here: give a run folder, such as runs/demo "
            f"(training: recipes/clipreid_stage2.py --backbone {text})"
        )
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{text} is not a folder: give a run folder, such as runs/demo, or the name of a published run, "
            f"OWNER/NAME{also}"
        )
    if not text.startswith(PREFIX) and folder.parent.is_dir():
        raise UserError(
            f"{text} is not a folder, and {folder.parent} is one: check the name, or write {PREFIX}{text} "
            "for the repository of that name on the Hub"
        )
    revision = revision or own or None
    if revision is not None and not REVISION.fullmatch(revision):
        raise UserError(f"{name}: {revision!r} cannot be a revision: give a branch, a tag or a commit")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    try:
        commit, listed = _check_listing(name, revision)
        found = Path(snapshot_download(name, revision=commit, allow_patterns=[CONFIG]))
        _keep_ref(found, revision or constants.DEFAULT_REVISION)
        if files := [file for file in _needed(read_config(found), listed) if file in listed]:
            snapshot_download(name, revision=commit, allow_patterns=files)
        return found
    except UserError:
        raise
    except LocalEntryNotFoundError as error:  # the Hub answered, and then did not
        raise _explain(name, revision, error.__cause__ or error) from error
    except Exception as error:
        if _is_unreachable(error):
            return _cached(name, revision, error)
        raise _explain(name, revision, error) from error


def _needed(config: dict[str, Any], there: Collection[str]) -> list[str]:
    """What `load` and `search` read of a run beside its config; the adapter lies below adapter/ or at the root, the
    weights of a text tower are there where it was trained, a calibration where one was made."""
    adapter = ADAPTER.as_posix()
    weights = {"lora": adapter if adapter in there else WEIGHTS, "full": TOWER}
    texts = dict(zip(("full", "lora"), TEXTS, strict=True))
    settings = config.get("config")
    settings = settings if isinstance(settings, dict) else {}
    image = [file for kind, file in weights.items() if settings.get("tuning") == kind]
    text = [file for kind, file in texts.items() if file in there or settings.get("text_tuning") == kind]
    return [HEADS, *image, *text, *[CALIBRATION] * (CALIBRATION in there)]


def _keep_ref(snapshot: Path, revision: str) -> None:
    """Writes into the cache which commit a branch or tag was, for use without network. The client itself writes it only
    where it is called without the commit."""
    file = snapshot.parents[1] / "refs" / revision
    if revision != snapshot.name and not (file.is_file() and file.read_text(encoding="utf-8") == snapshot.name):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f"{file.name}.writing")
        scratch.write_text(snapshot.name, encoding="utf-8")
        scratch.replace(file)


def _sizes(name: str, revision: str | None = None) -> tuple[str, dict[str, int]]:
    """The commit of a revision, and how many bytes each file has that it lists."""
    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    assert info.sha is not None
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []}


def _check_listing(name: str, revision: str | None) -> tuple[str, Collection[str]]:
    """The commit of a revision and its files, if what it lists can be a run."""
    commit, sizes = _sizes(name, revision)
    for path in sizes:
        if path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
            raise UserError(f"{name} lists a file {path!r}, a name that leads elsewhere: the repository is refused")
    if CONFIG not in sizes:
        listed = ", ".join(sorted(sizes)[:8]) or "nothing"
        raise UserError(f"{name} on the Hub is not a run of clipreid: it has no {CONFIG}. It has: {listed}")
    for path in WANTED:
        check_size(f"{name}: {path}", sizes.get(path, 0), LARGEST[PurePosixPath(path).name])
    return commit, sizes


def check_backbone(name: str, revision: str | None = None) -> None:
    """Refuses the backbone of a published run if its repository has no safetensors, or absurdly large ones.

    Only names `hf:OWNER/NAME` are looked at: open_clip and timm know where the weights of their names are. A
    repository that cannot be seen is left to `load_backbone`. OpenAI's repositories, some of which are older than
    safetensors, are known: of their file no more than tensors is ever read (`torch.load(weights_only=True)`).

    Raises:
        UserError: one of these.
    """
    kind, _, repository = name.partition(":")
    if kind != "hf":
        return
    try:
        _, sizes = _sizes(repository, revision)
    except Exception:  # no network, or no such repository: what counts is what was downloaded before
        try:
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=[CONFIG], local_files_only=True)
            )
        except LocalEntryNotFoundError:
            return
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*.*")}
    safe = any(fnmatch(file, SAFE) for file in sizes)
    if not safe and not (repository.lower().startswith(OPENAI) and PICKLED in sizes):
        raise UserError(
            f"{name} has no {SAFE}: a published run takes no other weights than safetensors. Name a repository of the "
            "same weights that has them"
        )
    patterns = WANTED_FILES if safe else [*WANTED_FILES, PICKLED]
    wanted = (size for file, size in sizes.items() if any(fnmatch(file, pattern) for pattern in patterns))
    check_size(name, sum(wanted), LARGEST[TOWER])


def _cached(name: str, revision: str | None, why: Exception) -> Path:
    """What was downloaded before, when the Hub cannot be reached."""
    asked_for = isinstance(why, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if asked_for else f"the Hub did not answer: {_first_line(why)}"
    do = "connect, unset HF_HUB_OFFLINE" if asked_for else "wait" if isinstance(why, HfHubHTTPError) else "connect"
    state, found = "not", Path()
    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG], local_files_only=True))
        there = {file for file in WANTED if (found / file).is_file()}
        whole = CONFIG in there and there.issuperset(_needed(read_config(found), there))
        state = "wholly" if whole else "only partly"
    except LocalEntryNotFoundError as error:
        state = "only partly" if hasattr(error, "snapshot_path") else "not"  # IncompleteSnapshotError of newer clients
    if state != "wholly":
        raise UserError(
            f"{_named(name, revision)} is no folder here, {state} in the cache ({constants.HF_HUB_CACHE}), and cannot "
            f"be downloaded ({reason}): {do} and try again{'' if state == 'not' else KEPT}"
        ) from why
    if not asked_for:
        note = f"note: {_named(name, revision)} is taken from the cache, commit {found.name[:12]} ({reason})"
        print(note, file=sys.stderr, flush=True)
    return found


def _is_unreachable(error: Exception) -> bool:
    """Whether the Hub could not answer, so that asking again later may help. The client's network errors are those of
    its HTTP library, which is another one in other versions of it: they share the name of a base class."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in BUSY
    network = any(base.__name__ in ("TransportError", "RequestException") for base in type(error).__mro__)
    return network or isinstance(error, ConnectionError | TimeoutError)


def _explain(name: str, revision: str | None, error: BaseException) -> UserError:
    """What a refusal of the Hub means, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    token = "the token that is set here cannot see it" if get_token() else "no token is set here"
    if isinstance(error, GatedRepoError):
        said = f"{name} is gated: ask for access on {constants.ENDPOINT}/{name}, {LOG_IN}, then try again"
    elif isinstance(error, RevisionNotFoundError):
        said = f"{name} has no revision {revision!r}{_revisions(name)}"
    elif isinstance(error, RepositoryNotFoundError):
        said = f"{name} is no folder here, and no repository on the Hub, or a private one ({token}): check the name; "
        said += f"for a private one {LOG_IN}"
    elif status in (401, 403):
        said = f"{name}: the Hub refused the token ({status}, {_first_line(error)}): {LOG_IN}"
    elif isinstance(error, HFValidationError):
        said = f"{name} cannot be a name on the Hub: {_first_line(error)}"
    else:
        said = f"{_named(name, revision)}: the download failed ({_first_line(error)}): try again{KEPT}"
    return UserError(said)


def _revisions(name: str) -> str:
    """Those that there are, if the Hub tells."""
    try:
        refs = HfApi().list_repo_refs(name)
    except (HfHubHTTPError, OSError):
        return ": look on its page"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f": it has {', '.join(names[:20])} (or give a commit)"


def _named(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
