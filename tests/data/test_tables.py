"""Tables as spreadsheets, pandas and people write them: what is read, and every error a user can run into."""

import csv
import datetime
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipreid.data import ReIDData, Split, load_data
from clipreid.data.check import read_and_check
from clipreid.data.values import is_unknown, text_of
from clipreid.errors import UserError

NAMES = [f"p/{who}{camera}.png" for who in "abcdef" for camera in (1, 2)]
PLAIN = "image,identity,camera,split\n" + "".join(
    f"{name},00{'abcdef'.index(name[2]) + 1},{name[3]},{'train' if name[2] < 'd' else 'test'}\n" for name in NAMES
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 32), (20 * number, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def table(folder: Path, text: str | bytes) -> str:
    if not (folder / "p").exists():
        (folder / "p").mkdir()
        for number, name in enumerate(NAMES):
            (folder / name).write_bytes(encoded(number))
    (folder / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{folder / 'data.csv'}"


def fails(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, **options)
    return str(caught.value)


def rows(split: Split) -> list[tuple[str, int]]:
    return list(zip(split.identities.tolist(), split.cameras.tolist(), strict=True))


def same(one: ReIDData, two: ReIDData) -> bool:
    """Whether both have the same splits, protocol and values; names of images aside."""
    columns = [name for name in one.splits["train"].table.column_names if name != "image"]
    return (one.protocol, one.noun, list(one.splits)) == (two.protocol, two.noun, list(two.splits)) and all(
        split.table.select_columns(columns)[:] == two.splits[name].table.select_columns(columns)[:]
        for name, split in one.splits.items()
    )


def test_all_columns(tmp_path: Path) -> None:
    data = load_data(
        table(
            tmp_path,
            "\ufeffimage,identity,camera,view,split,caption,clothes,colour,tracklet,session\n"
            'p/a1.png,7,1,,train,"a man, walking",coat,red,t1,2024-01-02\n\n'
            f"{tmp_path}/p/b1.png,8, 2,0,Test,,,blue,,\np/c1.png,9,1,,test,,shirt,,unknown,\n"
            "p/c2.png,9,2,,test,,,,,\n",
        )
    )
    assert list(data.splits) == ["train", "query", "gallery"]
    train, query = data.splits["train"], data.splits["query"]
    assert rows(train) == [("7", 1)]
    assert (train.captions.tolist(), train.clothes.tolist()) == (["a man, walking"], ["coat"])
    assert (train.tracklets.tolist(), train.sessions.tolist()) == (["t1"], ["2024-01-02"])
    assert rows(query) == rows(data.splits["gallery"]) == [("8", 2), ("9", 1), ("9", 2)]
    assert (query.views.tolist(), query.clothes.tolist()) == ([0, -1, -1], ["", "shirt", ""])
    assert query.tracklets.tolist() == ["", "", ""]
    assert data.protocol == "cross-camera"
    assert "columns not read: colour" in data.notes
    assert train.image(0).size == (16, 32)
    assert set(query.table["split"]) == {"query"}


def test_without_split_and_partly_without_cameras(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, "image,identity\np/a1.png,car_1\np/b1.png,car_2\n"))
    assert list(data.splits) == ["train"]
    assert data.noun == "vehicle"
    data = load_data(table(tmp_path, "image,identity,camera,split\np/a1.png,x,1,query\np/a2.png,x,,gallery\n"))
    assert data.protocol == "no-cameras"
    assert any("1 of 2 test images have no camera" in note for note in data.notes)
    data = load_data(table(tmp_path, "image,identity,split\np/a1.png,x,train\np/a2.png,x,\n"))
    assert "1 rows with an empty split are read as train" in data.notes


# How it is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("\ufeff" + PLAIN, None),
        (PLAIN.replace("\n", "\r\n"), None),
        (PLAIN.replace("\n", "\r"), None),
        (PLAIN.replace("\n", "\n\n"), None),
        (PLAIN.replace(",", ";"), "cells are separated by semicolons"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "cells are separated by semicolons"),
        (PLAIN.replace(",", "\t"), "cells are separated by tabs"),
        (PLAIN.replace(",", "|"), "cells are separated by vertical lines"),
        (PLAIN.encode("utf-16"), "the table is read as UTF-16"),
        (PLAIN.replace("p/", "p\\"), "12 paths are written with \\: read with / instead"),
        (PLAIN + ",,,\n , ,,\n", "2 lines without any value are passed over"),
        (PLAIN.replace("image,identity", "Image, Identity "), "columns: image is 'Image', identity is 'Identity'"),
        (
            PLAIN.replace("image,identity,camera", "img_path,PID,camId"),
            "columns: image is 'img_path', identity is 'PID', camera is 'camId'",
        ),
        (PLAIN.replace("image,identity", "path,label"), "columns: image is 'path', identity is 'label'"),
        (
            PLAIN.replace("image,identity", "filename,person_id"),
            "columns: image is 'filename', identity is 'person_id'",
        ),
        (
            "".join(f"{n - 1 if n else ''},{line}\n" for n, line in enumerate(PLAIN.splitlines())),
            "columns not read: (column 1 has no name)",
        ),
        (PLAIN + PLAIN.partition("\n")[2], "24 rows read, 12 used; left out: 12 the same row as one before"),
    ],
)
def test_the_same_table_written_otherwise(tmp_path: Path, text: str | bytes, note: str | None) -> None:
    plain = load_data(table(tmp_path, PLAIN))
    data = load_data(table(tmp_path, text))
    assert same(data, plain)
    assert data.splits["query"].paths.tolist() == plain.splits["query"].paths.tolist()
    assert [each for each in data.notes if each not in plain.notes] == ([note] if note else [])


