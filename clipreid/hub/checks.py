"""What a run folder or a repository says is checked before it is believed, and refused with a message.

Only JSON and safetensors are read: names, shapes and kinds of tensors are compared with what the model needs while
nothing but the header has been read. A downloaded run cannot make this machine read a file outside of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipreid.backbones.positions import PositionMode
from clipreid.backbones.vision import VisionConfig
from clipreid.data.pictures import check_interpolation
from clipreid.errors import UserError
from clipreid.model import ModelConfig

CONFIG, HEADS, IDENTITIES, TOWER = (
    "config.json",
    "heads.safetensors",
    "identities.safetensors",
    "image_tower.safetensors",
)
WEIGHTS = "adapter_model.safetensors"
ADAPTER = Path("adapter") / WEIGHTS  # at the root of a published repository, where peft looks for it
LARGEST = {CONFIG: 4 << 20, HEADS: 1 << 30, IDENTITIES: 8 << 30, TOWER: 16 << 30, WEIGHTS: 4 << 30}  # bytes
FLOATS, INTS = ("F32", "F16", "BF16"), ("I64", "I32")  # safetensors' names of what may fill a parameter or a counter
BACKBONE = {"name": str, "image_size": tuple[int, int], "positions": PositionMode, "stride": int | None, "print": str}
RANGES: dict[str, tuple[float, float]] = {  # of the numbers in config.json, by key
    "image_size": (8, 4096), "patch_size": (1, 256), "stride": (1, 256), "width": (1, 16_384), "depth": (1, 256),
    "heads": (1, 256), "mlp_width": (1, 65_536), "embed_dim": (1, 16_384), "eps": (0, 1),
    "lora_rank": (1, 1024), "lora_alpha": (0, 1e6), "mean": (-10, 10), "std": (1e-3, 10),
    "sie_coefficient": (-1e3, 1e3), "cameras": (-1, 1e9), "views": (-1, 1e9),
}  # fmt: skip
MOST = 10_000  # values of one list
WORD = r"\w[\w.-]*"
PUBLIC = re.compile(rf"tiny-clip|tiny-siglip2|hf:{WORD}/{WORD}|open_clip:{WORD}/{WORD}|timm:{WORD}", re.ASCII)
LOADABLE = re.compile(rf"synthetic(:{WORD})?|hub:{WORD}/{WORD}(/{WORD})?", re.ASCII)


# Files --------------------------------------------------------------------------------------------------------


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
        raise UserError(f"{what} has {size / 1e6:,.0f} MB, a run's at most {most / 1e6:,.0f}: it is refused unread")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a run folder.

    Raises:
        UserError: no such folder, not a run folder, or a config that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a run folder, such as runs/demo")
    file = folder / CONFIG
    if not file.exists():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG}")
    check_file(file, folder)
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(config, dict) or "clipreid" not in config:
        raise UserError(f"{file} was not written by clipreid")
    for key in ("model", "backbone", "flags", "stage1", "offsets"):
        if not isinstance(config.get(key, {}), dict):
            raise UserError(f"{file}: {key} is {_shown(config[key])}: clipreid writes a table there")
    for key in ("data", "test"):
        specs = config.get("flags", {}).get(key, [])
        if not (isinstance(specs, list) and all(isinstance(spec, str) for spec in specs)):
            raise UserError(f"{file}: flags.{key} is {_shown(specs)}: clipreid writes a list of names there")
    if snapshot_of(folder) is not None and (flags := config.get("flags")):
        for key in ("data", "test"):  # others' folders are not here, or are other folders
            flags[key] = [spec for spec in flags.get(key, []) if LOADABLE.fullmatch(spec)]
    return config


# Settings -----------------------------------------------------------------------------------------------------


def model_settings(config: Mapping[str, Any], file: Path) -> ModelConfig:
    """`config.json`'s `model`. Raises `UserError`: unknown or missing keys, values of the wrong type or size."""
    values = _checked(config["model"], get_type_hints(ModelConfig), f"{file}: model settings")
    check_interpolation(values["interpolation"])
    return ModelConfig(**values)


def backbone_settings(config: Mapping[str, Any], file: Path, folder: Path) -> dict[str, Any]:
    """`config.json`'s `backbone`, with lists as tuples: {name, image_size, positions, stride, print}, or
    {name, vision: the fields of a `VisionConfig`} of an imported run.

    Raises:
        UserError: unknown or missing keys, values of the wrong type or size; in a downloaded run, a backbone that is
            a file or folder.
    """
    source, what = config.get("backbone"), f"{file}: backbone settings"
    if isinstance(source, dict) and source.keys() == {"name", "vision"}:
        vision = _checked(source["vision"], get_type_hints(VisionConfig), f"{what}, vision:")
        _check_tower(VisionConfig(**vision), folder / TOWER, folder)
        return {"name": str(source["name"]), "vision": vision}
    values = _checked(source, BACKBONE, what)
    if values["positions"] not in get_args(PositionMode):
        raise UserError(f"{what}: positions {values['positions']!r}: clipreid has {', '.join(get_args(PositionMode))}")
    if snapshot_of(folder) is not None and not PUBLIC.fullmatch(values["name"]):
        raise UserError(
            f"{what}: the backbone {values['name']!r} is not a public name: a downloaded run may only use tiny-clip, "
            "tiny-siglip2, hf:OWNER/NAME, open_clip:MODEL/TAG or timm:NAME, never a file or folder of this machine"
        )
    return values


