"""A finished run -> the files of a repository: what others need to use it, and nothing private."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from copy import copy
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from clipreid.backbones.record import load_recorded
from clipreid.data.layouts import LAYOUTS
from clipreid.errors import UserError
from clipreid.hub.calibrated import public_calibration, read_calibration
from clipreid.hub.card import CURVES, LISTS, make_card
from clipreid.hub.checks import read_config, read_settings
from clipreid.hub.files import (
    ADAPTER,
    CALIBRATION,
    METRICS,
    TEXT_ADAPTER,
    TEXT_TOWER,
    WEIGHTS,
    last_stage,
    read_metrics,
)
from clipreid.hub.folder import (
    CONFIG,
    HEADS,
    IDENTITIES,
    TOWER,
    backbone_print,
    find_adapter,
    head_state,
    load,
    load_identities,
)
from clipreid.hub.leaks import check_names, check_paths
from clipreid.hub.metadata import Facts
from clipreid.hub.plain import mark_adapter, plain_base, plain_lines, plain_text_lines
from clipreid.hub.public import DataNames, public_backbone, public_config, public_metrics
from clipreid.model import ReIDModel
from clipreid.reports.training_curves import draw_curves, read_losses

Files = dict[str, bytes | Path]  # name in the repository -> its content, or where it lies
CARD, ADAPTER_CONFIG = "README.md", "adapter_config.json"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
LOG, REPORT = "log.jsonl", "report"
# what publishing ever writes: only these are removed from a repository when they are not published any more
PUBLISHED = (
    CARD,
    CONFIG,
    METRICS,
    CALIBRATION,
    ADAPTER_CONFIG,
    WEIGHTS,
    TOWER,
    HEADS,
    IDENTITIES,
    CURVES,
    LISTS,
    TEXT_TOWER,
    TEXT_ADAPTER.as_posix(),
    f"{TEXT_ADAPTER.parent}/{ADAPTER_CONFIG}",
)


def package(
    run: Path,
    repository: str,
    *,
    include_identities: bool = False,
    include_crops: bool = False,
    licence: str | None = None,
    base_model: str | None = None,
) -> Files:
    """What `clipreid publish` uploads: card, config, figures, curves, adapter or tower, necks; needs no network.

    The adapter lies at the root, so that `PeftModel.from_pretrained(tower, "owner/name")` finds it. Never part of it:
    checkpoints, the log, the report's page (it names images and people), and, unless asked for, the tensors of
    single identities (then without their names) and images of crops.

    Args:
        run: the folder of a finished run.
        repository: OWNER/NAME, for the card.
        include_identities: also identities.safetensors.
        include_crops: also the report's ranked_lists.png.
        licence: of what is published, an identifier of the Hub; None takes the backbone's, where it is known.
        base_model: the public name of the backbone's weights, where the run took them from this machine.

    Raises:
        UserError: not a finished run, or one that does not load; files that lead out of the folder; a backbone that is
            not publicly available, or another one than the run's; crops that may not be passed on; no licence's name.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {licence}: give an identifier of the Hub, in small letters and without spaces, such as "
            "apache-2.0, mit or cc-by-nc-4.0; `other` for a licence that has none"
        )
    _check_links(run)
    config = read_config(run)
    if not config.get("finished"):
        raise UserError(
            f"{run} is not finished: nothing is published of a run that still changes. Continue it with the recipe of "
            f"its method ({config.get('method')}), --output {run} --resume and the flags it was started with"
        )
    read_settings(run)
    metrics = read_metrics(run)
    known = read_calibration(run)
    names = DataNames(config, {**metrics, **({known.record["data"]: {}} if known else {})})
    images = _crop_images(run, config, metrics) if include_crops else {}
    based = config if base_model is None else _rebased(config, base_model)
    public, figures = public_config(based, names, public_backbone(based)), public_metrics(metrics, names)
    calibration = public_calibration(known, names(known.record["data"])) if known else None
    model = load(run)
    files: Files = {CONFIG: _json(public), METRICS: _json(figures)} if figures else {CONFIG: _json(public)}
    if calibration:
        files[CALIBRATION] = _json(calibration)
    if curves := draw_curves(read_losses(run / LOG), figures, last_stage(config)):
        files[CURVES] = curves
    if model.tuning == "lora":
        files |= {ADAPTER_CONFIG: _adapter_config(model.image, model.family, public)}
        files |= {WEIGHTS: _without_notes(find_adapter(run))}
    elif model.tuning == "full":
        files[TOWER] = _without_notes(run / TOWER)
    if model.text is not None:
        files |= _text_files(run, model)
    files[HEADS] = save({name: x.contiguous() for name, x in head_state(model).items()}, metadata={"format": "pt"})
    if include_identities:
        files[IDENTITIES] = _nameless(run)
    files |= images
    (base, reason), commit = plain_base(public), public["backbone"].get("revision")
    plain = ""
    if base and not reason:
        texts = plain_text_lines(model, base, repository, revision=commit)
        plain = plain_lines(model, base, repository, revision=commit) + f"\n{texts}" * bool(texts)
    facts = Facts(
        repository,
        public,
        figures,
        model.family,
        base,
        plain,
        reason or "",
        sum(model.widths.values()),
        model.mean,
        model.std,
        model.interpolation,
        model.reads,
        licence,
        [name for name in (CURVES, LISTS) if name in files],
        include_identities,
        calibration,
        model.metric.name,
    )
    files = {CARD: make_card(facts).encode(), **files}
    check_paths(files, run, [str(config["backbone"]["name"]), *names.specs])
    identities = load_identities(run)[1] if (run / IDENTITIES).is_file() else []
    check_names([public, list(figures.values()), calibration], identities, run, [facts.backbone, *names.names.values()])
    return files


