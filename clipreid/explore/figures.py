"""What was found, drawn: each function returns a matplotlib figure, to be shown by a notebook or saved by a script.

draw_probe(probe_table(...)).savefig("probe.png")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from PIL import Image
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.occlusion import alignment
from clipreid.explore.bank import SHUFFLED, Strings, order_by
from clipreid.reports.figures import GRID, INK, MAIN, OTHER, RIGHT, WRONG, styled
from clipreid.reports.occlusion import draw_occluded
from clipreid.reports.thumbnails import overlay_attention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipreid.model import ReIDModel

INKS = (MAIN, RIGHT, "#b35900", "#7a3fa0", WRONG)
MARKERS = ("o", "s", "^", "D", "v", "P")  # one more than inks: both in turn make 30 kinds of line


P = ParamSpec("P")


def _dressed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in the look of the reports' figures, and leaves the user's own settings as they were."""

    @wraps(draw)
    def dressed(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with styled():
            return draw(*args, **kwargs)

    return dressed


@dataclass(frozen=True)
class Row:
    """A line of images: what stands at its left, the images, and what stands above each ("": nothing)."""

    label: str
    images: Sequence[Image.Image]
    titles: Sequence[str] = ()


@_dressed
def draw_rows(rows: Sequence[Row], height: float = 1.15) -> Figure:
    """Lines of images, `height` inches each. UserError for no row, or a row without images."""
    if not rows or not all(row.images for row in rows):
        raise UserError("nothing to draw: give rows with images")
    first = rows[0].images[0]
    width = height * min(max(first.width / first.height, 0.4), 1.6)
    head = 0.05 + 0.14 * max((t.count("\n") + 1 for row in rows for t in row.titles if t), default=0)
    label = 0.25 + 0.068 * max(len(line) for row in rows for line in row.label.split("\n"))
    most = max(len(row.images) for row in rows)
    size = label + most * (width + 0.08), len(rows) * (height + head + 0.08)
    figure = _figure(size, None)
    for r, row in enumerate(rows):
        bottom = size[1] - (r + 1) * (height + head + 0.08)
        left, middle = (label - 0.12) / size[0], (bottom + height / 2) / size[1]
        style: dict[str, Any] = {"color": INK, "fontsize": 8.5, "linespacing": 1.4}
        figure.text(left, middle, row.label, ha="right", va="center", **style)
        for c, image in enumerate(row.images):
            place = ((label + c * (width + 0.08)) / size[0], bottom / size[1], width / size[0], height / size[1])
            cell = figure.add_axes(place)
            cell.imshow(np.asarray(image.convert("RGB")), interpolation="lanczos", aspect="auto")
            cell.set_axis_off()
            if c < len(row.titles):
                cell.set_title(row.titles[c], fontsize=7, color=INK, pad=2, linespacing=1.1)
    return figure


def looks(model: ReIDModel, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images, glowing where the model looked (`model.attention_maps`: attention rollout).

    The brightest patch of each is its most read one: two images cannot be compared in brightness. Raises UserError
    for a model that does not give its attention.
    """
    maps = model.attention_maps(model.crops(images))
    if maps is None:
        raise UserError("this image tower is wrapped, and does not give its attention")
    return [overlay_attention(image, share.numpy()) for image, share in zip(images, maps, strict=True)]


def draw_anchors(model: ReIDModel, images: Sequence[Image.Image], title: str = "") -> Figure:
    """What each patch of the images counts in SAGA's feature, and the anchor that it attends to most (`Aligned`).

    Raises UserError for a model without SAGA.
    """
    crops = model.crops(images)  # uint8 [n, 3, H, W]
    if (aligned := alignment(model, crops)) is None:
        raise UserError("this model has no anchors: train one with recipes/saga.py")
    return draw_occluded(crops, None, None, *aligned, title)


@_dressed
def draw_similarity(features: Tensor, values: Strings, name: str = "") -> Figure:
    """Cosines between all identities [I, E], the mean taken off first, in the order of an attribute's values [I].

    Light squares along the diagonal: who has the same value has a similar feature. Rows without a value are left out.
    """
    names = np.asarray(values)
    order = order_by(names, features)
    order = order[names[order] != ""]
    centred = features - features.mean(0)
    unit = (centred / centred.norm(dim=1, keepdim=True))[order]  # [n, E]
    figure = _figure((4.6, 4.0))
    axes = figure.add_subplot()
    axes.grid(False)
    image = axes.imshow((unit @ unit.T).numpy(), cmap="magma", vmin=-0.2, vmax=0.8, interpolation="nearest")
    found, starts, counts = np.unique(names[order], return_index=True, return_counts=True)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="white", linewidth=0.4, alpha=0.6)
        axes.axvline(start - 0.5, color="white", linewidth=0.4, alpha=0.6)
    axes.set_yticks(starts + counts / 2 - 0.5, found)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"{len(order)} identities, by {name}" if name else f"{len(order)} identities")
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine, mean taken off").outline.set_visible(False)
    return figure


@_dressed
def draw_probe(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What `probe_table` found: for each attribute the accuracy in each bank, and what shuffled values give."""
    banks = [key for key in rows[0] if key not in ("attribute", "values", SHUFFLED)]
    figure = _figure((5.6, 0.6 + 0.3 * len(rows)))
    axes = figure.add_subplot()
    places = np.arange(len(rows))[::-1]
    for place in places:
        axes.axhline(place, color=GRID, linewidth=0.6, zorder=0)
    axes.grid(axis="y", visible=False)
    floor = [100 * row[SHUFFLED] for row in rows]
    axes.plot(floor, places, "|", color=OTHER, markersize=11, markeredgewidth=2, label="floor: shuffled values")
    for bank, colour, marker in zip(banks, cycle(INKS), cycle(MARKERS), strict=False):
        axes.plot([100 * row[bank] for row in rows], places, marker, color=colour, markersize=6, label=bank)
    axes.set_yticks(places, [f"{row['attribute'].replace('_', ' ')} ({row['values']})" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 100), xlabel="balanced accuracy of a linear probe, %")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@_dressed
def draw_ablation(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """What `ablation` found for each replacement, by name: mAP of text to image without each token."""
    figure = _figure((5.2, 2.8))
    axes = figure.add_subplot()
    width = 0.8 / len(tables)
    for i, ((name, rows), colour) in enumerate(zip(tables.items(), cycle(INKS), strict=False)):
        at = np.arange(len(rows)) + (i - (len(tables) - 1) / 2) * width
        axes.bar(at, [100 * row["mAP"] for row in rows], width * 0.92, color=colour, label=name)
    said = [f"token {row['without']}" if row["without"].isdigit() else row["without"] for row in rows]
    axes.set_xticks(range(len(said)), said)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="text to image, mAP in %", xlabel="left out of every prompt")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@_dressed
def draw_map(points: Tensor, values: Strings, colours: Mapping[str, Any] | None = None) -> Figure:
    """Points [I, 2], coloured by value; `colours` names the colour of a value (default: matplotlib's own)."""
    figure = _figure((5.4, 3.8))
    axes = figure.add_subplot()
    axes.grid(False)
    names = np.asarray(values)
    for i, value in enumerate(sorted(set(names.tolist()) - {""})):
        x, y = points[names == value].T.numpy()
        axes.scatter(
            x, y, s=22, color=(colours or {}).get(value, f"C{i % 10}"), edgecolor=INK, linewidth=0.4, label=value
        )
    axes.set(xticks=[], yticks=[])
    figure.legend(loc="outside right upper")
    return figure


@dataclass(frozen=True)
class Line:
    """Points of one kind in the figure of a trade-off: the metric in-domain and cross-domain, 0..1, and their labels.

    Several points (one for each strength, say) are joined in order.
    """

    name: str
    in_domain: Sequence[float]
    cross_domain: Sequence[float]
    labels: Sequence[str] = ()


@_dressed
def draw_tradeoff(lines: Sequence[Line], metric: str = "mAP", x: str = "in-domain", y: str = "cross-domain") -> Figure:
    """In-domain to the right, cross-domain upwards, in percent; further is better.

    x, y: what the axes are called.
    """
    figure = _figure((5.6, 4.0))
    axes = figure.add_subplot()
    for line, colour, marker in zip(lines, cycle(INKS), cycle(MARKERS), strict=False):
        points = 100 * np.asarray(line.in_domain), 100 * np.asarray(line.cross_domain)
        style: dict[str, Any] = {"linestyle": "-", "markersize": 6, "fillstyle": "full"}
        if len(points[0]) == 1:  # a ring, for other points may lie there
            style = {"linestyle": "", "markersize": 13, "fillstyle": "none"}
        axes.plot(*points, marker, color=colour, linewidth=1.4, markeredgewidth=1.6, label=line.name, **style)
        for right, up, text in zip(*points, line.labels, strict=False):
            _label(axes, right, up, text, colour)
    axes.set(xlabel=f"{metric} {x}, %", ylabel=f"{metric} {y}, %")
    axes.margins(0.12)
    axes.legend(loc="best")
    return figure


def _label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(text, (x, y), (7, 7), textcoords="offset points", color=colour, fontsize=8)


def _figure(size: tuple[float, float], layout: str | None = "constrained") -> Figure:
    from matplotlib.figure import Figure  # only here: matplotlib's first import on a machine builds a font cache

    return Figure(figsize=size, dpi=110, layout=layout)  # type: ignore[arg-type]
