"""Tables of the Hugging Face kind: columns, splits, names of images, and every error a user can run into."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from PIL import Image

from clipreid.data import SCHEMA, ReIDData, Split, hub, load_data
from clipreid.errors import UserError

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 32), (shade % 256, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def image(shade: int, name: str | None = None) -> dict[str, Any]:
    return {"bytes": encoded(shade), "path": name}


def parquet(folder: Path, rows: Rows, features: dict[str, Any], name: str = "data/train-00000-of-00001.parquet") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: [row[key] for row in rows] for key in features}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return f"hub:{folder}"


TYPED = {
    "photo": datasets.Image(),
    "pid": datasets.Value("int64"),
    "camid": datasets.Value("int64"),
    "colour": datasets.Value("string"),
}


def typed(*pids: int, cameras: int = 2) -> Rows:
    return [
        {"photo": image(10 * pid + c, f"{pid}_{c}.png"), "pid": pid, "camid": c, "colour": "red"}
        for pid in pids
        for c in range(cameras)
    ]


def fails(spec: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, **options)
    return str(caught.value)


def rows(split: Split) -> list[tuple[str, int]]:
    return list(zip(split.identities.tolist(), split.cameras.tolist(), strict=True))


def images(split: Split) -> Rows:
    return [image for batch in split.encoded_batches(2) for image in batch]


# ---- parquet -----------------------------------------------------------------------------------------------


def test_mapped_columns_of_a_parquet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path, typed(7, 8), TYPED)
    spec = parquet(tmp_path, typed(1, 2), TYPED, "data/test-00000-of-00001.parquet")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was decoded"))
    data = load_data(spec, columns="identity=pid, camera=camid")
    assert list(data.splits) == ["train", "query", "gallery"]
    assert rows(data.splits["train"]) == [("7", 0), ("7", 1), ("8", 0), ("8", 1)]
    assert rows(data.splits["query"]) == rows(data.splits["gallery"]) == [("1", 0), ("1", 1), ("2", 0), ("2", 1)]
    assert (data.protocol, data.noun) == ("cross-camera", "person")
    assert [image["bytes"] for image in images(data.splits["gallery"])] == [encoded(n) for n in (10, 11, 20, 21)]
    assert data.splits["query"].paths.tolist() == ["1_0.png", "1_1.png", "2_0.png", "2_1.png"]
    assert data.splits["query"].table.features == SCHEMA
    assert set(data.splits["query"].table["split"]) == {"query"}
    assert "columns: identity is 'pid', camera is 'camid', image is 'photo'" in data.notes
    assert "columns not read: colour" in data.notes


def test_usual_names_are_understood_and_said(tmp_path: Path) -> None:
    data = load_data(parquet(tmp_path, typed(1), TYPED))
    assert rows(data.splits["train"]) == [("1", 0), ("1", 1)]
    assert "columns: image is 'photo', identity is 'pid', camera is 'camid'" in data.notes
    assert "columns not read: colour" in data.notes


def test_without_the_mapping_the_error_shows_it(tmp_path: Path) -> None:
    features = {"photo": datasets.Image(), "id": datasets.Value("int64"), "orientation": datasets.Value("string")}
    spec = parquet(tmp_path, [{"photo": image(1), "id": 7, "orientation": "left"}], features)
    message = fails(spec)
    assert f"{spec}: no column 'identity'" in message
    assert "Columns found: photo (Image), id (int64), orientation (string)" in message
    assert "such as --columns identity=id,view=orientation" in message
    notes = load_data(spec, columns={"identity": "id"}).notes
    assert "columns not read: orientation (if wanted: --columns view=orientation)" in notes


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("identity=person", "--columns identity=person: no such column. Columns found: photo (Image), pid (int64)"),
        ("identity=person", "have different names, convert one of them first with `clipreid data convert`"),
        ("person=pid", "cannot read 'person'; write FIELD=COLUMN,FIELD=COLUMN"),
        ("identity", "cannot read 'identity'"),
        ("identity=pid,identity=camid", "a field is given twice"),
        ("identity=pid,image=colour", "column colour (string) holds no images"),
    ],
)
def test_mappings_that_cannot_be(tmp_path: Path, columns: str, message: str) -> None:
    assert message in fails(parquet(tmp_path, typed(1), TYPED), columns=columns)


def test_columns_are_for_tables_only(tmp_path: Path) -> None:
    assert "works with csv:, hub: and coco: only" in fails("synthetic", columns="identity=pid")


CLASSES = datasets.ClassLabel(names=["anna", "ben"])
LABELLED = {
    "image": datasets.Image(),
    "identity": CLASSES,
    "camera": datasets.Value("string"),
    "view": datasets.ClassLabel(names=["3", "4"]),
    "caption": datasets.List(datasets.Value("string")),
    "split": datasets.Value("string"),
}


def labelled(*values: tuple[int, str, int, str]) -> Rows:
    return [
        {"image": image(n), "identity": who, "camera": camera, "view": view, "caption": ["a man", "red"], "split": s}
        for n, (who, camera, view, s) in enumerate(values)
    ]


def test_class_labels_named_cameras_lists_of_captions_and_a_split_column(tmp_path: Path) -> None:
    spec = parquet(
        tmp_path,
        labelled(
            (0, "north", 0, "query"), (1, "east", 1, "Validation"), (1, "", 0, "train"), (0, "east", 0, "gallery")
        ),
        LABELLED,
        "all.parquet",
    )
    data = load_data(spec)
    assert {name: rows(split) for name, split in data.splits.items()} == {
        "train": [("ben", -1)],
        "val": [("ben", 0)],
        "query": [("anna", 1)],
        "gallery": [("anna", 0)],
    }
    assert data.splits["val"].views.tolist() == [4]
    assert data.splits["query"].captions.tolist() == ["a man\nred"]
    assert "cameras are numbered: 'east' is 0, 'north' is 1" in data.notes
    assert data.protocol == "market1501"
    assert images(data.splits["val"])[0]["bytes"] == encoded(1)
    assert data.splits["gallery"].table[0]["split"] == "gallery"
    assert "hub:{}: row 0 of train: unknown split 'dev2'; known are train, training, val".format(
        tmp_path / "b"
    ) in fails(parquet(tmp_path / "b", labelled((0, "1", 0, "dev2")), LABELLED))
    assert "has query alone" in fails(parquet(tmp_path / "c", labelled((0, "1", 0, "query")), LABELLED))
    both = labelled((0, "1", 0, "query"), (0, "2", 0, "test"), (0, "3", 0, "gallery"))
    assert "has test beside gallery and query" in fails(parquet(tmp_path / "d", both, LABELLED))


def test_rows_without_an_image_are_named(tmp_path: Path) -> None:
    plain = {"image": datasets.Image(), "identity": datasets.Value("string"), "camera": datasets.Value("float64")}
    cells = [{"image": image(n), "identity": "x", "camera": c} for n, c in enumerate((2.0, None, float("nan"), -1.0))]
    assert load_data(parquet(tmp_path / "a", cells, plain)).splits["train"].cameras.tolist() == [2, -1, -1, -1]
    cells = [{"image": image(1), "identity": "x", "camera": 1}, {"image": None, "identity": "x", "camera": 1}]
    assert "row 1 of train has no image" in fails(parquet(tmp_path / "b", cells, plain))
    cells[1]["identity"] = None  # left out, so its image is not missed
    data = load_data(parquet(tmp_path / "c", cells, plain))
    assert len(data.splits["train"]) == 1
    assert "2 rows read, 1 used; left out: 1 of an unknown identity: empty (1)" in data.notes


def test_unknown_individuals_are_left_out_and_said(tmp_path: Path) -> None:
    spec = parquet(tmp_path, typed(-1, 3, 4), TYPED)
    data = load_data(spec)
    assert rows(data.splits["train"]) == [("3", 0), ("3", 1), ("4", 0), ("4", 1)]
    assert "6 rows read, 4 used; left out: 2 of an unknown identity: -1 (2)" in data.notes
    data = load_data(spec, unknown=["3", "nobody"])
    assert rows(data.splits["train"]) == [("4", 0), ("4", 1)]
    assert "6 rows read, 2 used; left out: 4 of an unknown identity: -1 (2), 3 (2)" in data.notes
    assert "no images are left. 6 rows read, 0 used" in fails(spec, unknown="3,4")


def test_files_are_assigned_to_splits_by_their_names(tmp_path: Path) -> None:
    layout = ["default/train/0000.parquet", "query.parquet", "market_test-gallery.parquet", "extra/0.parquet"]
    for number, name in enumerate(layout):
        spec = parquet(tmp_path, typed(number + 1), TYPED, name)
    data = load_data(spec, columns="identity=pid,camera=camid")
    assert {name: set(split.identities) for name, split in data.splits.items()} == {
        "train": {"1"},
        "query": {"2"},
        "gallery": {"3"},
    }
    assert "8 rows read, 6 used; left out: 2 in unnamed, which is no split" in data.notes


def test_every_image_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Evaluation leaves out a gallery image of the query's name, so names must not be shared by chance."""
    features = {"image": datasets.Image(), "identity": datasets.Value("string")}
    cells = [("0001.png", 1), ("0002.png", 2), (None, 3)], [("0001.png", 7), ("0002.png", 2), (None, 3)]
    for name, given in zip(("query", "gallery"), cells, strict=True):
        made = [{"image": image(shade, file), "identity": "x"} for file, shade in given]
        parquet(tmp_path, made, features, f"{name}.parquet")
    data = load_data(f"hub:{tmp_path}")
    query, gallery = (data.splits[name].paths.tolist() for name in ("query", "gallery"))
    assert query[0] != gallery[0]  # other bytes
    assert query[1] == gallery[1]  # the same image
    assert query[1].startswith("0002.png#")
    assert (query[2], gallery[2]) == ("query/000002", "gallery/000002")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    assert f"{tmp_path / 'train.parquet'} is no parquet file, or damaged" in fails(f"hub:{tmp_path}")


