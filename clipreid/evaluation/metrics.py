"""Exact CMC, mAP and mINP from the ranks of the positives alone, in chunks of queries, on any device.

Definitions (Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015, section 5; Ye et
al., "Deep learning for person re-identification: a survey and outlook", TPAMI 2021, section 3.4 for mINP).
For one query, take junk out of the gallery, sort the rest by similarity, and let r_1 < r_2 < ... < r_n be
the ranks (from 1) of its n matches. Then AP = mean_k(k / r_k), INP = n / r_n, and the query counts for
rank-k where r_1 <= k.

Ties are resolved against the query: a mistake as similar as a match stands before it, so r_k = k + (number
of mistakes at least as similar as the k-th best match). A model that gives every image the same feature
gets the worst figures, not lucky ones. Libraries that sort with `argsort` leave ties to gallery order, or
to chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import Columns, Table, code_columns, read_table
from clipreid.evaluation.copies import add_digests, describe_copies, find_copies
from clipreid.evaluation.doubts import Facts, find_doubts, refuse_distances, see
from clipreid.evaluation.draws import describe_draws, score_draws
from clipreid.evaluation.gaps import Unscored, describe_gaps
from clipreid.evaluation.histogram import Histogram, bin_edges, count_sorted
from clipreid.evaluation.protocols import Predicate, Protocol, find_junk, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.similarity import Matrix, as_features, as_matrix, chunk_size, similarities


def evaluate(
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    query: Table = None,
    gallery: Table = None,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
    count_copies: bool = False,
) -> Report:
    """Score a retrieval: CMC rank-1/5/10, mAP and mINP under a protocol (definitions: top of this file).

    query_features [Q, D], gallery_features [G, D]: similarity is their cosine (rows are L2-normalised here;
    half precision is computed in float32). Or similarity [Q, G], larger is closer, say from a re-ranker: a matrix, or
    an iterator over blocks of its rows in order (`reranked_rows`).
    query, gallery: metadata with an "identity" column and, where known, "camera" and "path": a dict of
    arrays, lists or tensors, a datasets.Dataset, a pandas frame, or a `Split`.
    protocol: a name in `PROTOCOLS`, a `Protocol`, or a function (query, gallery) -> bool [q, G].
    chunk: queries at once; memory grows with chunk x G, the result does not depend on it.
    count_copies: let copies of the query under its own identity count as matches. They are junk otherwise, and counted
    in the notes: images with the same "digest" (`Split.metadata` has it of decoded images), else, where features are
    given, images with the same features bit for bit.

    Gallery identities that no query has are distractors: mistakes like any other. Queries without a valid
    match are not scored, but counted and explained in the notes. Raises UserError for shapes that disagree,
    non-finite values (naming the rows), missing identities, an unknown protocol, similarities that are distances, and
    when no query at all has a valid match.
    """
    rules = get_protocol(protocol)
    query_table, gallery_table = read_table(query, "query"), read_table(gallery, "gallery")
    known = "digest" in query_table or "digest" in gallery_table
    features = query_features, gallery_features
    query_table, gallery_table = add_digests(query_table, gallery_table, *features, count_copies)
    q, g = code_columns(query_table, gallery_table)
    sizes = len(q["identity"]), len(g["identity"])
    chunk = chunk_size(chunk, sizes)
    blocks = similarities(*features, similarity, sizes, chunk)

    copies, by = find_copies(rules, q, g), "the same pixels" if known else "the same features, bit for bit"
    notes = (*describe_gaps(rules, q, g), *describe_copies(copies, query_table, gallery_table, q, g, by))
    if count_copies:
        notes = (*notes, "copies of queries count as matches (count_copies)")

    spread: dict[str, float] = {}
    histogram = None
    if rules.draws:
        scores, unscored, metrics, spread = score_draws(blocks, q, g, rules)
    else:
        edges = None  # the range of a stream is not known before its end
        if not isinstance(similarity, Iterator):
            matrix = None if similarity is None else as_matrix(similarity)
            edges = bin_edges(matrix, None if matrix is not None else _as_pair(query_features, gallery_features))
        scores, unscored, histogram, facts = _score_blocks(blocks, q, g, rules, edges)
        if similarity is not None:
            refuse_distances(scores, facts)
    total, scored = sizes[0], scores["n_positives"] > 0
    if not scored.all():
        why = unscored.explain(rules, query_table, total)
        if not scored.any():
            raise UserError(f"Nothing to score under protocol {rules.name!r}: {why}. {unscored.advice(rules)}")
        notes = (*notes, why)
    scores |= {name: query_table[name] for name in ("identity", "path") if name in query_table}
    counts = _count(q["identity"], g["identity"], int(scored.sum())) | {"copies": int(copies.sum())}
    if rules.draws:
        notes = (describe_draws(rules, spread), *notes)
    else:
        metrics = _average(scores, scored)
        notes = (*notes, *find_doubts(scores, facts, q, g, cosine=similarity is None))
    return Report(metrics, counts, scores, rules.name, rules.description, notes, spread, histogram)


def _as_pair(query: Matrix, gallery: Matrix) -> tuple[Tensor, Tensor]:
    return as_features(query, "query_features"), as_features(gallery, "gallery_features")


# Scores ---------------------------------------------------------------------------------------------------


def _score_blocks(
    blocks: Iterator[Tensor], query: Columns, gallery: Columns, rules: Protocol, edges: np.ndarray | None
) -> tuple[dict[str, np.ndarray], Unscored, Histogram | None, Facts]:
    scores: list[dict[str, np.ndarray]] = []
    pairs: np.ndarray | int = 0  # [2, bins]: positive, negative
    unscored: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    start = 0
    for similarity in blocks:
        if start == 0:
            query, gallery = query.to(similarity.device), gallery.to(similarity.device)
        rows = query.rows(start, start + len(similarity))
        relevant = rows["identity"][:, None] == gallery["identity"]  # [c, G]
        by_rule, own = find_junk(rules, rows, gallery)
        junk = by_rule | own
        matches, counts, others = _sort_pairs(similarity, relevant & ~junk, relevant | junk)
        ranks = _ranks(matches, others)
        if edges is not None:
            pairs = pairs + np.stack([count_sorted(matches.flip(1), edges), count_sorted(others, edges)])
        scores.append(scores_from_ranks(ranks.cpu().numpy(), counts.cpu().numpy()))
        seen.append(see(matches, counts, others).cpu().numpy())
        lost = (counts == 0).nonzero()[:, 0]
        relevant, by_rule, own = relevant[lost], by_rule[lost], own[lost]
        facts = (relevant, relevant & by_rule, relevant & own & ~by_rule)
        selected = torch.ones_like(lost) if rules.query_filter is None else rules.query_filter(rows)[lost].long()
        unscored.append(torch.stack([lost + start, *(fact.sum(1) for fact in facts), selected]).cpu().numpy())
        start += len(similarity)
    per_query = {name: np.concatenate([part[name] for part in scores]) for name in scores[0]}
    histogram = Histogram(edges, *pairs) if edges is not None and isinstance(pairs, np.ndarray) else None
    ranked, backwards, top = np.concatenate(seen, 1)
    return per_query, Unscored(*np.concatenate(unscored, 1)), histogram, Facts(ranked, backwards > 0, top)


def ranks_of_matches(similarity: Tensor, positive: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of the positives, best first: [c, P], without meaning beyond a row's positives; their number [c].

    similarity, positive, excluded (no negative) are [c, G]; similarity is overwritten.
    """
    matches, counts, others = _sort_pairs(similarity, positive, excluded)
    return _ranks(matches, others), counts


