"""Names and commands around `metrics.json`, shared by what writes figures and what reads them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

VAL = " (val)"  # follows the name of a data set where the figures are those of its val split


def evaluate_command(folder: Path, data: Sequence[str], *more: str) -> str:
    """The command line that scores a run on these data sets; quoted where paths need it."""
    named = [word for spec in data for word in ("--data", spec)]
    return shlex.join(["clipreid", "evaluate", str(folder), *named, *more])
