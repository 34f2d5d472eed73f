"""Which examples the page shows: ranked lists of some queries, where the model looked, who is confused with whom.

Ties stand against the query, as in the figures: a mistake as similar as a match comes before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from clipreid.errors import UserError
from clipreid.evaluation.columns import read_table
from clipreid.evaluation.metrics import Matrix
from clipreid.evaluation.pairs import Pairs, pair_blocks
from clipreid.evaluation.protocols import Predicate, Protocol
from clipreid.evaluation.report import Report
from clipreid.reports.ranked_lists import Images

Kind = Literal["right", "wrong", "junk"]
AttentionMaps = Callable[[list[int]], "np.ndarray | None"]  # query rows -> maps [n, h, w]; None: the model has none
KINDS: tuple[Kind, ...] = ("wrong", "junk", "right")  # in this order among equally similar images
AHEAD = 10  # mistakes of a query that count as confusions: the first ones, before its first match
JUNK = 3  # junk images that a list shows at most


@dataclass(frozen=True)
class Result:
    """One place in a ranked list."""

    row: int  # of the gallery
    kind: Kind
    rank: int | None  # from 1, junk not counted; None for junk
    similarity: float


@dataclass(frozen=True)
class ExampleQuery:
    """One query and what was found for it."""

    row: int
    ap: float
    first_rank: float
    results: tuple[Result, ...]
    hidden: int  # junk images between these that are left out
    look: np.ndarray | None = None  # [h, w], sums to one


@dataclass(frozen=True)
class Confused:
    """Two identities, the one standing before the other's first match (and the other way round)."""

    identities: tuple[str, str]
    queries: int  # of both in which that happens
    total: int  # scored queries of both
    example: tuple[int, int]  # query row, gallery row: the most similar of these


@dataclass(frozen=True)
class Examples:
    """Queries and pairs to show of one data set, with the splits that hold their images."""

    query: Images
    gallery: Images
    drawn: tuple[ExampleQuery, ...]
    hardest: tuple[ExampleQuery, ...]
    confused: tuple[Confused, ...]
    has_attention: bool  # whether the model gave attention maps

    @property
    def all(self) -> tuple[ExampleQuery, ...]:
        """The queries in the order of the page."""
        return (*self.drawn, *self.hardest)


def find_examples(
    report: Report,
    query: Images,
    gallery: Images,
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    *,
    similarity: Matrix | None = None,
    protocol: str | Protocol | Predicate | None = None,
    look: AttentionMaps | None = None,
    queries: int = 10,
    top: int = 10,
    pairs: int = 8,
    seed: int = 0,
) -> Examples:
    """`queries` scored queries drawn at random (by `seed`), as many of the hardest others, the most confused `pairs`.

    report, features or similarity: as `evaluate` returned and took them. protocol: the report's, where that is a name.
    look: gives where the model looked; called once for all shown queries.
    top: results of each list, junk not counted.

    One walk over all pairs, in chunks. Raises UserError for what `evaluate` refuses, and another number of queries
    than the report has.
    """
    ap = report.per_query["ap"]
    identity = read_table(query, "query")["identity"]
    if len(identity) != len(ap):
        raise UserError(f"the report is of {len(ap)} queries, these are {len(identity)}: give what was evaluated")
    drawn, hardest = _choose(ap, identity, queries, seed)
    rules = report.protocol if protocol is None else protocol
    walk = pair_blocks(query_features, gallery_features, query, gallery, rules, similarity)
    lists: dict[int, tuple[tuple[Result, ...], int]] = {}
    tally, start = _Confusions(), 0
    for block in walk():
        stop = start + len(block.similarity)
        for row in sorted({*drawn, *hardest} & set(range(start, stop))):
            lists[row] = _ranked(block, row - start, top)
        tally.add(block, start)
        start = stop
    rows = [*drawn, *hardest]
    maps = look(rows) if look is not None and rows else None
    first = report.per_query["first_rank"]
    found = [
        ExampleQuery(row, float(ap[row]), float(first[row]), *lists[row], None if maps is None else maps[i])
        for i, row in enumerate(rows)
    ]
    names = identity, read_table(gallery, "gallery")["identity"]
    confused = tally.worst(pairs, *names, scored=~np.isnan(ap))
    return Examples(query, gallery, tuple(found[: len(drawn)]), tuple(found[len(drawn) :]), confused, maps is not None)


