"""Crops with identity, camera, view, caption: readers, PK indices, decode-once cache, augmentation."""

from clipreid.data.augment import augment, normalise
from clipreid.data.cache import PixelCache, pixel_cache
from clipreid.data.crops import SCHEMA, ReIDData, Split, check_trainable, relabel
from clipreid.data.images import read_image, to_pixels
from clipreid.data.mixing import ConcatPixels, Mixture, Pixels, join_pixels, raise_known, short_names
from clipreid.data.pk import mixed_pk_indices, pk_indices, process_slice, set_shares
from clipreid.data.readers import data_place, load_data, reader_flags, trained_name
from clipreid.data.seeds import seed_for

__all__ = [
    "SCHEMA",
    "ConcatPixels",
    "Mixture",
    "PixelCache",
    "Pixels",
    "ReIDData",
    "Split",
    "augment",
    "check_trainable",
    "data_place",
    "join_pixels",
    "load_data",
    "mixed_pk_indices",
    "normalise",
    "pixel_cache",
    "pk_indices",
    "process_slice",
    "raise_known",
    "read_image",
    "reader_flags",
    "relabel",
    "seed_for",
    "set_shares",
    "short_names",
    "to_pixels",
    "trained_name",
]
