"""Single-gallery-shot: the gallery is one random image of each identity, and the figures are means over draws.

In draw d the whole gallery is shuffled by `numpy.random.default_rng([seed, d])`; of each identity the first image
that the protocol's rule allows for a query is taken. So a draw depends on the seed and the order of the gallery alone,
not on queries, chunks or devices. The rule of such a protocol may look at the columns in its `needs` and `uses` only,
not at identities: queries alike in those share a gallery.

With one match, ranked r-th, AP = INP = 1 / r. A query is not scored in a draw that took its own image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from clipreid.evaluation.columns import Columns
from clipreid.evaluation.gaps import Unscored
from clipreid.evaluation.protocols import Protocol, find_junk, find_own
from clipreid.evaluation.tables import TITLES


def score_draws(
    blocks: Iterator[Tensor], query: Columns, gallery: Columns, rules: Protocol
) -> tuple[dict[str, np.ndarray], Unscored, dict[str, float], dict[str, float]]:
    """Means over the draws for each query, the queries scored in none, the metrics, and their deviation.

    blocks: similarities [c, G], the queries in order. The metrics of a draw are means over the queries it scores;
    what is returned is the mean of these over the draws, and their standard deviation.
    """
    groups, columns = _draw_galleries(query, gallery, rules)
    found, start = [], 0
    for similarity in blocks:
        stop = start + len(similarity)
        found.append(_ranks(similarity, query.rows(start, stop), gallery, groups[start:stop], columns, rules))
        start = stop
    ranks = np.concatenate(found, 1)  # [draws, Q], NaN = not scored
    times = (~np.isnan(ranks)).sum(0)  # [Q]
    precision, mean_rank = (_mean(values, 0) for values in (1 / ranks, ranks))
    scores = {"ap": precision, "inp": precision, "first_rank": mean_rank, "n_positives": (times > 0).astype(int)}
    hits = {f"rank{k}": np.where(np.isnan(ranks), np.nan, ranks <= k) for k in (1, 5, 10)}  # [draws, Q] each
    scores |= {"times": times, **{name: _mean(values, 0) for name, values in hits.items()}}
    figures = {"mAP": _mean(1 / ranks, 1), "mINP": _mean(1 / ranks, 1)}  # [draws] each
    figures |= {name: _mean(values, 1) for name, values in hits.items()}
    usable = ~np.isnan(figures["mAP"])
    metrics = {name: float(values[usable].mean()) if usable.any() else np.nan for name, values in figures.items()}
    spread = {name: float(values[usable].std()) if usable.any() else np.nan for name, values in figures.items()}
    return scores, _unscored(np.flatnonzero(times == 0), query, gallery, rules), metrics, spread


def describe_draws(rules: Protocol, spread: dict[str, float]) -> str:
    """The note that belongs to such figures."""
    parts = ", ".join(f"{TITLES[name]} {100 * value:.2f}%" for name, value in spread.items())
    return f"means of {rules.draws} draws (seed {rules.seed}); standard deviation over the draws: {parts}"


def _draw_galleries(query: Columns, gallery: Columns, rules: Protocol) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The group of each query [Q], and for each draw and group the gallery rows that were drawn, one per identity."""
    keys = [query[name] for name in (*rules.needs, *rules.uses) if name != "path"]
    keys = keys or [torch.zeros(len(query["identity"]), dtype=torch.int64)]
    _, first, groups = np.unique(torch.stack(keys).numpy(), axis=1, return_index=True, return_inverse=True)
    allowed = ~rules.junk(_take(query, torch.from_numpy(first)), gallery).numpy()  # [groups, G]
    identity, count = gallery["identity"].numpy(), len(gallery["identity"])
    drawn = []
    for draw in range(rules.draws):
        order = np.random.default_rng([rules.seed, draw]).permutation(count)
        shuffled = [order[row[order]] for row in allowed]
        drawn.append([rows[np.unique(identity[rows], return_index=True)[1]] for rows in shuffled])
    return groups.reshape(-1), drawn


def _ranks(
    similarity: Tensor,
    query: Columns,
    gallery: Columns,
    groups: np.ndarray,
    drawn: list[list[np.ndarray]],
    rules: Protocol,
) -> np.ndarray:
    """float64 [draws, c]: the rank of the match of each query, ties against it; NaN = no match in this draw."""
    ranks = np.full((rules.draws, len(similarity)), np.nan)
    for group in np.unique(groups):
        rows = torch.from_numpy(np.flatnonzero(groups == group))
        chunk = similarity[rows.to(similarity.device)]  # [r, G]
        ours = _take(query, rows)
        for draw in range(rules.draws):
            columns = torch.from_numpy(drawn[draw][group])  # [I], sorted by identity
            if not len(columns):
                continue
            theirs = _take(gallery, columns)
            place = torch.searchsorted(theirs["identity"], ours["identity"]).clamp_max(len(columns) - 1)  # [r]
            own = find_own(rules, ours, theirs)  # [r, I]
            found = (theirs["identity"][place] == ours["identity"]) & ~own.gather(1, place[:, None])[:, 0]
            shot = chunk[:, columns.to(chunk.device)].masked_fill(own.to(chunk.device), -torch.inf)  # [r, I]
            match = shot.gather(1, place.to(chunk.device)[:, None])  # [r, 1]
            rank = (shot >= match).sum(1).cpu().numpy()  # the match itself is one of them
            ranks[draw, rows.numpy()] = np.where(found.numpy(), rank, np.nan)
    return ranks


def _unscored(lost: np.ndarray, query: Columns, gallery: Columns, rules: Protocol) -> Unscored:
    rows = _take(query, torch.from_numpy(lost))
    relevant = rows["identity"][:, None] == gallery["identity"]  # [u, G]
    by_rule, own = find_junk(rules, rows, gallery)
    same_identity, ruled, itself = (
        fact.sum(1).numpy() for fact in (relevant, relevant & by_rule, relevant & own & ~by_rule)
    )
    return Unscored(lost, same_identity, ruled, itself, np.ones_like(lost))


def _take(columns: Columns, rows: Tensor) -> Columns:
    return Columns({name: values[rows] for name, values in columns.items()})


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis without the NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis) / known.sum(axis)