def _check_tower(config: VisionConfig, file: Path, folder: Path) -> None:
    """Refuses a shape with more weights than its file has bytes, before memory is taken for it."""
    check_file(file, folder)
    rows, columns = config.grid
    blocks = config.depth * config.width * (4 * config.width + 2 * config.mlp_width)
    if (needed := blocks + rows * columns * config.width) > file.stat().st_size:
        raise UserError(
            f"{file} is too small for the tower that {CONFIG} describes ({needed / 1e6:,.0f} million weights)"
        )


def _checked(values: Any, hints: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values, with lists as tuples: exactly these keys, each of its type and in its range."""
    if not isinstance(values, dict) or values.keys() != hints.keys():
        odd = sorted(set(values) ^ set(hints), key=str)[:5] if isinstance(values, dict) else ["(all)"]
        raise UserError(f"{what} {', '.join(odd)} are unknown or missing: another version wrote it, or no clipreid did")
    for key, hint in hints.items():
        low, high = RANGES.get(key, (-1e12, 1e12))
        if not _fits(values[key], hint, low, high):
            numbers = f", numbers from {low:g} to {high:g}" if key in RANGES else ""
            raise UserError(f"{what} {key} is {_shown(values[key])}: it must be {_named(hint)}{numbers}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _fits(value: Any, hint: Any, low: float, high: float) -> bool:
    """Whether a value of JSON is of a field's type, and its numbers are in the range (which no NaN is)."""
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
    kind, parts = get_origin(hint), get_args(hint)
    if kind is tuple:
        if not isinstance(value, list) or len(value) > MOST:
            return False
        hints = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(hints) and all(_fits(v, h, low, high) for v, h in zip(value, hints, strict=True))
    if kind is UnionType:
        return any(_fits(value, part, low, high) for part in parts)
    if kind is Literal:  # which word it may be is said by who uses it
        return isinstance(value, str) and len(value) < 100
    return isinstance(value, hint) and (hint is not str or len(value) < 1000)


def _named(hint: Any) -> str:
    """A type in words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is tuple:
        many = "" if Ellipsis in parts else f"{len(parts)} "
        return f"a list of {many}{_named(parts[0]).split()[-1]}s"
    if kind is UnionType:
        return " or ".join(_named(part) for part in parts)
    words = {int: "an integer", float: "a number", NoneType: "null", bool: "true or false"}
    return words.get(hint, "a short text")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else f"{text[:57]}..."


# Tensors ------------------------------------------------------------------------------------------------------


def read_tensors(file: Path, folder: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a run folder, by name.

    wanted: what they are to replace; names, shapes and kinds are compared before anything but the header is read.

    Raises:
        UserError: as `check_file`; not a safetensors file, or damaged; tensors that are missing, not asked for, of
            another shape or kind; values that are not finite.
    """
    check_file(file, folder)
    try:
        with safe_open(file, "pt") as handle:
            header = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (it is no dict)
            if wanted is not None:
                _compare(file, wanted, {n: (part.get_shape(), part.get_dtype()) for n, part in header.items()})
            tensors = {name: handle.get_tensor(name) for name in header}
    except UserError:
        raise
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise UserError(
            f"{file} is not a safetensors file ({error}), or is damaged: nothing else is loaded, for safety"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{file}: {name} has values that are not finite")
    return tensors


def _compare(file: Path, wanted: Mapping[str, Tensor], found: Mapping[str, tuple[list[int], str]]) -> None:
    """Refuses missing and unexpected weights, and other shapes and kinds: nothing is filled in silently."""
    problems = []
    for what, names in (("missing", sorted(wanted.keys() - found)), ("unexpected", sorted(found.keys() - wanted))):
        if names:
            problems.append(f"{len(names)} {what} (such as {names[0]})")
    if problems:
        raise UserError(f"{file} does not fit this model: weights {' and '.join(problems)}")
    for name, tensor in wanted.items():
        shape, kind = found[name]
        if shape != list(tensor.shape):
            raise UserError(f"{file} does not fit this backbone: {name} is {shape}, this backbone needs "
                            f"{list(tensor.shape)}: the weights were made for another backbone")  # fmt: skip
        if kind not in (FLOATS if tensor.is_floating_point() else INTS):
            raise UserError(f"{file} does not fit this model: {name} is of kind {kind}, not {tensor.dtype}")
