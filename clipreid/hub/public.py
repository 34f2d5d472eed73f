"""What of a run may be seen by others: data without places, settings without paths, figures without notes.

Everything is chosen by name, so that what a later version adds to a run folder is not published by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipreid.data.layouts import LAYOUTS
from clipreid.errors import UserError
from clipreid.evaluation import PROTOCOLS
from clipreid.evaluation.tables import TITLES

SETTINGS = ("clipreid", "status", "backbone", "values", "stage2", "separability", "model", "pooling")
SHARED = ("preset", "seed", "noun", "image_size", "stride")
STAGE1 = (*SHARED, "pictures", "identities", "epochs", "rate", "batch", "tokens")
FLAGS = (*SHARED, "validate", "precision")
FIGURES = (*TITLES, "counts", "protocol", "intervals", "std", "feature", "parts", "bad", "cmc", "open_set")
OWN = "own data"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class DataNames:
    """What the data sets of a run are called in public.

    Official sets by their name without the place (`market1501:/data/Market` -> `market1501`), the synthetic street and
    data sets on the Hub as they are, everything else `own data`, numbered where there are several. A remark stays
    where it is ours: ` (val)`, or the name of a protocol.
    """

    def __init__(self, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        flags, self.local = config.get("flags", {}), set(config.get("local", []))
        specs = [*flags.get("data", []), *flags.get("test", []), *(_parted(name)[0] for name in metrics)]
        self.specs = tuple(dict.fromkeys(specs))  # as they were typed
        own = [spec for spec in self.specs if self._shared(spec) is None]
        self.own = {spec: OWN if len(own) == 1 else f"{OWN} {nth}" for nth, spec in enumerate(own, start=1)}

    def __call__(self, name: str) -> str:
        spec, remark = _parted(name)
        return (self._shared(spec) or self.own.get(spec, OWN)) + remark

    def loadable(self, specs: Iterable[str]) -> list[str]:
        """The public names of those that mean something to others."""
        return [name for name in map(self._shared, specs) if name]

    def _shared(self, spec: str) -> str | None:
        reader, _, rest = spec.partition(":")
        if reader == "synthetic":
            return spec
        if reader in LAYOUTS:
            return reader
        hub = reader == "hub" and HUB_NAME.fullmatch(rest) and not (spec in self.local or Path(rest).exists())
        return spec if hub else None


def _parted(name: str) -> tuple[str, str]:
    """A data name and our remark behind it: `market1501:/data (val)` -> `market1501:/data`, ` (val)`."""
    spec, mark, remark = name.rpartition(" (")
    ours = mark and remark.removesuffix(")") in ("val", *PROTOCOLS)
    return (spec, mark + remark) if ours else (name, "")


def public_config(config: Mapping[str, Any], names: DataNames, backbone: str) -> dict[str, Any]:
    """`config.json` as others get it: it loads and evaluates as the run itself does.

    backbone: its public name (`public_backbone`).
    """
    flags, stage1 = config.get("flags", {}), config.get("stage1")
    found = {key: config[key] for key in SETTINGS if key in config}
    found["backbone"] = {**config["backbone"], "name": backbone}
    if stage1:
        data = [names(spec) for spec in stage1["data"]]
        found["stage1"] = {"backbone": backbone, "data": data} | {k: stage1[k] for k in STAGE1 if k in stage1}
        found["flags"] = {
            "backbone": backbone,
            "data": names.loadable(flags.get("data", [])),
            "test": names.loadable(flags.get("test", [])),
            **{k: flags[k] for k in FLAGS if k in flags},
        }
    for key in ("offsets", "fingerprint"):
        if key in config:
            found[key] = {names(spec): value for spec, value in config[key].items()}
    return found


def public_metrics(metrics: Mapping[str, Mapping[str, Any]], names: DataNames) -> dict[str, dict[str, Any]]:
    """`metrics.json` as others get it: {public data name: {model: figures}}."""
    found: dict[str, dict[str, Any]] = {}
    for data, models in metrics.items():
        for model, entry in models.items():
            found.setdefault(names(data), {})[model] = {k: entry[k] for k in FIGURES if k in entry}
    return found


def public_backbone(config: Mapping[str, Any]) -> str:
    """The name of the backbone, where anybody can have it by that name.

    Raises:
        UserError: it lies on this machine only.
    """
    name = str(config["backbone"]["name"])
    kind, _, rest = name.partition(":")
    local = name in config.get("local", []) or backbone_is_local(name)
    if not local and (kind != "hf" or HUB_NAME.fullmatch(rest)):
        return name
    raise UserError(
        f"the backbone {name} lies on this machine, and what is published loads only with a backbone that everybody "
        "can have: give the public name of the same weights with --base-model, such as "
        "hf:openai/clip-vit-base-patch16 (where there is none, publish the weights first)"
    )


def backbone_is_local(name: str) -> bool:
    """Whether a backbone's name means a file or folder here: to be told while relative paths still mean the same."""
    kind, _, rest = name.partition(":")
    if kind in ("timm", "osnet"):  # timm:NAME/FILE; OSNet has files only
        return "/" in rest
    inner = rest.partition("/")[2]
    places = [rest, inner] if kind == "open_clip" else [rest] if kind == "hf" else []
    return any(place and (Path(place).expanduser().exists() or place.startswith((".", "/", "~"))) for place in places)
