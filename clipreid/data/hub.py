"""Data sets in the formats of the Hugging Face Hub: from the Hub, or from a folder on disk.

hub:OWNER/NAME, hub:OWNER/NAME/CONFIG     `datasets.load_dataset`; code of a repository is never run
hub:FOLDER                                parquet files (split by name), or metadata.csv / .jsonl beside images
hub:FOLDER of `clipreid data convert`     as it was before: protocol and noun are in its clipreid.json
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet as pq
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

from clipreid.data.columns import Columns, find_columns
from clipreid.data.crops import SCHEMA, ReIDData, Split
from clipreid.data.custom import custom_data
from clipreid.data.encoded import HubTable, Tables
from clipreid.data.folders import describe_folder
from clipreid.data.mapping import split_of, to_splits
from clipreid.data.tables import Line, csv_table, json_table, merged
from clipreid.data.walk import list_images
from clipreid.disk import read_json
from clipreid.errors import UserError

RECORD = "clipreid.json"  # of a converted set: protocol, noun, notes, and the files with their sizes
UNFINISHED = ".writing"  # ends the name of a folder that is being converted
METADATA = ("metadata.csv", "metadata.jsonl")
NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
Datasets = Mapping[str, datasets.Dataset]  # by the name of their split
ABSENT = (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError)


def read_hub(
    place: str, spec: str, columns: Columns = None, noun: str | None = None, unknown: Collection[str] = ()
) -> ReIDData:
    """Reads `hub:PLACE`: a folder, else a name on the Hub (offline: what was downloaded before).

    columns: `identity=pid,camera=camid` or a dict, where they have other names (`clipreid.data.columns`). unknown:
    identities that mean "unknown". Protocol and noun are found as for `folder:`, but for converted sets, which remember
    them. Nothing is decoded, but images that boxes are cut out of.

    Raises `UserError` for what cannot be found or reached, columns that are not there, and values that make no sense.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        folder = Path(os.path.abspath(folder))
        if folder.name.endswith(UNFINISHED):
            raise UserError(f"{spec} was left by an interrupted `clipreid data convert`: convert the data set again")
        if (folder / RECORD).is_file():
            tables = _local_parquet(folder, spec, _check_files)
            return _converted(tables, _read_record(folder / RECORD), spec, columns, unknown)
        if any(folder.rglob("*.parquet")):
            return _foreign(_wrapped(_local_parquet(folder, spec), spec), spec, columns, noun, unknown)
        if any((home / name).is_file() for home in _homes(folder) for name in METADATA):
            return _foreign(_metadata(folder, spec, columns), spec, columns, noun, unknown)
        raise UserError(
            f"{spec}: {folder} holds neither parquet files nor a {' or '.join(METADATA)} beside images. "
            f"Found: {describe_folder(folder)}. Images alone, a folder for each identity (train/anna/1.jpg, "
            f"test/ben/1.jpg), are read by folder:{place}"
        )
    raw = _download(place, spec)
    record = _download_record(place, spec)
    if record is None:
        return _foreign(_wrapped(raw, spec), spec, columns, noun, unknown)
    return _converted(raw, record, spec, columns, unknown)


def check_place(place: str, spec: str) -> None:
    """Raises `UserError` where PLACE is no folder, and cannot be a name on the Hub."""
    if not place:
        raise UserError(f"--data {spec} lacks its name: write hub:OWNER/NAME or hub:FOLDER")
    if not Path(place).expanduser().is_dir() and (not NAME.fullmatch(place) or place[0] in ".~"):
        raise UserError(f"{spec}: no such folder, and no name on the Hub, which is written hub:OWNER/NAME")


def _foreign(raw: Tables, spec: str, columns: Columns, noun: str | None, unknown: Collection[str]) -> ReIDData:
    splits, doubled, notes = to_splits(raw, spec, columns, unknown)
    return custom_data(spec, splits, doubled, noun, notes)


