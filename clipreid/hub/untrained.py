"""What RUN stands for, wherever a model is asked: a run, or an untrained model by its name."""

from __future__ import annotations

import sys
from pathlib import Path

from clipreid.backbones import load_backbone
from clipreid.backbones.colour import COLOUR, SIZE, colour_backbone
from clipreid.backbones.load import VALID_NAMES, closest, is_backbone
from clipreid.errors import UserError
from clipreid.hub.checks import read_config
from clipreid.hub.download import find_run
from clipreid.model import ReIDModel, untrained_model

PREFIX = "backbone:"  # says that the untrained model is meant, where a run folder has its name
LISTED = f"""an untrained model by its name:
{VALID_NAMES}
  {COLOUR}                             colour stripes, the floor of every table"""


def find_model(run: str | Path, revision: str | None = None) -> Path | str:
    """The folder of a run (a path), or the name of an untrained model (a str): a backbone, or `colour`.

    A run folder here comes before a backbone of the same name, and `backbone:NAME` is the backbone; another folder of
    that name does not count, and `./NAME` is the folder. Where there are both, a note on stderr says what was taken.

    Args:
        run: as for `find_run`; else a name as for `load_backbone`, `colour`, or one of these behind `backbone:`. A
            `Path` is never an untrained model.
        revision: of a published run, or of `hf:OWNER/NAME`.

    Raises:
        UserError: none of these, with a list of what can be given; as `find_run`.
    """
    name = str(run).removeprefix(PREFIX)
    known = isinstance(run, str) and (name == COLOUR or is_backbone(name))
    if known and (run != name or not _is_taken(Path(name).expanduser(), name)):
        return name
    meant = closest(name) if ":" in name or "/" not in name else None
    return find_run(run, revision, f"; or {LISTED}" + (f"\ndid you mean {meant}?" if meant else ""))


def _is_taken(folder: Path, name: str) -> bool:
    """Whether a run folder here has the name of an untrained model; says which of the two is meant."""
    if not folder.is_dir():
        return False
    try:
        is_run = "method" in read_config(folder)
    except UserError:
        is_run = False
    here = "is a run folder here" if is_run else "is a folder here, but no run"
    other = f"{PREFIX}{name} for the untrained model" if is_run else f"./{name} for the folder"
    taken = "the run" if is_run else "the untrained model of that name"
    print(f"note: {name} {here}: {taken} is taken; write {other}", file=sys.stderr, flush=True)
    return is_run


def load_untrained(
    name: str, *, revision: str | None = None, image_size: tuple[int, int] | None = None, strength: float = 1.0
) -> ReIDModel:
    """A backbone before any training, or `colour`, as a model that embeds.

    Args:
        name: as `find_model` gives it.
        revision, image_size: as for `load_backbone`.
        strength: there is only 1.

    Raises:
        UserError: as `load_backbone`; another strength than 1; another size for `colour`.
    """
    if strength != 1:
        raise UserError(f"strength {strength:g}: {name} is untrained, there is no training to weaken: leave it out")
    if name != COLOUR:
        return untrained_model(load_backbone(name, revision=revision, image_size=image_size))
    if revision is not None or image_size not in (None, SIZE):
        raise UserError(f"{COLOUR} has no revisions, and crops of {SIZE[0]}x{SIZE[1]} only, so that figures compare")
    return untrained_model(colour_backbone())
