"""Protocols: which gallery images are junk (neither right nor wrong, left out of the ranking) for which query.

A protocol is a predicate on the metadata of queries and gallery (see `columns.py`: int64 columns, -1
unknown). What is left of a query's ranking is a match where the identity is the query's, and a mistake
elsewhere. In nearly every protocol, a custom one too, the query's own image (same known "path") is junk
as well, and so are copies of it under its identity (same known "digest").

    def other_clothes(query, gallery):                    # -> bool [q, G], True = junk
        return same("identity", query, gallery) & same("clothes", query, gallery)

    evaluate(..., protocol=other_clothes)

Where the rules come from: `PROTOCOLS`, below. Testing on another data set than the training one (cross-domain)
needs no rule of its own: each data set keeps its protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN, Columns

Predicate = Callable[[Columns, Columns], Tensor]
VIEWS = {"aerial": 0, "ground": 1, "wearable": 2}  # what the column "view" means in aerial-ground data


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol. `junk` does the work; the texts are for reports."""

    name: str
    description: str  # one line, for reports and help
    junk: Predicate  # (query rows, gallery) -> bool [q, G]
    rule: str  # completes "junk = ..."
    reason: str  # completes "all 3 images of identity 7 in the gallery are ..."; {camera} is the query's
    uses: tuple[str, ...] = ()  # optional columns without which the rule is off
    needs: tuple[str, ...] = ()  # columns that must be known, or the protocol is refused
    query_filter: Callable[[Columns], Tensor] | None = None  # query rows -> bool [q]: which are scored; None = all
    filtered: str = ""  # completes "the protocol scores ... only"
    own_counts: bool = False  # the query's own image may be a match
    captions: bool = False  # the queries are the captions of the query images
    draws: int = 0  # single-gallery-shot: mean over so many random galleries (`draws.py`), 0 = the whole gallery
    seed: int = 0  # of the draws


def same(column: str, query: Columns, gallery: Columns) -> Tensor:
    """bool [q, G]: both values are known and equal."""
    ours = query[column]
    never = torch.iinfo(ours.dtype).min  # equal to nothing
    return ours.masked_fill(ours == UNKNOWN, never)[:, None] == gallery[column]


def _market(query: Columns, gallery: Columns) -> Tensor:
    return same("identity", query, gallery) & same("camera", query, gallery)


def _cross_camera(query: Columns, gallery: Columns) -> Tensor:
    return same("camera", query, gallery)


def _nothing(query: Columns, gallery: Columns) -> Tensor:
    q, g = query["identity"], gallery["identity"]
    return torch.zeros(len(q), len(g), dtype=torch.bool, device=q.device)


def _leave_one_out(query: Columns, gallery: Columns) -> Tensor:
    strangers = ~torch.isin(query["path"], gallery["path"])
    if strangers.any():
        raise UserError(
            f"protocol 'leave-one-out': {int(strangers.sum())} query images are not in the gallery by their path. "
            "Every image is compared with all others: give the same images as query and gallery, with paths"
        )
    return _nothing(query, gallery)


def _cloth_changing(query: Columns, gallery: Columns) -> Tensor:
    alike = same("camera", query, gallery) | same("clothes", query, gallery)
    return same("identity", query, gallery) & alike


def _same_clothes(query: Columns, gallery: Columns) -> Tensor:
    ours, theirs = query["clothes"][:, None], gallery["clothes"]
    changed = (ours != theirs) & (ours != UNKNOWN) & (theirs != UNKNOWN)
    return same("identity", query, gallery) & (same("camera", query, gallery) | changed)


def _same_view(query: Columns, gallery: Columns) -> Tensor:
    return same("identity", query, gallery) & same("view", query, gallery)


def _market_rule(name: str, of: str) -> Protocol:
    return Protocol(
        name,
        f"images of the query's identity from the query's own camera do not count{of}",
        _market,
        "same identity and same camera as the query",
        "from camera {camera}",
        ("camera",),
    )


