"""Pairs of images by groups: by the two cameras, or by a column of the query. Q queries, G gallery images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN

PAIRS = "camera-pair"


@dataclass(frozen=True)
class Groups:
    """names: of the K groups.  query: int [Q], gallery: int [G].  table: int [A, B], the group of a pair whose images
    have the codes a and b."""

    names: list[str]
    query: np.ndarray
    gallery: np.ndarray
    table: np.ndarray

    def count(self, rows: np.ndarray, columns: np.ndarray, chosen: Tensor) -> np.ndarray:
        """How many of the pairs that are chosen, bool [c, g], belong to each group [K]; rows [c], columns [g]."""
        codes = self.table[self.query[rows][:, None], self.gallery[columns][None]]  # [c, g]
        return np.bincount(codes[chosen.cpu().numpy()], minlength=len(self.names))

    def rows(self, title: str, counts: np.ndarray) -> list[dict[str, object]]:
        """Rows for `format_table`: false match rate and missed rate of each group that has pairs.

        counts: [4, K]: pairs of different identities, those of them that reach the threshold, matching pairs, those of
        them that do not.
        """
        found: list[dict[str, object]] = []
        for name, (negative, reached, positive, below) in zip(self.names, counts.T.tolist(), strict=True):
            if negative or positive:
                false = f"{100 * reached / negative:.3g}%" if negative else "-"
                missed = f"{100 * below / positive:.1f}%" if positive else "-"
                pairs = {"different": negative, "matching": positive}
                found.append({title: name, "false matches": false, "missed": missed, **pairs})
        return found


def find_groups(query: dict[str, np.ndarray], gallery: dict[str, np.ndarray], by: tuple[str, ...]) -> dict[str, Groups]:
    """By pair of cameras, where there are several, and by each of these columns of the query.

    query, gallery: as `read_table` gives them. Raises `UserError` for a column that the queries do not have.
    """
    found = {}
    sizes = len(query["identity"]), len(gallery["identity"])
    cameras = [t.get("camera", np.full(n, UNKNOWN)).astype(str) for t, n in zip((query, gallery), sizes, strict=True)]
    values, codes = np.unique(np.concatenate(cameras), return_inverse=True)
    if (count := len(values)) > 1:
        pairs = [(a, b) for a in range(count) for b in range(a, count)]
        table = np.zeros((count, count), int)
        for group, (a, b) in enumerate(pairs):
            table[a, b] = table[b, a] = group
        names = [f"{_shown(values[a])}, {_shown(values[b])}" for a, b in pairs]
        found[PAIRS] = Groups(names, codes[: sizes[0]], codes[sizes[0] :], table)
    for column in by:
        if column not in query:
            raise UserError(f"--by {column}: the queries have {', '.join(sorted(query))}")
        values, codes = np.unique(query[column].astype(str), return_inverse=True)
        table = np.arange(len(values))[:, None]
        found[column] = Groups([_shown(value) for value in values], codes, np.zeros(sizes[1], int), table)
    return found


def _shown(value: str) -> str:
    return "unknown" if value in ("-1", "") else str(value)
