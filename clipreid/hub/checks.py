"""What a run folder or a repository says is checked before it is believed, and refused with a message.

Only JSON and safetensors are read: names, shapes and kinds of tensors are compared with what the model needs while
nothing but the header has been read. A downloaded run cannot make this machine read a file outside of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipreid.backbones.build import check_grid
from clipreid.backbones.load import is_local
from clipreid.backbones.positions import PositionMode
from clipreid.backbones.vision import VisionConfig
from clipreid.config import check_values, is_public
from clipreid.data.images import check_interpolation
from clipreid.disk import read_json
from clipreid.errors import UserError
from clipreid.hub.files import CONFIG, TOWER, check_file, snapshot_of
from clipreid.hub.legacy import converted, old_name
from clipreid.hub.shapes import check_table, checked, shown
from clipreid.methods import get_method

FLOATS, INTS = ("F32", "F16", "BF16"), ("I64", "I32")  # safetensors' names of what may fill a parameter or a counter
TRIPLE = tuple[float, float, float]
BACKBONE = {
    "name": str,
    "revision": str | None,
    "image_size": tuple[int, int],
    "positions": PositionMode,
    "stride": int | None,
    "raw_logits": bool,
    "mean": TRIPLE,
    "std": TRIPLE,
    "interpolation": str,
    "print": str,
}
OF_0_1_0 = BACKBONE | {"mean": TRIPLE | None, "std": TRIPLE | None, "interpolation": str | None}  # None: its own
TEXTS = tuple[str, ...]
PART = {"images": int, "identities": int, "cameras": int, "hash": str}  # of a fingerprint
TABLES: dict[str, dict[str, Any]] = {  # of config.json: what is read of them, where they are there
    "backbone": {"name": str},
    "run": {
        "data": TEXTS,
        "test": TEXTS,
        "pattern": str | None,
        "columns": str | None,
        "unknown": TEXTS,
        "preset": str,
        "seed": int,
    },
    "data": {"names": TEXTS, "noun": str, "images": int, "identities": int},
}
REST = {
    "method": str,
    "finished": bool,
    "stages": TEXTS,
    "training": str | None,
    "pooling": str,
    "local": TEXTS,
    "offsets": dict[str, tuple[int, int]],
    "fingerprint": dict[str, dict[str, dict]],
    "content": dict[str, str],
    "machine": dict[str, int | str],
    "earlier_machines": tuple[dict, ...],
    "environment": dict[str, str],
}
HEADER = 4 << 20  # bytes that name the tensors of a file: a few hundred bytes for each
WORD = r"\w[\w.-]{0,99}"
PUBLIC = re.compile(rf"tiny-clip|tiny-siglip2|hf:{WORD}/{WORD}|open_clip:{WORD}/{WORD}|timm:{WORD}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
LOADABLE = re.compile(rf"synthetic(:{WORD})?|hub:{WORD}/{WORD}(/{WORD})?", re.ASCII)


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
        config = read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(config, dict) or "clipreid" not in config:
        raise UserError(f"{file} was not written by clipreid")
    config = converted(config, file)
    _check_tables(config, file)
    if snapshot_of(folder) is not None and (flags := config.get("run")):
        for key in ("data", "test"):  # others' folders are not here, or are other folders
            flags[key] = [spec for spec in flags.get(key, []) if _loadable(spec)]
    return config


def _check_tables(config: dict[str, Any], file: Path) -> None:
    """Everything in it that is read without further questions has its type; else `UserError`."""
    check_table(config, REST, f"{file}: config")
    for key, hints in TABLES.items():
        if key in config:
            check_table(config[key], hints, f"{file}: {key}")
    if "data" in config:
        check_table(config["data"], {}, f"{file}: data", ("names",))
    if config.get("finished") and not config.get("stages"):
        raise UserError(
            f"{file}: stages is {shown(config.get('stages', []))}: a finished run names the stages it went through"
        )
    for splits in config.get("fingerprint", {}).values():
        for name, part in splits.items():
            check_table(part, PART, f"{file}: fingerprint, {name}", tuple(PART))


def _loadable(spec: str) -> bool:
    """Whether a downloaded run may name this data: the synthetic street, or a set on the Hub that is no folder here."""
    place = spec.partition(":")[2].split("/")[:2]
    return LOADABLE.fullmatch(spec) is not None and not (len(place) == 2 and Path(*place).exists())


@dataclass(frozen=True)
class Settings:
    """What `load` builds a model from.  name, method: of `clipreid.methods`.  config: the method's.  backbone: as
    `backbone_settings` gives it.  record: `config.json` as it is."""

    name: str
    method: ModuleType
    config: Any
    backbone: dict[str, Any]
    record: dict[str, Any]

    def renamed(self, name: str) -> str:
        """What a tensor of the heads is called in the run's files."""
        return old_name(name) if "converted" in self.record else name


