"""The `clipreid` command: one file for each subcommand.

Each subcommand is a dataclass: its fields are the flags, calling it does the work. torch and the rest of the toolkit
are imported there, so that `clipreid --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro
from tyro.conf import FlagCreatePairsOff

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

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """The entry point of the `clipreid` command; `args` stand in for the command line in tests."""
    about = (
        "Recognise the same individual again: evaluate, search, publish and export trained runs. Training itself is "
        "done with recipes/ (accelerate launch recipes/clipreid_stage2.py)."
    )
    commands: Any = Evaluate | Compare | Matrix | Embed | Search | Publish | Export | Import | Data | Version
    command = tyro.cli(commands, prog="clipreid", description=about, args=args, config=(FlagCreatePairsOff,))
    with print_user_errors():
        command()
