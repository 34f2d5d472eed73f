"""A toy method for tests: both towers are adapted, images may be compared by a metric of its own.

The fixture `toy` of `tests/conftest.py` puts it beside the methods of the package.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from clipreid.metric import Metric
from clipreid.model import ReIDModel
from clipreid.training.stage import Stage


class Uneven(Metric):
    """Query to gallery is another similarity than gallery to query."""

    name = "uneven"

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        return query @ gallery.T - gallery[:, :1].T


@dataclass(frozen=True)
class Config:
    tuning: Literal["lora", "full", "head"] = "lora"
    text_tuning: Literal["frozen", "lora", "full"] = "lora"
    lora_rank: int = 4
    metric: Literal["cosine", "uneven"] = "cosine"
    note: str = ""
    place: Path | None = None


PRESETS: dict[str, dict[str, Any]] = {"default": {}}
TINY = PRESETS


def build(backbone: Any, config: Config, identities: int = 0) -> ReIDModel:
    metric = Uneven() if config.metric == "uneven" else None
    return ReIDModel(backbone, config.tuning, rank=config.lora_rank, text_tuning=config.text_tuning, metric=metric,
                     identities=identities)  # fmt: skip


def stages(run: Any, model: ReIDModel, config: Config) -> Iterator[Stage]:
    yield from ()
