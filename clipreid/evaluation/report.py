"""What an evaluation returns: figures, how they came about, and figures for each query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipreid.evaluation.tables import format_table


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`; `print(report)` shows a table.

    metrics:    "mAP", "mINP", "rank1", "rank5", "rank10", each 0..1, means over the queries with a valid
    match.
    counts:     "queries", "valid_queries", "gallery", "query_identities", "gallery_identities",
                "distractors" (gallery pictures of identities that no query has).
    per_query:  arrays [Q]: "ap" and "inp" (0..1), "first_rank" (1 is best), "n_positives" (matches that
                count); the first three are NaN and the last is 0 for queries that are not scored.
    notes:      what the reader of the figures should know: a rule that was off, queries that were not
    scored.
    std:        protocols with random galleries only: standard deviation of each metric over the draws.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    per_query: dict[str, np.ndarray]
    protocol: str
    description: str = ""
    notes: tuple[str, ...] = ()
    std: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the figures for each query, ready for JSON."""
        return {
            **self.metrics,
            "counts": dict(self.counts),
            "protocol": self.protocol,
            "notes": list(self.notes),
            **({"std": dict(self.std)} if self.std else {}),
        }

    def __str__(self) -> str:
        """A table: figures in percent, then counts, protocol and notes."""
        return f"{format_table([self.metrics])}\n\n{self.explain()}"

    def explain(self) -> str:
        """Counts, protocol and notes, one to a line."""
        counts = self.counts
        lines = [
            f"queries   {counts['valid_queries']} scored of {counts['queries']}, "
            f"{counts['query_identities']} identities",
            f"gallery   {counts['gallery']} pictures, {counts['gallery_identities']} identities, "
            f"{counts['distractors']} pictures are distractors",
            f"protocol  {self.protocol}: {self.description}",
        ]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])
