"""`clipreid evaluate --strength`; the dial is in `clipreid.strength`, its table and figure in `reports.strength`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreid.cli.scoring import data_label, known_offsets, score_on
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.cli.evaluate import Evaluate
    from clipreid.data import ReIDData
    from clipreid.disk import Unwritten
    from clipreid.evaluation.results import Figures
    from clipreid.model import ReIDModel

STRENGTH_FIGURE = "strength.png"
Curves = dict[str, dict[float, dict[str, Any]]]  # {data: {strength: entry of metrics.json}}


def check_strengths(text: str, others: list[str], run: str | Path, config: dict[str, Any]) -> tuple[float, ...]:
    """The numbers in `text`, the value of --strength.

    others: flags that were given and do not go together with it.

    Raises UserError before anything is loaded or scored.
    """
    from clipreid.backbones.imported import IMPORTED
    from clipreid.strength import parse_strengths

    found = parse_strengths(text)
    for name in others:
        raise UserError(f"--strength scores plain similarities at every strength: leave out {name}, or run it alone")
    if config.get("backbone", {}).get("name") == IMPORTED:
        raise UserError(f"--strength: {run} was imported, and holds no backbone from before its training")
    return found


def model_name(stage: str, strength: float) -> str:
    """What `metrics.json` calls a run at a strength: "stage2@0.5", and "stage2" for the whole of it."""
    return stage if strength == 1 else f"{stage}@{strength:g}"


def _strengths(models: dict[str, dict[str, Any]], stage: str) -> dict[float, dict[str, Any]]:
    """Of the entries of one data set in metrics.json those of a strength, in order."""
    found = {1.0: models[stage]} if stage in models else {}
    pattern = re.compile(rf"{re.escape(stage)}@([\d.e-]+)")
    found |= {float(match[1]): entry for name, entry in models.items() if (match := pattern.fullmatch(name))}
    return dict(sorted(found.items()))


def score_strengths(
    flags: Evaluate,
    config: dict[str, Any],
    model: ReIDModel,
    tests: list[ReIDData],
    strengths: tuple[float, ...],
    figures: Figures,
    unwritten: Unwritten,
) -> list[Path]:
    """Scores every data set at every strength, prints the table, draws the figure; images are decoded once.

    figures: get what is scored; their folder, where there is one, gets the image file unless there is a --report.
    unwritten: keeps the error where that cannot be written.

    Returns the files that were written.
    """
    from clipreid.data import short_names, trained_name
    from clipreid.hub.files import METRICS, last_stage
    from clipreid.reports.strength import strength_table
    from clipreid.strength import set_strength

    names = [data_label(data, flags.protocol) for data in tests]
    trained = config.get("run", {}).get("data", [])
    stage, curves = last_stage(config), Curves()
    in_domain: list[str] = []
    places = dict(zip(names, names, strict=True))  # the names in metrics.json
    for data, name, short in zip(tests, names, short_names(names), strict=True):
        print(data.summary(), flush=True)
        offsets = known_offsets(model, data, flags, config)
        curves[short] = {}
        for strength in strengths:
            entry = score_on(set_strength(model, strength), data, flags, offsets).entry()
            curves[short][strength] = entry
            places |= figures.add(model_name(stage, strength), {name: entry})
            print(f"  strength {strength:g}: mAP {entry['mAP']:.1%}", flush=True)
        if trained_name(data.name, trained) is not None:
            in_domain.append(short)
    print(f"\n{strength_table(curves)}\n")
    for line in _untrained(curves):
        print(f"{line}\n")
    keep = figures.folder
    if keep is not None:  # what was scored before is drawn too
        kept = {short: figures.metrics[places[name]] for name, short in zip(names, curves, strict=True)}
        curves = {short: _strengths(models, stage) for short, models in kept.items()}
    if in_domain:
        print(f"in-domain (trained on): {', '.join(in_domain)}\n")
    files = [keep / METRICS] if keep is not None else []
    with unwritten.going_on():
        files += _draw(curves, in_domain, flags.report or keep)
    return files


def _untrained(curves: Curves) -> list[str]:
    """Where strength 0 and the row zero-shot of a table differ: the same weights, another part of the feature."""
    from clipreid.evaluation.score import OF_ZERO_SHOT

    lines = []
    for data, entries in curves.items():
        parts = entries.get(0.0, {}).get("parts", {})
        whole, alone = (parts.get(name, {}).get("mAP", 0.0) for name in OF_ZERO_SHOT)
        if alone > whole:
            lines.append(
                f"note: on {data} strength 0 has mAP {whole:.1%} with the whole test feature, which every strength is "
                f"scored with; a row zero-shot counts the projection alone there, {alone:.1%}"
            )
    return lines


def _draw(curves: Curves, in_domain: list[str], folder: Path | None) -> list[Path]:
    """The figure in `folder`, where there is one and a curve has more than one point; returns the files written."""
    from clipreid.disk import write_whole
    from clipreid.reports.figures import to_png
    from clipreid.reports.strength import plot_strength

    if folder is None or max(map(len, curves.values())) < 2:
        return []
    write_whole(folder / STRENGTH_FIGURE, to_png(plot_strength(curves, in_domain)))
    return [folder / STRENGTH_FIGURE]
