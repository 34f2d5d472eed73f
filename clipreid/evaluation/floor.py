"""The floor of every table: what colour alone gives on the same queries."""

from __future__ import annotations

from clipreid.backbones.colour import colour_backbone
from clipreid.data import ReIDData
from clipreid.evaluation.score import Scored, score
from clipreid.model import untrained_model


def colour_floor(data: ReIDData, *, skip_bad: bool = False, protocol: str | None = None) -> Scored:
    """Colour stripes on the query and gallery of `data`: what `clipreid evaluate colour` scores.

    Raises `UserError` as `clipreid.evaluation.score.score` does; also where the queries are captions.
    """
    return score(data, untrained_model(colour_backbone()), skip_bad=skip_bad, protocol=protocol)
