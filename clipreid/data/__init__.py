"""Crops with identity, camera, view, caption: readers, PK indices, decode-once cache, augmentation."""

from clipreid.data.augment import augment, normalise
from clipreid.data.cache import PixelCache, pixel_cache
from clipreid.data.crops import SCHEMA, ReIDData, Split, check_trainable, relabel
from clipreid.data.pictures import read_picture, to_pixels
from clipreid.data.pk import pk_indices, process_slice
from clipreid.data.readers import load_data
from clipreid.data.seeds import seed_for

__all__ = [
    "SCHEMA",
    "PixelCache",
    "ReIDData",
    "Split",
    "augment",
    "check_trainable",
    "load_data",
    "normalise",
    "pixel_cache",
    "pk_indices",
    "process_slice",
    "read_picture",
    "relabel",
    "seed_for",
    "to_pixels",
]
