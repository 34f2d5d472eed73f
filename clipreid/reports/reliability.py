"""The reliability diagram of a calibration: what it says against what is true, at even odds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipreid.disk import write_whole
from clipreid.evaluation.calibration import KINDS
from clipreid.reports.figures import MAIN, OTHER, RIGHT, WRONG, styled, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipreid.evaluation.calibrated import Calibrated


def plot_reliability(found: Calibrated) -> Figure:
    """Left, for each map: the probability that it gives against the share of pairs that match, as if half of all pairs
    matched. Right: the share of pairs at or above each similarity, and the threshold."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 100], [0, 100], "-", color=OTHER, linewidth=0.8)
        for kind, colour, line in zip(KINDS, (MAIN, OTHER), ("o-", "s--"), strict=True):
            said, share, weight = found.curve(kind)
            error = 100 * found.error(kind, even=True)
            left.plot(100 * said, 100 * share, line, color=colour, linewidth=1.4, markersize=0)
            left.scatter(100 * said, 100 * share, 8 + 160 * weight, color=colour, label=f"{kind}, error {error:.1f} %")
        left.set(xlabel="probability that is given, % (at even odds)", ylabel="pairs that match, %")
        left.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
        left.legend(loc="upper left", markerscale=0.7)
        edges = found.measured.edges
        kinds = (
            ("different identities", WRONG, found.measured.negative),
            ("same identity", RIGHT, found.measured.positive),
        )
        for label, colour, pairs in kinds:
            share = 100 * pairs[::-1].cumsum()[::-1] / pairs.sum()
            right.plot(edges[:-1], share, color=colour, linewidth=1.5, label=label)
        right.axvline(found.calibration.threshold, color=MAIN, linewidth=1, linestyle="--", label="threshold")
        right.set(xlabel="similarity", ylabel="pairs at or above it, %", ylim=(-2, 102))
        right.legend(loc="lower left")
    return figure


def draw_reliability(found: Calibrated, file: Path) -> None:
    """Writes the diagram as PNG. Raises `CannotWrite` where the file cannot be written."""
    write_whole(file, to_png(plot_reliability(found)))
