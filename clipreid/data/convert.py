"""A data set as parquet shards that `hub:DIR` and `datasets.load_dataset(DIR)` can read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from tqdm import tqdm

import clipreid
from clipreid.data.crops import SCHEMA, ReIDData, Split
from clipreid.data.hub import RECORD, UNFINISHED
from clipreid.disk import check_place
from clipreid.errors import UserError

SHARD = 256 * 2**20  # bytes of encoded images, about, in one file
GROUP = 8 * 2**20  # the same for one row group: what is in memory at a time


def convert(data: ReIDData, output: Path, *, overwrite: bool = False, progress: bool = True) -> None:
    """Writes the splits of `data` as DIR/data/SPLIT-00000-of-00001.parquet, ..., and the rest as DIR/clipreid.json.

    Every column of `SCHEMA` and the order of the rows are kept; images are the encoded bytes of their files, named
    by their path below the folder that all of them share. clipreid.json keeps protocol, noun and notes (without the
    paths of this machine) and the sizes of the files. `output` appears at the end, whole; a killed run leaves a folder
    of another name, which the next one removes. Memory does not grow with the number of images.

    Raises `UserError`: a folder that holds something, unless it is a converted set and `overwrite`; images that
    cannot be read; no space.
    """
    output = Path(os.path.abspath(output.expanduser()))
    check_output(output, overwrite)
    scratch, lock = output.with_name(f".{output.name}{UNFINISHED}"), output.with_name(f".{output.name}.lock")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            shutil.rmtree(scratch, ignore_errors=True)
            (scratch / "data").mkdir(parents=True)
            try:
                _write(data, scratch, progress)
                _replace(scratch, output)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(f"another process is writing {output}: wait for it, or give another --output") from error
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error})") from error


def check_output(output: Path, overwrite: bool) -> None:
    """Raises `UserError` for a folder that cannot be written, or that holds something else than what `overwrite` may
    replace."""
    check_place("--output", output)
    if output.is_dir() and any(output.iterdir()):
        if not (output / RECORD).is_file():
            raise UserError(f"--output {output} holds something else than a converted set: give another folder")
        if not overwrite:
            raise UserError(f"--output {output} holds a converted set: give another folder, or --overwrite")


def _write(data: ReIDData, folder: Path, progress: bool) -> None:
    root = _common_folder(data)
    splits = {}
    for name, split in data.splits.items():
        files = _write_split(split, root, folder / "data", progress)
        splits[name] = {
            "images": len(split),
            "identities": len(set(split.identities.tolist())),
            "files": {f"data/{file.name}": file.stat().st_size for file in files},
        }
    notes = [note.replace(f"{root}{os.sep}", "").replace(root, "the root") if root[1:] else note for note in data.notes]
    record = {
        "clipreid": clipreid.__version__,
        "source": data.name.partition(":")[0],
        "protocol": data.protocol,
        "noun": data.noun,
        "notes": notes,
        "splits": splits,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _common_folder(data: ReIDData) -> str:
    """The deepest folder that holds every image that is a file; "" where none is."""
    folders = {
        os.path.dirname(image["path"])
        for split in data.splits.values()
        for images in split.encoded_batches(1024)
        for image in images
        if image["bytes"] is None
    }
    return os.path.commonpath(folders) if folders else ""


def _write_split(split: Split, root: str, folder: Path, progress: bool) -> list[Path]:
    """The shards of one split, named for their number, once it is known."""
    files: list[Path] = []
    writer, written = None, 0
    with tqdm(total=len(split), desc=f"writing {split.name}", unit=" images", disable=not progress, delay=1) as bar:
        for group, size in _groups(split, root):
            if writer is None or written + size > SHARD:
                if writer is not None:
                    writer.close()
                files.append(folder / f"{split.name}-{len(files):05d}.parquet")
                writer, written = pq.ParquetWriter(files[-1], SCHEMA.arrow_schema), 0
            writer.write_table(group)
            written += size
            bar.update(len(group))
    if writer is not None:
        writer.close()
    return [file.rename(file.with_name(f"{file.stem}-of-{len(files):05d}.parquet")) for file in files]


def _groups(split: Split, root: str) -> Iterator[tuple[pa.Table, int]]:
    """Rows with their images' bytes, in tables of about GROUP bytes."""
    rows: list[dict[str, Any]] = []
    size = 0
    for batch in split.table.with_format("arrow").iter(64) if len(split) else ():
        for row in batch.to_pylist():
            row["image"] = _embedded(row["image"], root)
            rows.append(row)
            size += len(row["image"]["bytes"])
            if size >= GROUP:
                yield pa.Table.from_pylist(rows, schema=SCHEMA.arrow_schema), size
                rows, size = [], 0
    if rows or not len(split):
        yield pa.Table.from_pylist(rows, schema=SCHEMA.arrow_schema), size


def _embedded(image: dict[str, Any], root: str) -> dict[str, Any]:
    """The same image with its bytes, under its path below `root`, which distinguishes files of the same name."""
    if image["bytes"] is not None:
        return image
    try:
        data = Path(image["path"]).read_bytes()
    except OSError as error:
        advice = "`clipreid data check` lists all such files"
        raise UserError(f"{image['path']} cannot be read ({error.strerror}); {advice}") from error
    return {"bytes": data, "path": os.path.relpath(image["path"], root).replace(os.sep, "/")}


def _replace(scratch: Path, output: Path) -> None:
    """Puts the finished folder in the place of an empty or converted one."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    scratch.rename(output)
    shutil.rmtree(old, ignore_errors=True)
