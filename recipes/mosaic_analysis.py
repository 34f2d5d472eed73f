"""Which attributes matter to a MoSAIC run: accuracy with the experts of each attribute on and off, query by query.

    accelerate launch recipes/mosaic.py --output runs/mosaic
    python recipes/mosaic_analysis.py --run runs/mosaic --output studies/mosaic
    python recipes/mosaic_analysis.py --run runs/mosaic --data synthetic:large --output studies/mosaic-large

What comes out: `effects.csv` (attribute, value, metric, effect, 95 % interval, p, p by Holm, queries, identities),
`attributes.md` (the table, largest gain first, and rank correlations), `attributes.png`. Needs the extra `analysis`.

An effect is the mean gain of the queries of which the attribute is known: their AP, or whether rank 1 is right, with
all experts minus without the experts of this attribute (in query and gallery). Gains are regressed on attributes, and
on their values, with errors clustered by identity; p values are corrected by Holm within each table.

Beside it stands what an attribute could do: `separates`, the share of pairs of test identities that differ in it;
`resolves`, the share of the confusions of zero-shot in which query and wrong image differ in it; `alone`, those that
differ in nothing else that is known. For the street these are the truth, as its painter knows it.

The router is told the true attributes of the test images, which are the same for all images of an individual: they
leak its identity. So the figures say how far this model leans on an attribute, not what an attribute is worth to a
model that sees images alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import clipreid
from clipreid.backbones.record import load_recorded
from clipreid.config import none_is
from clipreid.data import ReIDData, load_data
from clipreid.data.attributes import ORACLE, attribute_note
from clipreid.disk import write_whole
from clipreid.errors import UserError, print_user_errors
from clipreid.evaluation.attributes import (
    EVERY,
    METRICS,
    Effect,
    Importance,
    ablations,
    differences,
    effects,
    rank_correlation,
    tested,
    true_importance,
)
from clipreid.evaluation.score import score
from clipreid.flags import parse_flags
from clipreid.hub import read_config
from clipreid.hub.download import find_run
from clipreid.model import untrained_model
from clipreid.reports.attributes import attribute_table, effects_csv, plot_attributes
from clipreid.training.harness import set_threads
from clipreid.training.sets import val_as_test


@dataclass(frozen=True)
class MosaicAnalysis:
    run: str
    """A run of recipes/mosaic.py: its folder, or its name on the Hub"""
    output: Path
    """A new folder for the tables and the figure"""
    data: str = "synthetic"
    """Whose queries are asked"""
    columns: Annotated[str | None, none_is("as the columns are named")] = None
    """For csv:, hub: and coco: data: FIELD=COLUMN,..., such as attribute.hat=cap_kind"""
    validate: bool = False
    """Take the identity-disjoint val split"""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and count them"""
    threads: Annotated[int | None, none_is("all cores")] = None
    """CPU threads"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def gains_of(config: MosaicAnalysis, data: ReIDData) -> tuple[list[Effect], list[str]]:
    """The effects of attributes and of their values, for every metric, and sentences on all experts together."""
    model = clipreid.load(config.run).to(config.device)
    whole, gains, lines = None, {}, []
    say = lambda name: print(f"{data.name}  without {name or 'nothing'}", flush=True)  # noqa: E731
    for name, found in ablations(data, model, skip_bad=config.skip_bad, progress=say):
        report = found.reports[found.feature]
        whole = whole or found
        gains[name] = differences(whole.reports[whole.feature], report)
        if name in ("", EVERY):
            figures = ", ".join(f"{metric} {100 * report.metrics[metric]:.1f}" for metric in ("mAP", "rank1"))
            lines.append(f"{'without any expert' if name else 'with all experts'}: {figures}")
    assert whole is not None
    about = whole.query.attributes, whole.query.identities.tolist()
    names = [name for name in gains if name not in ("", EVERY)]
    found_effects = [
        effect
        for metric in METRICS
        for by_value in (False, True)
        for effect in effects({name: gains[name][metric] for name in names}, *about, metric, by_value)
    ]
    return found_effects, lines


def zero_shot_importance(config: MosaicAnalysis, data: ReIDData) -> dict[str, Importance]:
    """What each attribute could do for the backbone before training, which is told none."""
    untrained = untrained_model(load_recorded(read_config(find_run(config.run))["backbone"]))
    found = score(data, untrained.to(config.device).eval(), skip_bad=config.skip_bad).as_zero_shot()
    return true_importance(found, data.protocol)


def correlations(found: list[Effect], true: dict[str, Importance]) -> list[str]:
    """Spearman's rho of the gains in AP with each true importance, in words."""
    gains = {effect.attribute: effect.effect for effect in found if effect.metric == "ap" and not effect.value}
    lines = []
    for what in ("separates", "resolves", "alone"):
        rho, p, count = rank_correlation(gains, {name: getattr(each, what) for name, each in true.items()})
        lines.append(f"rank correlation of the gain in AP with {what}: {rho:+.2f} (p {p:.3f}, {count} attributes)")
    return lines


def main(config: MosaicAnalysis) -> None:
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"--output {config.output} is there already and not empty: name a new folder")
    set_threads(config.threads)
    data = load_data(config.data, columns=config.columns)
    if config.validate and "val" not in data.splits:
        raise UserError(f"--validate: {data.name} has no val split")
    data = val_as_test(data) if config.validate else data
    found, lines = gains_of(config, data)
    true = zero_shot_importance(config, data)
    first = next(iter(true.values()))
    notes = [
        *lines,
        *correlations(found, true),
        attribute_note([each for split in tested(data) for each in split.attributes], "test"),
        f"separates: of {first.pairs:,d} pairs of identities; resolves, alone: of {first.confusions:,d} confusions",
        ORACLE,
    ]
    table, words = attribute_table(found, true), "\n".join(f"- {note}" for note in notes)
    write_whole(config.output / "effects.csv", effects_csv(found))
    write_whole(config.output / "attributes.md", f"# {data.name}\n\n{table}\n\n{words}\n")
    plot_attributes(found, true).savefig(config.output / "attributes.png", dpi=150)
    print(f"\n{table}\n\n{words}\n\n{config.output}: effects.csv, attributes.md, attributes.png")


if __name__ == "__main__":
    with print_user_errors():
        main(parse_flags(MosaicAnalysis, sys.argv[1:], description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