def describe_plain(files: Files) -> str:
    """One line for the user who published them: whether they can be used without clipreid, or why not."""
    content = files[CONFIG]
    assert isinstance(content, bytes)
    _, reason = plain_base(json.loads(content))
    if reason:
        return f"plain peft does not give the same features: {reason}"
    return "with peft and transformers it gives the same features: the card shows how"


def size_of(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def file_list(files: Mapping[str, bytes | Path]) -> str:
    """The files and their sizes, one to a line, and the sum."""
    sizes = {name: size_of(content) for name, content in files.items()}
    width = max(map(len, sizes))
    lines = [f"  {name:{width}s}  {shown_size(size):>9s}" for name, size in sizes.items()]
    return "\n".join([*lines, f"  {f'{len(sizes)} files':{width}s}  {shown_size(sum(sizes.values())):>9s}"])


def shown_size(size: int) -> str:
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_links(run: Path) -> None:
    """Raises UserError for files that are links out of the run folder."""
    if not run.is_dir():
        return  # `read_config` says what it is
    inside = run.resolve()
    adapters = [run / ADAPTER.parent, run / TEXT_ADAPTER.parent]
    looked_at = [*adapters, *(file for adapter in adapters for file in adapter.glob("*"))]
    looked_at += [*run.glob("*.*"), run / REPORT, run / REPORT / LISTS]
    for file in looked_at:
        if not Path(os.path.realpath(file)).is_relative_to(inside):  # resolve() fails where links go round
            raise UserError(
                f"{file} is a link that leads out of the run folder: nothing else than the run is published; put the "
                "file itself there, or remove the link"
            )


def _rebased(config: dict[str, Any], base_model: str) -> dict[str, Any]:
    """The config with another name for the backbone's weights. UserError where they are others."""
    source = config["backbone"]
    if "print" not in source:
        raise UserError("--base-model: the run was imported with its whole image tower, and needs no backbone")
    renamed = {**config, "backbone": {**source, "name": base_model, "revision": None}, "local": []}
    public_backbone(renamed)
    other = load_recorded(renamed["backbone"])
    renamed["backbone"]["revision"] = other.revision
    if backbone_print(other) != source["print"]:
        raise UserError(
            f"--base-model {base_model}: its weights are not those that the run was trained on ({source['name']})"
        )
    return renamed


def _adapter_config(tower: Any, family: str, config: dict[str, Any] | None) -> bytes:
    """adapter_config.json by what config.json says, as which the run loads; not the run's own file, which nothing
    compares with it. config: what marks the adapter of an image tower; None for one that says no base."""
    settings: Any = copy(tower.peft_config["default"])
    settings.inference_mode, settings.base_model_name_or_path = True, None
    with TemporaryDirectory() as scratch:
        settings.save_pretrained(scratch)
        if config is not None:
            mark_adapter(Path(scratch), config, family)
        return (Path(scratch) / ADAPTER_CONFIG).read_bytes()


def _text_files(run: Path, model: ReIDModel) -> Files:
    """The trained text tower: its adapter, in a folder of its own, or all its weights."""
    if model.text_tuning == "full":
        return {TEXT_TOWER: _without_notes(run / TEXT_TOWER)}
    return {
        TEXT_ADAPTER.as_posix(): _without_notes(run / TEXT_ADAPTER),
        f"{TEXT_ADAPTER.parent}/{ADAPTER_CONFIG}": _adapter_config(model.text, model.family, None),
    }


def _without_notes(file: Path) -> bytes | Path:
    """Weights whose header has nothing but tensors: the file itself, or its tensors written anew."""
    with safe_open(file, "pt") as handle:
        notes = handle.metadata() or {}
    return file if notes in ({}, {"format": "pt"}) else save(load_file(file), metadata={"format": "pt"})


def _nameless(run: Path) -> bytes:
    """identities.safetensors with numbers for names."""
    tensors, names = load_identities(run)
    return save(tensors, metadata={"names": json.dumps([str(nth) for nth in range(len(names))])})


def _crop_images(run: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Files:
    """The report's image with crops, where they may be redistributed.

    The public sets of persons and vehicles have terms that forbid redistributing images, or none, which is
    no permission. A copy of one under folder:, csv: or hub: is not known: that, and one's own images, are the
    user's to decide.
    """
    flags = config.get("run", {})
    specs = [*flags.get("data", []), *flags.get("test", []), *metrics]
    for reader in dict.fromkeys(spec.partition(":")[0] for spec in specs):
        if reader in LAYOUTS:
            raise UserError(
                f"--include-crops: the run was trained or tested on {reader}. The public re-identification sets are "
                "published under terms that forbid redistributing their images, or without terms, which is no "
                "permission: publish without crops"
            )
    file = run / REPORT / LISTS
    if not file.is_file():
        raise UserError(
            f"--include-crops: there is no {file}: draw it with clipreid evaluate {run} --report {run / REPORT}"
        )
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--include-crops: {file} is not an image ({error}): draw it anew") from error
    bare = BytesIO()  # without what the file may hold besides the image
    Image.fromarray(pixels).save(bare, "PNG")
    return {LISTS: bare.getvalue()}
