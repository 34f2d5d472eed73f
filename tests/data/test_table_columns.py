"""Which column is which."""

import pytest

from clipreid.data.columns import FIELDS, POSSIBLE, USUAL, column_notes, find_columns, is_known, parse_columns, plain
from clipreid.errors import UserError


def kinds(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "text")


SIDES = {"x1": "left", "y1": "top", "x2": "right", "y2": "bottom"}


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (("image", "identity"), None, {}),
        (("Image", "Person ID", "CAM-ID"), None, {"image": "Image", "identity": "Person ID", "camera": "CAM-ID"}),
        (("image", "identity", "pid"), None, {}),
        (("image", "identity", "pid"), "identity=pid", {"identity": "pid"}),
        (("image", "identity", "camera"), "identity=camera", {"identity": "camera"}),  # then it is no camera
        (("image", "identity", "camera"), "camera=none", {"camera": None}),
        (("file_name", "path", "identity"), None, {"image": "file_name"}),
        (("image", "identity", "track", "track_id"), None, {"tracklet": "track_id"}),
        (("image", "identity", "x", "y"), None, {}),
        (("image", "identity", "x", "y", "width", "height"), None, {"x": "x", "y": "y", "w": "width", "h": "height"}),
        (("image", "identity", "left", "top", "right", "bottom"), None, SIDES),
        (("image", "identity", "bbox", "x", "y", "w", "h"), None, {"x": "x", "y": "y", "w": "w", "h": "h"}),
        (("image", "identity", "bbox", "x", "y", "w", "h"), "bbox=bbox", {"bbox": "bbox"}),
        (("image", "identity", "bbox", "x", "y", "w", "h"), "bbox=none", {}),
    ],
)  # fmt: skip
def test_columns_are_found(names: tuple[str, ...], asked: str | None, found: dict[str, str | None]) -> None:
    expected = {field: field for field in ("image", "identity", "camera") if field in names} | found
    if found == {"identity": "camera"}:
        expected.pop("camera")
    assert find_columns(kinds(*names), asked, "csv:x") == {k: v for k, v in expected.items() if v is not None}


def test_the_only_column_of_images_is_the_image() -> None:
    found = find_columns({"photo": "Image", "path": "string", "identity": "int64"}, None, "hub:x")
    assert found == {"image": "photo", "identity": "identity"}


@pytest.mark.parametrize("field", ["image", "identity", "camera", "split"])
def test_what_matters_is_not_chosen_between_two(field: str) -> None:
    names = USUAL[field][1:3] if field == "image" else USUAL[field][:2]
    others = [name for name in ("image", "identity") if name != field]
    with pytest.raises(UserError, match=f"could each be the {field}: give --columns {field}={names[0]} or --columns"):
        find_columns(kinds(*names, *others), None, "csv:x")


def test_names_are_unambiguous() -> None:
    """No usual name of a field is another field's own name, or usual for two of them (but for sides of boxes)."""
    usual = [name for field, names in USUAL.items() if field not in ("x1", "y1") for name in names]
    assert len(set(usual)) == len(usual)
    assert not set(usual) & set(FIELDS)
    assert all(plain(name) == name for name in [*usual, *(name for names in POSSIBLE.values() for name in names)])
    assert is_known("Person_ID")
    assert is_known("bbox")
    assert not is_known("colour")


def test_notes() -> None:
    found = find_columns(kinds("img", "identity", "orientation", "colour"), None, "csv:x")
    assert column_notes(kinds("img", "identity", "orientation", "colour"), found) == [
        "columns: image is 'img'",
        "columns not read: orientation, colour (if wanted: --columns view=orientation)",
    ]


def test_mappings() -> None:
    assert parse_columns(" identity = who , x=left") == {"identity": "who", "x": "left"}
    assert parse_columns(None) == parse_columns({}) == {}
    with pytest.raises(UserError, match=r"cannot read 'colour'; write FIELD=COLUMN.*\(FIELD=none: not to be read\)"):
        parse_columns("colour=red")
