"""Queries that are copies of gallery images of their own identity: a match that says nothing, left out as junk.

Copies have the same "digest". `Split.metadata()` has that column once the images were decoded. Where neither table has
it, features are compared: those of two images are never the same bit for bit, unless they tell images apart badly
(quantised, one for each identity, collapsed), and then nothing is concluded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipreid.evaluation.columns import UNKNOWN, Columns
from clipreid.evaluation.protocols import Protocol
from clipreid.evaluation.similarity import Matrix, as_features

Read = dict[str, np.ndarray]
_ROWS = 4096  # hashed at once


def add_digests(
    query: Read,
    gallery: Read,
    query_features: Matrix | None,
    gallery_features: Matrix | None,
    count_copies: bool = False,
) -> tuple[Read, Read]:
    """Tables as `read_table` gives them, with a column "digest" from the features [Q, D], [G, D] where both lack it.

    As they are without features, and where most rows of the gallery's have an equal. count_copies: nothing is a copy.
    """
    if count_copies:
        none = [np.full(len(side["identity"]), UNKNOWN) for side in (query, gallery)]
        return query | {"digest": none[0]}, gallery | {"digest": none[1]}
    if "digest" in query or "digest" in gallery or query_features is None or gallery_features is None:
        return query, gallery
    features = as_features(query_features, "query_features"), as_features(gallery_features, "gallery_features")
    if features[0].shape[1] != features[1].shape[1]:  # refused later, with the shapes
        return query, gallery
    coarse = [x.dtype for x in features if x.dtype in (torch.float16, torch.bfloat16)]
    digests = [_digests(x.to(coarse[0]) if coarse else x) for x in features]
    if 2 * len(np.unique(digests[1])) <= len(digests[1]):
        return query, gallery
    return query | {"digest": digests[0]}, gallery | {"digest": digests[1]}


def _digests(features: Tensor) -> np.ndarray:
    """int64 [N], not negative: equal where rows are equal as float64."""
    weights = torch.randint(2**62, (features.shape[1],), generator=torch.Generator().manual_seed(0)) | 1
    weights = weights.to(features.device)
    found = []
    for rows in features.split(_ROWS):
        bits = (rows.double() + 0.0).view(torch.int64)  # [c, D]; -0.0 becomes 0.0
        found.append((bits ^ (bits >> 32)).mul_(weights).sum(1) & (2**63 - 1))  # wraps around
    return torch.cat(found).cpu().numpy()


def describe_copies(copies: np.ndarray, query: Read, gallery: Read, q: Columns, g: Columns, by: str) -> tuple[str, ...]:
    """The note on queries that are copies of gallery images, () without any.

    copies: what `find_copies` found. query, gallery: what `read_table` gave; q, g: the same as `code_columns` coded it.
    by: what shows it, such as "the same pixels".
    """
    copied = np.flatnonzero(copies).tolist()
    if not copied:
        return ()
    first = copied[0]
    alike = (g["digest"] == q["digest"][first]) & (g["identity"] == q["identity"][first])
    other = (q["path"][first] == UNKNOWN) | (g["path"] != q["path"][first])
    pair = _name(query, "query", first), _name(gallery, "gallery", int((alike & other).nonzero()[0, 0]))
    of = f"{len(copied)} of {len(copies)} queries {'are copies' if len(copied) > 1 else 'is a copy'}"
    return (
        f"{of} of gallery images of their identity ({pair[0]} = {pair[1]}; {by}): the copies are left out as junk "
        "(to count them: --count-copies, count_copies=True)",
    )


def find_copies(rules: Protocol, query: Columns, gallery: Columns) -> np.ndarray:
    """bool [Q]: queries of which the gallery has a copy, under their identity, beside the query's own file."""
    if rules.own_counts or not torch.isin(query["digest"], gallery["digest"]).any():
        return np.zeros(len(query["digest"]), bool)
    keys = [
        np.stack([side[name].cpu().numpy() for name in ("identity", "digest", "path")], 1) for side in (query, gallery)
    ]
    n, table = len(keys[0]), np.concatenate(keys)
    copies = _in_gallery(table[:, :2], n)
    own = _in_gallery(table, n) * (keys[0][:, 2] != UNKNOWN)
    return (keys[0][:, 1] != UNKNOWN) & (copies > own)


def _in_gallery(rows: np.ndarray, n: int) -> np.ndarray:
    """How many of the rows from n on equal each of the first n."""
    number = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return np.bincount(number[n:], minlength=number.max() + 1)[number[:n]]


def _name(table: Read, side: str, row: int) -> str:
    path = str(table["path"][row]) if "path" in table else ""
    return path if path not in ("", str(UNKNOWN)) else f"{side} {row}"
