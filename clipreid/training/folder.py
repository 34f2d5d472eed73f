"""The run folder: which one, whether this run may write into it, and the figures that are kept in it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipreid.data import short_names
from clipreid.errors import UserError
from clipreid.evaluation import format_table
from clipreid.hub import ADAPTER, CONFIG, HEADS, IDENTITIES, TOWER, read_config
from clipreid.hub.files import METRICS, read_metrics, write_json
from clipreid.training.config import RunConfig

OWNED = (CONFIG, METRICS, HEADS, IDENTITIES, TOWER, "log.jsonl", ADAPTER.parts[0], "checkpoints", "report", "README.md")


def add_metrics(folder: Path, model: str, entries: dict[str, dict[str, Any]]) -> None:
    """Adds figures of `model` by data set to `metrics.json`; everything else in it stays."""
    metrics = read_metrics(folder)
    for data, entry in entries.items():
        metrics.setdefault(data, {})[model] = entry
    write_json(folder / METRICS, metrics)


def results_table(folder: Path, data: Sequence[str] | None = None) -> str:
    """`metrics.json` as a table: one row for each data set (all, or these) and model; long names below it."""
    metrics, keys = read_metrics(folder), ("mAP", "mINP", "rank1", "rank5", "rank10")
    names = list(data or metrics)
    short = dict(zip(names, short_names(names), strict=True))
    table = format_table(
        {"data": short[name], "model": model, **{key: found[key] for key in keys}}
        for name in names
        for model, found in metrics[name].items()
    )
    longer = [f"{short[name]} = {name}" for name in names if short[name] != name]
    return "\n".join([table, "", *longer] if longer else [table])


def evaluate_command(folder: Path, data: Sequence[str], *more: str) -> str:
    """What to type to score the run on these data sets; quoted where paths need it."""
    named = [word for spec in data for word in ("--data", spec)]
    return shlex.join(["clipreid", "evaluate", str(folder), *named, *more])


def choose_folder(output: Path | None) -> Path:
    if output is not None:
        return output
    taken = [int(p.name) for p in Path("runs").glob("*") if re.fullmatch(r"\d+", p.name)]
    return Path("runs") / f"{max(taken, default=0) + 1:03d}"


def claim(folder: Path, record: dict[str, Any], config: RunConfig, stage2: bool, accelerator: Accelerator) -> None:
    """Takes the run folder, or refuses it: finished, interrupted, made with other settings, or not ours."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise UserError(f"--output {folder} holds other files and no {CONFIG}: give an empty or a new folder")
    ours = (folder / CONFIG).is_file()
    if config.resume and not ours:
        raise UserError(f"--resume: {folder} holds no run; give the --output of the interrupted one")
    if ours and not config.overwrite:
        before = read_config(folder)
        try:
            _check_continuation(folder, before, record, config, stage2)
        except KeyError as error:
            raise UserError(f"{folder / CONFIG} lacks {error}: start anew with --overwrite") from error
        record |= {k: before[k] for k in ("status", "separability") if k in before}
    accelerator.wait_for_everyone()  # every process has looked before anything is removed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if ours and config.overwrite and accelerator.is_main_process:
            for path in (folder / name for name in OWNED):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (folder / f"{CONFIG}.{accelerator.process_index}").touch()
        (folder / f"{CONFIG}.{accelerator.process_index}").unlink()
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}): give another folder") from error
    accelerator.wait_for_everyone()


def _check_continuation(
    folder: Path, before: dict[str, Any], now: dict[str, Any], config: RunConfig, stage2: bool
) -> None:
    status, again = before["status"], "start anew with --overwrite, or give another --output"
    if status == "finished":
        raise UserError(f"{folder} holds a finished run: evaluate it with `clipreid evaluate {folder}`, {again}")
    differing = [
        f"{k} ({before['stage1'].get(k)} there, {v} now)"
        for k, v in now["stage1"].items()
        if before["stage1"].get(k) != v
    ]
    if not differing and {**before["backbone"], "revision": None} != {**now["backbone"], "revision": None}:
        differing = ["the backbone's weights"]
    if differing:
        raise UserError(f"{folder} was begun with another {', '.join(differing)}: give the flags of then, {again}")
    if status == "tuning" and _stage2(before) != _stage2(now):
        raise UserError(f"{folder} was begun with other stage-2 settings: use the same flags, {again}")
    if status == "prompts" and not stage2:
        raise UserError(f"{folder} holds a finished stage 1: continue with recipes/clipreid_stage2.py, {again}")
    if status in ("running", "tuning") and not config.resume:
        raise UserError(f"{folder} holds an interrupted run: continue it with --resume, {again}")


def _stage2(record: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a resumed stage 2 to end as it would have."""
    free = ("checkpoint_every", "gradient_checkpointing")  # these change neither the result nor its meaning
    flags = {k: record["flags"].get(k) for k in ("precision", "validate", "pattern", "columns", "skip_bad", "test")}
    chosen = {k: v for k, v in record.get("stage2", {}).items() if k not in free}
    return {"values": record["values"], "flags": flags, "stage2": chosen}
