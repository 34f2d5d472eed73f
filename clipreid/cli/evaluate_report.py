"""`clipreid evaluate --report`; the work is in `clipreid.reports.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import clipreid

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from clipreid.cli.scoring import Asked
    from clipreid.evaluation.protocols import Protocol
    from clipreid.evaluation.score import Scored
    from clipreid.model import ReIDModel
    from clipreid.reports.html import Section

RANKED_LISTS = "ranked_lists.png"
POOLED = 4  # queries whose patches are shown


def report_section(
    name: str,
    rules: Protocol,
    model: ReIDModel,
    found: Scored,
    before: Scored | None,
    offsets: tuple[int, int] | None,
    label: str,
) -> Section:
    """What the page says of one data set; `before` is zero-shot, `offsets` what `score` got, `label` the
    model's name.

    Where the queries are captions there are no query images to show: figures only.
    """
    from clipreid.evaluation.score import ZERO_SHOT, about_images
    from clipreid.reports.html import Section, section_of

    def look(rows: list[int]) -> np.ndarray | None:
        split = found.query.select(rows)
        crops = model.crops([split.image(i) for i in range(len(split))])
        maps = model.attention_maps(crops, about_images(split, offsets, model.reads))
        return None if maps is None else maps.numpy()

    report = found.reports[found.feature]
    others = {ZERO_SHOT: before.reports[before.best()]} if before else {}
    if rules.captions:
        return Section(name, report, None, None, label, others)
    how: dict[str, Any] = {"protocol": rules, "look": look, "label": label, "others": others, **found.compared()}
    if (state := found.health()) is not None:
        how["facts"] = state.facts()
    how["further"] = pooling(model, found)
    return section_of(name, report, found.query, found.gallery, **how)


def pooling(model: ReIDModel, found: Scored) -> dict[str, tuple[Figure, str]]:
    """What each patch of a few queries counts, for a model that weighs patches; nothing for others."""
    import numpy as np

    from clipreid.evaluation.occlusion import alignment
    from clipreid.reports.occlusion import draw_occluded

    _, first = np.unique(found.query.identities, return_index=True)
    crops = model.crops([found.query.image(int(row)) for row in sorted(first[:POOLED])])
    if (aligned := alignment(model, crops)) is None:
        return {}
    caption = (
        "<b>What each patch counts</b> in the feature <code>saga</code> (1: as much as the others), and the anchor "
        "that it attends to most, each in its colour."
    )
    return {"patches": (draw_occluded(crops, None, None, *aligned), caption)}


def about_model(model: ReIDModel) -> str:
    """Its backbone, and how it was trained."""
    (backbone,) = model.source
    return f"{backbone.name}, " + (f"method {model.method}, tuning {model.tuning}" if model.method else "untrained")


def write_page(folder: Path, sections: list[Section], asked: Asked, model: ReIDModel) -> None:
    """Writes the page and its figures."""
    from clipreid.names import with_folder
    from clipreid.reports.html import write_report

    about = f"{about_model(model)}, clipreid {clipreid.__version__}"
    title = asked.name if asked.folder is None else with_folder(str(Path(asked.name).resolve()))
    write_report(folder, sections, title, about)


def draw_lists(file: Path, before: Scored | None, after: Scored, queries: int, label: str) -> None:
    """Draws the ranked lists, those of zero-shot first where there is one."""
    from clipreid.evaluation.score import ZERO_SHOT
    from clipreid.reports import ranked_lists

    similarities = {ZERO_SHOT: before.similarity(before.best())} if before else {}
    similarities[label] = after.similarity()
    rules = after.reports[after.feature].protocol
    ranked_lists(file, after.query, after.gallery, similarities, rules, n_queries=queries)
