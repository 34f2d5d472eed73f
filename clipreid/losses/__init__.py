"""Losses: pure functions on tensors, one file for each family; each returns a scalar."""

from clipreid.losses.contrastive import clip_loss, image_text_logits, keep_loss, siglip_loss, supcon_loss
from clipreid.losses.identity import id_loss
from clipreid.losses.metric import triplet_loss

__all__ = ["clip_loss", "id_loss", "image_text_logits", "keep_loss", "siglip_loss", "supcon_loss", "triplet_loss"]
