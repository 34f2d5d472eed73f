"""Score once more what `score` found, by re-ranked similarities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clipreid.errors import UserError
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.protocols import Predicate, Protocol, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.rerank import all_options, check_metric, get_method, reranked_rows
from clipreid.evaluation.score import Scored


def check_rerank(method: str, options: dict[str, Any], protocol: str | Protocol | Predicate) -> None:
    """Raises UserError for an unknown method or option, one out of range, and protocols that draw their galleries."""
    all_options(method, options)
    rules = get_protocol(protocol)
    if rules.draws:
        raise UserError(
            f"re-ranking looks at the whole gallery, and protocol {rules.name!r} draws {rules.draws} galleries of one "
            "image per identity: it would use images that were not drawn. Choose another protocol"
        )


def rescore(found: Scored, method: str, **options: Any) -> Report:
    """The report of the test feature after re-ranking; its first note says what the method depends on.

    Args:
        found: what `score` returned.
        method, options: as for `rerank`. Errors too.
    """
    metric = found.metric_of(found.feature)
    check_metric(metric, method)
    features = found.query_features[found.feature], found.gallery_features[found.feature]
    rules = found.reports[found.feature].protocol
    check_rerank(method, options, rules)
    cameras = found.query.cameras, found.gallery.cameras
    how = {"query_cameras": cameras[0], "gallery_cameras": cameras[1], "metric": metric, **options}
    rows = reranked_rows(*features, method, **how)
    report = evaluate(None, None, found.query.metadata(), found.gallery.metadata(), rules, similarity=rows)
    note = f"{reranked_name(method, options)} is {get_method(method).note}"
    return replace(report, notes=(note, *found.notes, *report.notes))


def reranked_name(method: str, options: dict[str, Any]) -> str:
    """ "k-reciprocal", or "k-reciprocal(k1=50)" where an option is not the default."""
    defaults = get_method(method).options
    changed = [f"{name}={options[name]}" for name in defaults if options.get(name, defaults[name]) != defaults[name]]
    return f"{method}({','.join(changed)})" if changed else method


def reranked_entry(found: Scored, report: Report, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """What `metrics.json` keeps: the report, the feature, and every setting of the re-ranker."""
    settings = {"method": method} | all_options(method, options)
    return report.to_dict() | {"feature": found.feature, "rerank": settings, "bad": found.bad} | found.test_set()
