"""The curves of a model card: losses, and the CMC before and after training, drawn from the files of a run folder.

There is no crop in it, and no name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreid.disk import parse_json
from clipreid.evaluation.score import ZERO_SHOT
from clipreid.reports.figures import MAIN, OTHER, RIGHT, WRONG, styled, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 3  # data sets drawn at most
COLOURS = {"loss": MAIN, "id_loss": MAIN, "triplet_loss": WRONG, "i2t_loss": RIGHT, "t2i_loss": OTHER}


def read_losses(log: Path) -> dict[str, list[dict[str, Any]]]:
    """The epochs of `log.jsonl` by stage, each with its means; {} without the file.

    Lines cut short are left out; of an epoch that was run twice (a killed run, resumed) the later counts.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("loss"), int | float):
            when = entry.get("epoch") or entry.get("step") or 0
            if isinstance(when, int) and abs(when) < 2**53:  # as far as a plot can tell numbers apart
                found.setdefault(str(entry.get("stage")), {})[when] = entry
    return {stage: [epochs[step] for step in sorted(epochs)] for stage, epochs in found.items()}


def draw_curves(
    losses: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, Any], tuned: str
) -> bytes | None:
    """A PNG: the losses of each stage, then for each data set (at most three) the CMC before and after.

    losses: as `read_losses`.  metrics: as metrics.json, its data sets named as they are to be shown.  tuned: what
    they call the model.
    None where there is nothing to draw.
    """
    shown = [(name, models) for name, models in metrics.items() if tuned in models][:SHOWN]
    stages = [(name, epochs) for name, epochs in losses.items() if len(epochs) > 1]
    count = len(stages) + len(shown)
    if not count:
        return None
    from matplotlib.figure import Figure  # only here: its first import on a machine builds a font cache

    columns = count if count < 4 else 2
    rows = -(-count // columns)
    with styled():
        figure = Figure(figsize=(3.3 * columns, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        for (name, epochs), cell in zip(stages, axes, strict=False):
            _losses(cell, name, epochs)
        for (name, models), cell in zip(shown, axes[len(stages) :], strict=False):
            _cmc(cell, name, models, tuned)
        for cell in axes[count:]:
            cell.set_axis_off()
    return to_png(figure)


def _losses(axes: Axes, name: str, epochs: Sequence[Mapping[str, Any]]) -> None:
    """The mean of each loss in each epoch, as a share of its first: their scales differ."""
    from matplotlib.ticker import MaxNLocator

    terms = [key for key in epochs[0] if key.endswith("_loss")] or ["loss"]
    for term in terms:
        values = [_number(epoch.get(term)) for epoch in epochs]
        label = f"{term.removesuffix('_loss')}, first {values[0]:.2f}"
        shares = [value / (values[0] or 1.0) for value in values]
        colour, marker = COLOURS.get(term, OTHER), "o" if len(values) < 20 else None
        axes.plot(range(1, len(values) + 1), shares, label=label, color=colour, marker=marker, markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"{name}: losses", xlabel="epoch", ylabel="share of the first epoch's", ylim=(0, None))
    axes.legend(fontsize=8)


def _cmc(axes: Axes, name: str, models: Mapping[str, Mapping[str, Any]], tuned: str) -> None:
    """Rank-k before (where it was scored) and after; the curve where metrics.json keeps it, else ranks 1, 5 and 10."""
    lowest, last = 100.0, 10
    for model, label, colour, line in ((ZERO_SHOT, "zero-shot", OTHER, "--"), (tuned, "this model", MAIN, "-")):
        if model not in models:
            continue
        entry = models[model]
        curve = entry.get("cmc")
        ranks = list(range(1, len(curve) + 1)) if curve else [1, 5, 10]
        share = [100 * value for value in curve or [entry[f"rank{k}"] for k in ranks]]
        text = f"{label}, mAP {100 * entry['mAP']:.1f} %"
        axes.plot(ranks, share, line, color=colour, label=text, marker=None if curve else "o", markersize=4)
        lowest, last = min(lowest, share[0]), max(last, ranks[-1])
    axes.set(title=name, xlabel="rank k", ylabel="queries with a match, %")
    axes.set(xlim=(0.5, last + 0.5), ylim=(max(0.0, lowest - 10), 101.5), xticks=[1, *range(5, last + 1, 5)])
    axes.legend(loc="lower right", fontsize=8)


def _number(value: Any) -> float:
    """NaN, which is not drawn, for what is no number, or no loss."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e30 else float("nan")