HEAD = "image,identity\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;name\np/a1.png;1\n", "no column 'identity'. Columns found: file, name. Say which is which, such as"),
        ("Bild,Person\np/a1.png,1\n", "--columns image=COLUMN,camera=COLUMN"),
        ("file;name\np/a1.png;1\n", "--columns identity=name"),
        ("", "is empty: write a header such as image,identity,camera,split"),
        (HEAD, "has no lines below its header: no images"),
        (HEAD + "p/a1.png,1\n,2\n", "line 3: image is empty"),
        (HEAD + "\np/no.png,1\n", "line 3: no such image: "),
        (HEAD + "p,1\n", "p is a folder, not an image"),
        (
            HEAD + "https://example.org/a.png,1\n",
            "line 2: https://example.org/a.png is an address: images are read from",
        ),
        (HEAD + "C:\\p\\a1.png,1\n", "line 2: no such image: C:\\p\\a1.png (a path of a Windows machine; write paths"),
        (HEAD + "p/a1.png,1,2\n", "line 2 has more cells than the header (3 and 2): put quotes around cells with"),
        (HEAD + "p/a1.png,1\np/a2.png\n", "line 3 has fewer cells than the header (1 and 2): is the file whole?"),
        ("image,identity,identity\np/a1.png,1,2\n", "line 1: the column 'identity' is there twice"),
        ("image,pid,label\np/a1.png,1,2\n", "the columns 'pid' and 'label' could each be the identity: give --columns"),
        ("image,pid,label\np/a1.png,1,2\n", "--columns identity=pid or --columns identity=label"),
        (HEAD + "p/a1.png,0\x001\n", "line 2 holds a NUL byte: the file is damaged, or UTF-16 without its mark"),
        (PLAIN.encode("utf-16-le"), "line 1 holds a NUL byte"),
        (HEAD.encode() + "p/a1.png,José\n".encode("cp1252"), "see line 2, which is 'p/a1.png,José' if the file is of"),
        (HEAD.encode() + "p/a1.png,José\n".encode("cp1252"), "iconv -f WINDOWS-1252 -t UTF-8 data.csv > utf8.csv"),
        (
            b"PK\x03\x04\0\0",
            "is no text, but a workbook of a spreadsheet (or another archive): save the sheet as",
        ),
        (b"PAR1\0\0", "is no text, but a parquet file: read the folder that holds it with hub:FOLDER"),
        (PLAIN.encode("utf-16")[:-1], "is not whole UTF-16 text"),
        ("image,identity,split\np/a1.png,1,dev2\n", "line 2: unknown split 'dev2'; known are train, training, val"),
        ("image,identity,split\np/a1.png,1,test\np/b1.png,1,query\n", "has test beside query: keep one or the other"),
        ("image,identity,split\np/a1.png,1,query\n", "has query alone: give both query and gallery, or test instead"),
        (
            "image,identity,split\np/a1.png,1,query\np/b1.png,-1,gallery\n",
            "has query alone: give both query and gallery, or test instead",
        ),
        (HEAD + "p/a1.png,-1\n", "no images are left. 1 rows read, 0 used; left out: 1 of an unknown identity: -1 (1)"),
        (HEAD + "p/a1.png,7\np/a2.png,007\n", "line 3: identity '007', but '7' in "),
        (HEAD + "p/a1.png,1\np/a1.png,2\n", "p/a1.png is of identity '2' here and of '1' in "),
        (HEAD + "p/a1.png,1\np/../p/a1.png,2\n", "line 2: one of the two is wrong"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in fails(table(tmp_path, text))


def test_a_camera_for_every_row_is_none(tmp_path: Path) -> None:
    lines = [f"p/{n}.png,00{n // 4},{n},{'train' if n < 12 else 'test'}\n" for n in range(24)]
    spec = table(tmp_path, "image,identity,camera,split\n" + "".join(lines))
    for number in range(24):
        (tmp_path / "p" / f"{number}.png").write_bytes(encoded(0))
    message = fails(spec)
    assert "column 'camera': 24 different cameras in 24 images (0, 1, 2, ...): these are no cameras" in message
    assert "leave it out with --columns camera=none" in message
    data = load_data(spec, columns="camera=none,session=camera")
    assert data.protocol == "no-cameras"
    assert data.splits["query"].sessions.tolist() == [str(n) for n in range(12, 24)]


# Quotes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", range(2, 14))
@pytest.mark.parametrize("column", range(4))
def test_a_stray_quote_is_refused_where_it_opens(tmp_path: Path, line: int, column: int) -> None:
    lines = [row.split(",") for row in PLAIN.splitlines()]
    lines[line - 1][column] = '"' + lines[line - 1][column]
    text = "\n".join(map(",".join, lines))
    assert f'data.csv, line {line}: a quote (") opens here' in fails(table(tmp_path, text))
    long = text + "\n" + "\n".join(",".join(lines[2]) for _ in range(8000))  # more than a cell may hold
    assert f'data.csv, line {line}: a quote (") opens here' in fails(table(tmp_path, long))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    strays=st.sets(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=2, max_size=4),
    after=st.booleans(),
)
def test_several_stray_quotes_never_swallow_rows(tmp_path: Path, strays: set[tuple[int, int]], after: bool) -> None:
    """Two of them make one long cell, which may look right."""
    lines = [[*row.split(","), "a man, red" if n else "caption"] for n, row in enumerate(PLAIN.splitlines())]
    for line, column in strays:
        lines[line][column] = lines[line][column] + '"' if after else '"' + lines[line][column]
    text = "\n".join(",".join(f'"{cell}"' if cell == "a man, red" else cell for cell in line) for line in lines)
    spec = table(tmp_path, text)
    try:
        data = load_data(spec)
    except UserError:
        return
    assert len(data.splits["train"]) + len(data.splits["query"]) == 12


