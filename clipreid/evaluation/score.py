"""Score a model on a data set: decode, extract, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clipreid.data import PixelCache, ReIDData, Split, pixel_cache, raise_known
from clipreid.data.attributes import ORACLE, attribute_codes
from clipreid.data.fingerprint import pair_fingerprint
from clipreid.data.opening import Opened, check_images, opened
from clipreid.errors import UserError
from clipreid.evaluation.extract import extract
from clipreid.evaluation.gaps import caption_queries
from clipreid.evaluation.health import Health, measure_health
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.protocols import Protocol, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.similarity import chunk_size, full_precision
from clipreid.metric import Cosine, Metric

if TYPE_CHECKING:
    from clipreid.model import ReIDModel

ZERO_SHOT = "zero-shot"  # in metrics.json: the backbone before any training
TEST = "concat"  # the test feature
OF_ZERO_SHOT = (TEST, "projection")  # the better of the two counts as zero-shot


@dataclass(frozen=True)
class Scored:
    """One model on one data set: a report and the features for each kind of feature (`concat`, `final`, ...)."""

    reports: dict[str, Report]
    query_features: dict[str, Tensor]  # [Q, D] each, float32 on the CPU
    gallery_features: dict[str, Tensor]  # [G, D]
    query: Split
    gallery: Split
    bad: int  # images left out because they could not be decoded
    metric: Metric = field(default_factory=Cosine)  # of the test feature
    pattern: str = ""  # that read the names of the images
    notes: tuple[str, ...] = ()  # about the images, and how the features were changed; of every report
    chosen: str | None = None  # the feature that counts as the test feature, where that is not `concat`
    count_copies: bool = False  # copies of a query may be found
    _health: dict[str, Health | None] = field(default_factory=dict, repr=False)

    @property
    def feature(self) -> str:
        """The test feature: `concat`, or `projection` where the queries are captions, for text has no other; of an
        untrained backbone the better of the two."""
        if self.chosen is not None:
            return self.chosen
        return TEST if TEST in self.reports or not self.reports else "projection"

    def best(self, usable: Sequence[str] = OF_ZERO_SHOT) -> str:
        """Which of these features has the highest mAP; the first one among equals."""
        return max((u for u in usable if u in self.reports), key=lambda part: self.reports[part].metrics["mAP"])

    def as_zero_shot(self) -> Scored:
        """The same of an untrained backbone: `best` counts as its test feature."""
        return replace(self, chosen=self.best())

    def add_reports(self, protocol: str | Protocol) -> None:
        """Evaluates every kind of feature."""
        tables = self.query.metadata(), self.gallery.metadata()
        for part in self.query_features:
            how = {"protocol": protocol, "count_copies": self.count_copies, **self.compared(part)}
            found = evaluate(query=tables[0], gallery=tables[1], **how)
            self.reports[part] = replace(found, notes=(*self.notes, *found.notes))

    def compared(self, feature: str | None = None) -> dict[str, Any]:
        """What `evaluate`, `open_set`, `camera_pairs` and the reports compare, by the names of their arguments: the
        features, where they are compared by cosine; else the similarities [Q, G] of the model's metric."""
        feature = feature or self.feature
        query, gallery = self.query_features[feature], self.gallery_features[feature]
        if self.metric_of(feature).cosine:
            return {"query_features": query, "gallery_features": gallery}
        return {"similarity": self._by_metric(query, gallery)}

    def metric_of(self, feature: str) -> Metric:
        """The model's metric for its test feature, the cosine for every other one."""
        return self.metric if feature == TEST else Cosine()

    @torch.no_grad()
    def _by_metric(self, query: Tensor, gallery: Tensor) -> Tensor:
        place = next((p.device for p in self.metric.parameters()), query.device)
        rows = query.split(chunk_size(None, (len(query), len(gallery))))
        with full_precision(place):
            return torch.cat([self.metric(part.to(place), gallery.to(place)).float().cpu() for part in rows])

    def entry(self, feature: str | None = None) -> dict[str, Any]:
        """What `metrics.json` keeps: the report of `feature`, its name, its CMC, and the figures of every part."""
        feature = feature or self.feature
        report, parts = self.reports[feature], {part: report.metrics for part, report in self.reports.items()}
        health = self.health(feature)
        curve = {} if report.std else {"cmc": [round(float(share), 4) for share in report.cmc()[1]]}  # ranks 1..20
        spread = {} if health is None else {"health": health.to_dict()}
        return (
            report.to_dict() | {"feature": feature, "parts": parts, "bad": self.bad} | self.test_set() | curve | spread
        )

    def test_set(self) -> dict[str, str]:
        """What `metrics.json` keeps of the images that were scored, so that only like figures are compared."""
        pattern = {"pattern": self.pattern} if self.pattern else {}
        copies = "counted" if self.count_copies else "junk"
        return {"fingerprint": pair_fingerprint(self.query, self.gallery), "copies": copies, **pattern}

    def health(self, feature: str | None = None) -> Health | None:
        """How the features are spread, and what storing them in few bits costs; computed once for each feature.

        None where queries are captions, galleries are drawn, the metric is not the cosine, or all images are of one
        identity.
        """
        feature = feature or self.feature
        if feature not in self._health:
            self._health[feature] = self._measure_health(feature)
        return self._health[feature]

    def _measure_health(self, feature: str) -> Health | None:
        rules, identities = get_protocol(self.reports[feature].protocol), self.gallery.identities
        if rules.captions or rules.draws or not self.metric.cosine or len(set(identities)) < 2:
            return None
        tables = self.query.metadata(), self.gallery.metadata()

        def mean_ap(query: Tensor, gallery: Tensor) -> float:
            return evaluate(query, gallery, tables[0], tables[1], protocol=rules).metrics["mAP"]

        return measure_health(self.query_features[feature], self.gallery_features[feature], identities, mean_ap)

    def similarity(self, feature: str | None = None) -> Tensor:
        """[Q, G]: cosines, or what the model's metric says of its test feature."""
        found = self.compared(feature)
        return found["similarity"] if "similarity" in found else found["query_features"] @ found["gallery_features"].T


