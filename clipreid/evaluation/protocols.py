"""Protocols: who is junk, that is, neither right nor wrong and left out of the ranking, for which query.

A protocol is a predicate on the metadata of queries and gallery (see `columns.py`: int64 columns, -1
unknown). What is left of a query's ranking is a match where the identity is the query's, and a mistake
elsewhere. In every protocol, a custom one too, the query's own picture (same known "path") is junk as well.

    def other_clothes(query, gallery):                    # -> bool [q, G], True = junk
        return same("identity", query, gallery) & same("clothes", query, gallery)

    evaluate(..., protocol=other_clothes)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN, Columns, name_rows

Predicate = Callable[[Columns, Columns], Tensor]


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol. `junk` does the work; the texts let reports say what was done."""

    name: str
    description: str  # one line, for reports and help
    junk: Predicate  # (query rows, gallery) -> bool [q, G]
    rule: str  # completes "junk = ..."
    reason: str  # completes "all 3 pictures of identity 7 in the gallery are ..."; {camera} is the query's
    uses: tuple[str, ...] = ()  # optional columns without which the rule is off


def same(column: str, query: Columns, gallery: Columns) -> Tensor:
    """bool [q, G]: both values are known and equal."""
    ours = query[column]
    never = torch.iinfo(ours.dtype).min  # equal to nothing
    return ours.masked_fill(ours == UNKNOWN, never)[:, None] == gallery[column]


def _market1501(query: Columns, gallery: Columns) -> Tensor:
    return same("identity", query, gallery) & same("camera", query, gallery)


def _cross_camera(query: Columns, gallery: Columns) -> Tensor:
    return same("camera", query, gallery)


def _no_cameras(query: Columns, gallery: Columns) -> Tensor:
    q, g = query["identity"], gallery["identity"]
    return torch.zeros(len(q), len(g), dtype=torch.bool, device=q.device)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "market1501",
            "pictures of the query's identity from the query's own camera do not count",
            _market1501,
            "same identity and same camera as the query",
            "from camera {camera}",
            ("camera",),
        ),
        Protocol(
            "cross-camera",
            "the gallery of each query is what the other cameras saw",
            _cross_camera,
            "same camera as the query",
            "from camera {camera}",
            ("camera",),
        ),
        Protocol("no-cameras", "every other picture counts", _no_cameras, "the query picture itself", "junk"),
    )
}


def get_protocol(protocol: str | Protocol | Predicate) -> Protocol:
    """A protocol by name, as it is, or made of a function. Raises UserError for unknown names."""
    if isinstance(protocol, Protocol):
        return protocol
    if callable(protocol):
        name = getattr(protocol, "__name__", "custom")
        return Protocol(name, "a custom protocol", protocol, f"what {name}(query, gallery) says", f"junk for {name}")
    if protocol not in PROTOCOLS:
        valid = ", ".join(PROTOCOLS)
        raise UserError(f"unknown protocol {protocol!r}; valid are {valid}, or a function of (query, gallery).")
    return PROTOCOLS[protocol]


def find_junk(protocol: Protocol, query: Columns, gallery: Columns) -> tuple[Tensor, Tensor]:
    """(junk by the protocol's rule, the query's own picture), each bool [q, G].

    Raises UserError when a custom predicate returns something else than bool [q, G].
    """
    junk = protocol.junk(query, gallery)
    shape = (len(query["identity"]), len(gallery["identity"]))
    if not isinstance(junk, Tensor) or junk.dtype != torch.bool or tuple(junk.shape) != shape:
        got = f"{junk.dtype} {list(junk.shape)}" if isinstance(junk, Tensor) else type(junk).__name__
        raise UserError(f"protocol {protocol.name!r} returned {got}; it must return a bool tensor {list(shape)}.")
    known = query["path"][query["path"] != UNKNOWN]
    if not len(known) or not torch.isin(known, gallery["path"]).any():  # the usual case, made cheap
        return junk, torch.zeros_like(junk)
    return junk, same("path", query, gallery)


def describe_gaps(protocol: Protocol, query: Columns, gallery: Columns) -> tuple[str, ...]:
    """Notes for the report: where the protocol's rule is off because a column it uses is unknown."""
    notes = []
    for column in protocol.uses:
        missing = {s: int((c[column] == UNKNOWN).sum()) for s, c in (("query", query), ("gallery", gallery))}
        sizes = {"query": len(query["identity"]), "gallery": len(gallery["identity"])}
        off = [side for side in missing if missing[side] == sizes[side]]
        if off:
            notes.append(
                f"no {column} is known in {' or '.join(off)}: the junk rule ({protocol.rule}) is off, "
                "pictures from every camera count"
            )
        elif any(missing.values()):
            where = " and ".join(f"{n} of {sizes[side]} {side} pictures" for side, n in missing.items() if n)
            notes.append(f"the {column} of {where} is unknown: the junk rule ({protocol.rule}) spares them")
    return tuple(notes)


@dataclass(frozen=True)
class Unscored:
    """The queries without a valid match, and what became of the gallery pictures of their identity."""

    queries: np.ndarray  # [u] query rows
    same_identity: np.ndarray  # [u] gallery pictures of the identity
    by_rule: np.ndarray  # [u] of these, removed by the protocol's rule
    own: np.ndarray  # [u] of these, the query's own picture and not removed by the rule

    def explain(self, protocol: Protocol, table: dict[str, np.ndarray], total: int) -> str:
        """How many, which, why, and an example of each kind. `table` = query metadata."""
        absent, ruled = self.same_identity == 0, self.by_rule > 0
        kinds = [
            ("their identity is not in the gallery", absent),
            (f"every match is junk (junk = {protocol.rule})", ruled),
            ("the only match is the query picture itself", ~absent & ~ruled),
        ]
        parts = []
        for text, chosen in kinds:
            rows = np.flatnonzero(chosen)
            if len(rows):
                parts.append(f"{len(rows)} because {text}: {self._example(int(rows[0]), protocol, table)}")
        head = f"{len(self.queries)} of {total} queries have no valid match and are not scored"
        return f"{head} ({name_rows(self.queries)}): {'; '.join(parts)}"

    def _example(self, i: int, protocol: Protocol, table: dict[str, np.ndarray]) -> str:
        row = int(self.queries[i])
        values = {name: column[row] for name, column in table.items()}
        shown = [name for name in ("identity", "camera") if values.get(name, UNKNOWN) not in (UNKNOWN, "")]
        n, ruled, own = int(self.same_identity[i]), int(self.by_rule[i]), int(self.own[i])
        query = f"for example query {row} ({', '.join(f'{name} {values[name]}' for name in shown)})"
        if n == 0:
            return query
        reasons = [_fill(protocol.reason, values)] * (ruled > 0) + ["the query picture itself"] * (own > 0)
        subject = "the only picture" if n == 1 else f"all {n} pictures"
        of = f"of identity {values['identity']} in the gallery {'is' if n == 1 else 'are'}"
        return f"{query}: {subject} {of} {' or '.join(reasons)}"


def _fill(text: str, values: dict[str, object]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text