@pytest.mark.parametrize("cell", ['0"03', '003"', ' "003"', '"0"03', '"003" ', '"003""'])
def test_quotes_within_cells_are_refused(tmp_path: Path, cell: str) -> None:
    """They would be part of the identity, which would be another one."""
    assert 'data.csv, line 3: a quote (") opens here' in fails(table(tmp_path, HEAD + f"p/a1.png,1\np/a2.png,{cell}\n"))


def test_two_stray_quotes_make_a_cell_over_several_lines(tmp_path: Path) -> None:
    text = PLAIN.replace("p/b1.png,002", 'p/b1.png,"002').replace("p/c1.png,003,1", 'p/c1.png,003","1')
    assert 'data.csv, line 4: a quote (") opens here' in fails(table(tmp_path, text))


def test_quotes_that_are_right(tmp_path: Path) -> None:
    buffer = io.StringIO()
    words = ["a man, red", 'says "hi"', "one\ntwo", "5 feet"]
    out = [("image", "identity", "caption"), *((NAMES[n], "x", text) for n, text in enumerate(words))]
    csv.writer(buffer).writerows(out)
    assert load_data(table(tmp_path, buffer.getvalue())).splits["train"].captions.tolist() == words


CELL = st.text(st.sampled_from("ab07.,;|\t\"' -_é"), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    who=st.lists(CELL, min_size=12, max_size=12),
    where=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    caption=st.lists(CELL, min_size=12, max_size=12),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    names=st.permutations(
        [("image", "img_path", "File"), ("identity", "PID"), ("camera", "cam_id"), ("caption", "Text")]
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    data=st.data(),
)
def test_what_was_written_is_read_or_refused(
    tmp_path: Path,
    who: list[str],
    where: list[int],
    caption: list[str],
    separator: str,
    encoding: str,
    names: list[tuple[str, ...]],
    quoting: Any,
    data: st.DataObject,
) -> None:
    header = [data.draw(st.sampled_from(each)) for each in names]
    cells = {"image": NAMES, "identity": who, "camera": where, "caption": caption}
    buffer = io.StringIO()
    columns = [cells[each[0]] for each in names]
    csv.writer(buffer, delimiter=separator, quoting=quoting).writerows([header, *zip(*columns, strict=True)])
    spec = table(tmp_path, buffer.getvalue().encode(encoding))
    kept = [n for n, name in enumerate(who) if not is_unknown(name)]
    numbers = [text_of(who[n]) for n in kept if text_of(who[n]).isdecimal()]
    if not kept or len(set(numbers)) > len(set(map(int, numbers))):
        assert "no images are left" in (message := fails(spec)) or "write them alike" in message
        return
    split = load_data(spec).splits["train"]
    assert split.identities.tolist() == [text_of(who[n]) for n in kept]
    assert split.cameras.tolist() == [where[n] for n in kept]
    assert split.captions.tolist() == [caption[n].strip() for n in kept]
    assert [Path(path).name for path in split.paths.tolist()] == [Path(NAMES[n]).name for n in kept]


# One rule for values, whatever the reader -----------------------------------------------------------------


def as_csv(folder: Path, columns: dict[str, Sequence[Any]], name: str, first: str) -> None:
    """As pandas writes it: None and NaN are empty."""
    with open(folder / name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([first, *columns])
        for number, cells in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([NAMES[number], *("" if cell is None or cell != cell else cell for cell in cells)])


def everywhere(folder: Path, columns: dict[str, Sequence[Any]]) -> dict[str, str]:
    """The same rows as csv:, metadata.csv, metadata.jsonl and parquet."""
    table(folder, "")
    as_csv(folder, columns, "data.csv", "image")
    for name in ("metadata", "lines", "parquet"):
        (folder / name).mkdir()
    (folder / "metadata" / "p").symlink_to(folder / "p")
    (folder / "lines" / "p").symlink_to(folder / "p")
    as_csv(folder / "metadata", columns, "metadata.csv", "file_name")
    cells = list(zip(*columns.values(), strict=True))
    with open(folder / "lines" / "metadata.jsonl", "w") as file:
        for number, row in enumerate(cells):
            plain = [cell.isoformat() if isinstance(cell, datetime.date) else cell for cell in row]
            file.write(json.dumps({"file_name": NAMES[number], **dict(zip(columns, plain, strict=True))}) + "\n")
    images = [{"bytes": encoded(number), "path": NAMES[number]} for number in range(len(cells))]
    pq.write_table(pa.table({"image": images, **columns}), folder / "parquet" / "data.parquet")
    hubs = {name: f"hub:{folder / name}" for name in ("metadata", "lines", "parquet")}
    return {"csv": f"csv:{folder / 'data.csv'}", **hubs}


IDS, SPLIT = [f"{who:03d}" for who in range(6) for _ in (1, 2)], ["train"] * 6 + ["test"] * 6
TWO = [1, 2] * 6
WEEK = [datetime.datetime(2024, 1, n) for n in TWO]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"camera": [float(n) for n in TWO]},
        {"camera": [str(float(n)) for n in TWO]},
        {"camera": [None, *map(float, TWO[1:])]},
        {"camera": ["A", "B"] * 6},
        {"camera": ["cam1", "cam2"] * 6},
        {"camera": ["north", "south"] * 6},
        {"camera": ["north", ""] * 6},
        {"camera": ["1", "A"] * 6},
        {"camera": WEEK},
        {"camera": [day.date() for day in WEEK]},
        {"camera": [1706659200000 + n for n in TWO]},
        {"camera": [2**40 + n for n in TWO]},
        {"camera": [1.5 * n for n in TWO]},
        {"camera": [n == 1 for n in TWO]},
        {"camera": [-1] * 12},
        {"camera": ["unknown", "2"] * 6},
        {"view": [math.nan if n < 3 else 2.0 for n in range(12)]},
        {"identity": list(map(int, IDS))},
        {"identity": list(map(float, IDS))},
        {"identity": [who if who != "003" else "unknown" for who in IDS]},
        {"identity": [who if who != "003" else None for who in IDS]},
        {"identity": [int(who) if who != "003" else -1 for who in IDS]},
        {"identity": [float(who) if who != "003" else math.nan for who in IDS]},
        {"identity": [f"anna  {who}" for who in IDS]},
        {"identity": [f" {who} " for who in IDS]},
        {"identity": [1.5 + int(who) for who in IDS]},
        {"split": ["Training"] * 6 + ["VALIDATION"] * 6},
        {"split": ["train"] * 4 + [""] * 2 + ["query", "gallery"] * 3},
        {"split": [None] * 6 + ["testing"] * 6},
        {"tracklet": [f"t{n}" for n in range(12)], "session": WEEK, "clothes": ["1.0", "unknown"] * 6},
        {"caption": ["a man, red", ""] * 6},
    ],
)
def test_all_readers_take_the_same_values(tmp_path: Path, changed: dict[str, Sequence[Any]]) -> None:
    columns = {"identity": IDS, "camera": TWO, "split": SPLIT} | changed
    found = {name: load_data(spec) for name, spec in everywhere(tmp_path, columns).items()}
    assert all(same(data, found["csv"]) for data in found.values())
    for data in found.values():
        assert [n for n in data.notes if not n.startswith("columns")] == list(found["csv"].notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": [*SPLIT[:-1], "tset"]}, "unknown split 'tset'; known are train"),
        ({"split": [*SPLIT[:-1], "query"]}, "has test beside query"),
        ({"split": ["query"] * 12}, "has query alone"),
        ({"identity": [None] * 12}, "no images are left. 12 rows read, 0 used"),
        ({"identity": [*IDS[:-1], "5"]}, "identity '5', but '005' in"),
    ],
)
def test_all_readers_refuse_the_same_values(tmp_path: Path, changed: dict[str, Sequence[Any]], message: str) -> None:
    columns = {"identity": IDS, "camera": TWO, "split": SPLIT} | changed
    for spec in everywhere(tmp_path, columns).values():
        assert message in fails(spec)