# ---- metadata beside images ------------------------------------------------------------------------------


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(folder / name)


def test_metadata_csv_keeps_leading_zeros_and_finds_splits_in_paths(tmp_path: Path) -> None:
    names = ["train/a.jpg", "query/b.jpg", "gallery/c.jpg"]
    draw(tmp_path, *names)
    with open(tmp_path / "metadata.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows(
            [("file_name", "pid", "camera", "text"), *((n, f"000{7 + (i > 0)}", i, "x") for i, n in enumerate(names))]
        )
    data = load_data(f"hub:{tmp_path}", columns="identity=pid,caption=text")
    assert {name: rows(split) for name, split in data.splits.items()} == {
        "train": [("0007", 0)],
        "query": [("0008", 1)],
        "gallery": [("0008", 2)],
    }
    assert data.splits["train"].path(0) == str(tmp_path / "train/a.jpg")
    assert data.splits["train"].captions.tolist() == ["x"]
    assert data.splits["train"].image(0).size == (16, 32)


def test_metadata_jsonl_in_the_folders_of_the_splits(tmp_path: Path) -> None:
    for part in ("train", "test"):
        draw(tmp_path / part, "x/1.jpg", "x/2.jpg")
        lines = [{"file_name": f"x/{n}.jpg", "identity": f"{part} {n}", "camera": n, "view": None} for n in (1, 2)]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = load_data(f"hub:{tmp_path}")
    assert list(data.splits) == ["train", "query", "gallery"]
    assert rows(data.splits["query"]) == [("test 1", 1), ("test 2", 2)]
    assert data.splits["query"].views.tolist() == [-1, -1]


