"""What an evaluation returns: figures, how they came about, and figures for each query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipreid.evaluation.bootstrap import Interval, confidence, format_intervals
from clipreid.evaluation.histogram import Histogram
from clipreid.evaluation.tables import TITLES, format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipreid.evaluation.breakdown import CameraPairs


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`; `print(report)` shows a table.

    metrics:    "mAP", "mINP", "rank1", "rank5", "rank10", each 0..1, means over the queries with a valid
    match.
    counts:     "queries", "valid_queries", "gallery", "query_identities", "gallery_identities",
                "distractors" (gallery images of identities that no query has), "copies" (queries that are copies of
                gallery images of their identity: those are junk).
    per_query:  arrays [Q]: "ap" and "inp" (0..1), "first_rank" (1 is best), "n_positives" (matches that
                count); the first three are NaN and the last is 0 for queries that are not scored; "identity" and,
                where known, "path" as in the metadata; under protocols with random galleries also "rank1", "rank5",
                "rank10" (share of the draws) and "times" (draws that score the query).
    notes:      what the reader of the figures should know: a rule that was off, queries that were not
    scored.
    std:        protocols with random galleries only: standard deviation of each metric over the draws.
    histogram:  similarities of the pairs that count; None for protocols with random galleries, and for similarities
                that came as a stream.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    per_query: dict[str, np.ndarray]
    protocol: str
    description: str = ""
    notes: tuple[str, ...] = ()
    std: dict[str, float] = field(default_factory=dict)
    histogram: Histogram | None = None

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of the metrics by bootstrap over identities (`confidence`); {} for a single identity."""
        scored = self.per_query["n_positives"] > 0
        several = len(set(self.per_query["identity"][scored].tolist())) > 1
        return confidence(self) if several else {}

    def cmc(self, top: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Ranks [n] and the share [n] of the scored queries with a match up to each rank, 0..1.

        The ranks are 1..`top`; after random galleries only 1, 5 and 10.
        """
        if self.std:
            return np.array([1, 5, 10]), np.array([self.metrics[f"rank{k}"] for k in (1, 5, 10)])
        first = self.per_query["first_rank"]
        ranks = np.arange(1, top + 1)
        return ranks, (first[~np.isnan(first)] <= ranks[:, None]).mean(1)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the figures for each query, ready for JSON."""
        return {
            **self.metrics,
            "counts": dict(self.counts),
            "protocol": self.protocol,
            "notes": list(self.notes),
            **({"intervals": {name: list(both) for name, both in self.intervals.items()}} if self.intervals else {}),
            **({"std": dict(self.std)} if self.std else {}),
        }

    def __str__(self) -> str:
        """A table: figures in percent, then counts, protocol and notes."""
        return f"{format_table([self.metrics])}\n\n{self.explain()}"

    def _repr_html_(self) -> str:
        """What Jupyter shows: the table, counts and notes, CMC curve and similarities."""
        from clipreid.reports.html import fragment

        return fragment(self)

    def plot_cmc(self, others: Mapping[str, Report] | None = None, top: int = 20) -> Figure:
        """A matplotlib figure: the share of queries with a match among the first k; `others` beside it, by name."""
        from clipreid.reports.figures import plot_cmc

        return plot_cmc(self, others, top, name="this" if others else "")

    def plot_similarities(self) -> Figure:
        """A matplotlib figure: similarities of the same and of different identities. UserError without `histogram`."""
        from clipreid.reports.figures import plot_similarities

        return plot_similarities(self)

    def plot_cameras(self, pairs: CameraPairs) -> Figure:
        """A matplotlib figure of what `camera_pairs` found; it needs the features, which a report does not keep."""
        from clipreid.reports.figures import plot_cameras

        return plot_cameras(pairs)

    def to_html(self, file: str | Path | None = None, *args: Any, title: str = "Report", **kwargs: Any) -> str:
        """One self-contained page, also written to `file`.

        Alone: table, notes and figures. With query, gallery (splits, or what else has `metadata()` and
        `image(i)`), and query_features, gallery_features or similarity=, as `evaluate` took them, also ranked
        lists, hardest queries, confused identities and camera pairs; with look= where the model looked. Further
        arguments: `clipreid.reports.html.section_of`.

        Raises UserError for what `evaluate` refuses, and when `file` cannot be written.
        """
        from clipreid.reports.html import Section, page, section_of, write

        text = page([section_of(title, self, *args, **kwargs) if args or kwargs else Section(title, self)], title)
        if file is not None:
            write({Path(file): text.encode()})
        return text

    def explain(self) -> str:
        """Counts, protocol and notes, one to a line."""
        counts = self.counts
        figures = format_intervals(self.metrics, self.intervals)
        lines = [f"95%       {', '.join(f'{TITLES[name]} {text}' for name, text in figures.items())}"] * bool(figures)
        lines += [
            f"queries   {counts['valid_queries']} scored of {counts['queries']}, "
            f"{counts['query_identities']} identities",
            f"gallery   {counts['gallery']} images, {counts['gallery_identities']} identities, "
            f"{counts['distractors']} images are distractors",
            f"protocol  {self.protocol}: {self.description}",
        ]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])
