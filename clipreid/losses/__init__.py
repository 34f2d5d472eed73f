"""Losses: pure functions on tensors, one file for each family; each loss returns a scalar, unless it says so."""

from clipreid.losses.contrastive import clip_loss, image_text_logits, sdm_loss, siglip_loss, supcon_loss
from clipreid.losses.distillation import relation_loss
from clipreid.losses.identity import arcface_logits, id_loss
from clipreid.losses.metric import triplet_loss
from clipreid.losses.regularisers import head_likeness
from clipreid.losses.words import mask_words, word_loss

__all__ = [
    "arcface_logits",
    "clip_loss",
    "head_likeness",
    "id_loss",
    "image_text_logits",
    "mask_words",
    "relation_loss",
    "sdm_loss",
    "siglip_loss",
    "supcon_loss",
    "triplet_loss",
    "word_loss",
]
