"""The strength dial as a table and as a figure: in-domain against cross-domain precision."""

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
OTHER_STYLES = ((WRONG, "--", "s"), (RIGHT, "-.", "^"), (OTHER, ":", "D"))  # styles of the cross-domain data sets
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


def plot_strength(curves: Curves, in_domain: Collection[str] = (), metric: str = "mAP") -> Figure:
    """The effect of the strength: on the left the metric over strength, a line for each data set, its 95 % interval
    shaded; on the right, where both kinds of data are given, the cross-domain metric over the in-domain one, a point
    for each strength (as figure 1 of WiSE-FT, arXiv 2109.01903); up and to the right is better.

    Args:
        curves: {data: {strength: {metric: 0..1, "intervals": {metric: (low, high)}}}}, as `metrics.json` keeps them.
        in_domain: the data sets that the run was trained on; the right panel uses their mean.
        metric: mAP, mINP, rank1, rank5 or rank10.

    Raises:
        UserError: no curves, or data sets with different strengths.
    """
    from matplotlib.figure import Figure

    strengths = {tuple(sorted(entries)) for entries in curves.values()}
    if len(strengths) != 1:
        raise UserError("plot_strength needs data sets that were scored at the same strengths")
    (order,) = strengths
    others = [data for data in curves if data not in in_domain]
    both = 0 < len(others) < len(curves)
    with styled():
        figure = Figure(figsize=(8.2, 3.3) if both else (4.6, 3.3), layout="constrained")
        axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
        _over_strength(axes[0], curves, in_domain, order, metric)
        if both:
            _against(axes[1], curves, in_domain, order, metric)
    return figure


def _over_strength(
    axes: Axes, curves: Curves, in_domain: Collection[str], order: tuple[float, ...], metric: str
) -> None:
    nth = 0
    for data, entries in curves.items():
        colour, line, marker = (MAIN, "-", "o") if data in in_domain else OTHER_STYLES[nth % len(OTHER_STYLES)]
        nth += data not in in_domain
        where = " (in-domain)" if data in in_domain else ""
        style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
        axes.plot(order, [100 * entries[s][metric] for s in order], label=data + where, **style)
        spans = [entries[s].get("intervals", {}).get(metric) for s in order]
        if all(spans):
            low, high = zip(*spans, strict=True)
            band = [100 * x for x in low], [100 * x for x in high]
            axes.fill_between(order, *band, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="strength (0 zero-shot, 1 as trained)", ylabel=f"{TITLES[metric]}, %", xticks=order)
    axes.legend(loc="best")


def _against(axes: Axes, curves: Curves, in_domain: Collection[str], order: tuple[float, ...], metric: str) -> None:
    """The mean of the in-domain data sets against each cross-domain one."""
    own = [data for data in curves if data in in_domain]
    x = [100 * sum(curves[data][s][metric] for data in own) / len(own) for s in order]
    others = [data for data in curves if data not in in_domain]
    named = order if len(order) <= 6 else MAIN_STRENGTHS
    for (colour, line, marker), data in zip(OTHER_STYLES * len(others), others, strict=False):
        y = [100 * curves[data][s][metric] for s in order]
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4, label=data)
        for at, (left, up) in zip(order, zip(x, y, strict=True), strict=True):
            if at in named:
                words = f"strength {at:g}" if at == named[0] else f"{at:g}"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
                note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": INK, "bbox": box}
                axes.annotate(words, (left, up), (5, 6), **note)
    where = own[0] if len(own) == 1 else f"mean of {len(own)} data sets"
    axes.set(xlabel=f"in-domain: {TITLES[metric]}, % ({where})")
    axes.set_ylabel(f"cross-domain: {TITLES[metric]}, %" + (f"\n({others[0]})" if len(others) == 1 else ""))
    axes.margins(0.12)
    if len(others) > 1:
        axes.legend(loc="best")
