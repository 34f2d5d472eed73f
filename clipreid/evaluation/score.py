"""Score a model on a data set: decode, extract, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipreid.data import ReIDData, Split, pixel_cache, raise_known
from clipreid.errors import UserError
from clipreid.evaluation.extract import extract
from clipreid.evaluation.gaps import check_captions
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.protocols import get_protocol
from clipreid.evaluation.report import Report

ZERO_SHOT = ("concat", "projection")  # the better of the two counts as zero-shot


@dataclass(frozen=True)
class Scored:
    """One model on one data set: a report and the features for each kind of feature (`concat`, `final`, ...)."""

    reports: dict[str, Report]
    query_features: dict[str, Tensor]  # [Q, D] each, float32 on the CPU
    gallery_features: dict[str, Tensor]  # [G, D]
    query: Split
    gallery: Split
    bad: int  # images left out because they could not be decoded

    @property
    def feature(self) -> str:
        """The test feature: `concat`, or `projection` where the queries are captions, for text has no other."""
        return "concat" if "concat" in self.reports else "projection"

    def best(self, usable: Sequence[str]) -> str:
        """Which of these features has the highest mAP; the first one among equals."""
        return max((u for u in usable if u in self.reports), key=lambda part: self.reports[part].metrics["mAP"])

    def entry(self, feature: str | None = None) -> dict[str, Any]:
        """What `metrics.json` keeps: the report of `feature`, its name, its CMC, and the figures of every part."""
        feature = feature or self.feature
        report, parts = self.reports[feature], {part: report.metrics for part, report in self.reports.items()}
        curve = {} if report.std else {"cmc": [round(float(share), 4) for share in report.cmc()[1]]}  # ranks 1..20
        return report.to_dict() | {"feature": feature, "parts": parts, "bad": self.bad} | curve

    def similarity(self, feature: str | None = None) -> Tensor:
        """[Q, G] dot products: cosines, where the features have unit length."""
        feature = feature or self.feature
        return self.query_features[feature] @ self.gallery_features[feature].T


def score(
    data: ReIDData,
    embed_parts: Callable[..., dict[str, Tensor]],
    size: tuple[int, int],
    interpolation: str,
    *,
    accelerator: Any = None,
    device: torch.device | str | None = None,
    skip_bad: bool = False,
    protocol: str | None = None,
    sides: tuple[int, int] | None = None,
    embed_text: Callable[[list[str]], Tensor] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scored:
    """Evaluates every part that `embed_parts` returns on the query and gallery of `data`.

    Args:
        data: with the splits query and gallery.
        embed_parts: uint8 crops [B, 3, H, W] -> {name: [B, D]}, in eval mode.
        size, interpolation: of the crops, H and W in pixels.
        accelerator: shares the images among its processes; every process gets the whole result.
        skip_bad: leave out images that cannot be decoded.
        protocol: instead of the data set's own.
        sides: call embed_parts(crops, cameras, views), with the numbers [B] of the data, the known ones raised by
            these two (`Mixture.offsets`); -1 = unknown.
        embed_text: n sentences -> [n, E], for a protocol whose queries are captions (text-to-image): each caption of
            the query split is a query, compared with the gallery's `projection` alone.
        progress: called as progress("query" or "gallery", images done, N) after each batch.

    Raises:
        UserError: no query or gallery; undecodable images; queries without the caption that the protocol needs;
            no query with a valid match.
    """
    missing = [name for name in ("query", "gallery") if name not in data.splits]
    if missing:
        raise UserError(f"{data.name} has no {' and no '.join(missing)}: there is nothing to test on")
    rules = get_protocol(protocol or data.protocol)
    features: dict[str, dict[str, Tensor]] = {}
    splits: dict[str, Split] = {}
    bad = 0
    for name in ("query", "gallery"):
        split = data.splits[name]
        if name == "query" and rules.captions:
            splits[name], captions = _captions(split, data.name)
            if embed_text is None:
                raise UserError(f"{data.name}: protocol {rules.name!r} needs a model with a text tower")
            features[name] = {"projection": embed_text(captions)}
            continue
        if name == "gallery" and not rules.captions and _same_images(split, data.splits["query"]):  # embedded once
            features[name], splits[name] = features["query"], splits["query"]
            continue
        cache = pixel_cache(split, size, interpolation=interpolation, skip_bad=skip_bad)
        of_split = partial(progress, name) if progress else None
        split = split.select(cache.kept)
        numbers = side_numbers(split, sides)
        found = extract(
            embed_parts, cache.pixels, sides=numbers, accelerator=accelerator, device=device, progress=of_split
        )
        assert isinstance(found, dict)
        features[name] = {part: x.cpu() for part, x in found.items()}
        splits[name], bad = split, bad + len(cache.bad)
    tables = splits["query"].metadata(), splits["gallery"].metadata()
    reports = {
        part: evaluate(features["query"][part], features["gallery"][part], *tables, rules) for part in features["query"]
    }
    return Scored(reports, features["query"], features["gallery"], splits["query"], splits["gallery"], bad)


def side_numbers(split: Split, sides: tuple[int, int] | None) -> list[Tensor]:
    """Cameras [N] and views [N], the known ones raised; none at all for a model that does not look at them."""
    if sides is None:
        return []
    return [torch.from_numpy(raise_known(x, by)) for x, by in zip((split.cameras, split.views), sides, strict=True)]


def _captions(split: Split, name: str) -> tuple[Split, list[str]]:
    """The queries that captions make: a row of the split for each caption, and the captions."""
    check_captions(split.captions, name)
    rows = [(row, words) for row, text in enumerate(split.captions.tolist()) for words in text.split("\n")]
    return split.select([row for row, _ in rows]), [words for _, words in rows]


def _same_images(a: Split, b: Split) -> bool:
    return len(a) == len(b) and bool((a.paths == b.paths).all()) and "" not in a.paths
