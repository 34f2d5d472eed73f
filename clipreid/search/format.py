"""The file of a gallery: a parquet file that stores the features as they are in memory.

Columns path, identity and camera (null = unknown), feature (fixed-size list of float32); the schema's metadata says
which model made them. Any parquet reader can read it. The features of a row group are one uncompressed page without
nulls, so that they can be mapped instead of decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipreid.backbones.record import settings_of, weights_print
from clipreid.disk import parse_json
from clipreid.errors import UserError
from clipreid.hub.legacy import METHOD, model_settings, old_name
from clipreid.model import ReIDModel

KEY, VERSION = b"clipreid", 1  # of the metadata
CENTRED_VERSION = 2  # of galleries of centred features, which must not be searched by who does not know of that
FEATURE = "feature"
COMPRESSION = {"path": "ZSTD", "identity": "ZSTD", "camera": "ZSTD", "feature.list.element": "NONE"}


def schema_of(about: Mapping[str, Any]) -> pa.Schema:
    """The columns of a gallery; about: what is kept of the model, with its "dimension"."""
    feature = pa.list_(pa.field("element", pa.float32(), nullable=False), about["dimension"])
    fields = [("path", pa.string(), False), ("identity", pa.string(), True), ("camera", pa.int32(), True)]
    columns = [pa.field(name, kind, nullable=null) for name, kind, null in [*fields, (FEATURE, feature, False)]]
    return pa.schema(columns, metadata={KEY: json.dumps(dict(about), sort_keys=True)})


def writer(file: Path, about: Mapping[str, Any]) -> pq.ParquetWriter:
    """Writes tables of `schema_of(about)`; one `write_table` with at most 2^14 rows becomes one row group."""
    return pq.ParquetWriter(
        file,
        schema_of(about),
        compression=COMPRESSION,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        data_page_size=2**30,
    )


def model_print(model: ReIDModel) -> str:
    """A hash of everything that the features of a model depend on: weights, settings, crop size, strength."""
    (backbone,) = model.source
    pixels = [list(model.image_size), list(model.mean), list(model.std), model.interpolation]
    tower = [settings_of(backbone), backbone.positions, model.raw_logits, pixels]
    bare = {"aggregation": getattr(model.aggregator, "kind", "")}  # of a backbone before any training
    settings = json.loads(json.dumps(asdict(model.config) if model.method else bare, default=str))  # paths as text
    about = [model.method, settings, tower, model.strength]
    return weights_print(((n, t) for n, t in model.named_parameters() if not n.startswith("necks.")), about)


def print_of_0_1_0(model: ReIDModel) -> str | None:
    """`model_print` as clipreid 0.1.0 made it, for galleries of then; None for methods that it did not have."""
    if model.method != METHOD:
        return None
    (backbone,) = model.source
    tower = [settings_of(backbone), list(model.image_size), backbone.positions, model.raw_logits]
    kept = ((name, x) for name, x in model.named_parameters() if not name.startswith("necks."))
    return weights_print(((old_name(name), x) for name, x in kept), [model_settings(model), tower, model.strength])


def describe(model: ReIDModel, run: str) -> dict[str, Any]:
    """The part of a gallery's metadata that describes the model."""
    import clipreid

    (backbone,) = model.source
    return {
        "gallery": VERSION,
        "clipreid": clipreid.__version__,
        "run": run,
        "backbone": backbone.name,
        "model": model_print(model),
        "strength": model.strength,
        "dimension": sum(model.widths.values()),
        "parts": dict(model.widths),  # in the order in which they stand in the feature
        "image_size": list(model.image_size),
    }


def read_about(file: Path) -> dict[str, Any]:
    """The metadata of a gallery.

    Raises:
        UserError: no such file; not parquet, or damaged; another kind of parquet file; another version's.
    """
    if file.is_dir():
        raise UserError(
            f"{file} is a folder: name the file that `clipreid embed` wrote, or a new one, with --embed {file}"
        )
    if not file.is_file():
        raise UserError(
            f"{file} is no file: make a gallery with `clipreid embed RUN IMAGES --output {file}`, or search with "
            "--embed IMAGES"
        )
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} is no parquet file, or damaged ({error}): embed the images again") from error
    try:
        about = parse_json((schema.metadata or {})[KEY])
        version = about["gallery"]
        fits = version in (VERSION, CENTRED_VERSION) and schema.equals(schema_of(about))
        fits = fits and sum(about["parts"].values()) == about["dimension"] > 0
    except (KeyError, ValueError, TypeError, AttributeError):
        version, fits = None, False
    if not fits:
        known = version in (None, VERSION, CENTRED_VERSION)
        other = "no gallery" if known else f"version {version} of this format, here are {VERSION} and {CENTRED_VERSION}"
        raise UserError(f"{file} is parquet, but {other}: make one with `clipreid embed`")
    return about
