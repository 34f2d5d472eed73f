"""The figures of a report: drawn once by matplotlib, kept as PNG, or as SVG that takes the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from clipreid.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipreid.evaluation.breakdown import CameraPairs
    from clipreid.evaluation.report import Report

INK, GRID, RIGHT, WRONG, MAIN, OTHER = "#24292f", "#d0d7df", "#0b7a53", "#c8371b", "#1f5fbf", "#6e7782"
# the CSS variables of the page for these colours, for light and dark mode
IN_PAGE = {
    INK: "currentColor",
    GRID: "var(--line)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
    MAIN: "var(--main)",
    OTHER: "var(--soft)",
}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "clipreid",
}
SIZE = (4.4, 2.9)  # inches
BARS = 80  # at most, in the histogram


def plot_cmc(report: Report, others: Mapping[str, Report] | None = None, top: int = 20, name: str = "") -> Figure:
    """The cumulative match characteristic: the share of queries with a match among the first k, k = 1..top.

    others: more reports to draw beside it, by name.  name: of `report`, when there are others.
    """
    with styled():
        figure, axes = _axes()
        ends = []
        for i, (label, one) in enumerate([*(others or {}).items(), (name, report)]):
            ranks, share = one.cmc(top)
            main = i == len(others or {})
            colour, width, line = (MAIN, 2.0, "-") if main else (OTHER, 1.4, "--")
            marker = "o" if len(ranks) < top else None
            axes.plot(ranks, 100 * share, line, color=colour, linewidth=width, label=label, marker=marker)
            ends.append(100 * share.min())
            at = [k for k in (1, 5, 10) if main and k in ranks]
            for k in at:
                y = 100 * share[list(ranks).index(k)]
                axes.plot([k], [y], "o", color=MAIN, markersize=5)
                offset, side = ((4, -11), "left") if k == 1 else ((-3, 5), "right")
                axes.annotate(f"{y:.1f}", (k, y), offset, textcoords="offset points", ha=side, color=MAIN, fontsize=8.5)
        axes.set(xlabel="rank k", ylabel="queries with a match, %")
        axes.set(xlim=(0.5, ranks[-1] + 0.5), ylim=(max(0.0, min(ends) - 10), 101.5))
        axes.set_xticks([1, *range(5, int(ranks[-1]) + 1, 5)])
        if others:
            axes.legend(loc="lower right")
    return figure


def plot_similarities(report: Report) -> Figure:
    """How similar pairs of the same and of different identities are, each as a share of its own number.

    Raises UserError where the report has no histogram.
    """
    found = report.histogram
    if found is None:
        raise UserError(
            "this report has no histogram of similarities: its galleries were drawn at random, or the "
            "similarities came as a stream. Evaluate features or a matrix"
        )
    edges, counts = _merge(found.edges, np.stack([found.positive, found.negative]))
    with styled():
        figure, axes = _axes()
        kinds = ("different identities", WRONG, "--"), ("same identity", RIGHT, "-")
        for (label, colour, line), n in zip(kinds, counts[::-1], strict=True):
            share = 100 * n / max(n.sum(), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.5, linestyle=line, label=f"{label} ({_short(n.sum())})")
        axes.set(xlabel="similarity", ylabel="pairs, %", xlim=(edges[0], edges[-1]))
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.22)  # room for the legend
        axes.legend(loc="upper left", ncols=2, borderaxespad=0.2, columnspacing=1.2, handlelength=1.6)
    return figure


def _merge(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n + 1], [2, n] -> without empty ends, neighbouring bins together until at most BARS are left."""
    used = np.flatnonzero(counts.sum(0))
    first, last = (used[0], used[-1] + 1) if len(used) else (0, counts.shape[1])
    by = -(-(last - first) // BARS)
    starts = np.arange(first, last, by)
    merged = np.add.reduceat(counts[:, :last], starts, axis=1)
    return np.append(edges[starts], edges[last]), merged


def _short(count: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
    return f"{count:,}"


def plot_cameras(pairs: CameraPairs) -> Figure:
    """The mAP in percent for each camera of the query and of the gallery; empty where no query has a match."""
    from matplotlib import colormaps

    values, rows, columns = pairs.mAP, pairs.query_cameras, pairs.gallery_cameras
    with styled():
        figure, axes = _axes((max(SIZE[0], 0.8 + 0.32 * len(columns)), max(SIZE[1], 0.7 + 0.24 * len(rows))))
        axes.grid(False)
        low, high = np.nanmin(values), np.nanmax(values)
        shades = colormaps["Blues"](0.08 + 0.8 * (values - low) / max(high - low, 1e-9))
        for r, c in np.ndindex(values.shape):
            known = not np.isnan(values[r, c])
            corners = [c - 0.5, c + 0.5, c + 0.5, c - 0.5], [r - 0.5, r - 0.5, r + 0.5, r + 0.5]
            axes.fill(*corners, facecolor=shades[r, c] if known else "none", edgecolor=GRID, linewidth=0.5)
            if known and len(columns) <= 12:
                dark = shades[r, c, :3] @ [0.299, 0.587, 0.114] < 0.55
                ink = "#ffffff" if dark else "#101418"
                axes.text(c, r, f"{100 * values[r, c]:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
        axes.set(xlabel="gallery camera", ylabel="query camera")
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure on white."""
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format="png", dpi=200, facecolor="white")
    return file.getvalue()


def to_svg(figure: Figure, label: str) -> str:
    """An <svg> element for inside a page, its colours those of the page (`IN_PAGE`); `label` is read aloud."""
    file = io.StringIO()
    with styled():
        nothing: Any = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    for colour, name in IN_PAGE.items():
        svg = svg.replace(colour, name)
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)  # as wide as its place
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the page's own letters
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def styled() -> Any:
    """Around drawing and saving: the look of every figure of the project."""
    from matplotlib import rc_context  # only here: its first import on a machine builds a font cache

    return rc_context(STYLE)


def _axes(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()
