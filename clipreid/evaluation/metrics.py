"""Exact CMC, mAP and mINP from the ranks of the positives alone, in chunks of queries, on any device.

Definitions (Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015, section 5; Ye et
al., "Deep learning for person re-identification: a survey and outlook", TPAMI 2021, section 3.4 for mINP).
For one query, take junk out of the gallery, sort the rest by similarity, and let r_1 < r_2 < ... < r_n be
the ranks (from 1) of its n matches. Then AP = mean_k(k / r_k), INP = n / r_n, and the query counts for
rank-k where r_1 <= k.

Ties are resolved against the query: a mistake as similar as a match stands before it, so r_k = k + (number
of mistakes at least as similar as the k-th best match). A model that gives every picture the same feature
gets the worst figures, not lucky ones. Libraries that sort with `argsort` leave ties to gallery order, or
to chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import Columns, Table, code_columns, name_rows, read_table
from clipreid.evaluation.draws import describe_draws, score_draws
from clipreid.evaluation.gaps import Unscored, describe_gaps
from clipreid.evaluation.protocols import Predicate, Protocol, find_junk, get_protocol
from clipreid.evaluation.report import Report

Matrix = Any  # a torch tensor, numpy array or nested list of two dimensions
_ALIGN = 64  # matrix products are padded to multiples of this, see `_normalise`
_CHUNK_ELEMENTS = 2**24  # similarities in memory at once: 64 MB in float32


def evaluate(
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    query: Table = None,
    gallery: Table = None,
    protocol: str | Protocol | Predicate = "market1501",
    similarity: Matrix | None = None,
    chunk: int | None = None,
) -> Report:
    """Score a retrieval: CMC rank-1/5/10, mAP and mINP under a protocol (definitions: top of this file).

    query_features [Q, D], gallery_features [G, D]: similarity is their cosine (rows are L2-normalised here;
    half precision is computed in float32). Or similarity [Q, G], larger is closer, say from a re-ranker.
    query, gallery: metadata with an "identity" column and, where known, "camera" and "path": a dict of
    arrays, lists or tensors, a datasets.Dataset, a pandas frame, or a `Split`.
    protocol: a name in `PROTOCOLS`, a `Protocol`, or a function (query, gallery) -> bool [q, G].
    chunk: queries at once; memory grows with chunk x G, the result does not depend on it.

    Gallery identities that no query has are distractors: mistakes like any other. Queries without a valid
    match are not scored, but counted and explained in the notes. Raises UserError for shapes that disagree,
    non-finite values (naming the rows), missing identities, an unknown protocol, and when no query at all
    has a valid match.
    """
    rules = get_protocol(protocol)
    query_table, gallery_table = read_table(query, "query"), read_table(gallery, "gallery")
    q, g = code_columns(query_table, gallery_table)
    sizes = len(q["identity"]), len(g["identity"])
    chunk = _chunk_size(chunk, sizes)
    blocks = _similarities(query_features, gallery_features, similarity, sizes, chunk)

    notes = describe_gaps(rules, q, g)

    spread: dict[str, float] = {}
    if rules.draws:
        scores, unscored, metrics, spread = score_draws(blocks, q, g, rules)
    else:
        scores, unscored = _score_blocks(blocks, q, g, rules)
    total, scored = sizes[0], scores["n_positives"] > 0
    if not scored.all():
        why = unscored.explain(rules, query_table, total)
        if not scored.any():
            raise UserError(f"Nothing to score under protocol {rules.name!r}: {why}. {unscored.advice(rules)}")
        notes = (*notes, why)
    counts = _count(q["identity"], g["identity"], int(scored.sum()))
    if rules.draws:
        notes = (describe_draws(rules, spread), *notes)
    else:
        metrics = _average(scores, scored)
    return Report(metrics, counts, scores, rules.name, rules.description, notes, spread)


def cosine_similarity(query_features: Matrix, gallery_features: Matrix) -> Tensor:
    """[Q, D], [G, D] -> cosine similarities [Q, G], exactly those that `evaluate` ranks by; same errors."""
    q, g = _features(query_features, "query_features"), _features(gallery_features, "gallery_features")
    sizes = len(q), len(g)
    return torch.cat(list(_similarities(q, g, None, sizes, _chunk_size(None, sizes))))


# Similarities ---------------------------------------------------------------------------------------------


def _chunk_size(chunk: int | None, sizes: tuple[int, int]) -> int:
    if chunk is None:
        return max(_ALIGN, min(_CHUNK_ELEMENTS // sizes[1], sizes[0]) // _ALIGN * _ALIGN)
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it is the number of queries scored at once, at least 1.")
    return chunk


def _similarities(
    query: Matrix | None,
    gallery: Matrix | None,
    similarity: Matrix | None,
    sizes: tuple[int, int],
    chunk: int,
) -> Iterator[Tensor]:
    """Check the input now; then yield similarities [c, G] in chunks, each free to be overwritten."""
    if similarity is not None:
        if query is not None or gallery is not None:
            raise UserError("give either features or similarity, not both: similarity replaces them.")
        similarity = similarity if hasattr(similarity, "shape") else np.asarray(similarity)
        _check_shape(similarity, "similarity", sizes, "[queries, gallery]")
        return _given(similarity, chunk)
    if query is None or gallery is None:
        raise UserError("give query_features and gallery_features, or similarity [queries, gallery].")
    q, g = _features(query, "query_features"), _features(gallery, "gallery_features")
    _check_shape(q, "query_features", (sizes[0], q.shape[1]), "[queries, D]")
    _check_shape(g, "gallery_features", (sizes[1], q.shape[1]), "[gallery, D], with the D of the queries")
    return _products(q, g, chunk)


def _features(features: Matrix, name: str) -> Tensor:
    x = torch.as_tensor(features).detach()
    if x.ndim != 2 or not x.shape[1]:
        raise UserError(f"{name} has shape {list(x.shape)}; features are a matrix [pictures, D].")
    return x


def _check_shape(matrix: Matrix, name: str, expected: tuple[int, int], meaning: str) -> None:
    if tuple(matrix.shape) != expected:
        raise UserError(f"{name} has shape {list(matrix.shape)}, the metadata asks for {list(expected)}: {meaning}.")


def _given(similarity: Matrix, chunk: int) -> Iterator[Tensor]:
    for start in range(0, len(similarity), chunk):
        block = similarity[start : start + chunk]  # [c, G]
        block = block.detach().clone() if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
        block = block.float() if block.dtype in (torch.float16, torch.bfloat16) else block
        block = block if block.is_floating_point() else block.double()
        _check_finite(block.abs().amax(1), "similarity", start)
        yield block


def _products(query: Tensor, gallery: Tensor, chunk: int) -> Iterator[Tensor]:
    dtype = torch.float64 if torch.float64 in (query.dtype, gallery.dtype) else torch.float32
    queries = _normalise(query.to(dtype), "query_features")  # [Q padded, D]
    columns = _normalise(gallery.to(query.device, dtype), "gallery_features").T  # [D, G padded]
    for start in range(0, len(query), chunk):
        rows = min(chunk, len(query) - start)
        block = queries[start : start + rows]  # [c, D]
        block = torch.nn.functional.pad(block, (0, 0, 0, -rows % _ALIGN))  # [c padded, D]
        with _full_precision(block.device):
            product = block @ columns
        yield product[:rows, : len(gallery)]  # [c, G]


def _normalise(features: Tensor, name: str) -> Tensor:
    """[N, D] -> rows of length 1 (all-zero rows stay zero), padded with zeros to a multiple of _ALIGN rows.

    Matrix libraries round differently in ragged last rows and columns; with none of these, equal pictures
    have equal similarities, wherever they stand and whatever the chunk. Each row is divided by its largest
    component first, so that no square overflows.
    """
    n, tiny = len(features), torch.finfo(features.dtype).tiny
    largest = torch.linalg.vector_norm(features, torch.inf, dim=1, keepdim=True)  # [N, 1]
    _check_finite(largest[:, 0], name)  # the largest of a row is finite exactly where the row is
    padded = features.new_zeros(n + -n % _ALIGN, features.shape[1])
    unit = torch.div(features, largest.clamp_min(tiny), out=padded[:n])
    unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min(tiny))
    return padded


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32: training may have set them, figures should not depend on it."""
    before = torch.get_float32_matmul_precision()
    try:
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def _check_finite(values: Tensor, name: str, start: int = 0) -> None:
    rows = (~torch.isfinite(values)).nonzero()[:, 0].cpu().numpy() + start
    if len(rows):
        raise UserError(f"{name}: NaN or infinity in {name_rows(rows)}. Look where they were computed.")


