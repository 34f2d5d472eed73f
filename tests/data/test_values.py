"""One rule for values, whoever read them."""

import datetime
import math

import numpy as np
import pytest

from clipreid.data.values import is_unknown, number_all, split_named, split_values, text_of
from clipreid.errors import UserError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        ("7.0", "7"),
        ("07", "07"),
        ("1.50", "1.50"),
        (True, "True"),
        (np.bool_(False), "False"),
        (None, ""),
        (math.nan, ""),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 13, 5), "2024-01-02 13:05:00"),
        ("2024-01-02 00:00:00", "2024-01-02"),
        ("2024-01-02T00:00:00.000", "2024-01-02"),
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
        ([True, False], [1, 0]),
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


def test_cameras_that_are_none() -> None:
    """Times, frames, numbers of rows: as good as all different."""
    with pytest.raises(UserError, match=r"12 different cameras in 20 images \(0, 1, 2, \.\.\.\): these are no cameras"):
        number_all("camera", [*range(12), *range(8), None, ""])
    assert number_all("camera", [*range(10), *range(10)])[0] == [*range(10), *range(10)]
    assert number_all("camera", range(19))[0] == list(range(19))  # too few to tell
    assert number_all("view", range(40))[0] == list(range(40))


def test_values_of_a_flag() -> None:
    assert split_values(None) == split_values("") == split_values(()) == ()
    assert split_values("nobody, 99") == split_values(["nobody", "99.0"]) == ("nobody", "99")
