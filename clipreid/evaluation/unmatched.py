"""Which queries have no valid match under a protocol, and what became of the images of their identity."""

from __future__ import annotations

import torch

from clipreid.errors import UserError
from clipreid.evaluation.columns import Table, code_columns, read_table
from clipreid.evaluation.gaps import describe_gaps, fill_reason
from clipreid.evaluation.protocols import Predicate, Protocol, find_junk, get_protocol

_CHUNK = 2**24  # pairs of query and gallery in memory at once


def unmatched(query: Table, gallery: Table, protocol: str | Protocol | Predicate) -> list[tuple[int, str]]:
    """(query row, why) for every query that the protocol scores and that has no match. No features needed.

    query, gallery: metadata as for `evaluate`. Raises UserError for tables that cannot be scored at all, as `evaluate`
    does: a column that the protocol needs is unknown, no query is scored.
    """
    rules = get_protocol(protocol)
    query_table, gallery_table = read_table(query, "query"), read_table(gallery, "gallery")
    q, g = code_columns(query_table, gallery_table)
    describe_gaps(rules, q, g)
    if rules.query_filter is not None and not rules.query_filter(q).any():
        raise UserError(
            f"protocol {rules.name!r} scores {rules.filtered} only, and there are none: check the column, or "
            "choose another protocol"
        )
    found, chunk = [], max(1, _CHUNK // len(g["identity"]))
    for start in range(0, len(q["identity"]), chunk):
        rows = q.rows(start, start + chunk)
        relevant = rows["identity"][:, None] == g["identity"]  # [c, G]
        by_rule, own = find_junk(rules, rows, g)
        selected = torch.ones(len(relevant), dtype=torch.bool)
        if rules.query_filter is not None:
            selected = rules.query_filter(rows)
        lost = selected & ~(relevant & ~by_rule & ~own).any(1)  # [c]
        for row in lost.nonzero()[:, 0].tolist():
            values = {name: column[start + row] for name, column in query_table.items()}
            here, ruled = int(relevant[row].sum()), int((relevant & by_rule)[row].sum())
            found.append((start + row, _why(rules, values, here, ruled)))
    return found


def _why(rules: Protocol, values: dict[str, object], here: int, ruled: int) -> str:
    who = f"identity {values['identity']}"
    if not here:
        return f"{who} is not in the gallery"
    if not ruled:
        copies = f"all {here} images of {who} in the gallery are the query itself or copies of it"
        return copies if here > 1 else f"the only image of {who} in the gallery is the query itself"
    reason = fill_reason(rules.reason, values)
    own = " or the query itself" if ruled < here else ""
    return f"{here} of {here} images of {who} in the gallery are {reason}{own} (junk = {rules.rule})"
