"""What a test set is called in `metrics.json`, and which figures may stand side by side.

`metrics.json` is {test set: {model: entry}}. A test set is called by its data name; a remark in brackets follows where
that alone does not say it: " (val)", " (PROTOCOL)", " (PROTOCOL, 1a2b3c4d)" with the start of its fingerprint. Entries
below one name were scored under the same protocol, on the same images with the same labels: only these are compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from clipreid.evaluation.protocols import PROTOCOLS

VAL = " (val)"  # follows the name of a data set where the figures are those of its val split
TAG = 8  # hex digits of a fingerprint in a name
COUNTED = "copies counted"
_KNOWN = "|".join(map(re.escape, ["val", *PROTOCOLS]))
_REMARK = re.compile(rf" \(({_KNOWN}|[\w.+-]+(?=, ))(?:, {COUNTED})?(?:, [0-9a-f]{{{TAG}}})?\)$")
Entry = Mapping[str, Any]


def parted(name: str) -> tuple[str, str]:
    """The data name and our remark: `market1501:/data (val)` -> `market1501:/data`, ` (val)`."""
    match = _REMARK.search(name)
    return (name[: match.start()], match[0]) if match else (name, "")


def remark_of(name: str) -> str:
    """What the remark says without a fingerprint: "val", the name of a protocol, or ""."""
    match = _REMARK.search(name)
    return match[1] if match else ""


def alike(a: Entry, b: Entry) -> bool:
    """Whether two entries of `metrics.json` were scored on the same test set under the same protocol.

    What one of them does not say (entries of earlier versions have no fingerprint) tells nothing.
    """
    said = [(_identity(a)[key], _identity(b)[key]) for key in _identity(a)]
    return all(x == y for x, y in said if x is not None and y is not None)


def _identity(entry: Entry) -> dict[str, Any]:
    counts = entry.get("counts", {})
    return {
        "protocol": entry.get("protocol"),
        "fingerprint": entry.get("fingerprint"),
        "queries": counts.get("queries"),
        "gallery": counts.get("gallery"),
        "copies": entry.get("copies"),
    }


def place(name: str, entry: Entry, there: Mapping[str, Mapping[str, Entry]]) -> str:
    """The name that an entry scored as `name` belongs below: `name`, or one with a remark where unlike entries are.

    there: {test set: {model: entry}}, what is kept already; nothing of it is replaced by an unlike entry.
    """
    protocol, remark = entry.get("protocol"), remark_of(name)
    known = protocol if protocol in PROTOCOLS else ""
    first = remark or known or "test"
    counted = f", {COUNTED}" if entry.get("copies") == "counted" else ""
    candidates = [f"{parted(name)[0]} ({first}{counted})" if counted and COUNTED not in name else name]
    if (
        known
        and not (remark or counted)
        and protocol not in {other.get("protocol") for other in there.get(name, {}).values()}
    ):
        candidates.append(f"{name} ({protocol})")
    tagged = f"{parted(name)[0]} ({first}{counted}, {{}})"
    if "fingerprint" in entry:
        candidates.append(tagged.format(entry["fingerprint"][:TAG]))
    for candidate in candidates:
        if all(alike(entry, other) for other in there.get(candidate, {}).values()):
            return candidate
    return tagged.format(hashlib.sha256(repr(_identity(entry)).encode()).hexdigest()[:TAG])


def sorted_out(metrics: Mapping[str, Mapping[str, Entry]]) -> dict[str, dict[str, Any]]:
    """`metrics.json` with unlike entries below one name (earlier versions wrote such) below names of their own."""
    found: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for name, models in metrics.items():
        for model, entry in models.items():
            found.setdefault(place(name, entry, found), {})[model] = entry
    return {name: models for name, models in found.items() if models}
