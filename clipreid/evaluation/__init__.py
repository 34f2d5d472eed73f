"""Extract features and score them exactly under a protocol; what is drawn of it is in `clipreid.reports`."""

from clipreid.evaluation.bootstrap import confidence
from clipreid.evaluation.breakdown import CameraPairs, by_column, camera_pairs
from clipreid.evaluation.calibrated import Calibrated
from clipreid.evaluation.calibration import Calibration
from clipreid.evaluation.compare import Comparison, compare
from clipreid.evaluation.extract import extract
from clipreid.evaluation.fusion import choose_weight, cosine_spread, fuse, fuse_features, raw_weight
from clipreid.evaluation.metrics import evaluate
from clipreid.evaluation.openset import OpenSet, open_set, rates_at
from clipreid.evaluation.protocols import PROTOCOLS, Protocol, get_protocol, same
from clipreid.evaluation.report import Report
from clipreid.evaluation.rerank import rerank, reranked_rows
from clipreid.evaluation.similarity import cosine_similarity
from clipreid.evaluation.tables import format_table
from clipreid.evaluation.trials import calibrate

__all__ = [
    "PROTOCOLS",
    "Calibrated",
    "Calibration",
    "CameraPairs",
    "Comparison",
    "OpenSet",
    "Protocol",
    "Report",
    "by_column",
    "calibrate",
    "camera_pairs",
    "choose_weight",
    "compare",
    "confidence",
    "cosine_similarity",
    "cosine_spread",
    "evaluate",
    "extract",
    "format_table",
    "fuse",
    "fuse_features",
    "get_protocol",
    "open_set",
    "rates_at",
    "raw_weight",
    "rerank",
    "reranked_rows",
    "same",
]
