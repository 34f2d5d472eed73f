"""Metadata tables of every kind give the same columns; what is unusable is refused."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.columns import code_columns, name_rows, read_table

PLAIN = {"identity": ["a", "b", "a"], "camera": [1, 2, -1], "path": ["1.jpg", "", "3.jpg"]}


class SplitLike:
    def metadata(self) -> dict[str, np.ndarray]:
        return {name: np.array(values) for name, values in PLAIN.items()}


class FrameLike:
    """Quacks like a pandas frame (pandas is not a dependency); strings come as objects, gaps as NaN."""

    columns = ("identity", "camera", "path")
    iloc = None

    def __getitem__(self, name: str) -> Any:
        values = {
            "identity": ["a", "b", "a"],
            "camera": [1.0, 2.0, np.nan],
            "path": ["1.jpg", np.nan, "3.jpg"],
        }[name]
        array = np.array(values, dtype=float if name == "camera" else object)
        return type("Series", (), {"to_numpy": lambda self: array})()


def hf_dataset() -> datasets.Dataset:
    image = Image.new("RGB", (2, 2))
    return datasets.Dataset.from_dict(
        PLAIN | {"camera": [1, 2, None], "image": [image] * 3},
        features=datasets.Features(
            identity=datasets.Value("string"),
            camera=datasets.Value("int32"),
            path=datasets.Value("string"),
            image=datasets.Image(),
        ),
    )


@pytest.mark.parametrize(
    "table",
    [
        PLAIN,
        PLAIN | {"camera": torch.tensor([1, 2, -1]), "features": np.zeros((3, 5)), "list": [[1, 2]] * 3},
        PLAIN | {"camera": [1, 2, None], "path": ("1.jpg", None, "3.jpg")},
        PLAIN | {"camera": np.array([1.0, 2.0, np.nan])},
        SplitLike(),
        FrameLike(),
        hf_dataset(),
        {name: hf_dataset()[name] for name in PLAIN},
    ],
    ids=["lists", "tensors", "none", "nan", "split", "frame", "datasets", "datasets-columns"],
)
def test_every_kind_of_table_is_read_alike(table: Any) -> None:
    columns = read_table(table, "query")
    assert set(columns) == {"identity", "camera", "path"}
    assert columns["identity"].tolist() == ["a", "b", "a"]
    assert columns["camera"].tolist() == [1, 2, -1]
    assert columns["path"].tolist() == ["1.jpg", "", "3.jpg"]


def test_a_pandas_frame_is_read_too() -> None:
    pandas = pytest.importorskip("pandas")
    columns = read_table(pandas.DataFrame(PLAIN | {"camera": pandas.array([1, 2, None], dtype="Int64")}), "query")
    assert columns["identity"].tolist() == ["a", "b", "a"]
    assert columns["camera"].tolist() == [1, 2, -1]


def test_numbers_stay_text_is_numbered_and_absent_is_unknown() -> None:
    query, gallery = code_columns(
        read_table({"identity": ["x", "y"], "camera": [5, -1]}, "query"),
        read_table({"identity": ["z", "y", "x"], "view": [1, 1, 1]}, "gallery"),
    )
    assert query["identity"].tolist() == [0, 1]
    assert gallery["identity"].tolist() == [2, 1, 0]
    assert query["camera"].tolist() == [5, -1]
    assert gallery["camera"].tolist() == [-1, -1, -1]
    assert gallery["path"].tolist() == [-1, -1, -1]


def test_large_numbers_do_not_collide() -> None:
    big = 2**62
    report = evaluate(
        query={"identity": [big, big + 1]},
        gallery={"identity": [big + 1, big]},
        similarity=[[0.0, 1.0], [1.0, 0.0]],
    )
    assert report.metrics["mAP"] == 1.0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, "query is a NoneType; give its metadata as a dict of arrays"),
        ({"identity": [1, 2], "camid": [1, 2]}, "query has a column 'camid' and none 'camera'"),
        ({"pid": [1, 2]}, r"query has no 'identity' column \(its columns: pid\)"),
        ({"identity": []}, "query is empty"),
        ({"identity": [1, 2], "camera": [1]}, "query: column 'camera' has 1 rows, 'identity' has 2"),
        ({"identity": [1, -1, -1]}, "query: no identity in rows 1 and 2"),
        ({"identity": ["a", None]}, "query: no identity in row 1"),
        ({"identity": ["a", "-1"]}, "query: no identity in row 1"),
        (
            {"identity": [1, 2]},
            r"'identity' holds numbers in query and text in gallery \(for example 1 and 'a'\)",
        ),
    ],
)
def test_refusals(query: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(query=query, gallery={"identity": ["a", "b"]}, similarity=np.zeros((2, 2)))


def test_name_rows() -> None:
    assert name_rows([4]) == "row 4"
    assert name_rows([1, 2, 3]) == "rows 1, 2 and 3"
    assert name_rows(list(range(20)), limit=2) == "rows 0, 1 and 18 more"
