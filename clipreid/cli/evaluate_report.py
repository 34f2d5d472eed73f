"""`clipreid evaluate --report`; the work is in `clipreid.reports.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import clipreid

if TYPE_CHECKING:
    import numpy as np

    from clipreid.evaluation.protocols import Protocol
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel
    from clipreid.reports.html import Section

RANKED_LISTS = "ranked_lists.png"


def report_section(
    name: str, rules: Protocol, model: ReIDModel, found: Scored, before: Scored | None, sides: tuple[int, int] | None
) -> Section:
    """The part of the page for one data set; `before` is zero-shot, `sides` what `score` got.

    Where the queries are captions there are no query images to show: figures only.
    """
    from clipreid.evaluation.score import ZERO_SHOT, side_numbers
    from clipreid.reports.html import Section, section_of

    def look(rows: list[int]) -> np.ndarray | None:
        split = found.query.select(rows)
        maps = model.look(model.crops([split.image(i) for i in range(len(split))]), *side_numbers(split, sides))
        return None if maps is None else maps.numpy()

    report, feature = found.reports[found.feature], found.feature
    others = {"zero-shot": before.reports[before.best(ZERO_SHOT)]} if before else {}
    if rules.captions:
        return Section(name, report, None, None, "stage 2", others)
    features = found.query_features[feature], found.gallery_features[feature]
    how: dict[str, Any] = {"protocol": rules, "look": look, "label": "stage 2", "others": others}
    return section_of(name, report, found.query, found.gallery, *features, **how)


def write_page(folder: Path, sections: list[Section], run: Path, model: ReIDModel) -> None:
    """Writes the page and its figures."""
    from clipreid.reports.html import write_report

    (backbone,) = model.source
    about = f"{backbone.name}, tuning {model.config.tuning}, clipreid {clipreid.__version__}"
    write_report(folder, sections, run.resolve().name, about)


def draw_lists(file: Path, before: Scored | None, after: Scored, queries: int) -> None:
    """Draws the ranked lists, those of zero-shot first where there is one."""
    from clipreid.evaluation.score import ZERO_SHOT
    from clipreid.reports import ranked_lists

    similarities = {"zero-shot": before.similarity(before.best(ZERO_SHOT))} if before else {}
    similarities["stage 2"] = after.similarity()
    rules = after.reports[after.feature].protocol
    ranked_lists(file, after.query, after.gallery, similarities, rules, n_queries=queries)