def test_images_that_no_line_names_are_counted(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "deep/c.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,identity\nb.jpg,1\n")
    assert (
        f"2 images below {tmp_path} are in no line of the metadata, such as a.jpg" in load_data(f"hub:{tmp_path}").notes
    )


def test_file_names_say_nothing_of_splits(tmp_path: Path) -> None:
    names = ["query_1.jpg", "test_3.jpg", "b.jpg", "test/c.jpg"]
    draw(tmp_path, *names)
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,identity", *(f"{name},{name}" for name in names)]))
    data = load_data(f"hub:{tmp_path}")
    assert {name: split.identities.tolist() for name, split in data.splits.items()} == {
        "train": names[:3],
        "query": names[3:],
        "gallery": names[3:],
    }


def test_values_of_several_kinds_in_jsonl(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    names = {"a": 1, "b": "x", "c": 2.0, "d": None}
    lines = [{"file_name": f"{name}.jpg", "identity": who} for name, who in names.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_data(f"hub:{tmp_path}").splits["train"].identities.tolist() == ["1", "x", "2"]
    lines[1]["identity"] = "001"
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    message = fails(f"hub:{tmp_path}")
    assert "metadata.jsonl, line 2: identity '001', but '1' in" in message
    assert "write them alike" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file_name,identity\na.jpg,1\na.jpg,1,2\n",
            "metadata.csv, line 3 has more cells than the header (3 and 2): put",
        ),
        ("file_name,identity\nno.jpg,1\n", "line 2: no such image: "),
        ("name,identity\na.jpg,1\n", "no column 'image'. Columns found: name, identity"),
        ("file_name,identity\n", "has no lines below its header"),
        ("file_name,id\na.jpg,1\n", "no column 'identity'. Columns found: file_name, id. Say which is which, such as"),
    ],
)
def test_metadata_errors(tmp_path: Path, text: str, message: str) -> None:
    draw(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_text(text)
    assert message in fails(f"hub:{tmp_path}")


def test_broken_jsonl(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "identity": 1}\n{"file_name"')
    assert "metadata.jsonl, line 2 is not one JSON object" in fails(f"hub:{tmp_path}")
    (tmp_path / "metadata.jsonl").write_text("\n")
    assert "the metadata has no lines: no images" in fails(f"hub:{tmp_path}")


def test_other_folders_say_what_is_expected(tmp_path: Path) -> None:
    draw(tmp_path, "train/anna/1.jpg")
    message = fails(f"hub:{tmp_path}")
    assert "holds neither parquet files nor a metadata.csv or metadata.jsonl beside images. Found: train/" in message
    assert "a folder for each identity (train/anna/1.jpg, test/ben/1.jpg)" in message
    assert f"read by folder:{tmp_path}" in message
    draw(tmp_path, "test/ben/1.jpg")
    advised = load_data(f"folder:{tmp_path}")
    assert {name: set(split.identities) for name, split in advised.splits.items()} == {
        "train": {"anna"},
        "query": {"ben"},
        "gallery": {"ben"},
    }


# ---- the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hub:", "lacks its name: write hub:OWNER/NAME or hub:FOLDER"),
        ("hub:nowhere", "no such folder, and no name on the Hub, which is written hub:OWNER/NAME"),
        ("hub:./no/where", "no such folder, and no name on the Hub"),
        ("hub:/no/where", "no such folder, and no name on the Hub"),
    ],
)
def test_names_that_cannot_be(spec: str, message: str) -> None:
    assert message in fails(spec)


