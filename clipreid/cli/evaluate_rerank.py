"""`clipreid evaluate --rerank`; the work is in `clipreid.evaluation.rescore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.evaluation.score import Scored


def check_flags(method: str | None, options: str | None, protocols: Sequence[str]) -> dict[str, Any]:
    """The options as numbers. Raises UserError before anything is scored."""
    if method is None:
        if options is not None:
            raise UserError("--rerank-options are those of --rerank: name the method, such as --rerank k-reciprocal")
        return {}
    from clipreid.evaluation.rerank import parse_options
    from clipreid.evaluation.rescore import check_rerank

    found = parse_options(method, options)
    for protocol in protocols:
        check_rerank(method, found, protocol)
    return found


def score_reranked(
    found: Scored, stage: str, data: str, method: str, options: dict[str, Any]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Scores and prints the figures with their note; returns the model name and the entries for `add_metrics`."""
    from clipreid.evaluation import format_table
    from clipreid.evaluation.rescore import reranked_entry, reranked_name, rescore

    name, report = f"{stage}+{reranked_name(method, options)}", rescore(found, method, **options)
    print(f"{format_table([{'re-ranked': name, **report.metrics}])}\n\n{report.explain()}\n", flush=True)
    return name, {data: reranked_entry(found, report, method, options)}
