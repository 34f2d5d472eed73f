"""clipreid: language-aligned backbones that recognise the same individual again.

    import clipreid
    model = clipreid.load("runs/demo")
    features = model.embed(["a.jpg", "b.jpg"])

Everything here is imported when it is first used, so that `import clipreid` and `clipreid --help` stay fast.
"""

import os
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Threads that wait for each other sleep instead of spinning: 1.5 times as fast and more on cores that others use, too,
# and some 6 % slower on idle ones (benchmarks/waiting.csv). OpenMP looks at it when torch is imported: it counts where
# clipreid is imported before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BEGAN = time.monotonic()  # of a command, whose first seconds are those of its imports

_WHERE = {
    "load": "clipreid.hub",
    "load_backbone": "clipreid.backbones",
    "load_data": "clipreid.data",
    "evaluate": "clipreid.evaluation",
    "rerank": "clipreid.evaluation",
    "ReIDModel": "clipreid.model",
    "UserError": "clipreid.errors",
}
__all__ = ["ReIDModel", "UserError", "evaluate", "load", "load_backbone", "load_data", "rerank"]

try:
    __version__ = version("clipreid")
except PackageNotFoundError:  # used from a folder that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'clipreid' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
