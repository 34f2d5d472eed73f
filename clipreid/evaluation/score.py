"""Score a model on a data set: decode, extract, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipreid.data import ReIDData, Split, pixel_cache
from clipreid.errors import UserError
from clipreid.evaluation.extract import extract
from clipreid.evaluation.metrics import evaluate
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
    bad: int  # pictures left out because they could not be decoded

    def best(self, usable: Sequence[str]) -> str:
        """Which of these features has the highest mAP; the first one among equals."""
        return max(usable, key=lambda part: self.reports[part].metrics["mAP"])

    def entry(self, feature: str = "concat") -> dict[str, Any]:
        """What `metrics.json` keeps: the report of `feature`, its name, and the figures of every part."""
        parts = {part: report.metrics for part, report in self.reports.items()}
        return self.reports[feature].to_dict() | {"feature": feature, "parts": parts, "bad": self.bad}

    def similarity(self, feature: str = "concat") -> Tensor:
        """[Q, G] dot products: cosines, where the features have unit length."""
        return self.query_features[feature] @ self.gallery_features[feature].T


def score(
    data: ReIDData,
    embed_parts: Callable[[Tensor], dict[str, Tensor]],
    size: tuple[int, int],
    interpolation: str,
    *,
    accelerator: Any = None,
    device: torch.device | str | None = None,
    skip_bad: bool = False,
    protocol: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scored:
    """Evaluates every part that `embed_parts` returns on the query and gallery of `data`.

    Args:
        data: with the splits query and gallery.
        embed_parts: uint8 crops [B, 3, H, W] -> {name: [B, D]}, in eval mode.
        size, interpolation: of the crops, H and W in pixels.
        accelerator: shares the pictures among its processes; every process gets the whole result.
        skip_bad: leave out pictures that cannot be decoded.
        protocol: instead of the data set's own.
        progress: called as progress("query" or "gallery", pictures done, N) after each batch.

    Raises:
        UserError: no query or gallery; undecodable pictures; no query with a valid match.
    """
    missing = [name for name in ("query", "gallery") if name not in data.splits]
    if missing:
        raise UserError(f"{data.name} has no {' and no '.join(missing)}: there is nothing to test on")
    features: dict[str, dict[str, Tensor]] = {}
    splits: dict[str, Split] = {}
    bad = 0
    for name in ("query", "gallery"):
        split = data.splits[name]
        if name == "gallery" and _same_pictures(split, data.splits["query"]):  # a test folder: embedded once
            features[name], splits[name] = features["query"], splits["query"]
            continue
        cache = pixel_cache(split, size, interpolation=interpolation, skip_bad=skip_bad)
        told = partial(progress, name) if progress else None
        found = extract(embed_parts, cache.pixels, accelerator=accelerator, device=device, progress=told)
        assert isinstance(found, dict)
        features[name] = {part: x.cpu() for part, x in found.items()}
        splits[name], bad = split.select(cache.kept), bad + len(cache.bad)
    reports = {
        part: evaluate(features["query"][part], features["gallery"][part], splits["query"].metadata(),
                       splits["gallery"].metadata(), protocol or data.protocol)
        for part in features["query"]
    }  # fmt: skip
    return Scored(reports, features["query"], features["gallery"], splits["query"], splits["gallery"], bad)


def _same_pictures(a: Split, b: Split) -> bool:
    return len(a) == len(b) and bool((a.paths == b.paths).all()) and "" not in a.paths
