"""The flags that all methods share, how presets become values, and the ranges that numbers must keep to.

A leaf: nothing of clipreid but `errors` is imported here.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import UseAppendAction, arg

from clipreid.errors import UserError

TINY = "tiny-"  # backbones with values of their own


def none_is(meaning: str) -> Any:
    """For flags that are None until given: what `--help` shows instead of "default: None"."""
    return arg(help_behavior_hint=f"(default: {meaning})")


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of, whatever the method."""

    backbone: str = "tiny-clip"
    """tiny-clip | tiny-siglip2 | open_clip:MODEL/TAG | hf:NAME or hf:FOLDER | image only, with --prompts none:
    timm:NAME, osnet:x1_0/FILE"""
    raw_logits: bool = False
    """The backbone's weights are OpenAI's, in a plain file or folder: raw dot products, as published for CLIP-ReID
    (their tags and Hub names are known)"""
    data: Annotated[UseAppendAction[tuple[str, ...]], none_is("synthetic; irra: synthetic:captions")] = ()
    """What to train on, repeatable: synthetic | market1501:/path | folder:/path | csv:/path.csv | hub:OWNER/NAME |
    hub:FOLDER"""
    test: Annotated[UseAppendAction[tuple[str, ...]], none_is("others where --data is left out, else none")] = ()
    """Further data to test on, repeatable"""
    validate: bool = False
    """Score on the identity-disjoint val split instead of the test splits, to choose flags by"""
    output: Annotated[Path | None, none_is("a fresh numbered folder under runs/")] = None
    """Run folder"""
    init: Annotated[Path | None, arg(aliases=["--run"]), none_is("the backbone's own weights")] = None
    """Run folder of a trained run whose weights this one starts from"""
    preset: Literal["default", "paper"] = "default"
    """default: our own values; paper: the published settings of the method"""
    seed: int = 0
    threads: Annotated[int | None, none_is("all cores, shared by the local processes")] = None
    """CPU threads"""
    checkpoint_steps: Annotated[int | None, none_is("at the end of epochs only")] = None
    """Also keep a checkpoint every so many steps within an epoch, for long ones"""
    resume: bool = False
    """Continue an interrupted run from its last checkpoint"""
    overwrite: bool = False
    """Start anew in a folder that holds a run"""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and count them"""
    pattern: Annotated[str | None, none_is("the patterns of docs/own-images.md")] = None
    """Regular expression for file names with the groups identity, camera, view (folder: data and tests)"""
    columns: Annotated[str | None, none_is("the names of docs/data.md")] = None
    """Which column is which, where a table has other names: identity=name,camera=place,... (csv:, hub: and coco: data
    and tests)"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], none_is("the words of docs/data.md")] = ()
    """A further identity that means "unknown", repeatable, or several with commas (tables and yolo: data and tests)"""
    noun: Annotated[str | None, none_is("from the data: person, vehicle, ...")] = None
    """What the individuals are, for the prompts"""
    image_size: Annotated[tuple[int, int] | None, none_is("the backbone's, 256 128 for the large ones")] = None
    """Height and width of the crops in pixels"""
    crop_shape: Literal["backbone", "data"] = "backbone"
    """data: crops in the median shape of the training images, with about as many pixels as the backbone's"""
    stride: Annotated[int | None, none_is("the patch size")] = None
    """Distance of the patches in pixels; smaller than the patch: overlapping"""
    pixels: Literal["backbone", "half"] = "backbone"
    """Mean and std of the pixels: the backbone's own, or 0.5 (as published for CLIP-ReID)"""
    positions: Literal["bicubic", "bilinear"] = "bicubic"
    """How the position table is resized to the crop"""
    train_interpolation: Annotated[Literal["bicubic", "bilinear"] | None, none_is("the backbone's")] = None
    """How training crops are resized"""
    test_interpolation: Annotated[Literal["bicubic", "bilinear"] | None, none_is("the backbone's")] = None
    """How test crops are resized"""
    precision: Literal["no", "bf16"] = "no"
    """bf16: autocast of the towers while they are trained; losses and evaluation stay in float32"""
    gradient_checkpointing: bool = False
    """Trade time for memory"""
    accumulate: int = 1
    """Embed every batch in so many parts, one after the other: less memory, the same losses and gradients"""
    compile: bool = False
    """Compile the stages with torch.compile: slow to start, other last digits, faster steps"""
    profile: bool = False
    """Write a trace of a few steps of every stage into the run folder, as profile/STAGE.json"""
    strength: Literal["whole", "auto"] = "whole"
    """auto: how much of what training changed is kept is chosen by a second training that leaves out half of the
    cameras and a third of the identities"""
    camera_means: bool = False
    """Keep the mean feature of each training camera in the run folder, for --centre-cameras train of clipreid search;
    it is never published"""
    track: Literal["none", "wandb", "tensorboard", "trackio"] = "none"
    """Also send the log, the settings and a few training crops to a tracker; log.jsonl is always written"""
    push: Annotated[str | None, none_is("nothing is published")] = None
    """Publish the finished run as this OWNER/NAME on the Hugging Face Hub; token and repository are checked before
    training"""
    private: bool = False
    """With --push: make the repository private"""


