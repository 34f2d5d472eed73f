"""Two re-rankers that mix features of neighbours: k-nearest weighted fusion, and alpha query expansion."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN
from clipreid.evaluation.neighbours import Blocks, Compare, prepare, product
from clipreid.evaluation.similarity import ALIGN, chunk_size

WEIGHTINGS = ("uniform", "inverse-distance", "exponential")


def kwf(
    query: Tensor,
    gallery: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    candidates: int = 100,
    neighbours: int = 6,
    weighting: str = "inverse-distance",
    epsilon: float = 0.1,
) -> Iterator[Tensor]:
    """K-nearest weighted fusion: re-ranked similarities [c, G], the queries in order.

    Source: Che et al., "A re-ranking method using k-nearest weighted fusion for person re-identification", ICPRAM 2025,
    and its authors' code. The most similar gallery images of a query are compared with it once more, each by a mean
    of features: of its nearest neighbours in the gallery (itself among them) that the query's camera did not take. The
    mean is not normalised again. All others keep their cosine; one list is sorted. As dot products are linear,
    no fused feature is ever computed: the new similarity is the same mean of similarities.

    Args:
        query, gallery: unit rows [Q, D] and [G, D], float32.
        query_cameras, gallery_cameras: int64 [Q] and [G]; unknown (-1) is never the query's camera.
        candidates: M, images that are compared again for each query.
        neighbours: K, features in a mean; fewer where the other cameras have fewer, none changes nothing.
        weighting: of a neighbour at cosine distance d: "uniform" 1, "inverse-distance" 1 / max(d, epsilon)^2,
            "exponential" exp(-d); divided by their sum.
        epsilon: keeps the image itself (d = 0) from having all the weight, which would undo the fusion.

    Raises:
        UserError: a number out of range, or an unknown weighting.
    """
    how = candidates, neighbours, weighting, epsilon
    yield from kwf_by(_cosines, query, gallery, query_cameras, gallery_cameras, *how)


def kwf_by(
    compare: Compare,
    query: Tensor,
    gallery: Tensor,
    query_cameras: Tensor,
    gallery_cameras: Tensor,
    candidates: int = 100,
    neighbours: int = 6,
    weighting: str = "inverse-distance",
    epsilon: float = 0.1,
) -> Iterator[Tensor]:
    """The same by a metric from -1 to 1 in the place of the cosine: the new similarity is the mean of similarities.

    Args:
        compare: `clipreid.evaluation.neighbours.by_metric`. The rest: as for `kwf`, rows of any length.
    """
    check_kwf(candidates, neighbours, weighting, epsilon)
    asking, group = query_cameras.unique(return_inverse=True)  # [C], [Q]
    index, cosine = _fusions(compare, gallery, gallery_cameras, asking, neighbours)  # [C, G, K]
    weights = _weigh(cosine, weighting, epsilon)
    del cosine
    candidates = min(candidates, len(gallery))
    for start, similarity in compare(query, gallery):
        which = group[start : start + len(similarity), None]  # [c, 1]
        best = similarity.topk(candidates, dim=1).indices  # [c, M]
        members, weight = index[which, best], weights[which, best]  # [c, M, K]
        parts = similarity.gather(1, members.flatten(1).long()).view_as(weight)
        fused = (weight * parts).sum(2)
        similarity.scatter_(1, best, torch.where(weight.sum(2) > 0, fused, similarity.gather(1, best)))
        yield similarity


def check_kwf(candidates: int, neighbours: int, weighting: str, epsilon: float) -> None:
    """Raises UserError for what is out of range."""
    for name, value in (("candidates", candidates), ("neighbours", neighbours)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"kwf: {name} is {value}; a whole number from 1 is needed")
    if weighting not in WEIGHTINGS:
        raise UserError(f"kwf: unknown weighting {weighting!r}; valid are {', '.join(WEIGHTINGS)}")
    if not epsilon > 0:
        raise UserError(f"kwf: epsilon is {epsilon}; a distance above 0 is needed")


def _fusions(
    compare: Compare, gallery: Tensor, cameras: Tensor, asking: Tensor, neighbours: int
) -> tuple[Tensor, Tensor]:
    """For each query camera and gallery image its nearest from other cameras: rows int32, cosines [C, G, K].

    The nearest of each camera apart are found once; leaving a camera out is then choosing among these. Where there are
    fewer than K, the cosine is -inf.
    """
    taken = cameras.unique()
    of = [(cameras == camera).nonzero()[:, 0] for camera in taken]
    owner = torch.cat([camera.expand(min(neighbours, len(rows))) for camera, rows in zip(taken, of, strict=True)])
    barred = (owner == asking[:, None]) & (owner != UNKNOWN)  # [C, columns]
    index = torch.zeros(len(asking), len(gallery), neighbours, dtype=torch.int32, device=gallery.device)
    cosine = torch.full(index.shape, -torch.inf, device=gallery.device)
    for start, similarity in compare(gallery, gallery):
        rows = slice(start, start + len(similarity))
        found = [similarity[:, columns].topk(min(neighbours, len(columns)), dim=1) for columns in of]
        values = torch.cat([each.values for each in found], 1)  # [c, columns]
        places = torch.cat([columns[each.indices] for columns, each in zip(of, found, strict=True)], 1)
        for camera in range(len(asking)):
            best = values.masked_fill(barred[camera], -torch.inf).topk(min(neighbours, len(owner)), dim=1)
            cosine[camera, rows, : best.values.shape[1]] = best.values
            index[camera, rows, : best.values.shape[1]] = places.gather(1, best.indices).int()
    return index, cosine


def _weigh(cosine: Tensor, weighting: str, epsilon: float) -> Tensor:
    """Weights along the last dimension, summing to 1; 0 for what is not there (-inf)."""
    distance = (1 - cosine).clamp_min(0)
    if weighting == "uniform":
        weight = torch.isfinite(cosine).float()
    elif weighting == "inverse-distance":
        weight = distance.clamp_min(epsilon) ** -2
    else:
        weight = torch.exp(-distance)
    return weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def alpha_expansion(query: Tensor, gallery: Tensor, neighbours: int = 5, alpha: float = 3.0) -> Iterator[Tensor]:
    """Alpha query expansion: re-ranked similarities [c, G], the queries in order.

    Source: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019, section 5.1. A
    query becomes its own feature plus those of its nearest gallery images, each times its cosine to the power of
    alpha, normalised; the gallery stays as it is. Negative cosines weigh nothing.

    Args:
        query, gallery: unit rows [Q, D] and [G, D], float32.
        neighbours: images that are added (50 in the paper, whose landmarks have more images than people here).
        alpha: from 0 (all alike) on.

    Raises:
        UserError: a number out of range.
    """
    check_expansion(neighbours, alpha)
    columns = _padded(gallery)
    right = prepare(columns)
    for start, similarity in _cosines(query, gallery):
        cosine, best = similarity.topk(min(neighbours, len(gallery)), dim=1)  # [c, K]
        weight = cosine.clamp_min(0) ** alpha * (cosine > 0)
        added = torch.nn.functional.embedding_bag(best, gallery, mode="sum", per_sample_weights=weight)
        expanded = torch.nn.functional.normalize(query[start : start + len(similarity)] + added)  # [c, D]
        yield product(_padded(expanded), right)[: len(similarity), : len(gallery)]


def check_expansion(neighbours: int, alpha: float) -> None:
    """Raises UserError for what is out of range."""
    if not isinstance(neighbours, int) or neighbours < 1:
        raise UserError(f"aqe: neighbours is {neighbours}; a whole number from 1 is needed")
    if not alpha >= 0:
        raise UserError(f"aqe: alpha is {alpha}; it must be at least 0")


def _cosines(rows: Tensor, columns: Tensor) -> Blocks:
    """(first row, similarities [c, n]) of unit rows [m, D] and [n, D], in chunks."""
    right = prepare(_padded(columns))
    chunk = chunk_size(None, (len(rows), len(columns)))
    for start in range(0, len(rows), chunk):
        block = rows[start : start + chunk]
        yield start, product(_padded(block), right)[: len(block), : len(columns)].contiguous()


def _padded(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % ALIGN))
