"""One rule for values, whoever read them."""

import datetime
import math

import numpy as np
import pytest

from clipreid.data.values import is_unknown, number_all, split_named, text_of
from clipreid.errors import UserError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        ("7.0", "7"),
        ("07", "07"),
        ("1.50", "1.50"),
        (True, "1"),
        (np.bool_(False), "0"),
        (None, ""),
        (math.nan, ""),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (" a b ", "a b"),
        (-1.0, "-1"),
        (np.int64(3), "3"),
    ],
)
def test_cells_as_text(value: object, text: str) -> None:
    assert text_of(value) == text


def test_unknown() -> None:
    assert all(map(is_unknown, ("", "-1", -1, -1.0, None, math.nan, "NaN", "None", "N/A", "Unknown", " ")))
    assert not any(map(is_unknown, ("0", 0, "0000", "anna", "nobody")))
    assert is_unknown("nobody", also=("nobody",))


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["1", 2.0, None, "nan", "03"], [1, 2, -1, -1, 3]),
        (["A", "b", ""], [1, 2, -1]),
        (["cam1", "cam10", "CAM2"], [1, 10, 2]),
        (["c-1", "c_2"], [1, 2]),
        ([True, False], [1, 0]),
    ],
)
def test_numbers_that_values_say(values: list[object], numbers: list[int]) -> None:
    assert number_all("camera", values) == (numbers, [])


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["north", "cam1", "north"], [1, 0, 1]),
        ([1706659200001, 5], [1, 0]),  # does not fit 32 bits
        (["2024-01-02", "2024-01-01"], [1, 0]),
        (["gate2", "gate10", "door1"], [1, 2, 0]),
    ],
)
def test_other_names_are_numbered_aloud(values: list[object], numbers: list[int]) -> None:
    found, (note,) = number_all("camera", values)
    assert found == numbers
    assert note.startswith("cameras are numbered: ")


def test_splits() -> None:
    assert [split_named(v) for v in ("Validation", " probe", "", None)] == ["val", "query", "train", "train"]
    with pytest.raises(UserError, match="unknown split 'tets'; known are train, training"):
        split_named("tets")
