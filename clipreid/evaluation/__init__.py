"""Extract features, score them exactly under a protocol, show the result."""

from clipreid.evaluation.extract import extract
from clipreid.evaluation.metrics import cosine_similarity, evaluate
from clipreid.evaluation.pictures import ranked_lists
from clipreid.evaluation.protocols import PROTOCOLS, Protocol, get_protocol, same
from clipreid.evaluation.report import Report
from clipreid.evaluation.tables import format_table

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Report",
    "cosine_similarity",
    "evaluate",
    "extract",
    "format_table",
    "get_protocol",
    "ranked_lists",
    "same",
]