def test_offline_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = fails("hub:nobody/nothing")
    assert (
        "hub:nobody/nothing is no folder here, and cannot be loaded from the Hub: Couldn't reach 'nobody/nothing'"
        in message
    )
    assert "connect, unset HF_HUB_OFFLINE, or copy the data set here and give hub:FOLDER" in message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
            "Check the name; a private data set needs a token, given with `hf auth login` or HF_TOKEN",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."),
            "Accept its terms on its page, and give a token with `hf auth login` or HF_TOKEN",
        ),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "which is never run"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['x', 'y']"),
            "['x', 'y']. Name one: hub:OWNER/NAME/CONFIG",
        ),
        (ConnectionError("Temporary failure in name resolution"), "Offline only what was downloaded before"),
        (datasets.exceptions.DatasetGenerationError("An error occurred"), "download or convert them again"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert message in fails("hub:a/b")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Rows], Path | None], list[tuple[Any, ...]]]:
    """Makes the Hub hold one data set (and its clipreid.json); gives the list of how it was asked for."""

    def publish(tables: dict[str, Rows], record: Path | None) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def load_dataset(*args: Any, **options: Any) -> datasets.DatasetDict:
            asked.append((args, options))
            made = {}
            for name, each in tables.items():
                columns = {key: [row[key] for row in each] for key in TYPED}
                made[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(TYPED))
            return datasets.DatasetDict(made)

        def hf_hub_download(repository: str, file: str, repo_type: str) -> str:
            assert (repository, file, repo_type) == ("a/b", "clipreid.json", "dataset")
            if record is None:
                raise hub.EntryNotFoundError("none")
            return str(record)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", hf_hub_download)
        return asked

    return publish


