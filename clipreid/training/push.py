"""`--push OWNER/NAME`: token and repository are checked before training, the finished run is published at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipreid.backbones.load import is_local
from clipreid.config import RunConfig
from clipreid.data import ReIDData
from clipreid.data.fingerprint import fingerprints, local_places
from clipreid.errors import UserError
from clipreid.hub.download import check_backbone
from clipreid.hub.public import public_backbone
from clipreid.hub.publish import check_account, check_repository, describe, open_repository, publish_command, upload

AGAIN = "start the training again"
LATER = (
    "train without --push, then `clipreid publish RUN OWNER/NAME --base-model ...` with the public name of the same "
    "weights, such as hf:openai/clip-vit-base-patch16 (where there is none, publish the weights first)"
)


def origin(config: RunConfig, sets: Sequence[ReIDData], tests: Sequence[ReIDData]) -> dict[str, Any]:
    """What `config.json` keeps for publishing: fingerprints of the data, and which names mean places here."""
    here = [config.backbone] if is_local(config.backbone) else []
    return {"fingerprint": fingerprints(sets, tests), "local": [*here, *local_places([*config.data, *config.test])]}


def check_push(config: RunConfig, whole: bool = True) -> None:
    """Refuses what could not be published, before anything slow.

    Raises:
        UserError: --private alone; a single stage; a name without owner; a backbone that is not publicly available; no
            token, or a wrong one.
    """
    if config.push is None:
        if config.private:
            raise UserError("--private is for --push OWNER/NAME: nothing is published without it")
        return
    if not whole:
        raise UserError(
            "--push: this stage alone has nothing to publish, what it learns belongs to single identities; give --push "
            "to the recipe that trains the whole method"
        )
    check_repository(config.push)
    source = {"name": config.backbone}
    public_backbone({"backbone": source, "local": [config.backbone] if is_local(config.backbone) else []}, LATER)
    if os.environ.get("RANK", "0") == "0":
        check_account(config.push, AGAIN)
        check_backbone(config.backbone)


def prepare_push(config: RunConfig, main: bool) -> None:
    """Makes the repository, on the main process. Raises UserError as `open_repository`."""
    if config.push is not None and main:
        open_repository(config.push, config.private, AGAIN)


def push(folder: Path, config: RunConfig) -> str:
    """Publishes the finished run; what to tell. Raises UserError with the command that publishes it later."""
    from clipreid.hub.package import describe_plain, package

    assert config.push is not None
    again = publish_command(folder, config.push, *["--private"] * config.private)
    try:
        files = package(folder, config.push)
    except UserError as error:
        raise UserError(f"{error}. The run is finished and kept; to publish it then: {again}") from error
    done = upload(files, config.push, config.private, again)
    return f"{describe(done, config.push)}\n{describe_plain(files)}"
