"""A finished run -> the files of a repository: what others need to use it, and nothing that is not theirs to see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipreid.data.layouts import LAYOUTS
from clipreid.errors import UserError
from clipreid.hub.card import Facts, make_card
from clipreid.hub.curves import draw_curves, read_losses
from clipreid.hub.folder import (
    CONFIG,
    HEADS,
    IDENTITIES,
    TOWER,
    backbone_print,
    find_adapter,
    load,
    load_identities,
    read_config,
)
from clipreid.hub.plain import mark_adapter, plain_base, plain_lines
from clipreid.hub.public import DataNames, public_backbone, public_config, public_metrics

Files = dict[str, bytes | Path]  # name in the repository -> its content, or where it lies
CARD, CURVES, LISTS, ADAPTER_CONFIG = "README.md", "curves.png", "ranked_lists.png", "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METRICS, LOG, REPORT = "metrics.json", "log.jsonl", "report"
# what publishing ever writes: only these are removed from a repository when they are not published any more
PUBLISHED = (CARD, CONFIG, METRICS, ADAPTER_CONFIG, WEIGHTS, TOWER, HEADS, IDENTITIES, CURVES, LISTS)


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
    checkpoints, the log, the report's page (it names pictures and people), and, unless asked for, the tensors of
    single identities (then without their names) and pictures of crops.

    Args:
        run: the folder of a finished run.
        repository: OWNER/NAME, for the card.
        include_identities: also identities.safetensors.
        include_crops: also the report's ranked_lists.png.
        licence: of what is published, an identifier of the Hub; None takes the backbone's, where it is known.
        base_model: the public name of the backbone's weights, where the run took them from this machine.

    Raises:
        UserError: not a finished run, or one that does not load; files that lead out of the folder; a backbone that
            nobody else can have, or another one than the run's; crops that may not be passed on.
    """
    _check_links(run)
    config = read_config(run)
    if config.get("status") != "finished" or "model" not in config:
        raise UserError(
            f"{run} is not finished: nothing is published of a run that still changes. Continue it with "
            f"recipes/clipreid_stage2.py --output {run} --resume and the flags it was started with"
        )
    metrics = _read_metrics(run)
    names = DataNames(config, metrics)
    pictures = _crop_pictures(run, config, metrics) if include_crops else {}
    known = config if base_model is None else _rebased(config, base_model)
    public, figures = public_config(config, names, public_backbone(known)), public_metrics(metrics, names)
    model = load(run)
    files: Files = {CONFIG: _json(public), METRICS: _json(figures)} if figures else {CONFIG: _json(public)}
    if curves := draw_curves(read_losses(run / LOG), figures):
        files[CURVES] = curves
    if model.config.tuning == "lora":
        weights = find_adapter(run)
        files |= {ADAPTER_CONFIG: _adapter_config(weights.parent, public, model.family), WEIGHTS: weights}
    elif model.config.tuning == "full":
        files[TOWER] = run / TOWER
    files[HEADS] = run / HEADS
    if include_identities:
        files[IDENTITIES] = _nameless(run)
    files |= pictures
    base, reason = plain_base(public)
    plain = plain_lines(model, base, repository) if base and not reason else ""
    facts = Facts(repository, public, figures, model.family, base, plain, reason or "", sum(model.widths.values()),
                  licence, [name for name in (CURVES, LISTS) if name in files], include_identities)  # fmt: skip
    files = {CARD: make_card(facts).encode(), **files}
    _check_leaks(files, run, [str(config["backbone"]["name"]), *names.specs])
    return files


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
    """Refuses files that are looked at and lie elsewhere."""
    if not run.is_dir():
        return  # `read_config` says what it is
    inside = run.resolve()
    looked_at = [run / "adapter", *(run / "adapter").glob("*"), *run.glob("*.*"), run / REPORT, run / REPORT / LISTS]
    for file in looked_at:
        if not file.resolve().is_relative_to(inside):
            raise UserError(
                f"{file} is a link that leads out of the run folder: nothing else than the run is published; put the "
                "file itself there, or remove the link"
            )


def _read_metrics(run: Path) -> dict[str, dict[str, Any]]:
    from clipreid.training.folder import read_metrics

    return read_metrics(run)


def _rebased(config: dict[str, Any], base_model: str) -> dict[str, Any]:
    """The config with another name for the backbone's weights. UserError where they are others."""
    from clipreid.backbones import load_backbone

    source = config["backbone"]
    if "print" not in source:
        raise UserError("--base-model: the run was imported with its whole image tower, and needs no backbone")
    renamed = {**config, "backbone": {**source, "name": base_model}, "local": []}
    public_backbone(renamed)
    other = load_backbone(base_model, image_size=tuple(source["image_size"]), positions=source["positions"],
                          stride=source["stride"])  # fmt: skip
    if backbone_print(other) != source["print"]:
        raise UserError(
            f"--base-model {base_model}: its weights are not those that the run was trained on ({source['name']})"
        )
    return renamed


def _adapter_config(folder: Path, config: dict[str, Any], family: str) -> bytes:
    with TemporaryDirectory() as scratch:
        shutil.copy(folder / ADAPTER_CONFIG, scratch)
        mark_adapter(Path(scratch), config, family)
        return (Path(scratch) / ADAPTER_CONFIG).read_bytes()


def _nameless(run: Path) -> bytes:
    """identities.safetensors with numbers for names."""
    from safetensors.torch import save

    tensors, names = load_identities(run)
    return save(tensors, metadata={"names": json.dumps([str(nth) for nth in range(len(names))])})


def _crop_pictures(run: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Files:
    """The report's picture with crops, where they may be passed on.

    The public sets of persons and vehicles come under terms that forbid passing pictures on, or with none, which is
    no permission. A copy of one under folder:, csv: or hub: is not known: that, and one's own pictures, are the
    user's to decide.
    """
    flags = config.get("flags", {})
    specs = [*flags.get("data", []), *flags.get("test", []), *metrics]
    for reader in dict.fromkeys(spec.partition(":")[0] for spec in specs):
        if reader in LAYOUTS:
            raise UserError(
                f"--include-crops: the run was trained or tested on {reader}. The public re-identification sets are "
                "given out under terms that forbid passing their pictures on, or state none, which is no permission: "
                "publish without crops"
            )
    file = run / REPORT / LISTS
    if not file.is_file():
        raise UserError(
            f"--include-crops: there is no {file}: draw it with clipreid evaluate {run} --report {run / REPORT}"
        )
    return {LISTS: file}


def _check_leaks(files: Files, run: Path, specs: Iterable[str]) -> None:
    """The last look: no file may hold a path of this machine. Of safetensors only the header can."""
    typed = [Path(spec.partition(":")[2]).expanduser() for spec in specs]
    places = [Path.home(), run, *(place for place in typed if place.is_absolute() or place.exists())]
    shown = {str(path).encode() for place in places for path in (place, place.resolve()) if len(path.parts) > 1}
    for name, content in files.items():
        text = content.read_bytes() if isinstance(content, Path) else content
        if name.endswith(".safetensors"):
            text = text[8 : 8 + int.from_bytes(text[:8], "little")]
        for path in shown:
            if path in text:
                raise UserError(
                    f"{name} would show a path of this machine ({path.decode()}), and is not published: look for it in "
                    f"{run / CONFIG} and in the metadata of the weights, and take it out"
                )
