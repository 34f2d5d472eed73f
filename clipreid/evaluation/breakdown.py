"""Where a model is good and where it is not: by the metadata of the queries, and by pair of cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clipreid.errors import UserError
from clipreid.evaluation.bootstrap import METRICS, figures_of
from clipreid.evaluation.columns import UNKNOWN, Table, read_table
from clipreid.evaluation.metrics import ranks_of_matches, scores_from_ranks
from clipreid.evaluation.pairs import pair_blocks
from clipreid.evaluation.protocols import Predicate, Protocol, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.similarity import Matrix
from clipreid.evaluation.tables import format_table


@dataclass(frozen=True)
class CameraPairs:
    """mAP when only one camera's images count as gallery; `print` shows it as a table in percent."""

    query_cameras: list[str]  # A
    gallery_cameras: list[str]  # B
    mAP: np.ndarray  # [A, B], NaN where no query has a match
    queries: np.ndarray  # [A, B] how many are scored

    def __str__(self) -> str:
        """Rows: the query's camera; columns: the gallery's; "-" where no query has a match."""
        rows = []
        for ours, values, counts in zip(self.query_cameras, self.mAP, self.queries, strict=True):
            cells = [f"{100 * value:.1f}% of {n}" if n else "-" for value, n in zip(values, counts, strict=True)]
            titles = [f"gallery {name}" for name in self.gallery_cameras]
            rows.append({"query camera": ours, **dict(zip(titles, cells, strict=True))})
        return f"mAP by camera pair, and how many queries it is of\n\n{format_table(rows)}"


def camera_pairs(
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    query: Table = None,
    gallery: Table = None,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
) -> CameraPairs:
    """The mAP of the queries of camera a against the gallery images of camera b alone, for every a and b.

    Arguments and errors as for `evaluate`; the protocol's junk stays junk. UserError also where no camera is known on
    one side, and for protocols that draw random galleries.
    """
    rules = get_protocol(protocol)
    if rules.draws:
        raise UserError(f"protocol {rules.name!r} draws random galleries: choose another to see camera pairs")
    sides = [read_table(query, "query"), read_table(gallery, "gallery")]
    cameras = [side.get("camera", np.full(len(side["identity"]), UNKNOWN)) for side in sides]
    names = [[value for value in np.unique(side).tolist() if value not in (UNKNOWN, "")] for side in cameras]
    if not all(names):
        raise UserError("no camera is known in query or gallery: nothing to break down by camera pair")
    columns = [torch.from_numpy(np.flatnonzero(cameras[1] == name)) for name in names[1]]  # B x [g]
    found = []
    for pairs in pair_blocks(query_features, gallery_features, sides[0], sides[1], rules, similarity, chunk)():
        ap = np.empty((len(pairs.similarity), len(columns)))  # [c, B]
        for b, rows in enumerate(columns):
            where = rows.to(pairs.similarity.device)
            parts = (x[:, where] for x in (pairs.similarity, pairs.positive, ~pairs.negative))
            ranks, counts = ranks_of_matches(*parts)
            ap[:, b] = scores_from_ranks(ranks.cpu().numpy(), counts.cpu().numpy())["ap"]
        found.append(ap)
    ap = np.concatenate(found)  # [Q, B], NaN = no match there
    scored = ~np.isnan(ap)
    ours = np.stack([cameras[0] == name for name in names[0]])  # [A, Q]
    queries = ours.astype(int) @ scored
    with np.errstate(invalid="ignore"):
        mean = ours @ np.where(scored, ap, 0.0) / queries
    return CameraPairs([str(n) for n in names[0]], [str(n) for n in names[1]], mean, queries)


def by_column(report: Report, values: Sequence[object] | np.ndarray, name: str = "value") -> list[dict[str, object]]:
    """Rows for `format_table`, one for each value of a query column: figures, interval of the mAP, counts.

    values [Q]: any metadata of the queries, say the view; -1 and "" are shown as unknown. Only scored queries count.
    "95%" is the interval of the mAP by bootstrap over identities, "-" for a single identity.

    Raises UserError when there is not one value for each query.
    """
    column = np.asarray(values)
    total = len(report.per_query["ap"])
    if column.shape != (total,):
        raise UserError(f"{name}: {list(column.shape)} values for {total} queries; give one for each")
    scored = report.per_query["n_positives"] > 0
    rows: list[dict[str, object]] = []
    for value in np.unique(column[scored]).tolist():
        part = _part(report, scored & (column == value))
        low, high = part.intervals.get("mAP", (np.nan, np.nan))
        rows.append(
            {
                name: "unknown" if value in (UNKNOWN, "-1", "") else str(value),
                "mAP": part.metrics["mAP"],
                "95%": f"{100 * low:.1f} to {100 * high:.1f}" if part.intervals else "-",
                "rank1": part.metrics["rank1"],
                "queries": len(part.per_query["ap"]),
                "identities": len(set(part.per_query["identity"].tolist())),
            }
        )
    return rows


def _part(report: Report, chosen: np.ndarray) -> Report:
    """The report of these queries alone."""
    part = replace(report, per_query={name: column[chosen] for name, column in report.per_query.items()})
    figures, weights = figures_of(part)
    means = (figures * weights[:, None]).sum(0) / weights.sum()
    return replace(part, metrics=dict(zip(METRICS, means.tolist(), strict=True)))
