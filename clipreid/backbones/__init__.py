"""Language-aligned backbones: one image tower, one text tower, and the loaders that fill them."""

from clipreid.backbones.backbone import Backbone
from clipreid.backbones.imageonly import ImageBackbone, ImageTower, check_fits, check_processes
from clipreid.backbones.load import is_image_only, load_backbone
from clipreid.backbones.positions import resize_positions, square_positions
from clipreid.backbones.rollout import attention_rollout
from clipreid.backbones.save import save_backbone, square_backbone
from clipreid.backbones.text import TextConfig, TextTower
from clipreid.backbones.tokenizer import FastTokenizer
from clipreid.backbones.vision import Tokens, VisionConfig, VisionTower

__all__ = [
    "Backbone",
    "FastTokenizer",
    "ImageBackbone",
    "ImageTower",
    "TextConfig",
    "TextTower",
    "Tokens",
    "VisionConfig",
    "VisionTower",
    "attention_rollout",
    "check_fits",
    "check_processes",
    "is_image_only",
    "load_backbone",
    "resize_positions",
    "save_backbone",
    "square_backbone",
    "square_positions",
]