def test_unknown_individuals(tmp_path: Path) -> None:
    words = ["-1", "", "NaN", "none", "Unknown", "nobody", "99", "0", "7", "7", "8", "8"]
    spec = table(tmp_path, HEAD + "".join(f"{name},{word}\n" for name, word in zip(NAMES, words, strict=True)))
    data = load_data(spec)
    assert data.splits["train"].identities.tolist() == words[5:]
    assert "left out: 5 of an unknown identity: -1 (1), empty (1), NaN (1), none (1), Unknown (1)" in data.notes[0]
    assert load_data(spec, unknown="nobody, 99").splits["train"].identities.tolist() == words[7:]
    assert load_data(spec, unknown=("nobody,99", "0")).splits["train"].identities.tolist() == words[8:]
    assert "--unknown names unknown identities and works with folder:, csv:, hub:, coco: and yolo: only" in fails(
        "synthetic", unknown="x"
    )


def test_distractors_are_found_but_never_ask(tmp_path: Path) -> None:
    words = ["1", "1", "Distractor", "2", "2", "3", "3", "distractor", "distractor", "4", "4", "distractors"]
    splits = ["train"] * 5 + ["test"] * 7
    lines = [f"{name},{who},{part}\n" for name, who, part in zip(NAMES, words, splits, strict=True)]
    data = load_data(table(tmp_path, "image,identity,split\n" + "".join(lines)))
    assert data.splits["train"].identities.tolist() == ["1", "1", "2", "2"]
    assert data.splits["query"].identities.tolist() == ["3", "3", "4", "4"]
    assert data.splits["gallery"].identities.tolist() == words[5:]
    assert "3 distractors are in the gallery only" in data.notes
    assert "12 rows read, 11 used; left out: 1 distractors outside of the gallery" in data.notes