def read_settings(folder: Path) -> Settings:
    """The settings of a finished run.

    Raises:
        UserError: a run that holds no trained model yet; a method that there is not; values that are unknown, missing,
            or out of range.
    """
    record, file = read_config(folder), folder / CONFIG
    if not record.get("finished"):
        resume = " --resume" if record.get("training") else ""
        raise UserError(
            f"{folder} holds no trained model yet: run the recipe of its method ({record.get('method')}) with "
            f"--output {folder}{resume} and the flags it was begun with"
        )
    method = get_method(record.get("method"))
    if snapshot_of(folder) is not None:
        _check_public(record.get("config"), method.Config, f"{file}: config")
    config = method_settings(record.get("config"), method.Config, f"{file}: config")
    return Settings(record["method"], method, config, backbone_settings(record, file, folder), record)


# Settings -----------------------------------------------------------------------------------------------------


def method_settings(values: Any, kind: type, what: str) -> Any:
    """A method's settings from JSON. What an earlier version did not know yet has its default.

    Raises:
        UserError: unknown keys, values of the wrong type or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{what} is {shown(values)}: clipreid writes a table there")
    hints = get_type_hints(kind, include_extras=True)
    lacking = {field.name: json_value(field.default) for field in fields(kind) if field.name not in values}
    found = checked(values | lacking, hints, what)
    plain = get_type_hints(kind)
    places = [name for name in found if plain[name] is Path or Path in get_args(plain[name])]
    config = kind(**found | {name: Path(found[name]) for name in places if found[name] is not None})
    try:
        check_values(config)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    return config


def _check_public(values: Any, kind: type, what: str) -> None:
    """Refuses texts and paths in the settings of a downloaded run, unless they are the defaults: clipreid publishes
    none, and nothing that they may name on this machine is read."""
    if not isinstance(values, dict):
        return  # `method_settings` refuses it
    hints = get_type_hints(kind)
    for name, default in ((field.name, json_value(field.default)) for field in fields(kind)):
        if not is_public(hints[name]) and values.get(name, default) != default:
            raise UserError(f"{what} {name} is {shown(values[name])}: a downloaded run has no texts and no paths there")


def json_value(value: Any) -> Any:
    """A default of a setting as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def backbone_settings(config: Mapping[str, Any], file: Path, folder: Path) -> dict[str, Any]:
    """`config.json`'s `backbone`, with lists as tuples: the keys of `BACKBONE`, or
    {name, vision: the fields of a `VisionConfig`} of an imported run.

    Raises:
        UserError: unknown or missing keys, values of the wrong type or size; in a downloaded run, a backbone that is
            a file or folder.
    """
    source, what = config.get("backbone"), f"{file}: backbone settings"
    if isinstance(source, dict) and source.keys() == {"name", "vision"}:
        vision = checked(source["vision"], get_type_hints(VisionConfig), f"{what}, vision:")
        _check_tower(VisionConfig(**vision), folder / TOWER, folder)
        return {"name": str(source["name"]), "vision": vision}
    values = checked(source, OF_0_1_0 if config.get("converted") else BACKBONE, what)
    if values["revision"] is not None and not COMMIT.fullmatch(values["revision"]):
        raise UserError(f"{what}: revision {values['revision']!r} is no commit")
    if values["positions"] not in get_args(PositionMode):
        raise UserError(f"{what}: positions {values['positions']!r}: clipreid has {', '.join(get_args(PositionMode))}")
    if values["interpolation"] is not None:
        check_interpolation(values["interpolation"])
    if snapshot_of(folder) is not None and not PUBLIC.fullmatch(values["name"]):
        raise UserError(
            f"{what}: the backbone {values['name']!r} is not a public name: a downloaded run may only use tiny-clip, "
            "tiny-siglip2, hf:OWNER/NAME, open_clip:MODEL/TAG or timm:NAME, never a file or folder of this machine"
        )
    if snapshot_of(folder) is not None and is_local(values["name"]):
        raise UserError(
            f"{what}: the backbone {values['name']!r} is also a file or folder here, and a downloaded run reads none: "
            f"start from another folder than {Path.cwd()}"
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
    check_grid(config.grid, str(file))


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
        with open(file, "rb") as start:
            header_size = int.from_bytes(start.read(8), "little")
        if wanted is not None and header_size > HEADER:
            raise ValueError(f"its header has {header_size / 1e6:,.0f} MB, a run's at most {HEADER / 1e6:,.0f}")
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
    check_finite(tensors, str(file))
    return tensors


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuses NaN and infinity, with `UserError`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{what}: {name} has values that are not finite")


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
            raise UserError(
                f"{file} does not fit this backbone: {name} is {shape}, this backbone needs "
                f"{list(tensor.shape)}: the weights were made for another backbone"
            )
        if kind not in (FLOATS if tensor.is_floating_point() else INTS):
            raise UserError(f"{file} does not fit this model: {name} is of kind {kind}, not {tensor.dtype}")