def score(
    data: ReIDData,
    model: ReIDModel,
    *,
    accelerator: Any = None,
    skip_bad: bool = False,
    protocol: str | None = None,
    offsets: tuple[int, int] | None = None,
    count_copies: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scored:
    """Evaluates a model on the query and gallery of `data`: its test feature by its metric, the parts by their cosine.

    Args:
        data: with the splits query and gallery.
        model: on the device where the images are to be embedded.
        accelerator: shares the images among its processes; every process gets the whole result.
        skip_bad: leave out images that cannot be decoded.
        protocol: instead of the data set's own. Where its queries are captions (text-to-image), each caption of the
            query split is a query, compared with the gallery's `projection` alone; what has no caption, and what of
            long ones was not read, is in the notes of the report.
        offsets: what the known cameras and views of the data are raised by (`Mixture.offsets`), for a model that has
            learned them; None: they are unknown to it.
        count_copies: let queries find their copies in the gallery, which are junk otherwise (`evaluate`).
        progress: called as progress("query" or "gallery", images done, N) after each batch.

    Raises:
        UserError: no query or gallery; undecodable images; too many blank ones, or under two identities; no caption at
            all where the queries are captions, or a model without a text tower; no query with a valid match.
    """
    check_test(data)
    rules = get_protocol(protocol or data.protocol)
    images = _open_images(data, model, rules.captions, skip_bad)
    notes = [*oracle_notes(model, [part.split for part, _ in images.values()])]
    notes += check_images([part for part, _ in images.values()])
    features: dict[str, dict[str, Tensor]] = {}
    splits: dict[str, Split] = {}
    if rules.captions:
        asked, said = caption_queries(data.splits["query"].captions.tolist(), data.name)
        splits["query"] = data.splits["query"].select([row for row, _ in asked])
        features["query"] = {"projection": model.embed_text([sentence for _, sentence in asked], say=notes.append)}
        notes += said
    for name, (part, cache) in images.items():
        tell = partial(progress, name) if progress else None
        features[name] = embed_decoded(part.split, cache, model, offsets, accelerator, tell)
        unlike = np.full(len(part.split), -1)
        splits[name] = part.split.with_digests(unlike) if count_copies else part.split
    features.setdefault("gallery", features["query"])  # the same images are embedded once
    splits.setdefault("gallery", splits["query"])
    if rules.captions and "projection" not in features["gallery"]:
        raise UserError(
            f"{data.name}: captions are compared with the projection of images, which is no part of this model's test "
            "feature: score images against images with --protocol market1501"
        )
    bad = sum(len(cache.bad) for _, cache in images.values())
    sides = features["query"], features["gallery"], splits["query"], splits["gallery"]
    scored = Scored({}, *sides, bad, model.metric, data.pattern, tuple(notes), count_copies=count_copies)
    scored.add_reports(rules)
    return scored


def check_test(data: ReIDData) -> None:
    """Raises `UserError` where the data have no query or no gallery."""
    if missing := [name for name in ("query", "gallery") if name not in data.splits]:
        raise UserError(f"{data.name} has no {' and no '.join(missing)}: there is nothing to test on")


def _open_images(
    data: ReIDData, model: ReIDModel, captions: bool, skip_bad: bool
) -> dict[str, tuple[Opened, PixelCache]]:
    """The images of query and gallery and their pixels; of the gallery alone where the queries are captions, of the
    query alone where both are the same images."""
    query, gallery = data.splits["query"], data.splits["gallery"]
    splits = {"gallery": gallery} if captions else {"query": query} if _same_images(gallery, query) else None
    found = {}
    for name, split in (splits or {"query": query, "gallery": gallery}).items():
        cache = pixel_cache(split, model.image_size, interpolation=model.interpolation, skip_bad=skip_bad)
        found[name] = opened(data.name, "test", [split], [cache])[0], cache
    return found


def embed_decoded(
    kept: Split,
    cache: PixelCache,
    model: ReIDModel,
    offsets: tuple[int, int] | None = None,
    accelerator: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The features of decoded images by name, [N, D] each, on the CPU; arguments as for `score`."""
    about = about_images(kept, offsets, model.reads)
    how = {"about": about, "device": model.device, "accelerator": accelerator, "progress": progress}
    found = extract(model.embed_parts, cache.pixels, **how)
    assert isinstance(found, dict)
    return {part: x.cpu() for part, x in found.items()}


def about_images(split: Split, offsets: tuple[int, int] | None, reads: Sequence[str]) -> dict[str, Tensor]:
    """Of `reads` what is known of the images: "cameras" [N] and "views" [N], the known ones raised (none without
    offsets, for then they mean nothing to the model), and "attributes" [N, A, 2]."""
    about = {}
    if offsets is not None and {"cameras", "views"} & {*reads}:
        numbers = {"cameras": (split.cameras, offsets[0]), "views": (split.views, offsets[1])}
        about = {name: torch.from_numpy(raise_known(x, by)) for name, (x, by) in numbers.items()}
    if "attributes" in reads:
        about["attributes"] = attribute_codes(split.attributes)
    return about


def oracle_notes(model: ReIDModel, splits: Sequence[Split]) -> list[str]:
    """That a model was told attributes, and of how many images none was known; nothing for other models."""
    if "attributes" not in model.reads:
        return []
    known = [bool(each) for split in splits for each in split.attributes]
    return [ORACLE, f"of {known.count(False):,d} of {len(known):,d} images no attribute is known: they had no expert"]


def _same_images(a: Split, b: Split) -> bool:
    return len(a) == len(b) and bool((a.paths == b.paths).all()) and "" not in a.paths