def test_from_the_hub_no_code_is_run(online: Callable[..., list[tuple[Any, ...]]]) -> None:
    asked = online({"train": typed(1, 2), "validation": typed(3)}, None)
    data: ReIDData = load_data("hub:a/b", columns="identity=pid,camera=camid", noun="tiger")
    assert (list(data.splits), data.noun, data.name) == (["train", "val"], "tiger", "hub:a/b")
    load_data("hub:a/b/config", columns="identity=pid")
    assert asked == [(("a/b",), {}), (("a/b", "config"), {})]  # trust_remote_code is never given


def test_no_known_split(online: Callable[..., list[tuple[Any, ...]]]) -> None:
    online({"one": typed(1), "two": typed(2)}, None)
    assert "none of its splits (one, two) is one of train, training, val" in fails("hub:a/b", columns="identity=pid")


def test_a_converted_set_from_the_hub_remembers(
    online: Callable[..., list[tuple[Any, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split.from_columns("query", [image(1, "a/1.png"), image(2, "b/1.png")], ["7", "8"], [1, 2])
    gallery = Split.from_columns("gallery", [image(1, "a/1.png")], ["7"], [1])
    record = {"protocol": "cuhk03-np", "noun": "elk", "notes": ["beware"], "splits": {"query": {}, "gallery": {}}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    online({}, tmp_path / "record.json")
    tables = datasets.DatasetDict(gallery=gallery.table, query=split.table)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: tables)
    data = load_data("hub:a/b")
    assert (data.protocol, data.noun, data.notes) == ("cuhk03-np", "elk", ("beware",))
    assert list(data.splits) == ["query", "gallery"]
    assert data.splits["query"].paths.tolist() == ["a/1.png", "b/1.png"]  # names as they were
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(query=split.table))
    assert "clipreid.json names the splits query, gallery, found: query" in fails("hub:a/b")


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot reach"), OfflineModeIsEnabled("offline")])
def test_offline_the_record_is_missed_only_where_it_never_was(
    online: Callable[..., list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch, error: Exception, seen: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    online({"train": typed(1, 2)}, None)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", refuse)
    known = hub.huggingface_hub._CACHED_NO_EXIST if seen else None
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_, **__: known)
    if seen:
        assert list(load_data("hub:a/b", columns="identity=pid").splits) == ["train"]
    else:
        message = fails("hub:a/b", columns="identity=pid")
        assert "hub:a/b: whether it has a clipreid.json (protocol and noun, where `clipreid data convert`" in message
        assert f"cannot be found out: {error}" in message


def test_a_record_that_the_hub_refuses(
    online: Callable[..., list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("503 Server Error")

    online({"train": typed(1, 2)}, None)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", refuse)
    message = fails("hub:a/b", columns="identity=pid")
    assert "cannot be found out: 503 Server Error. Offline only what was downloaded before can be read" in message
