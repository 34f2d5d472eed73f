"""What of a run may be seen by others: data without places, settings without paths, figures without notes.

Settings are published by type: numbers, true or false, and words of our own choosing, never texts and paths. Everything
else is chosen by name, so that what somebody else wrote into a run folder is not published by accident; of the texts
only single words, but for the noun, which is the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, get_type_hints

from clipreid.backbones.imported import IMPORTED
from clipreid.backbones.load import is_local
from clipreid.config import RunConfig, choices_of, is_public
from clipreid.data.layouts import LAYOUTS
from clipreid.errors import UserError
from clipreid.evaluation.side_by_side import parted
from clipreid.evaluation.tables import TITLES
from clipreid.hub.checks import BACKBONE, LOADABLE, PUBLIC
from clipreid.hub.shapes import check_table, fits
from clipreid.methods import get_method

SETTINGS = ("clipreid", "method", "finished", "pooling")  # of config.json
TABLES = {
    "separability": ("text_to_image", "image_to_text"),
    "strength": ("chosen", *(f"mAP_{percent}" for percent in (100, 75, 50, 25))),
}
COUNTS = ("images", "identities")  # of `data`
BODY = tuple(key for key in BACKBONE if key != "name")
PART = ("images", "identities", "cameras", "hash")  # of a fingerprint
FIGURES = (*TITLES, "counts", "protocol", "intervals", "std", "feature", "parts", "bad", "cmc", "open_set", "health",
           "floor", "fingerprint")  # fmt: skip
OWN = "own data"
WORD = re.compile(r"[\w@.+-]{1,60}")
ADVICE = (
    "give the public name of the same weights with --base-model, such as hf:openai/clip-vit-base-patch16 (where there "
    "is none, publish the weights first)"
)


class DataNames:
    """What the data sets of a run are called in public.

    Official sets by their name without the place (`market1501:/data/Market` -> `market1501`), the synthetic street and
    data sets on the Hub as they are, everything else `own data`; numbered where there are several of one name. A
    remark stays where it is ours: ` (val)`, a protocol, the start of a fingerprint.
    """

    def __init__(self, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        flags, self.local = config.get("run", {}), set(config.get("local", []))
        specs = [*flags.get("data", []), *flags.get("test", []), *config.get("data", {}).get("names", [])]
        named = [*config.get("offsets", {}), *config.get("fingerprint", {}), *metrics]
        self.specs = tuple(dict.fromkeys([*specs, *(parted(name)[0] for name in named)]))  # as they were typed
        self.names, groups = {}, dict[str, list[str]]()
        for spec in self.specs:
            label = self._label(spec)
            if label == spec:  # a clone of what was published has public names already, which stay
                self.names[spec] = spec
            else:
                groups.setdefault(label, []).append(spec)
        for label, group in groups.items():
            taken = set(self.names.values())
            free = (name for nth in count(1) if (name := f"{label} {nth}") not in taken)
            alone = len(group) == 1 and label not in taken
            self.names |= {spec: label if alone else next(free) for spec in group}

    def __call__(self, name: str) -> str:
        spec, remark = parted(name)
        return self.names[spec] + remark

    def loadable(self, specs: Iterable[str]) -> list[str]:
        """The public names of those that mean something to others."""
        return [self(spec) for spec in specs if self._label(spec) != OWN]

    def _label(self, spec: str) -> str:
        """The public name without a number; `spec` itself where that is public."""
        reader, _, rest = spec.partition(":")
        if re.fullmatch(rf"({'|'.join((OWN, *LAYOUTS))})( \d+)?", spec):
            return spec
        if reader in LAYOUTS:
            return reader
        here = reader == "hub" and (spec in self.local or Path(rest).exists())
        return spec if LOADABLE.fullmatch(spec) and not here else OWN


def public_config(config: Mapping[str, Any], names: DataNames, backbone: str) -> dict[str, Any]:
    """`config.json` as others get it: it loads and evaluates as the run itself does.

    config: as `read_settings` has checked it.  backbone: its public name (`public_backbone`).
    """
    flags, data, source = config.get("run", {}), config.get("data"), config["backbone"]
    shape = {"vision": source["vision"]} if "vision" in source else _chosen(source, BODY)
    found = {**_chosen(config, SETTINGS), "backbone": {**shape, "name": backbone}}
    found |= {"stages": config["stages"]}
    for name in config["stages"]:
        _chosen({"stages": name}, ["stages"])
    found["config"] = public_settings(config["config"], get_method(config["method"]).Config, "config")
    for key, keys in TABLES.items():
        if key in config:
            check_table(config[key], {}, f"config.json: {key}")
            found[key] = _chosen(config[key], keys)
    if data:
        noun = {"noun": data["noun"]} if "noun" in data else {}
        found["data"] = {"names": [names(spec) for spec in data["names"]], **noun, **_chosen(data, COUNTS)}
        tested = {key: names.loadable(flags.get(key, [])) for key in ("data", "test")}
        found["run"] = {"backbone": backbone, **tested, **public_settings(flags, RunConfig, "run")}
    if "offsets" in config:
        found["offsets"] = {names(spec): both for spec, both in config["offsets"].items()}
    if "fingerprint" in config:
        found["fingerprint"] = {
            names(spec): {split: _chosen(part, PART) for split, part in splits.items() if WORD.fullmatch(split)}
            for spec, splits in config["fingerprint"].items()
        }
    return found


def public_settings(values: Mapping[str, Any], kind: type, what: str) -> dict[str, Any]:
    """Of the settings of a dataclass those whose type is public (`clipreid.config.is_public`): texts and paths never.

    Raises:
        UserError: a value that is not of its type.
    """
    found = {}
    for name, hint in get_type_hints(kind).items():
        if name not in values or not is_public(hint):
            continue
        value = values[name]
        if not fits(value, hint) or not set(_texts(value)) <= set(choices_of(hint)):
            raise UserError(
                f"config.json: {what}.{name} is {value!r}, which clipreid never writes there, and nothing "
                "else is published; mend it"
            )
        found[name] = value
    return found


def _texts(value: Any) -> list[str]:
    """The texts in a value of JSON, in lists too."""
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def public_metrics(metrics: Mapping[str, Mapping[str, Any]], names: DataNames) -> dict[str, dict[str, Any]]:
    """`metrics.json` as others get it: {public data name: {model: figures}}."""
    return {
        names(data): {model: _chosen(entry, FIGURES) for model, entry in models.items() if WORD.fullmatch(model)}
        for data, models in metrics.items()
    }


def public_backbone(config: Mapping[str, Any], advice: str = ADVICE) -> str:
    """The name of the backbone, where anybody can have it by that name.

    Raises:
        UserError: it lies on this machine only; `advice` says what to do.
    """
    name = str(config["backbone"]["name"])
    if "vision" in config["backbone"]:
        return IMPORTED
    if PUBLIC.fullmatch(name) and name not in config.get("local", []) and not is_local(name):
        return name
    if ":" not in name:
        raise UserError(f"{name} is no name of a backbone: give hf:OWNER/NAME, open_clip:MODEL/TAG or timm:NAME")
    raise UserError(
        f"the backbone {name} lies on this machine, and what is published loads only with a backbone that everybody "
        f"can have: {advice}"
    )


def _chosen(table: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """These keys of a table, where they are there; of lists and tables in it the numbers. UserError: a text that is
    no single word."""
    found = {key: table[key] for key in keys if key in table}
    for key, value in found.items():
        if isinstance(value, str) and not WORD.fullmatch(value):
            raise UserError(
                f"{key} is {value!r}: clipreid writes one word there, and nothing else is published; mend it in the "
                "config.json or metrics.json of the run"
            )
    return {key: _numbers(value) for key, value in found.items()}


def _numbers(value: Any) -> Any:
    """Lists and tables without the texts in them."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items() if WORD.fullmatch(k) and not isinstance(v, str)}
    return [_numbers(v) for v in value if not isinstance(v, str)] if isinstance(value, list) else value