@dataclass(frozen=True)
class Between:
    """The range of a method's own number, in its type: `blocks: Annotated[int, Between(1, 12)] = 2`."""

    least: float
    most: float


RUN_FLAGS = tuple(field.name for field in fields(RunConfig))
# of no meaning for others, or for what a run computes: not recorded in config.json
UNRECORDED = (
    "output", "threads", "checkpoint_steps", "resume", "overwrite", "camera_means", "push", "private", "track",
    "profile",
)  # fmt: skip

# The numbers in settings by name, wherever they stand: (least, most). Rates must be above their least.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1), "threads": (1, 4096), "accumulate": (1, 1e4),
    "image_size": (8, 4096), "patch_size": (1, 256), "stride": (1, 256), "width": (1, 16_384), "depth": (1, 256),
    "heads": (1, 256), "mlp_width": (1, 65_536), "embed_dim": (1, 16_384), "eps": (0, 1),
    "mean": (-10, 10), "std": (1e-3, 10), "cameras": (-1, 1e9), "views": (-1, 1e9),
    "lora_rank": (1, 1024), "lora_alpha": (0, 1e6), "sie_coefficient": (-1e3, 1e3),
    "prompt_epochs": (1, 1e6), "prompt_batch": (1, 1e6), "prompt_tokens": (1, 64), "prompt_warmup": (0, 1e6),
    "epochs": (1, 1e6), "least_steps": (0, 1e9), "warmup": (0, 1e6), "warmup_factor": (0, 1), "milestones": (1, 1e6),
    "identities_per_batch": (2, 1e6), "images_per_identity": (2, 1e4), "checkpoint_every": (1, 1e6),
    "checkpoint_steps": (1, 1e9),
    "bias_rate_factor": (0, 1e3), "weight_decay": (0, 1), "smoothing": (0, 0.99), "margin": (0, 1e3),
    "weight_id": (0, 1e3), "weight_triplet": (0, 1e3), "weight_i2t": (0, 1e3),
    "pad": (0, 256), "flip": (0, 1), "erase": (0, 1),
}  # fmt: skip
LOOKED_UP = {
    "tuning": ("lora", "full", "head"),
    "prompts": ("identity", "dual", "inversion", "none"),
}  # what tables in presets may depend on
PLACES = ("backbone", "data", "test")  # of texts: those that may name files
NAME = 255  # bytes of the name of a file or folder
RATES = ("rate", "head_rate", "prompt_rate")  # of learning: above 0, below 1


def range_of(kind: type, name: str) -> tuple[float, float] | None:
    """The range of a number of a dataclass of settings: `Between` in its type, else by its name; None: it has none."""
    return range_by(_hints(kind, marked=True)[name], name)


def range_by(hint: Any, name: str) -> tuple[float, float] | None:
    """The same by the type of the field, with its marks."""
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Between):
            return mark.least, mark.most
    return (0, 1) if name in RATES else RANGES.get(name)


