"""From the tower's tokens to identity features: pure functions on tensors."""

from clipreid.aggregation.taps import AGGREGATIONS, NAMES, identity_features

__all__ = ["AGGREGATIONS", "NAMES", "identity_features"]