def _wrapped(raw: Datasets, spec: str) -> Tables:
    return {name: HubTable(table, name, spec) for name, table in raw.items()}


def _converted(
    raw: Datasets, record: dict[str, Any], spec: str, columns: Columns, unknown: Collection[str]
) -> ReIDData:
    raw = {name: raw[name] for name in record["splits"] if name in raw}
    if raw.keys() != record["splits"].keys():
        raise UserError(f"{spec}: {RECORD} names the splits {', '.join(record['splits'])}, found: {', '.join(raw)}")
    if all(table.features == SCHEMA for table in raw.values()):
        splits = {name: Split(name, table) for name, table in raw.items()}
    else:  # of a version that had fewer columns
        splits, _, _ = to_splits(_wrapped(raw, spec), spec, names_stand=True)
    given = [flag for flag, value in (("--columns", columns), ("--unknown", unknown)) if value]
    unused = [f"{flag} is not for this set: `clipreid data convert` wrote it" for flag in given]
    return ReIDData(spec, splits, record["protocol"], record["noun"], (*record["notes"], *unused))


# Parquet and the Hub --------------------------------------------------------------------------------------


def _local_parquet(folder: Path, spec: str, check: Callable[[Path, str], None] | None = None) -> Datasets:
    if check is not None:
        check(folder, spec)
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        below = path.relative_to(folder)
        if not any(part.startswith(".") for part in below.parts):
            try:
                pq.read_schema(path)
            except Exception as error:  # pyarrow raises several kinds
                raise UserError(f"{spec}: {path} is no parquet file, or damaged ({error})") from error
            names = (split_of(part) for part in (path.stem, *reversed(below.parts[:-1])))
            files.setdefault(next((name for name in names if name), ""), []).append(str(path))
    if "" in files:  # where no name says anything, it is one table, by the custom of `datasets` called train
        files = {"train": files[""]} if len(files) == 1 else {k or "unnamed": v for k, v in files.items()}
    return _encoded(lambda: datasets.load_dataset("parquet", data_files=files), f"{spec} cannot be loaded")


def _download(place: str, spec: str) -> Datasets:
    owner, name, *config = place.split("/")
    failed = f"{spec} is no folder here, and cannot be loaded from the Hub"
    return _encoded(lambda: datasets.load_dataset(f"{owner}/{name}", *config), failed)


def _encoded(load: Callable[[], Any], failed: str) -> Datasets:
    """What `load` gives, with images left encoded. Raises `UserError` beginning with `failed`, and what to do."""
    try:
        raw = load()
    except Exception as error:  # of the network, the Hub, the files
        raise UserError(f"{failed}: {_reason(error)}") from error
    for name, table in raw.items():
        images = {c: datasets.Image(decode=False) for c, f in table.features.items() if isinstance(f, datasets.Image)}
        for column, feature in images.items():
            table = table if table.features[column] == feature else table.cast_column(column, feature)
        raw[name] = table
    return dict(raw)


