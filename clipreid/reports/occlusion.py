"""An occlusion study as table, as curves, and query by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from clipreid.evaluation.bootstrap import confidence
from clipreid.evaluation.compare import compare
from clipreid.evaluation.report import Report
from clipreid.evaluation.tables import format_table
from clipreid.reports.figures import INK, MAIN, OTHER, RIGHT, WRONG, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str]  # (arm, feature)
# at (condition, severity) a report of each seed (`over_draws`)
Reports = Mapping[Line, Mapping[tuple[str, float], Sequence[Report]]]
STYLES = tuple((colour, line) for line in ("-", "--", ":") for colour in (MAIN, WRONG, RIGHT, OTHER))


def name_of(line: Line) -> str:
    return f"{line[0]} ({line[1]})"


def occlusion_table(found: Reports, severity: float) -> str:
    """mAP of every arm and feature, clean and with `severity` hidden, and the difference to the first line in points,
    with paired 95 % intervals over identities (and runs, where there are several)."""
    rows, first = [], next(iter(found.values()))
    conditions = list(dict.fromkeys(condition for condition, _ in first))
    clean = next((key for key in first if key[1] == 0), None)
    shown = {"clean": clean} | {condition: (condition, severity) for condition in conditions}
    for line, cells in found.items():
        row: dict[str, object] = {"arm": line[0], "feature": line[1]}
        for name, key in shown.items():
            if key is not None and key in cells:
                row[name] = _cell(cells[key], None if cells is first else first[key])
        rows.append(row)
    return format_table(rows)


def _cell(reports: Sequence[Report], baseline: Sequence[Report] | None) -> str:
    mean = float(np.mean([report.metrics["mAP"] for report in reports]))
    if baseline is None:
        return f"{100 * mean:.1f}"
    found = compare(list(baseline), list(reports), ("first", "this"), flips=1)
    low, high = found.difference_interval["mAP"]
    return f"{100 * mean:.1f} ({100 * found.difference['mAP']:+.1f}, {100 * low:+.1f} to {100 * high:+.1f})"


def plot_occlusion(found: Reports) -> Figure:
    """A panel for each condition: mAP over the share that is hidden, a line for each arm and feature, its 95 % interval
    over identities (and runs) shaded."""
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(key[0] for cells in found.values() for key in cells))
    with styled():
        figure = Figure(figsize=(3.6 * len(conditions) + 0.6, 3.6), layout="constrained")
        panels = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
        for axes, condition in zip(panels, conditions, strict=True):
            for line, style in zip(found, STYLES * len(found), strict=False):
                _curve(axes, condition, found[line], name_of(line), style)
            axes.set(title=condition, xlabel="hidden share of the query, %")
        panels[0].set_ylabel("mAP, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _curve(
    axes: Axes, condition: str, cells: Mapping[tuple[str, float], Sequence[Report]], name: str, style: tuple[str, str]
) -> None:
    points = sorted((key[1], reports) for key, reports in cells.items() if key[0] == condition)
    x = [100 * severity for severity, _ in points]
    y = [100 * np.mean([report.metrics["mAP"] for report in reports]) for _, reports in points]
    axes.plot(x, y, color=style[0], linestyle=style[1], marker="o", markersize=3, label=name)
    spans = [confidence(list(reports), draws=300)["mAP"] for _, reports in points]
    axes.fill_between(x, [100 * a for a, _ in spans], [100 * b for _, b in spans], color=style[0], alpha=0.1, lw=0)


def draw_occluded(
    clean: Tensor,
    occluded: Tensor | None,
    masks: Tensor | None,
    weights: Tensor | None,
    anchors: Tensor | None,
    title: str = "",
) -> Figure:
    """A row for each query: crop, occluded crop, what is hidden, what each patch counts, the anchor of each patch.

    Args:
        clean, occluded: uint8 [n, 3, H, W]; occluded and masks are None where nothing is hidden.
        masks: bool [n, H, W].
        weights: [n, h, w], each map sums to one; None for a model without pooling weights.
        anchors: [n, h, w], numbers of anchors; None for a model without.
    """
    from matplotlib.figure import Figure

    columns: dict[str, tuple[Tensor, dict[str, Any]]] = {"query": (clean.permute(0, 2, 3, 1), {})}
    if occluded is not None:
        columns["occluded"] = (occluded.permute(0, 2, 3, 1), {})
    if masks is not None:
        columns["hidden"] = (masks, {"cmap": "gray", "vmin": 0, "vmax": 1})
    if weights is not None:  # 1: as much as the patches get on average
        counts = weights * weights[0].numel()
        columns["weights"] = (counts, {"cmap": "viridis", "vmin": 0, "vmax": max(2.0, float(counts.max()))})
    if anchors is not None:
        columns["anchors"] = (anchors, {"cmap": "tab20", "vmin": 0, "vmax": 19})
    with styled():
        figure = Figure(figsize=(1.2 * len(columns), 2.3 * len(clean) + 0.4), layout="constrained")
        grid = figure.subplots(len(clean), len(columns), squeeze=False)
        for column, (name, (images, how)) in enumerate(columns.items()):
            grid[0, column].set_title(name, color=INK)
            for cell, image in zip(grid[:, column], images, strict=True):
                cell.imshow(image.numpy(), aspect="auto", interpolation="nearest", **how)
                cell.set(xticks=[], yticks=[])
                cell.grid(False)
        if title:
            figure.suptitle(title)
    return figure
