"""The recipe that every method could have, for `in_processes`."""

import sys

from clipreid.methods import get_method
from clipreid.training.launch import launch


def launch_method(name: str, *flags: str) -> None:
    sys.argv[1:] = flags
    launch(get_method(name), __doc__)
