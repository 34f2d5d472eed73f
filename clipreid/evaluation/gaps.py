"""Where a protocol cannot be applied: unknown columns, and queries without a valid match, with an example each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipreid.data.crops import sentences
from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN, Columns, name_rows
from clipreid.evaluation.protocols import Protocol


def describe_gaps(protocol: Protocol, query: Columns, gallery: Columns) -> tuple[str, ...]:
    """Notes for the report: where the protocol's rule is not applied because a column is unknown.

    Raises UserError where a column that it cannot do without is unknown everywhere.
    """
    notes = []
    sizes = {"query": len(query["identity"]), "gallery": len(gallery["identity"])}
    for column in (*protocol.needs, *protocol.uses):
        missing = {s: int((c[column] == UNKNOWN).sum()) for s, c in (("query", query), ("gallery", gallery))}
        off = [side for side in missing if missing[side] == sizes[side]]
        if off and column in protocol.needs:
            raise UserError(
                f"protocol {protocol.name!r} needs the column {column!r}, and none is known in {' or '.join(off)}: "
                "add it, or choose another protocol"
            )
        if off:
            notes.append(
                f"no {column} is known in {' or '.join(off)}: the junk rule ({protocol.rule}) is off, "
                f"images from every {column} count"
            )
        elif any(missing.values()):
            where = " and ".join(f"{n} of {sizes[side]} {side} images" for side, n in missing.items() if n)
            notes.append(f"the {column} of {where} is unknown: the junk rule ({protocol.rule}) does not apply to them")
    return tuple(notes)


def caption_queries(captions: Sequence[str] | np.ndarray, name: str) -> tuple[list[tuple[int, str]], list[str]]:
    """The queries that captions make, for protocols whose queries are captions, and notes on what makes none.

    Args:
        captions: of every query image of the data called `name`; several are separated by line breaks.

    Returns:
        (image, sentence) of each query; notes that count images without a caption and blank lines.

    Raises:
        UserError: no image has a caption.
    """
    asked = [(row, sentence) for row, caption in enumerate(captions) for sentence in sentences(caption)]
    silent = len(captions) - len({row for row, _ in asked})
    if not asked:
        raise UserError(
            f"{name}: {silent} of {len(captions)} query images have no caption, and here the queries are captions: "
            "add them, or score images against images with --protocol market1501"
        )
    blank = sum(len(caption.strip("\r\n").splitlines()) for caption in captions if caption.strip()) - len(asked)
    notes = [f"{silent} of {len(captions)} query images have no caption, and ask nothing"] if silent else []
    return asked, [*notes, *([f"{blank} blank lines in captions are left out"] if blank else [])]


@dataclass(frozen=True)
class Unscored:
    """The queries without a valid match, and what became of the gallery images of their identity."""

    queries: np.ndarray  # [u] query rows
    same_identity: np.ndarray  # [u] gallery images of the identity
    by_rule: np.ndarray  # [u] of these, removed by the protocol's rule
    own: np.ndarray  # [u] of these, the query's own image and its copies, where not removed by the rule
    selected: np.ndarray  # [u] 1 where the protocol scores this query at all, else 0

    def explain(self, protocol: Protocol, table: dict[str, np.ndarray], total: int) -> str:
        """How many, which, why, and an example of each kind. `table` = query metadata."""
        unasked = self.selected == 0
        absent, ruled = ~unasked & (self.same_identity == 0), ~unasked & (self.by_rule > 0)
        itself = (
            "the query image itself was drawn every time"
            if protocol.draws
            else ("the only match is the query image itself")
        )
        kinds = [
            (f"the protocol scores {protocol.filtered} only", unasked),
            ("their identity is not in the gallery", absent),
            (f"every match is junk (junk = {protocol.rule})", ruled),
            (itself, ~unasked & ~absent & ~ruled),
        ]
        parts = []
        for text, chosen in kinds:
            rows = np.flatnonzero(chosen)
            if len(rows):
                parts.append(f"{len(rows)} because {text}: {self._example(int(rows[0]), protocol, table)}")
        head = f"{len(self.queries)} of {total} queries have no valid match and are not scored"
        return f"{head} ({name_rows(self.queries)}): {'; '.join(parts)}"

    def advice(self, protocol: Protocol) -> str:
        """What to do when no query at all is scored."""
        if not self.selected.any():
            return f"The protocol scores {protocol.filtered} only: check the column, or choose another protocol."
        if (self.by_rule[self.selected > 0] > 0).any():
            columns = " and ".join((*protocol.needs, *protocol.uses)) or "metadata"
            return f"Check the {columns} column; protocol='no-cameras' compares images whatever camera took them."
        if (self.own > 0).any():
            return "The gallery must hold other images of the same identities."
        return "Check that query and gallery name identities alike."

    def _example(self, i: int, protocol: Protocol, table: dict[str, np.ndarray]) -> str:
        row = int(self.queries[i])
        values = {name: column[row] for name, column in table.items()}
        named = dict.fromkeys(("identity", "camera", *protocol.needs, *protocol.uses))
        shown = [name for name in named if name != "path" and values.get(name, UNKNOWN) not in (UNKNOWN, "")]
        n, ruled, own = int(self.same_identity[i]), int(self.by_rule[i]), int(self.own[i])
        query = f"for example query {row} ({', '.join(f'{name} {values[name]}' for name in shown)})"
        if n == 0 or not self.selected[i] or n > ruled + own:  # what is left over was not drawn
            return query
        reasons = [fill_reason(protocol.reason, values)] * (ruled > 0) + [
            "the query image itself" + " or copies of it" * (own > 1)
        ] * (own > 0)
        subject = "the only image" if n == 1 else f"all {n} images"
        of = f"of identity {values['identity']} in the gallery {'is' if n == 1 else 'are'}"
        return f"{query}: {subject} {of} {' or '.join(reasons)}"


def fill_reason(text: str, values: dict[str, object]) -> str:
    """A protocol's reason with the query's own values put in for {camera}, {view}, ..."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text
