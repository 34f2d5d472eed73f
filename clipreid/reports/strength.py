"""The strength dial as a table and as a figure: precision at home against robustness abroad."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from clipreid.errors import UserError
from clipreid.evaluation.bootstrap import format_intervals
from clipreid.evaluation.tables import TITLES, format_table
from clipreid.reports.figures import INK, MAIN, OTHER, RIGHT, WRONG, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Mapping[float, Mapping[str, Any]]]  # {data: {strength: an entry of metrics.json}}
AWAY = ((WRONG, "--", "s"), (RIGHT, "-.", "^"), (OTHER, ":", "D"))  # looks of the data sets abroad
MAIN_STRENGTHS = (0.0, 0.5, 1.0)  # named in the second panel, where there are many


def strength_table(curves: Curves) -> str:
    """mAP and rank-1 with 95 % intervals, a row for each data set and strength, strengths ascending."""
    rows = []
    for data, entries in curves.items():
        for strength, entry in sorted(entries.items()):
            shown = format_intervals(entry, entry.get("intervals", {}))
            row = {name: shown.get(name, f"{100 * entry[name]:.1f}%") for name in ("mAP", "rank1")}
            rows.append({"data": data, "strength": f"{strength:g}", **row})
    return format_table(rows)


def plot_strength(curves: Curves, home: Collection[str] = (), metric: str = "mAP") -> Figure:
    """What turning the dial does: on the left the metric over strength, a line for each data set, shaded its 95 %
    interval; on the right, where there is a home and an abroad, the metric abroad over that at home, a point for
    each strength (as figure 1 of WiSE-FT, arXiv 2109.01903); up and to the right is better.

    Args:
        curves: {data: {strength: {metric: 0..1, "intervals": {metric: (low, high)}}}}, as `metrics.json` keeps them.
        home: which of the data sets the run was trained on; of several the mean counts on the right.
        metric: mAP, mINP, rank1, rank5 or rank10.

    Raises:
        UserError: no curves, or data sets with different strengths.
    """
    from matplotlib.figure import Figure

    strengths = {tuple(sorted(entries)) for entries in curves.values()}
    if len(strengths) != 1:
        raise UserError("plot_strength needs data sets that were scored at the same strengths")
    (order,) = strengths
    abroad = [data for data in curves if data not in home]
    both = 0 < len(abroad) < len(curves)
    with styled():
        figure = Figure(figsize=(8.2, 3.3) if both else (4.6, 3.3), layout="constrained")
        axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
        _over_strength(axes[0], curves, home, order, metric)
        if both:
            _against(axes[1], curves, home, order, metric)
    return figure


def _over_strength(axes: Axes, curves: Curves, home: Collection[str], order: tuple[float, ...], metric: str) -> None:
    away = 0
    for data, entries in curves.items():
        colour, line, marker = (MAIN, "-", "o") if data in home else AWAY[away % len(AWAY)]
        away += data not in home
        where = " (home)" if data in home else ""
        style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        axes.plot(order, [100 * entries[s][metric] for s in order], label=data + where, **style)
        spans = [entries[s].get("intervals", {}).get(metric) for s in order]
        if all(spans):
            low, high = zip(*spans, strict=True)
            band = [100 * x for x in low], [100 * x for x in high]
            axes.fill_between(order, *band, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="strength (0 zero-shot, 1 as trained)", ylabel=f"{TITLES[metric]}, %", xticks=order)
    axes.legend(loc="best")


def _against(axes: Axes, curves: Curves, home: Collection[str], order: tuple[float, ...], metric: str) -> None:
    """The mean at home against each data set abroad."""
    at_home = [data for data in curves if data in home]
    x = [100 * sum(curves[data][s][metric] for data in at_home) / len(at_home) for s in order]
    abroad = [data for data in curves if data not in home]
    named = order if len(order) <= 6 else MAIN_STRENGTHS
    for (colour, line, marker), data in zip(AWAY * len(abroad), abroad, strict=False):
        y = [100 * curves[data][s][metric] for s in order]
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4, label=data)
        for at, (left, up) in zip(order, zip(x, y, strict=True), strict=True):
            if at in named:
                words = f"strength {at:g}" if at == named[0] else f"{at:g}"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
                note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": INK, "bbox": box}
                axes.annotate(words, (left, up), (5, 6), **note)
    where = at_home[0] if len(at_home) == 1 else f"mean of {len(at_home)} data sets"
    axes.set(xlabel=f"at home: {TITLES[metric]}, % ({where})")
    axes.set_ylabel(f"abroad: {TITLES[metric]}, %" + (f" ({abroad[0]})" if len(abroad) == 1 else ""))
    axes.margins(0.12)
    if len(abroad) > 1:
        axes.legend(loc="best")
