"""`clipreid version`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "open_clip_torch", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Version:
    """Print the versions of clipreid and of the packages that it uses."""

    def __call__(self) -> None:
        import clipreid

        print(f"clipreid {clipreid.__version__}, Python {sys.version.split()[0]}")
        print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