def _direction(ours: str, theirs: str) -> Protocol:
    """Queries of one view against a gallery of one view; the market rule inside a view."""

    def junk(query: Columns, gallery: Columns) -> Tensor:
        return (gallery["view"] != VIEWS[theirs]) | _market(query, gallery)

    return Protocol(
        f"{ours}-to-{theirs}",
        f"{ours} queries, {theirs} gallery; the own camera's images do not count",
        junk,
        f"every gallery image that is not {theirs}; same identity and same camera as the query",
        f"not {theirs}, or from camera {{camera}}",
        ("camera",),
        ("view",),
        query_filter=lambda query: query["view"] == VIEWS[ours],
        filtered=f"queries of view {VIEWS[ours]} ({ours})",
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015, section 5; also MSMT17, Duke,
        # the "ALL" of aerial-ground sets, and the general setting of cloth-changing ones
        _market_rule("market1501", ""),
        Protocol(
            "cross-camera",
            "the gallery of each query is the images of the other cameras",
            _cross_camera,
            "same camera as the query",
            "from camera {camera}",
            ("camera",),
        ),
        Protocol("no-cameras", "every other image counts", _nothing, "the query image itself", "junk"),
        # each image is a query once, all others are its gallery; common in animal re-identification
        Protocol(
            "leave-one-out",
            "each image against all others",
            _leave_one_out,
            "the query image itself",
            "junk",
            needs=("path",),
        ),
        # Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017, section 4.1:
        # 767/700 identities and the market rule
        _market_rule("cuhk03-np", " (new protocol)"),
        # Li et al., "DeepReID", CVPR 2014: single-gallery-shot. Each query is compared with one random image of
        # every identity as the other cameras of the test set saw it. Name cameras by their place in the pair (1, 2)
        Protocol(
            "cuhk03-classic",
            "one random image of each identity from the other cameras, mean of 100 draws",
            _cross_camera,
            "same camera as the query",
            "from camera {camera}",
            needs=("camera",),
            draws=100,
        ),
        # Liu et al., "Deep relative distance learning", CVPR 2016: of each vehicle one random image is the gallery,
        # all others are queries. Query and gallery are the same images here, and the draw parts them
        Protocol(
            "vehicleid",
            "one random image of each vehicle is the gallery, the others are queries; mean of 10 draws",
            _nothing,
            "the query image itself",
            "junk",
            needs=("path",),
            draws=10,
        ),
        # Liu et al., "A deep learning-based approach to progressive vehicle re-identification", ECCV 2016, section 5
        _market_rule("veri", ""),
        # Qian et al., "Long-term cloth-changing person re-identification", ACCV 2020, as Gu et al., CVPR 2022, score
        # LTCC. PRCC (Yang et al., TPAMI 2021; gallery camera A) comes out of the two: its queries of camera B wear
        # the gallery's clothes, those of camera C others
        Protocol(
            "cloth-changing",
            "matches in the query's own clothes or from its own camera do not count",
            _cloth_changing,
            "same identity and same camera or same clothes as the query",
            "from camera {camera} or in clothes {clothes}",
            ("camera",),
            ("clothes",),
        ),
        Protocol(
            "same-clothes",
            "matches in other clothes or from the query's own camera do not count",
            _same_clothes,
            "same identity and same camera or other clothes than the query",
            "from camera {camera} or not in clothes {clothes}",
            ("camera",),
            ("clothes",),
        ),
        # Li et al., "Person search with natural language description", CVPR 2017: queries are captions, every image of
        # the identity is a match, also the one that was described
        Protocol(
            "text-to-image",
            "queries are captions, every image of their identity counts",
            _nothing,
            "none",
            "junk",
            own_counts=True,
            captions=True,
        ),
        # Zhang et al., "View-decoupled transformer", CVPR 2024, section 5 (CARGO, A<->G): views in the place of cameras
        Protocol(
            "aerial-ground",
            "images of the query's identity in the query's own view do not count",
            _same_view,
            "same identity and same view as the query",
            "of view {view}",
            needs=("view",),
        ),
        # the same, A<->A and G<->G; Nguyen et al., "AG-ReID.v2", TIFS 2024: A->C, C->A, A->W, W->A
        _direction("aerial", "ground"),
        _direction("ground", "aerial"),
        _direction("aerial", "aerial"),
        _direction("ground", "ground"),
        _direction("aerial", "wearable"),
        _direction("wearable", "aerial"),
    )
}


def get_protocol(protocol: str | Protocol | Predicate) -> Protocol:
    """A protocol by name, as it is, or made of a function. Raises UserError for unknown names."""
    if isinstance(protocol, Protocol):
        return protocol
    if callable(protocol):
        name = getattr(protocol, "__name__", "custom")
        return Protocol(name, "a custom protocol", protocol, f"what {name}(query, gallery) says", f"junk for {name}")
    if protocol not in PROTOCOLS:
        valid = ", ".join(PROTOCOLS)
        raise UserError(f"unknown protocol {protocol!r}; valid are {valid}, or a function of (query, gallery).")
    return PROTOCOLS[protocol]


def find_junk(protocol: Protocol, query: Columns, gallery: Columns) -> tuple[Tensor, Tensor]:
    """(junk by the protocol's rule, the query's own image and its copies), each bool [q, G].

    For a query that the protocol does not score, everything is junk. Raises UserError when a custom predicate
    returns something else than bool [q, G].
    """
    junk = protocol.junk(query, gallery)
    shape = (len(query["identity"]), len(gallery["identity"]))
    if not isinstance(junk, Tensor) or junk.dtype != torch.bool or tuple(junk.shape) != shape:
        got = f"{junk.dtype} {list(junk.shape)}" if isinstance(junk, Tensor) else type(junk).__name__
        raise UserError(f"protocol {protocol.name!r} returned {got}; it must return a bool tensor {list(shape)}.")
    if protocol.query_filter is not None:
        junk = junk | ~protocol.query_filter(query)[:, None]
    return junk, find_own(protocol, query, gallery)


def find_own(protocol: Protocol, query: Columns, gallery: Columns) -> Tensor:
    """bool [q, G]: the query's own image (same known path), and copies of it (same known digest) of its identity."""
    own = torch.zeros(len(query["identity"]), len(gallery["identity"]), dtype=torch.bool, device=query["path"].device)
    for column in () if protocol.own_counts else ("path", "digest"):
        known = query[column][query[column] != UNKNOWN]
        if len(known) and torch.isin(known, gallery[column]).any():  # mostly not so, which is cheap to see
            alike = same(column, query, gallery)
            own |= alike if column == "path" else alike & same("identity", query, gallery)
    return own
