"""From the tower's tokens to named features; nothing here knows towers, losses or files."""

from clipreid.aggregation.base import Aggregator
from clipreid.aggregation.taps import AGGREGATIONS, Pooled, Taps

__all__ = ["AGGREGATIONS", "Aggregator", "Pooled", "Taps"]
