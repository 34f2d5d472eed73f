"""Looking at what training learned: prompts, text bank, and where it pays; from a notebook or a script.

from clipreid import explore
learned = explore.open_prompts("runs/demo")
print(explore.nearest_words(learned, [0]).words)
"""

from clipreid.explore.ablate import ablation
from clipreid.explore.bank import interpolate, mean_by, probe, probe_table, retrieve
from clipreid.explore.browse import browse, hover_map, plane
from clipreid.explore.crops import few, images_of, write_folder
from clipreid.explore.domains import fused_precision, line_of, mean_precision, score_domains
from clipreid.explore.figures import (
    Row,
    draw_ablation,
    draw_anchors,
    draw_map,
    draw_probe,
    draw_rows,
    draw_similarity,
    draw_tradeoff,
    looks,
)
from clipreid.explore.learned import Learned, learned_prompts, open_prompts, training_data
from clipreid.explore.truth import families, synthetic_people, true_attributes
from clipreid.explore.words import chance_cosine, nearest_words, said_truly, vocabulary

__all__ = [
    "Learned",
    "Row",
    "ablation",
    "browse",
    "chance_cosine",
    "draw_ablation",
    "draw_anchors",
    "draw_map",
    "draw_probe",
    "draw_rows",
    "draw_similarity",
    "draw_tradeoff",
    "families",
    "few",
    "fused_precision",
    "hover_map",
    "images_of",
    "interpolate",
    "learned_prompts",
    "line_of",
    "looks",
    "mean_by",
    "mean_precision",
    "nearest_words",
    "open_prompts",
    "plane",
    "probe",
    "probe_table",
    "retrieve",
    "said_truly",
    "score_domains",
    "synthetic_people",
    "training_data",
    "true_attributes",
    "vocabulary",
    "write_folder",
]
