"""An analysis of attributes as tables and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from clipreid.evaluation.attributes import Effect, Importance
from clipreid.reports.figures import INK, MAIN, OTHER, WRONG, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05


def effects_csv(found: Sequence[Effect]) -> str:
    """All effects, a line each; shares 0..1."""
    text = io.StringIO()
    rows = [{k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(effect).items()} for effect in found]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def attribute_table(found: Sequence[Effect], true: Mapping[str, Importance]) -> str:
    """A Markdown table: what the experts of each attribute gain in mAP and rank-1 (points, 95 % interval, p by Holm),
    the largest first, beside what the attribute could tell apart."""
    whole = [effect for effect in found if not effect.value]
    by_metric = {m: {e.attribute: e for e in whole if e.metric == m} for m in dict.fromkeys(e.metric for e in whole)}
    first = next(iter(by_metric.values()))
    names = sorted(first, key=lambda name: -first[name].effect)
    titles = ["attribute", "queries", *(t for m in by_metric for t in (f"{m}, points", "p (Holm)"))]
    titles += ["separates", "resolves", "alone"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name in names:
        cells = [name, f"{first[name].queries:,d}"]
        for effects in by_metric.values():
            cells += [_interval(effects[name]), _p(effects[name].p_holm)]
        cells += [f"{share:.1%}" for share in (true[name].separates, true[name].resolves, true[name].alone)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(effect: Effect) -> str:
    return f"{100 * effect.effect:+.2f} ({100 * effect.low:+.2f} to {100 * effect.high:+.2f})"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def plot_attributes(found: Sequence[Effect], true: Mapping[str, Importance]) -> Figure:
    """What the experts of each attribute gain in mAP with 95 % intervals (filled: p by Holm below 0.05), beside the
    confusions that it could resolve, and those that nothing else could."""
    from matplotlib.figure import Figure

    effects = sorted((e for e in found if e.metric == "ap" and not e.value), key=lambda e: e.effect)
    at, names = np.arange(len(effects)), [effect.attribute for effect in effects]
    with styled():
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(effects)), layout="constrained")
        gain, could = figure.subplots(1, 2, sharey=True)
        for y, effect in zip(at, effects, strict=True):
            filled = MAIN if effect.p_holm < SIGNIFICANT else "white"
            gain.plot([100 * effect.low, 100 * effect.high], [y, y], color=MAIN, linewidth=1.5)
            gain.plot(100 * effect.effect, y, "o", color=MAIN, markerfacecolor=filled)
        gain.axvline(0, color=INK, linewidth=0.8)
        gain.set_yticks(at, names)
        gain.set_xlabel("mAP with its experts minus without, points")
        could.barh(at, [100 * true[name].resolves for name in names], color=OTHER, height=0.6, label="differ in it")
        could.barh(at, [100 * true[name].alone for name in names], color=WRONG, height=0.6, label="in nothing else")
        could.set_xlabel("confusions of zero-shot, %")
        could.legend()
    return figure