def _reason(error: Exception) -> str:
    """One sentence, and what to do."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    text = " / ".join(dict.fromkeys(str(e).strip().splitlines()[0] for e in chain if str(e).strip()))
    lower = text.lower()
    if "gated" in lower or "401" in lower or "403" in lower:
        return f"no access ({text}). Accept its terms on its page, and give a token with `hf auth login` or HF_TOKEN"
    if isinstance(error, ABSENT):
        return f"{text}. Check the name; a private data set needs a token, given with `hf auth login` or HF_TOKEN"
    if any(isinstance(e, ConnectionError | OfflineModeIsEnabled | TimeoutError) for e in chain) or "reach" in lower:
        return (
            f"{text}. Offline only what was downloaded before can be read: connect, unset HF_HUB_OFFLINE, "
            "or copy the data set here and give hub:FOLDER"
        )
    if "script" in lower:
        return f"{text}. It needs code of its repository, which is never run: look for its parquet files on the Hub"
    if "config name is missing" in lower or "builderconfig" in lower:
        return f"{str(error).strip()}. Name one: hub:OWNER/NAME/CONFIG"
    return f"{text or type(error).__name__}. If the files are damaged, download or convert them again"


# Converted sets -------------------------------------------------------------------------------------------


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = read_json(file)
        kinds = {"protocol": str, "noun": str, "notes": list, "splits": dict}
        if all(isinstance(record[key], kind) for key, kind in kinds.items()):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file} is damaged: convert the data set again")


def _check_files(folder: Path, spec: str) -> None:
    """Raises `UserError` when files of a converted set are missing or have another size: an incomplete copy."""
    for split in _read_record(folder / RECORD)["splits"].values():
        for name, size in split["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                what = "has another size" if path.is_file() else "is missing"
                raise UserError(f"{spec} is incomplete: {path} {what}; copy it again, or convert it again")


def _download_record(place: str, spec: str) -> dict[str, Any] | None:
    """The record of a converted set that was uploaded; None where the repository has none.

    Offline it has none only if that was seen before. Raises `UserError` where nobody can tell: without the record, the
    protocol and the noun would be guessed.
    """
    name = "/".join(place.split("/")[:2])
    try:
        return _read_record(Path(huggingface_hub.hf_hub_download(name, RECORD, repo_type="dataset")))
    except UserError:
        raise
    except Exception as error:  # of the network, the Hub, the files
        offline = isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
        if _seen_to_lack(name) if offline else isinstance(error, EntryNotFoundError):
            return None
        raise UserError(
            f"{spec}: whether it has a {RECORD} (protocol and noun, where `clipreid data convert` wrote it) cannot be "
            f"found out: {_reason(error)}"
        ) from error


def _seen_to_lack(name: str) -> bool:
    """Whether the Hub once said that this data set has no record."""
    known = huggingface_hub.try_to_load_from_cache(name, RECORD, repo_type="dataset")
    return known is huggingface_hub._CACHED_NO_EXIST


# metadata.csv and metadata.jsonl --------------------------------------------------------------------------


def _homes(folder: Path) -> list[Path]:
    """Where metadata may lie: in the folder, or in those of its splits."""
    return [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir() and split_of(path.name))]


def _metadata(folder: Path, spec: str, columns: Columns) -> Tables:
    """The lines of every metadata file as tables by split: the folder's own name, or the first folder of the path."""
    files = [next((home / name for name in METADATA if (home / name).is_file()), None) for home in _homes(folder)]
    tables = [csv_table(file) if file.suffix == ".csv" else json_table(file) for file in files if file is not None]
    kinds = {name: kind for table in tables for name, kind in table.kinds.items()}
    if not any(map(len, tables)):
        raise UserError(f"{spec}: the metadata has no lines: no images")
    column = find_columns(kinds, columns, spec)["image"]
    tables[0].notes.extend(_not_named(folder, (line for table in tables for line in table.lines), column))

    def part(line: Line) -> str:
        path = Path(str(line.cells.get(column)).replace("\\", "/"))
        name = line.home.name if line.home != folder else next(iter(path.parts[:-1]), "")
        return split_of(name) or "train"

    return merged(tables, part)


def _not_named(folder: Path, lines: Iterable[Line], column: str) -> list[str]:
    """A note on images below the folder that no line names."""
    named = {os.path.abspath(os.path.join(line.home, str(line.cells.get(column)).replace("\\", "/"))) for line in lines}
    try:
        there = [os.path.join(folder, *name.split("/")) for name in list_images(folder)]
    except UserError:  # none at all: every line will say so
        return []
    lost = [path for path in there if path not in named]
    example = f", such as {os.path.relpath(lost[0], folder)}" if lost else ""
    return [f"{len(lost):,d} images below {folder} are in no line of the metadata{example}"] if lost else []