def _choose(ap: np.ndarray, identity: np.ndarray, n: int, seed: int) -> tuple[list[int], list[int]]:
    """n query rows at random, and the n with the lowest AP of the rest; of different identities while there are."""
    scored = np.random.default_rng(seed).permutation(np.flatnonzero(~np.isnan(ap)))
    drawn = _spread(scored, identity)[:n]
    rest = scored[~np.isin(scored, drawn)]
    return drawn, _spread(rest[np.argsort(ap[rest], kind="stable")], identity)[:n]


def _spread(rows: np.ndarray, identity: np.ndarray) -> list[int]:
    """The rows, each identity's first one before all others."""
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(identity[rows].astype(str), return_index=True)[1]] = True
    return [int(row) for row in np.concatenate([rows[first], rows[~first]])]


def _ranked(block: Pairs, row: int, top: int) -> tuple[tuple[Result, ...], int]:
    """The first results of one query of a block, `top` of them besides junk; and how much junk between is left out."""
    values = block.similarity[row].cpu().double().numpy()  # [G]
    kind = (1 + block.positive[row].int() - block.negative[row].int()).cpu().numpy()  # [G] index of KINDS
    results: list[Result] = []
    rank = junk = 0
    for column in np.lexsort((kind, -values)):
        if rank == top:
            break
        counts = KINDS[kind[column]] != "junk"
        rank, junk = rank + counts, junk + (not counts)
        if counts or junk <= JUNK:
            results.append(Result(int(column), KINDS[kind[column]], rank if counts else None, float(values[column])))
    return tuple(results), max(0, junk - JUNK)


class _Confusions:
    """Which identities stand before the first match, over all queries; memory grows with Q x AHEAD."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []  # [n, 3]: query row, gallery row, similarity

    def add(self, block: Pairs, start: int) -> None:
        """Counts one block of queries, the first of them being row `start`."""
        hidden = block.similarity.masked_fill(~block.positive, -torch.inf)  # [c, G]
        best = hidden.amax(1, keepdim=True)  # [c, 1], -inf for a query without match
        ahead = block.negative & (block.similarity >= best) & best.isfinite()
        wrong = hidden.copy_(block.similarity).masked_fill_(~ahead, -torch.inf)  # in the memory of `hidden`
        values, columns = wrong.topk(min(AHEAD, wrong.shape[1]))
        rows, places = values.isfinite().nonzero(as_tuple=True)
        parts = rows + start, columns[rows, places], values[rows, places]
        self.found.append(torch.stack([part.double().cpu() for part in parts], 1).numpy())

    def worst(self, n: int, query: np.ndarray, gallery: np.ndarray, scored: np.ndarray) -> tuple[Confused, ...]:
        """The pairs of identities with the most such queries; among equals the larger share, then the more similar."""
        seen: set[tuple[int, str]] = set()
        count: Counter[tuple[str, str]] = Counter()
        example: dict[tuple[str, str], tuple[float, int, int]] = {}
        for q, g, value in np.concatenate(self.found).tolist():
            row, column = int(q), int(g)
            ours, theirs = str(query[row]), str(gallery[column])
            pair = (min(ours, theirs), max(ours, theirs))
            if (row, theirs) not in seen:
                seen.add((row, theirs))
                count[pair] += 1
            example[pair] = max(example.get(pair, (-np.inf, 0, 0)), (value, -row, -column))
        total = Counter(str(name) for name in query[scored].tolist())
        of = {pair: sum(total[name] for name in pair) for pair in count}
        order = sorted(count, key=lambda pair: (-count[pair], of[pair], -example[pair][0], pair))
        return tuple(
            Confused(pair, count[pair], of[pair], (-example[pair][1], -example[pair][2])) for pair in order[:n]
        )


def facts_of(table: Any, row: int) -> dict[str, str]:
    """What the metadata says of one image, for captions: identity, camera, view."""
    known = {name: str(values[row]) for name, values in table.items() if name in ("identity", "camera", "view")}
    return {name: value for name, value in known.items() if value not in ("-1", "")}
