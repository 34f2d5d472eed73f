"""The `clipreid` command: one file for each subcommand.

Each subcommand is a dataclass: its fields are the flags, calling it does the work. torch and the rest of the toolkit
are imported there, so that `clipreid --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tyro.conf import FlagCreatePairsOff

from clipreid.cli.calibrate import Calibrate
from clipreid.cli.compare import Compare
from clipreid.cli.data import Data
from clipreid.cli.evaluate import Evaluate
from clipreid.cli.export import Export
from clipreid.cli.import_ import Import
from clipreid.cli.matrix import Matrix
from clipreid.cli.publish import Publish
from clipreid.cli.search import Embed, Search
from clipreid.cli.version import Version
from clipreid.errors import print_user_errors
from clipreid.flags import parse_flags

__all__ = ["main"]

COMMANDS: Any = Evaluate | Compare | Matrix | Calibrate | Embed | Search | Publish | Export | Import | Data | Version


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of the `clipreid` command; `args` stand in for the command line in tests."""
    about = (
        "Recognise the same individual again: evaluate, search, publish and export trained runs. Training itself is "
        "done with recipes/ (accelerate launch recipes/clipreid_stage2.py)."
    )
    words = sys.argv[1:] if args is None else args
    with print_user_errors():
        parse_flags(COMMANDS, words, prog="clipreid", description=about, config=(FlagCreatePairsOff,))()
