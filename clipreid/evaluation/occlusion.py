"""How a run stands occlusion: queries with more and more hidden, an untouched gallery, the same draws for every run.

Our protocol (SAGA, arXiv 2604.22190, describes such an experiment in words only): three conditions, `mask` (a box of
the mean colour: what is hidden says nothing), `object` (a thing in front) and `person` (another individual in front,
who says something false); the share that is hidden grows, a draw hides the same places and more. Cut-outs are those of
the part "test", which no training uses. Nothing is trained or chosen here.

Q queries, G gallery images, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.aggregation.base import patch_tokens
from clipreid.aggregation.saga import SagaAggregator
from clipreid.data import ReIDData, Split, pixel_cache, seed_for
from clipreid.data.occluded import bank_of_others
from clipreid.data.occluders import Bank, Library, Occluded, distract, mask_out, occlude, street_library
from clipreid.errors import UserError
from clipreid.evaluation.extract import extract
from clipreid.evaluation.report import Report
from clipreid.evaluation.score import Scored, score
from clipreid.model import ReIDModel

Condition = Literal["mask", "object", "person"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
BATCH = 64  # queries occluded at once
FUSED = ("saga", "final", "projection")
COVERED = 0.5  # share of a patch that an occluder hides, from which the patch counts as hidden


@dataclass(frozen=True)
class Occluders:
    """What stands in the way in the three conditions.

    objects: things. others: people as cut-outs, or crops of other individuals.
    """

    objects: Library
    others: Library | Bank

    @classmethod
    def of(cls, data: ReIDData, objects: Library | None = None) -> Occluders:
        """Test occluders: `objects`, or the street's; and people of the street for the street, elsewhere crops of
        `data` itself, each in front of somebody else. Raises `UserError` where there is nobody else."""
        street = data.name.partition(":")[0] == "synthetic"
        others = street_library("test", persons=True).only("person") if street else bank_of_others(data)[0]
        return cls(street_library("test") if objects is None else objects, others)


@dataclass(frozen=True)
class Place:
    """One cell of the experiment: under which condition, how much, and which draw."""

    condition: Condition
    severity: float
    draw: int


@dataclass(frozen=True)
class Cell:
    """One run at one place: a report for each kind of feature, and where the pooling weight went.

    reached: share of the crops that is hidden, a mean over the queries. inside: share of the pooling weight on hidden
    patches; None for a model without such weights. covered: share of the patches that are hidden: an indifferent
    pooling has as much inside.
    """

    place: Place
    reports: Mapping[str, Report]
    reached: float
    inside: float | None
    covered: float


def places(conditions: Sequence[Condition], severities: Sequence[float], draws: int) -> list[Place]:
    """All cells; severity 0, where nothing is hidden, once for each condition.

    Raises:
        UserError: an unknown condition, a severity outside 0..1, no draw.
    """
    if odd := [name for name in conditions if name not in CONDITIONS]:
        raise UserError(f"--conditions {odd[0]}: choose among {', '.join(CONDITIONS)}")
    if odd_severity := [severity for severity in severities if not 0 <= severity < 1]:
        raise UserError(f"--severities {odd_severity[0]:g}: a share that is hidden, from 0 to below 1")
    if draws < 1 or not conditions or not severities:
        raise UserError("give at least one draw (--draws), one condition and one severity")
    return [
        Place(condition, severity, draw)
        for condition in dict.fromkeys(conditions)
        for severity in sorted(set(severities))
        for draw in range(draws if severity else 1)
    ]


def occluded_queries(
    crops: Tensor, split: Split, place: Place, occluders: Occluders, fill: Sequence[float]
) -> Iterator[Occluded]:
    """The queries, uint8 [Q, 3, H, W], with something in front of them, in batches. The draws depend on the place but
    not on its severity, nor on the model: every run meets the same.

    fill: the colour of the condition `mask`, 0..1.
    """
    for start in range(0, len(crops), BATCH):
        images, rows = crops[start : start + BATCH], slice(start, start + BATCH)
        seed = seed_for(place.draw, CONDITIONS.index(place.condition), start)
        generator = torch.Generator().manual_seed(seed)
        if place.condition == "mask":
            yield mask_out(images, place.severity, [round(255 * value) for value in fill], generator)
        elif place.condition == "object":
            yield occlude(images, occluders.objects, place.severity, generator)
        else:
            yield distract(images, split.identities[rows], occluders.others, place.severity, generator)


def study(
    data: ReIDData,
    model: ReIDModel,
    cells: Sequence[Place],
    occluders: Occluders,
    fusions: Sequence[Sequence[float]] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Cell]:
    """Scores a model at every place; the gallery is embedded once.

    fusions: further weights of the parts of the test feature, each a report of its own (`fused`).

    Raises:
        UserError: as `score`; a protocol whose queries are captions; other than three weights.
    """
    clean = score(data, model, progress=progress)
    clean = replace(clean, gallery_features=clean.gallery_features | fused(clean.gallery_features, fusions))
    if clean.feature == "projection":
        raise UserError(f"{data.name} asks with captions: there is no image to hide something of")
    cache = pixel_cache(clean.query, model.image_size, interpolation=model.interpolation)
    crops = torch.from_numpy(np.asarray(cache.pixels))  # uint8 [Q, 3, H, W]
    for place in cells:
        batches = list(occluded_queries(crops, clean.query, place, occluders, model.mean))
        pixels, masks = (torch.cat([getattr(each, name) for each in batches]) for name in ("pixels", "masks"))
        features = features_of(model, pixels)
        features |= fused(features, fusions)
        scored: Scored = replace(clean, query_features=features, reports={}, _health={})
        scored.add_reports(clean.reports[clean.feature].protocol)
        inside, covered = pooling_inside(model, pixels, masks)
        reached = torch.cat([each.severity for each in batches]).mean().item()
        yield Cell(place, scored.reports, reached, inside, covered)


def over_draws(reports: Sequence[Report]) -> Report:
    """The draws of one run at one severity as one report: each query has the mean of its figures, so that runs which
    meet the same draws stay paired, query by query."""
    first, scores = reports[0], [report.per_query for report in reports]
    metrics = {name: float(np.mean([report.metrics[name] for report in reports])) for name in first.metrics}
    hits = {f"rank{k}": np.mean([each["first_rank"] <= k for each in scores], 0) for k in (1, 5, 10)}
    means = {name: np.mean([each[name] for each in scores], 0) for name in ("ap", "inp")}
    return replace(first, metrics=metrics, per_query=first.per_query | means | hits, histogram=None)


def features_of(model: ReIDModel, pixels: Tensor) -> dict[str, Tensor]:
    """The features of uint8 [Q, 3, H, W] by name, [Q, D] each, on the CPU; cameras are unknown, as in `score`."""
    found = extract(model.embed_parts, pixels, device=model.device)
    assert isinstance(found, dict)
    return {name: x.cpu() for name, x in found.items()}


def fused(features: Mapping[str, Tensor], fusions: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """SAGA's parts, each of unit length, times the roots of other weights: [N, D] each, by names such as "2:0.2:0.05".

    Nothing for a model without the part `saga`; raises `UserError` for other than three weights.
    """
    found = {}
    for weights in fusions:
        if len(weights) != len(FUSED) or min(weights) < 0 or not sum(weights):
            raise UserError(f"--fusions: a weight for each of {', '.join(FUSED)}, such as 2,0.2,0.05")
        if FUSED[0] in features:
            parts = [
                weight**0.5 * F.normalize(features[name], dim=1) for name, weight in zip(FUSED, weights, strict=True)
            ]
            found[":".join(f"{weight:g}" for weight in weights)] = F.normalize(torch.cat(parts, dim=1), dim=1)
    return found


# The mechanism ------------------------------------------------------------------------------------------------------


def pooling_inside(model: ReIDModel, pixels: Tensor, masks: Tensor) -> tuple[float | None, float]:
    """The share of the pooling weight on hidden patches, and the share of the patches that are hidden (without such
    weights: of the pixels); means over the queries of which something is hidden.

    Args:
        pixels, masks: uint8 [Q, 3, H, W], bool [Q, H, W].
    """
    hidden_ones = masks.flatten(1).any(1)
    if not hidden_ones.any():
        return None, 0.0
    inside, covered = [], []
    for crops, mask in zip(pixels[hidden_ones].split(BATCH), masks[hidden_ones].split(BATCH), strict=True):
        weights = pooling_weights(model, crops)  # [B, h, w]
        hidden = mask if weights is None else hidden_patches(mask, (weights.shape[1], weights.shape[2]))  # [B, h, w]
        covered.append(hidden.float().mean((1, 2)))
        if weights is not None:
            inside.append((weights * hidden).sum((1, 2)))
    return (torch.cat(inside).mean().item() if inside else None), torch.cat(covered).mean().item()


def hidden_patches(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool [B, H, W] of pixels to bool [B, h, w] of patches: hidden where at least half of a patch is."""
    return F.adaptive_avg_pool2d(masks.float()[:, None], grid)[:, 0] >= COVERED