def _sort_pairs(similarity: Tensor, positive: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of the positives, best first, [c, P]; their number [c]; those of the negatives, ascending, [c, G].

    -inf stands for what is none: behind a row's positives, before its negatives. Only values are sorted, no indices.
    """
    rows, columns = positive.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(positive))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    matches = similarity.new_full((len(similarity), int(counts.max())), -torch.inf)  # [c, P]
    matches[rows, place] = similarity[rows, columns]
    matches = matches.sort(1, descending=True).values
    return matches, counts, _sort_rows(similarity.masked_fill_(excluded, -torch.inf))


def _ranks(matches: Tensor, others: Tensor) -> Tensor:
    """[c, P]: a positive's place among the positives, plus the number of negatives at least as similar."""
    ahead = others.shape[1] - torch.searchsorted(others, matches)  # negatives >= match
    return ahead + torch.arange(1, matches.shape[1] + 1, device=ahead.device)


def _sort_rows(x: Tensor) -> Tensor:
    """Sort each row, ascending, in place where possible. On CPU numpy's vectorised sort is 10 x torch's; it uses one
    core and lets go of the interpreter, so every thread gets a share of the rows."""
    if x.device.type != "cpu":
        return x.sort(1).values
    x = x.contiguous()
    shares = np.array_split(x.numpy(), torch.get_num_threads() if x.numel() > 1_000_000 else 1)
    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(lambda rows: rows.sort(axis=1), shares))
    return x


def scores_from_ranks(ranks: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
    """ranks [c, P] best first, n [c] how many of them count -> AP, INP, first rank (NaN where n = 0), n."""
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.arange(1, ranks.shape[1] + 1)
        precision = np.where(k <= n[:, None], k / ranks, 0.0)  # [c, P]
        row, _ = np.nonzero(precision)
        ap = np.bincount(row, precision[precision > 0], len(n)) / n  # adds in order: the same for every chunk
        index = np.arange(len(n))
        ends = (ranks[index, np.maximum(n - 1, 0)], ranks[index, 0]) if ranks.shape[1] else (n, n)
        last, first = (np.where(n > 0, r, np.nan) for r in ends)
    return {"ap": ap, "inp": n / last, "first_rank": first, "n_positives": n}


def _average(scores: dict[str, np.ndarray], scored: np.ndarray) -> dict[str, float]:
    first = scores["first_rank"][scored]
    metrics = {"mAP": scores["ap"][scored].mean(), "mINP": scores["inp"][scored].mean()}
    metrics |= {f"rank{k}": (first <= k).mean() for k in (1, 5, 10)}
    return {name: float(value) for name, value in metrics.items()}


def _count(query: Tensor, gallery: Tensor, scored: int) -> dict[str, int]:
    return {
        "queries": len(query),
        "valid_queries": scored,
        "gallery": len(gallery),
        "query_identities": len(query.unique()),
        "gallery_identities": len(gallery.unique()),
        "distractors": int((~torch.isin(gallery, query)).sum()),
    }
