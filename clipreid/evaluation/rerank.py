"""Re-ranking: better similarities from the structure of the test set itself, without labels.

Every method here is *transductive*: what it says about one query and one gallery image depends on the other test
images. So its figures are to be compared with those of re-rankers only, and a gallery that grows changes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.kreciprocal import check_k_reciprocal, k_reciprocal, k_reciprocal_by
from clipreid.evaluation.kwf import alpha_expansion, check_expansion, check_kwf, kwf, kwf_by
from clipreid.evaluation.neighbours import by_metric
from clipreid.evaluation.similarity import Matrix, as_features, unit_rows
from clipreid.metric import Metric, needs_cosine

_CAMERAS = ("query_cameras", "gallery_cameras")


@dataclass(frozen=True)
class Method:
    """A way to re-rank: `rows` yields similarities [c, G]; `note` belongs beside its figures."""

    rows: Callable[..., Iterator[Tensor]]
    check: Callable[..., None]  # raises UserError for options out of range
    note: str
    by: Callable[..., Iterator[Tensor]] | None = None  # the same by another metric than the cosine, where it can

    @property
    def options(self) -> dict[str, Any]:
        """What can be set, and its value when it is not."""
        parameters = inspect.signature(self.rows).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


METHODS = {
    "k-reciprocal": Method(
        k_reciprocal,
        check_k_reciprocal,
        "transductive: each result depends on the whole gallery and on all other queries, without labels",
        k_reciprocal_by,
    ),
    "kwf": Method(
        kwf,
        check_kwf,
        "transductive: each result depends on the whole gallery and its cameras, not on other queries or labels",
        kwf_by,
    ),
    "aqe": Method(
        alpha_expansion,
        check_expansion,
        "transductive: each result depends on the whole gallery, not on other queries or labels",
    ),
}


def get_method(name: str) -> Method:
    """A method by name. Raises UserError for unknown names."""
    if name not in METHODS:
        raise UserError(f"unknown re-ranking method {name!r}; valid are {', '.join(METHODS)}")
    return METHODS[name]


def check_metric(metric: Metric, method: str, what: str | None = None) -> None:
    """Raises UserError, naming `what` is asked for, where a method cannot re-rank by a metric: by another one than the
    cosine it needs similarities from -1 to 1, and "aqe" can only use the cosine, for it adds features up."""
    if not metric.bounded or get_method(method).by is None:
        needs_cosine(metric, what or f"re-ranking by {method}")


def all_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Every option of a method, those that are not given at their defaults.

    Raises:
        UserError: an unknown method, an option that it does not have, or a value out of range.
    """
    defaults = get_method(method).options
    _check_names(method, options, defaults)
    METHODS[method].check(**(defaults | options))
    return defaults | options


def _check_names(method: str, names: Iterable[str], valid: Iterable[str]) -> None:
    for name in names:
        if name not in valid:
            raise UserError(f"{method} has no option {name!r}; it has {', '.join(valid)}")


def rerank(
    query_features: Matrix,
    gallery_features: Matrix,
    method: str = "k-reciprocal",
    *,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    metric: Metric | None = None,
    **options: Any,
) -> Tensor:
    """Re-ranked similarities [Q, G], float32 on the features' device, larger is closer: for `evaluate(similarity=...)`.

    All methods are transductive, see `METHODS`, and compare features by cosine, unless `metric` says how:

    - "k-reciprocal" (`k_reciprocal`; k1=20, k2=6, lambda_value=0.3): depends on gallery and all queries.
    - "kwf" (`kwf`; candidates=100, neighbours=6, weighting="inverse-distance", epsilon=0.1): depends on the gallery.
    - "aqe" (`alpha_expansion`; neighbours=5, alpha=3.0): depends on the gallery.

    Args:
        query_features, gallery_features: [Q, D] and [G, D].
        method: a name in `METHODS`.
        query_cameras, gallery_cameras: [Q] and [G] numbers, -1 unknown; only "kwf" looks at them. Without them, no
            camera is the query's.
        metric: `model.metric`, where that is not the cosine. "k-reciprocal" and "kwf" work by one whose similarities
            lie between -1 and 1 (`Metric.bounded`).
        options: of the method, by name.

    Raises:
        UserError: an unknown method or option, one out of range, shapes that disagree, non-finite features, a metric
            that the method cannot use.
    """
    rows = reranked_rows(
        query_features,
        gallery_features,
        method,
        query_cameras=query_cameras,
        gallery_cameras=gallery_cameras,
        metric=metric,
        **options,
    )
    q = as_features(query_features, "query_features")
    out, start = torch.empty(len(q), len(gallery_features), device=q.device), 0
    for block in rows:
        out[start : start + len(block)] = block
        start += len(block)
    return out


def reranked_rows(
    query_features: Matrix,
    gallery_features: Matrix,
    method: str = "k-reciprocal",
    *,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    metric: Metric | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """`rerank` in blocks of queries [c, G], in order, where [Q, G] is too large to hold; `evaluate` takes this too.

    Arguments and errors are those of `rerank`; errors are raised by the call, not by the first block.
    """
    options, chosen = all_options(method, options), METHODS[method]
    q, g = as_features(query_features, "query_features"), as_features(gallery_features, "gallery_features")
    if q.shape[1] != g.shape[1] or not len(q) or not len(g):
        raise UserError(
            f"query_features has shape {list(q.shape)} and gallery_features {list(g.shape)}; [Q, D] and [G, D] with "
            "the same D and at least one row are needed"
        )
    given = (query_cameras, len(q)), (gallery_cameras, len(g))
    cameras = {name: _cameras(*of, name, q.device) for name, of in zip(_CAMERAS, given, strict=True)}
    wanted = {name: cameras[name] for name in _CAMERAS if name in inspect.signature(chosen.rows).parameters}
    units = unit_rows(q.float(), "query_features"), unit_rows(g.to(q.device).float(), "gallery_features")
    if metric is not None and not metric.cosine:
        check_metric(metric, method)
        assert chosen.by is not None
        return chosen.by(by_metric(metric), q.float(), g.to(q.device).float(), **wanted, **options)
    return chosen.rows(units[0][: len(q)], units[1][: len(g)], **wanted, **options)


def _cameras(cameras: Any, n: int, name: str, device: torch.device) -> Tensor:
    if cameras is None:
        return torch.full((n,), -1, device=device)
    values = torch.as_tensor(cameras if isinstance(cameras, Tensor) else np.asarray(cameras), device=device)
    if values.shape != (n,) or values.is_floating_point():
        raise UserError(f"{name} is {values.dtype} {list(values.shape)}; whole numbers [{n}] are needed, -1 = unknown")
    return values.long()


def parse_options(method: str, text: str | None) -> dict[str, Any]:
    """ "k1=50,k2=15" -> {"k1": 50, "k2": 15}, of the types that the method's options have.

    Raises:
        UserError: an unknown method or option, or a value that is not of its type or out of range.
    """
    defaults, found = get_method(method).options, {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        _check_names(method, [name], defaults)
        kind = type(defaults[name])
        try:
            found[name] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{method}: {name} is {value!r}; {what} is needed, as in {name}={defaults[name]}") from None
    all_options(method, found)
    return found
