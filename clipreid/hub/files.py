"""The files of a run folder: their names, what may be read of them, and how JSON is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from huggingface_hub import constants

from clipreid.disk import read_json, write_whole
from clipreid.errors import UserError
from clipreid.evaluation.side_by_side import sorted_out
from clipreid.hub.shapes import check_table

CONFIG, HEADS, IDENTITIES, TOWER = (
    "config.json",
    "heads.safetensors",
    "identities.safetensors",
    "image_tower.safetensors",
)
WEIGHTS = "adapter_model.safetensors"
ADAPTER = Path("adapter") / WEIGHTS  # at the root of a published repository, where peft looks for it
METRICS = "metrics.json"
TRIAL = "trial"  # a training beside the run's own
CALIBRATION = "calibration.json"
LOG, CHECKPOINTS = "log.jsonl", "checkpoints"
TENSORBOARD = "tensorboard"  # with --track tensorboard
LOCK, HOLDER = ".lock", ".lock.json"  # one run in a folder at a time, and which
PROFILE = "profile"  # traces of a few steps, where they were asked for
BAD_BATCH = "bad_batch.json"  # the images of a step whose loss was not finite
CAMERA_MEANS = "camera_means.safetensors"  # where they were asked for: `clipreid.search.means`
TEXT_TOWER = "text_tower.safetensors"
TEXT_ADAPTER = Path("text_adapter") / WEIGHTS
OWNED = (
    CONFIG,
    METRICS,
    CALIBRATION,
    CAMERA_MEANS,
    HEADS,
    IDENTITIES,
    TOWER,
    TEXT_TOWER,
    LOG,
    BAD_BATCH,
    PROFILE,
    ADAPTER.parts[0],
    TEXT_ADAPTER.parts[0],
    CHECKPOINTS,
    TENSORBOARD,
    TRIAL,
    "report",
    "README.md",
)  # what a run writes into its folder
LARGEST = {
    CONFIG: 4 << 20,
    CALIBRATION: 1 << 20,
    HEADS: 1 << 30,
    IDENTITIES: 8 << 30,
    TOWER: 16 << 30,
    TEXT_TOWER: 16 << 30,
    WEIGHTS: 4 << 30,
    CAMERA_MEANS: 1 << 30,
}  # bytes
FIGURES = ("mAP", "mINP", "rank1", "rank5", "rank10")
ENTRY: dict[str, Any] = {  # of metrics.json: what is read of the figures of one model on one data set
    **dict.fromkeys(FIGURES, float),
    "protocol": str,
    "counts": dict[str, int],
    "std": dict[str, float],
    "intervals": dict[str, tuple[float, float]],
    "cmc": tuple[float, ...],
    "health": dict[str, float],
    "floor": float,
    "fingerprint": str,  # of the query and gallery images that were scored
    "pattern": str,  # that read the names of their files
}


def last_stage(config: Mapping[str, Any]) -> str:
    """The stage that a finished run's model came out of: what `metrics.json` calls the model."""
    return str(config["stages"][-1])


def snapshot_of(folder: Path) -> Path | None:
    """Where `folder` is what the Hub's client downloaded: the repository's folder in its cache; else None."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    found = folder.resolve()
    if found.is_relative_to(cache) and (parts := found.relative_to(cache).parts)[1:2] == ("snapshots",):
        return cache / parts[0]
    return None


def run_name(folder: Path) -> str:
    """What a run is called in tables: OWNER/NAME of a downloaded one, else the name of its folder."""
    repository = snapshot_of(folder)
    return folder.name if repository is None else repository.name.removeprefix("models--").replace("--", "/", 1)


def check_file(file: Path, folder: Path) -> None:
    """Refuses a file that is missing, leads out of the run folder (a snapshot's files are links into its repository's
    folder in the cache), is no regular file, or is absurdly large.

    Raises:
        UserError: one of these.
    """
    if not file.exists():
        raise UserError(f"{file} is missing: the run folder is incomplete")
    repository = snapshot_of(folder)
    homes = [folder.resolve()] if repository is None else [repository, repository.parent / "blobs"]
    real = file.resolve()
    if not any(real.is_relative_to(home) for home in homes):
        raise UserError(
            f"{file} is a link that leads out of {homes[0]}: nothing outside of a run folder is read; "
            "if you trust it, put the file itself there"
        )
    status = real.stat()
    if not S_ISREG(status.st_mode):
        raise UserError(f"{file} is not a regular file: a run folder has nothing else")
    check_size(str(file), status.st_size, LARGEST[file.name])


def check_size(what: str, size: int, most: int) -> None:
    """Refuses more bytes than a run can need, with `UserError`."""
    if size > most:
        raise UserError(f"{what} has {size / 1e6:,.0f} MB, a run's at most {most / 1e6:,.0f}: it is not read")


def share(file: Path) -> None:
    """Who may read it: as of any new file. safetensors' are its owner's alone, which is right for identities only."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON under another name, then renames it. Raises `CannotWrite`."""
    write_whole(file, json.dumps(content, indent=2) + "\n")


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """`metrics.json`: {test set: {model: figures}}; empty where nothing has been scored yet.

    What is below one name was scored in the same way (`clipreid.evaluation.side_by_side`).

    Raises:
        UserError: it is not what clipreid writes.
    """
    file = folder / METRICS
    if not file.is_file():
        return {}
    try:
        metrics = read_json(file)
        check_table(metrics, {}, "it")
        for data, models in metrics.items():
            check_table(models, {}, data)
            for model, entry in models.items():
                check_table(entry, ENTRY, f"{data}: {model}", FIGURES)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{file} is damaged, or was not written by clipreid ({error}): remove it, then evaluate again"
        ) from error
    return sorted_out(metrics)