@functools.cache  # they are asked for each number of each run, and slow to find
def _hints(kind: type, marked: bool = False) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=marked)


def configure(method: ModuleType, **given: Any) -> tuple[RunConfig, Any]:
    """The flags of a run and of its method, with the preset's values where none are given.

    Later ones win: the defaults of the dataclasses; `method.PRESETS[preset]`; `method.TINY[preset]` for the tiny
    backbones; `given`. A preset's value that is a table is looked up by `tuning` or `prompts`, whichever has its keys
    for choices. Where `epochs` are given, small data gets no more (`least_steps`).

    Example:
        >>> flags, config = configure(clip_reid, data=("folder:crops",), tuning="full", epochs=3)

    Raises:
        UserError: an unknown preset or tuning. TypeError: a name that neither of the two has.
    """
    preset, backbone = given.get("preset", "default"), given.get("backbone", RunConfig.backbone)
    if preset not in method.PRESETS:
        raise UserError(f"--preset {preset}: {name_of(method)} has {', '.join(method.PRESETS)}")
    values = dict(method.PRESETS[preset])
    if backbone.startswith(TINY):
        values |= method.TINY[preset]
    if "epochs" in given and hasattr(method.Config, "least_steps"):
        values["least_steps"] = 0
    values |= given
    words = {name: values.get(name, getattr(method.Config, name, None)) for name in LOOKED_UP}
    values = {name: _looked_up(value, words) if isinstance(value, Mapping) else value for name, value in values.items()}
    own = {name: value for name, value in values.items() if name not in RUN_FLAGS}
    return RunConfig(**{name: value for name, value in values.items() if name in RUN_FLAGS}), method.Config(**own)


def _looked_up(table: Mapping[str, Any], words: Mapping[str, Any]) -> Any:
    name = next(name for name, choices in LOOKED_UP.items() if set(table) <= set(choices))
    if words[name] not in table:
        raise UserError(f"--{name} {words[name]}: choose one of {', '.join(table)}")
    return table[words[name]]


def name_of(method: ModuleType) -> str:
    """The name of a method: that of its file."""
    return method.__name__.rpartition(".")[2]


def check_values(config: Any) -> None:
    """Refuses numbers out of their range, words that are none of the choices and impossible names of files; `config` is
    one of the dataclasses.

    Raises:
        UserError: with the flag, its value, and what it may be.
    """
    kind: type = type(config)
    marked = _hints(kind, marked=True)
    for name, hint in _hints(kind).items():
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if words := choices_of(hint):
            for word in value if isinstance(value, tuple) else (value,):
                if word not in words and not (word is None and type(None) in get_args(hint)):
                    raise UserError(f"{flag} {word}: choose one of {', '.join(map(str, words))}")
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path):
                _check_text(flag, text, place=isinstance(text, Path) or name in PLACES)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if name in RATES and not 0 < number < 1:
                raise UserError(f"{flag} {number}: a learning rate lies between 0 and 1")
            low, high = range_by(marked[name], name) or (-math.inf, math.inf)
            if not low <= number <= high:
                bound = f"at most {high:g}" if number > high else f"at least {low:g}"
                raise UserError(f"{flag} {number}: must be {bound}")


def _check_text(flag: str, text: str | Path, place: bool) -> None:
    """Refuses, with `UserError`, what no system of files takes; place: it names files."""
    if "\0" in str(text):
        raise UserError(f"{flag} {str(text)!r}: it holds a NUL character, which no name can have")
    longest = max((len(os.fsencode(part)) for part in re.split(r"[\\/]", str(text))), default=0) if place else 0
    if longest > NAME:
        raise UserError(f"{flag}: a name in it has {longest} bytes, and may have {NAME} ({str(text)[:40]}...)")


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The words of every `Literal` in a type, alone, beside None or in a list; () for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in choices_of(part))


def is_public(hint: Any) -> bool:
    """Whether values of this type may be published: numbers, true or false, and words of our own choosing."""
    if get_origin(hint) is Literal or hint in (int, float, bool, type(None)):
        return True
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    return bool(parts) and get_origin(hint) is not dict and all(is_public(part) for part in parts)