# Scores ---------------------------------------------------------------------------------------------------


def _score_blocks(
    blocks: Iterator[Tensor], query: Columns, gallery: Columns, rules: Protocol
) -> tuple[dict[str, np.ndarray], Unscored]:
    scores: list[dict[str, np.ndarray]] = []
    unscored: list[np.ndarray] = []
    start = 0
    for similarity in blocks:
        if start == 0:
            query, gallery = query.to(similarity.device), gallery.to(similarity.device)
        rows = query.rows(start, start + len(similarity))
        relevant = rows["identity"][:, None] == gallery["identity"]  # [c, G]
        by_rule, own = find_junk(rules, rows, gallery)
        junk = by_rule | own
        ranks, counts = _ranks(similarity, relevant & ~junk, relevant | junk)
        scores.append(_from_ranks(ranks.cpu().numpy(), counts.cpu().numpy()))
        lost = (counts == 0).nonzero()[:, 0]
        relevant, by_rule, own = relevant[lost], by_rule[lost], own[lost]
        facts = (relevant, relevant & by_rule, relevant & own & ~by_rule)
        asked = torch.ones_like(lost) if rules.asks is None else rules.asks(rows)[lost].long()
        unscored.append(torch.stack([lost + start, *(fact.sum(1) for fact in facts), asked]).cpu().numpy())
        start += len(similarity)
    per_query = {name: np.concatenate([part[name] for part in scores]) for name in scores[0]}
    return per_query, Unscored(*np.concatenate(unscored, 1))


def _ranks(similarity: Tensor, positive: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of the positives, best first: [c, P], without meaning beyond a row's positives; their number [c].

    similarity, positive, excluded (no negative) are [c, G]; similarity is overwritten. Only values are
    sorted, no indices: the rank of a positive is its place among the positives plus the number of negatives
    at least as similar.
    """
    rows, columns = positive.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(positive))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    matches = similarity.new_full((len(similarity), int(counts.max())), -torch.inf)  # [c, P]
    matches[rows, place] = similarity[rows, columns]
    matches = matches.sort(1, descending=True).values
    others = _sort_rows(similarity.masked_fill_(excluded, -torch.inf))  # [c, G] ascending
    ahead = others.shape[1] - torch.searchsorted(others, matches)  # negatives >= match
    return ahead + torch.arange(1, matches.shape[1] + 1, device=ahead.device), counts


def _sort_rows(x: Tensor) -> Tensor:
    """Sort each row, ascending, in place where possible. On CPU numpy's vectorised sort is 10 x torch's."""
    if x.device.type != "cpu":
        return x.sort(1).values
    x = x.contiguous()
    x.numpy().sort(axis=1)
    return x


def _from_ranks(ranks: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
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
