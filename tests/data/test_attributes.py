"""Attributes: columns of tables, files beside a folder, the street's own, and the numbers that models are told."""

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipreid.data import SCHEMA, load_data
from clipreid.data.attributes import attribute_codes, attribute_values, clean, pack, unpack
from clipreid.data.convert import convert
from clipreid.data.synthetic.street import person
from clipreid.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and test/ with names of Market-1501: identities 0001, 0002 and 0003, 0004, at two cameras."""
    for split, identities in (("train", (1, 2)), ("test", (3, 4))):
        (tmp_path / split).mkdir()
        for identity in identities:
            for camera in (1, 2):
                image = Image.new("RGB", (8, 16), (40 * identity, 90 * camera, 0))
                image.save(tmp_path / split / f"{identity:04d}_c{camera}s1_000001_00.jpg")
    return tmp_path


def table(folder: Path, text: str) -> str:
    (folder / "table.csv").write_text(text)
    return f"csv:{folder / 'table.csv'}"


def test_attributes_are_packed_and_come_back_without_what_is_unknown() -> None:
    given = {"hat": "none", "bag": "", "top": " red ", "age": 3.0, "shoes": float("nan"), "hair": "unknown"}
    assert unpack(pack(given)) == {"hat": "none", "top": "red", "age": "3"}
    assert pack({}) == pack({"bag": None}) == ""
    assert unpack("") == {}


@pytest.mark.parametrize("text", ["male;hat", "[1]", '{"hat": ["cap"]}', '"hat"'])
def test_what_is_no_object_of_attributes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--columns attributes=none"):
        unpack(text)


def test_codes_are_those_of_names_and_values() -> None:
    found = attribute_codes([{"hat": "none", "top": "red|blue"}, {}, {"top": "red"}])
    crc = lambda text: zlib.crc32(text.encode())  # noqa: E731
    top, red, blue = crc("top"), crc("top=red"), crc("top=blue")
    assert found.tolist() == [
        [[-1, crc("hat=none")], [top, red], [top, blue]],
        [[-1, -1]] * 3,
        [[top, red], [-1, -1], [-1, -1]],
    ]
    assert attribute_codes([{}, {}]).shape == (2, 0, 2)
    assert attribute_values([{"top": "red|blue"}, {"hat": "cap"}]) == {"hat": ["cap"], "top": ["blue", "red"]}


def test_the_street_knows_what_its_people_wear() -> None:
    split = load_data("synthetic:occluded").splits["query"]
    for identity, known in zip(split.identities.tolist(), split.attributes, strict=True):
        assert known == person(int(identity)).attributes()
    bare = [known for known in split.attributes if known["hat"] == "none"]
    assert bare
    assert not any("hat_colour" in known for known in bare)


ROWS = """image,identity,camera,attribute.hat,sleeves,bag
train/0001_c1s1_000001_00.jpg,1,1,cap,long,
train/0001_c2s1_000001_00.jpg,1,2,none,short,yes
train/0002_c1s1_000001_00.jpg,2,1,unknown,long,yes
train/0002_c2s1_000001_00.jpg,2,2,,,
"""


def test_columns_of_a_table_by_name_and_by_flag_and_missing_values_are_counted(folder: Path) -> None:
    plain = load_data(table(folder, ROWS))
    assert plain.splits["train"].attributes == ({"hat": "cap"}, {"hat": "none"}, {}, {})
    assert any("columns not read: sleeves, bag" in note for note in plain.notes)
    data = load_data(table(folder, ROWS), columns="attribute.arms=sleeves,attribute.bag=bag")
    assert data.splits["train"].attributes == (
        {"hat": "cap", "arms": "long"},
        {"hat": "none", "arms": "short", "bag": "yes"},
        {"arms": "long", "bag": "yes"},
        {},
    )
    assert "3 attributes (columns) are known of 3 of 4 images; of these without a value: bag 1, hat 1" in data.notes
    off = load_data(table(folder, ROWS), columns="attribute.hat=none")
    assert off.splits["train"].attributes == ({}, {}, {}, {})


def test_wrong_columns_of_attributes_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(UserError, match=r"attribute\.hat=HAT: no such column"):
        load_data(table(folder, ROWS), columns="attribute.hat=HAT")
    with pytest.raises(UserError, match=r"cannot read 'attribute\.'; .* attribute\.NAME for an attribute"):
        load_data(table(folder, ROWS), columns="attribute.=hat")
    tags = "image,identity,attributes\ntrain/0001_c1s1_000001_00.jpg,1,male;hat\n"
    with pytest.raises(UserError, match="line 2: attributes are 'male;hat'"):
        load_data(table(folder, tags))


def test_a_converted_set_keeps_them(folder: Path, tmp_path: Path) -> None:
    data = load_data(table(folder, ROWS))
    convert(data, tmp_path / "converted", progress=False)
    again = load_data(f"hub:{tmp_path / 'converted'}").splits["train"]
    assert again.attributes == data.splits["train"].attributes
    assert again.table.features == SCHEMA


def test_a_table_in_the_folder_by_identity(folder: Path) -> None:
    (folder / "attributes.csv").write_text("identity,hat,top\n1,cap,\n0002,none,red|blue\n0003,cap,red\n")
    data = load_data(f"folder:{folder}")
    assert data.splits["train"].attributes == ({"hat": "cap"},) * 2 + ({"hat": "none", "top": "red|blue"},) * 2
    assert {tuple(each) for each in data.splits["gallery"].attributes} == {("hat", "top"), ()}
    note = next(note for note in data.notes if "attributes.csv" in note)
    assert note == "2 attributes (attributes.csv) are known of 8 of 12 images; of these without a value: top 2"


def test_a_table_in_the_folder_by_image(folder: Path) -> None:
    text = "image,hat\ntrain/0001_c1s1_000001_00.jpg,cap\n0001_c2s1_000001_00.jpg,none\n"
    (folder / "attributes.csv").write_text(text)
    assert load_data(f"folder:{folder}").splits["train"].attributes == ({"hat": "cap"}, {"hat": "none"}, {}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity,hat\n77,cap\n", r"knows no identity of .*: the file has 77, \.\.\., the data 0001"),
        ("identity,hat\n1,cap\n0001,cap\n", "line 3: identity '1' is there twice"),
        ("identity,image,hat\n1,a,cap\n", "one column identity, or one column image"),
        ("identity\n1\n", "one column identity, or one column image"),
    ],
)
def test_a_table_that_says_nothing_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "attributes.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_data(f"folder:{folder}")


def matlab(folder: Path, name: str, **parts: dict[str, Any]) -> None:
    """A file of the published shape: a struct with a struct for each part, whose fields are vectors."""
    io = pytest.importorskip("scipy.io")
    for fields in parts.values():
        fields["image_index"] = np.array(fields["image_index"], dtype=object)
        fields |= {key: np.array(value, np.uint8) for key, value in fields.items() if key != "image_index"}
    io.savemat(folder / f"{name}.mat", {name: parts})


def test_the_market_file_is_read_by_the_names_of_its_fields(folder: Path) -> None:
    """The parts have them in different orders; 0 is unknown, no colour is unknown, two colours are two values."""
    test = {"image_index": ["0003", "0004"], "age": [1, 4], "hat": [1, 2], "downblue": [2, 2], "downred": [1, 2]}
    train = {"hat": [2, 0], "image_index": ["0001", "0002"], "upred": [2, 1], "up": [1, 2], "clothes": [1, 2]}
    matlab(folder, "market_attribute", test=test, train=train)
    data = load_data(f"folder:{folder}")
    found = {
        identity: known
        for split in data.splits.values()
        for identity, known in zip(split.identities.tolist(), split.attributes, strict=True)
    }
    assert found == {
        "0001": {"hat": "yes", "top_colour": "red", "sleeves": "long", "bottom": "dress"},
        "0002": {"sleeves": "short", "bottom": "pants"},
        "0003": {"age": "young", "hat": "no", "bottom_colour": "blue"},
        "0004": {"age": "old", "hat": "yes", "bottom_colour": "blue|red"},
    }
    assert any("market_attribute.mat" in note and "top_colour" in note for note in data.notes)
    (folder / "attributes.csv").write_text("identity,hat\n1,cap\n")
    with pytest.raises(UserError, match="both hold attributes: keep one of them"):
        load_data(f"folder:{folder}")


def test_the_duke_file_has_words_of_its_own(folder: Path) -> None:
    train = {"image_index": ["0001", "0002"], "top": [1, 0], "shoes": [2, 1], "upblack": [2, 1], "boots": [1, 2]}
    matlab(folder, "duke_attribute", train=train, test={"image_index": ["0003"], "top": [2]})
    found = load_data(f"folder:{folder}").splits["train"].attributes[::2]
    assert found == (
        {"boots": "no", "shoes": "light", "top_colour": "black", "top_length": "short"},
        {"boots": "yes", "shoes": "dark"},
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wings": [1]}, "train: unknown field 'wings'"),
        ({"hat": [3]}, "train: hat is 3, and may be 0"),
        ({"hat": [1, 2]}, "hat has 2 values for 1 identities"),
    ],
)
def test_a_matlab_file_of_another_kind_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    matlab(folder, "market_attribute", train={"image_index": ["0001"], **fields}, test={"image_index": ["0003"]})
    with pytest.raises(UserError, match=message):
        load_data(f"folder:{folder}")


def test_a_broken_matlab_file_and_a_missing_library_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "market_attribute.mat").write_bytes(b"nothing")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"pip install 'clipreid\[analysis\]'"):
        load_data(f"folder:{folder}")
    monkeypatch.undo()
    pytest.importorskip("scipy.io")
    with pytest.raises(UserError, match="cannot be read as attributes"):
        load_data(f"folder:{folder}")


def test_values_are_cleaned_alike_wherever_they_come_from() -> None:
    assert clean({"age": 7.0, "hat": True, "x": -1, "y": "N/A"}) == {"age": "7", "hat": "True"}