@torch.no_grad()
def pooling_weights(model: ReIDModel, crops: Tensor) -> Tensor | None:
    """uint8 [B, 3, H, W] to how much each patch counts in the aggregated feature, [B, h, w], each map sums to one.

    None for a model whose aggregator has no such weights: a CLS token has none of its own (`model.attention_maps`
    shows how attention flows into it).
    """
    found = alignment(model, crops)
    return None if found is None else found[0]


@torch.no_grad()
def alignment(model: ReIDModel, crops: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """uint8 [B, 3, H, W] to SAGA's pooling weights [B, h, w] and the anchor of each patch [B, h, w] (None for kinds
    without anchors), on the CPU; None for a model without SAGA."""
    aggregator = model.aggregator
    if not isinstance(aggregator, SagaAggregator):
        return None
    model.eval()
    hooks: Any = tuple(model.hooks.values())
    tokens = model.image(model.normalise(crops), taps=aggregator.taps, hooks=hooks, about={})
    patches = patch_tokens(tokens, aggregator.layer)
    found = aggregator.align(patches, aggregator.beside(tokens, {})["final"])
    maps = found.weights.float().cpu().unflatten(1, tokens.grid)
    anchors = None if found.assignment is None else found.assignment.cpu().unflatten(1, tokens.grid)
    return maps, anchors


def shown(data: ReIDData, model: ReIDModel, place: Place, occluders: Occluders, count: int) -> tuple[Tensor, ...]:
    """The first queries of `count` identities for a picture: clean and occluded uint8 [n, 3, H, W], masks [n, H, W]."""
    query = data.splits["query"]
    _, rows = np.unique(query.identities, return_index=True)
    some = query.select(sorted(rows[:count].tolist()))
    cache = pixel_cache(some, model.image_size, interpolation=model.interpolation)
    crops = torch.from_numpy(np.asarray(cache.pixels))
    found = next(occluded_queries(crops, some, place, occluders, model.mean))
    return crops[:BATCH], found.pixels, found.masks