# Columns --------------------------------------------------------------------------------------------------


def test_columns_are_for_all_tables(tmp_path: Path) -> None:
    spec = table(tmp_path, PLAIN.replace("identity,camera", "Name,place"))
    data = load_data(spec, columns="identity=Name,camera=place")
    assert rows(data.splits["train"])[0] == ("001", 1)
    assert "columns: identity is 'Name', camera is 'place'" in data.notes
    assert load_data(spec, columns="identity=Name,split=none").splits["train"].cameras.tolist() == [-1] * 12
    assert "--columns identity=who: no such column. Columns found: image, Name, place" in fails(
        spec, columns="identity=who"
    )


def test_a_name_of_a_field_comes_before_a_usual_one(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, "image,path,pid,identity\np/a1.png,no,5,6\n"))
    assert rows(data.splits["train"]) == [("6", -1)]
    assert "columns not read: path, pid" in data.notes


def test_an_identity_for_every_row_is_doubted(tmp_path: Path) -> None:
    lines = [f"p/a1.png,{n},{n},{n},20,30\n" for n in range(1, 21)]
    spec = table(tmp_path, "image,identity,x,y,w,h\n" + "".join(line.replace("20,30", "8,9") for line in lines[:6]))
    assert not any("identity of its own" in note for note in load_data(spec).notes)
    for number in range(20):
        (tmp_path / "p" / f"{number}.png").write_bytes(encoded(0))
    spec = table(tmp_path, "image,id\n" + "".join(f"p/{n}.png,{n}\n" for n in range(20)))
    note = "every row is an identity of its own: is 'id' the individual, or a number of the row?"
    assert note in load_data(spec, columns="identity=id").notes


def test_check_reports_every_line(tmp_path: Path) -> None:
    spec = table(tmp_path, HEAD + "p/a1.png,1\np/no.png,1\np/a2.png\np/a1.png,2\np/b1.png,3\np/b2.png,unknown\n")
    report, data = read_and_check(spec)
    assert data is not None
    found = {finding.kind: finding for finding in report.findings}
    assert [item.partition("data.csv, ")[2][:7] for item in found["unusable line"].items] == ["line 4 ", "line 3:"]
    assert found["the same image under two identities"].severity == "fault"
    assert not report.fit
    note = "5 rows read, 3 used; left out: 1 of an unknown identity: unknown (1); 1 without a usable image"
    assert note in [finding.explanation for finding in report.findings]


def test_one_image_in_several_rows_is_counted(tmp_path: Path) -> None:
    text = "image,identity,caption\np/a1.png,1,a man\np/a1.png,1,a tall man\np/a2.png,1,\n"
    data = load_data(table(tmp_path, text))
    assert len(data.splits["train"]) == 3
    assert "1 images are named by several rows that differ" in data.notes
    assert np.unique(data.splits["train"].paths).size == 2
