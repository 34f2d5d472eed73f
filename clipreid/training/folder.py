"""The run folder: which one, whether this run may write into it, and the figures that are kept in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipreid.config import RunConfig
from clipreid.errors import UserError
from clipreid.hub import read_config
from clipreid.hub.files import CONFIG, HOLDER, IDENTITIES, LOCK, LOG, METRICS, OWNED, TENSORBOARD, TRIAL, read_metrics
from clipreid.hub.folder import load_identities
from clipreid.training.lock import refuse_in_use
from clipreid.training.unchanged import changed_data, changed_machine

AGAIN = "start anew with --overwrite"
FREE = ("checkpoint_every", "gradient_checkpointing", "names")  # these change neither the result nor its meaning
PROGRESS = ("stages", "training")  # of config.json: what an earlier recipe did
FIRST = re.compile(rf"{LOCK}|{HOLDER}|{LOG}|{METRICS}|{TENSORBOARD}|{CONFIG}\.\d+|\.writing-.+")  # before config.json


def choose_folder(output: Path | None) -> Path:
    if output is not None:
        return output
    taken = [int(p.name) for p in Path("runs").glob("*") if re.fullmatch(r"\d+", p.name)]
    return Path("runs") / f"{max(taken, default=0) + 1:03d}"


def check_output(flags: RunConfig) -> None:
    """Refuses, with `UserError`, an --output that cannot be a run folder or that another run uses, before anything
    slow."""
    folder = flags.output
    if flags.resume and flags.overwrite:
        raise UserError("--resume and --overwrite: one continues a run, the other removes it; give one of them")
    if flags.resume and folder is None:
        raise UserError("--resume: give the --output of the interrupted run")
    if folder is None:
        return
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output {folder} is a file: give a folder")
        if folder.is_dir():
            if not (folder / CONFIG).is_file() and not _unbegun(folder):
                raise UserError(f"--output {folder} holds other files and no {CONFIG}: give an empty or a new folder")
            refuse_in_use(folder)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be used ({error.strerror or error}): give another folder") from error


def _unbegun(folder: Path) -> bool:
    """Whether a folder is empty, or holds only what a run leaves that was killed before its first config.json."""
    names = [path.name for path in folder.iterdir()]
    return not names or (LOCK in names and all(FIRST.fullmatch(name) for name in names))


def claim(
    folder: Path,
    record: dict[str, Any],
    flags: RunConfig,
    names: list[str],
    stage_flags: Mapping[str, Sequence[str]],
    accelerator: Accelerator,
) -> list[str]:
    """Takes the run folder, or refuses it: finished, interrupted, made with other settings or with other data.

    What an earlier recipe finished in it is added to `record`. The folder is locked, and `check_output` had nothing
    against it.

    Args:
        names: [I] of the training identities.
        stage_flags: stage -> the settings that matter to it alone, and may change until it begins.

    Returns:
        Notes on what is not as it was, and need not be.

    Raises:
        UserError: it is refused; the message says what was expected, what was found, and what to do.
    """
    notes: list[str] = []
    ours = (folder / CONFIG).is_file()
    if flags.resume and not ours:
        notes.append(f"note: --resume: {folder} holds no run that has begun; it begins now")
    if ours and not flags.overwrite:
        before = read_config(folder)
        try:
            _check_continuation(folder, before, record, flags, stage_flags)
            notes = _check_content(folder, before, record)
        except KeyError as error:
            raise UserError(f"{folder / CONFIG} lacks {error}: {AGAIN}") from error
        if (folder / IDENTITIES).is_file() and load_identities(folder)[1] != names:
            raise UserError(f"{folder / IDENTITIES} is of other identities than the training data: {AGAIN}")
        record |= {key: value for key, value in before.items() if key not in record or key in PROGRESS}
    accelerator.wait_for_everyone()  # every process has looked before anything is removed
    try:
        if (flags.overwrite or not ours) and accelerator.is_main_process:  # of one that had not begun: its figures
            for path in (folder / name for name in OWNED if name in os.listdir(folder)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (folder / f"{CONFIG}.{accelerator.process_index}").touch()
        (folder / f"{CONFIG}.{accelerator.process_index}").unlink()
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}): give another folder") from error
    accelerator.wait_for_everyone()
    return notes


def _check_continuation(
    folder: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    flags: RunConfig,
    stage_flags: Mapping[str, Sequence[str]],
) -> None:
    again = f"{AGAIN}, or give another --output"
    if before["finished"]:
        raise UserError(f"{folder} holds a finished run: evaluate it with `clipreid evaluate {folder}`, {again}")
    if before.get("converted"):
        raise UserError(f"{folder} was begun by clipreid {before['clipreid']}, which trained in another way: {again}")
    if before["method"] != now["method"]:
        raise UserError(f"{folder} holds a run of the method {before['method']}, not {now['method']}: {again}")
    begun = {*before["stages"], before.get("training")}
    free = {name for stage, names in stage_flags.items() if stage not in begun for name in names} | set(FREE)
    known = json.loads(json.dumps(asdict(RunConfig()), default=str))  # what an earlier version did not know yet
    differing = [
        f"{name} ({there.get(name)} there, {value} now)"
        for there, here in (
            ({**known, **before["run"]}, now["run"]),
            (before["data"], now["data"]),
            (before["config"], now["config"]),
        )
        for name, value in here.items()
        if name not in free and there.get(name) != value
    ]
    if not differing and {**before["backbone"], "revision": None} != {**now["backbone"], "revision": None}:
        differing = ["the backbone's weights"]
    if differing:
        raise UserError(f"{folder} was begun with another {', '.join(differing)}: give the flags of then, {again}")
    if before.get("training") and not flags.resume:
        raise UserError(f"{folder} holds an interrupted run: continue it with --resume, {again}")


def _check_content(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuses other data under the same names; notes where a stage is continued on another machine, or with other
    processes and threads, which `now` keeps as "earlier_machines"."""
    again = f"{AGAIN}, or give another --output"
    if changed := changed_data(before, now, read_metrics(folder)):
        raise UserError(
            f"{folder} was begun with other data, under the same name: {', and '.join(changed)}. What was learned "
            f"belongs to the data of then: put them back, {again}"
        )
    if not (before.get("training") or (folder / TRIAL).exists()):
        return []
    if not {"content", "machine"} <= before.keys():
        return ["note: begun by a version that kept no hash of its data, nor processes and threads: not compared"]
    notes = changed_machine(before["machine"], now["machine"])
    if notes:
        earlier = {**before["machine"], "stage": before.get("training") or TRIAL}
        now["earlier_machines"] = [*before.get("earlier_machines", []), earlier]
    return notes
