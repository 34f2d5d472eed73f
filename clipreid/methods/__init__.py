"""One file per method: its settings (`Config`), its model (`build`) and its training (`stages`).

The name of a method is the name of its file. `clipreid.load` imports what a run folder names from here, and nothing
else; a new file needs no entry anywhere.
"""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clipreid.config import name_of
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.backbones import Backbone
    from clipreid.model import ReIDModel

NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)


def method_names() -> list[str]:
    """The names of all methods there are, sorted."""
    return sorted(module.name for module in iter_modules(__path__))


def get_method(name: object) -> ModuleType:
    """A method by its name; nothing outside this folder is ever imported for it.

    Raises:
        UserError: no such method.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or name not in method_names():
        raise UserError(f"no method {name!r}: this version of clipreid has {', '.join(method_names())}")
    return import_module(f"{__name__}.{name}")


def build(method: ModuleType, backbone: Backbone, config: Any, identities: int = 0) -> ReIDModel:
    """The model of a method, marked with its name and settings; arguments and errors as for the method's `build`."""
    model: ReIDModel = method.build(backbone, config, identities)
    model.method, model.config = name_of(method), config
    return model
