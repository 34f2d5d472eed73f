"""`python launch_method.py METHOD FLAGS`: the recipe that every method could have."""

import sys

from clipreid.methods import get_method
from clipreid.training.launch import launch

if __name__ == "__main__":
    launch(get_method(sys.argv.pop(1)), __doc__)
