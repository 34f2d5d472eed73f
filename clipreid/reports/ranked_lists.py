"""Ranked lists as an image: the first results of each model for some queries, right or wrong by colour and mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipreid.disk import whole_file
from clipreid.errors import UserError
from clipreid.evaluation.columns import Columns, code_columns, name_rows, read_table
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.protocols import Predicate, find_junk, get_protocol
from clipreid.evaluation.protocols import Protocol as Rules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, QUERY, MARGIN = "#0b7a53", "#c8371b", "#30363d", "#eef1f4"
CELL_AREA = 0.78  # square inches
Choice = Literal["changed", "random", "hardest"] | Sequence[int]
CAPTIONS = {
    "changed": "the queries that changed most, for better or worse",
    "random": "queries drawn at random",
    "hardest": "the queries with the lowest AP",
}


class Images(Protocol):
    """What is needed of a split: its metadata and its images (`clipreid.data.Split` has both)."""

    def metadata(self) -> Mapping[str, Any]:
        """Columns "identity" and, where known, "camera" and "path"."""

    def image(self, i: int) -> Image.Image:
        """Image i, RGB."""


def ranked_lists(
    path_out: str | Path,
    query_split: Images,
    gallery_split: Images,
    similarities: Mapping[str, Tensor],
    protocol: str | Rules | Predicate = "market1501",
    n_queries: int = 5,
    top: int = 8,
    seed: int = 0,
    choose: Choice = "changed",
    chances: Mapping[str, Callable[[float], Any]] | None = None,
) -> list[int]:
    """Draw the ranked lists of some queries into an image file; return which queries.

    similarities: model name -> [Q, G], larger is closer, in the order in which the rows are drawn. Each row
    shows the `top` best gallery images of one query under one model, without junk, and the query's AP at
    the left.
    choose: "changed" = the queries whose AP differs most between the first and the last model, for better
    or worse; "hardest" = the lowest AP under the last model; "random"; or the rows of the queries to show.
    chances: of calibrated models, from a similarity to the probability of the same individual, which is shown above the
    result.
    Only queries with a valid match are chosen, of different identities as long as there are such; `seed`
    decides between equals.

    Raises UserError for an unknown `choose`, no models, nothing to show, or what `evaluate` refuses.
    """
    if not similarities or n_queries < 1 or top < 1:
        raise UserError("nothing to draw: give at least one model in similarities, one query and one result.")
    rules = get_protocol(protocol)
    tables = read_table(query_split, "query"), read_table(gallery_split, "gallery")
    query, gallery = code_columns(*tables)
    ap = {}  # model -> [Q]
    for model, similarity in similarities.items():
        report = evaluate(query=tables[0], gallery=tables[1], protocol=rules, similarity=similarity)
        ap[model] = report.per_query["ap"]
    chosen = _choose(choose, list(ap.values()), query["identity"].numpy(), n_queries, seed)
    drawn = []  # a line each: label, query image, the best results as (right or wrong, mark, image)
    for row in chosen:
        asked = query_split.image(row)
        for model, similarity in similarities.items():
            chance, results = (chances or {}).get(model), []
            for result in _best(similarity[row], query.rows(row, row + 1), gallery, rules)[:top]:
                right = bool(gallery["identity"][result] == query["identity"][row])
                mark = "✓" if right else "✗"
                if chance is not None:
                    mark = f"{mark} {100 * float(chance(float(similarity[row][result]))):.0f}%"
                results.append((right, mark, gallery_split.image(result)))
            drawn.append((f"{model}\nAP {100 * ap[model][row]:.0f}%", asked, results))
    size = _cell_size([image for _, asked, results in drawn for image in (asked, *(image for *_, image in results))])
    figure, axes = _sheet(len(chosen), list(similarities), top, size)
    for cells, (label, asked, results) in zip(axes, drawn, strict=True):
        _image(cells[0], asked, QUERY, "query", size)
        cells[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for cell, (hit, mark, image) in zip(cells[1:], results, strict=False):
            _image(cell, image, RIGHT if hit else WRONG, mark, size)
    how = CAPTIONS[choose] if isinstance(choose, str) else "queries chosen by hand"
    percent = "; percentages: probability of the same individual" if chances else ""
    _legend(figure, axes[0][0].get_position().x0, f"{how}; AP = average precision{percent}")
    with whole_file(Path(path_out)) as scratch:
        figure.savefig(scratch, facecolor="white")
    return chosen


def _choose(choose: Choice, ap: list[np.ndarray], identities: np.ndarray, n: int, seed: int) -> list[int]:
    valid = np.flatnonzero(~np.isnan(ap[0]))
    rng = np.random.default_rng(seed)
    order = rng.permutation(valid)
    if not isinstance(choose, str):
        wrong = [row for row in choose if row not in valid]
        if wrong or not len(choose):
            which = f"{name_rows(wrong)} is not a query" if wrong else "name at least one query"
            raise UserError(f"choose: {which} with a valid match; there are {len(valid)} such queries.")
        return [int(row) for row in choose]
    keys = {"random": np.zeros(len(order)), "hardest": ap[-1][order], "changed": -abs(ap[-1] - ap[0])[order]}
    if choose not in keys:
        raise UserError(f"choose={choose!r} is unknown; valid are {', '.join(keys)}, or a list of query rows.")
    order = order[np.argsort(keys[choose], kind="stable")]
    first = np.unique(identities[order], return_index=True)[1]  # each identity's first place in the order
    again = np.setdiff1d(np.arange(len(order)), first)
    return [int(row) for row in order[np.concatenate([np.sort(first), again])][:n]]


def _best(similarity: Any, query: Columns, gallery: Columns, rules: Rules) -> list[int]:
    """Gallery images, best first, without junk; ties against the query, as in the figures."""
    junk, own = find_junk(rules, query, gallery)  # [1, G]
    kept = (~(junk | own))[0].nonzero()[:, 0]
    values = torch.as_tensor(similarity).detach().cpu().double()[kept]
    right = gallery["identity"][kept] == query["identity"]
    return [int(i) for i in kept[torch.from_numpy(np.lexsort((right.numpy(), -values.numpy())))]]


def _cell_size(images: Sequence[Image.Image]) -> tuple[float, float]:
    """Width and height of all cells in inches: in the median shape of the images, equally large for every shape."""
    shape = min(max(float(np.median([image.width / image.height for image in images])), 0.4), 2.5)
    height = (CELL_AREA / shape) ** 0.5
    return shape * height, height


def _sheet(queries: int, models: list[str], top: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its cells of this size, one line for each query and model: the query, then `top` results."""
    from matplotlib.figure import Figure  # only here: its first import on a machine builds a font cache
    from matplotlib.lines import Line2D

    width, height = size
    gap, title, between = 0.10, 0.28, 0.18  # inches: right of an image, above it, of queries
    label = 0.3 + 0.085 * max(len(name) for name in [*models, "AP 100%"])
    lines = queries * len(models)
    right = max(label + (top + 1) * (width + gap) + 3 * gap, label + 3.9)  # at least the legend's width
    full = lines * (height + title) + (queries - 1) * between + 0.6
    figure = Figure(figsize=(right, full), dpi=110)
    axes = []
    for line in range(lines):
        y = full - (line + 1) * (height + title) - line // len(models) * between
        lefts = [label + column * (width + gap) + (3 * gap if column else 0) for column in range(top + 1)]
        axes.append([figure.add_axes((x / right, y / full, width / right, height / full)) for x in lefts])
        for cell in axes[-1]:
            cell.set_axis_off()  # until an image is drawn into it
        if line and line % len(models) == 0:
            rule = (y + height + title + between / 2) / full
            figure.add_artist(Line2D([0.01, 0.99], [rule, rule], color="#d0d7de", linewidth=1))
    return figure, axes


def _legend(figure: Figure, x: float, note: str) -> None:
    width, height = figure.get_size_inches()
    for i, (text, colour) in enumerate([("✓ same identity", RIGHT), ("✗ another identity", WRONG)]):
        figure.text(x + i * 1.7 / width, 0.32 / height, text, color=colour, fontsize=11, weight="bold")
    figure.text(x, 0.12 / height, note, color=QUERY, fontsize=8.5)


def _image(cell: Axes, image: Image.Image, colour: str, title: str, size: tuple[float, float]) -> None:
    """Draws the image whole, in the middle of its cell."""
    cell.set_axis_on()
    cell.set(xticks=[], yticks=[], facecolor=MARGIN)
    cell.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos")
    width, height = (
        max(image.width, image.height * size[0] / size[1]),
        max(image.height, image.width * size[1] / size[0]),
    )
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    cell.set(xlim=(x - width / 2, x + width / 2), ylim=(y + height / 2, y - height / 2))
    cell.set_title(title, color=colour, fontsize=12, weight="bold", pad=4)
    for side in cell.spines.values():
        side.set(edgecolor=colour, linewidth=3)
