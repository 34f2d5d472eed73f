"""Whole runs of any method in this process, as short as they can be: six identities, two epochs a stage."""

from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from clipreid.config import RunConfig, configure
from clipreid.hub.initial import inherited
from clipreid.methods import clip_reid
from clipreid.training.launch import run_method
from clipreid.training.run import Run

SHORT: dict[str, Any] = {"identities_per_batch": 4, "images_per_identity": 2, "checkpoint_every": 1}
BACKBONES = ("tiny-clip", "tiny-siglip2")


def short(method: ModuleType) -> dict[str, Any]:
    """The settings that make a run of this method short: two epochs of what has some, small batches."""
    names, usual = [field.name for field in fields(method.Config)], configure(method)[1]
    epochs = {name: 2 for name in names if (name == "epochs" or name.endswith("_epochs")) and getattr(usual, name)}
    return epochs | {name: value for name, value in SHORT.items() if name in names}


def data_of(street: Path) -> str:
    """The street as data: with its captions, where it has some (`caption_street`)."""
    table = street / "street.csv"
    return f"csv:{table}" if table.exists() else f"folder:{street}"


def short_run(method: ModuleType, street: Path, output: Path, init: Path | None = None, **given: Any) -> Run:
    """Trains and scores a method on the street (`data_of`); `given` are further flags."""
    return run_method(method, *short_flags(method, street, output, init, **given))


def short_flags(
    method: ModuleType, street: Path, output: Path, init: Path | None = None, **given: Any
) -> tuple[RunConfig, Any]:
    """The flags of a `short_run`, and the method's settings."""
    base = {**short(method), "image_size": (64, 32), "data": (data_of(street),), "output": output, "threads": 1}
    if init is not None:
        base = {**inherited(method, init), **base, "init": init}
    return configure(method, **{**base, **given})


def init_of(method: ModuleType, street: Path, folder: Path, backbone: str) -> Path | None:
    """A trained run for the methods that continue one (`NEEDS_INIT`), made once in `folder`; None for the others."""
    if not getattr(method, "NEEDS_INIT", False):
        return None
    run = folder / f"init-{Path(backbone).name}"
    if not (run / "heads.safetensors").exists():
        short_run(clip_reid, street, run, backbone=backbone)
    return run
