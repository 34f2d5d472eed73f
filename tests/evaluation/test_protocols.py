"""Who is junk under which protocol, and how the report explains queries that could not be scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation import PROTOCOLS, Protocol, Report, evaluate, get_protocol, same
from clipreid.evaluation.columns import Columns

QUERY = {"identity": [7], "camera": [2], "path": ["q.jpg"]}
GALLERY = {  # own image, own camera, other camera, stranger in own camera, stranger
    "identity": [7, 7, 7, 8, 9],
    "camera": [2, 2, 1, 2, 1],
    "path": ["q.jpg", "a.jpg", "b.jpg", "c.jpg", "d.jpg"],
}
DESCENDING = np.array([[5.0, 4.0, 1.0, 3.0, 2.0]])


def first_rank(protocol: object, query: object = QUERY, gallery: object = GALLERY) -> float:
    report = evaluate(query=query, gallery=gallery, similarity=DESCENDING, protocol=protocol)
    return report.per_query["first_rank"][0]


@pytest.mark.parametrize(("protocol", "rank"), [("market1501", 3), ("cross-camera", 2), ("no-cameras", 1)])
def test_junk_of_each_protocol(protocol: str, rank: int) -> None:
    assert first_rank(protocol) == rank


def test_the_own_image_counts_where_paths_are_unknown() -> None:
    no_path = {name: values for name, values in QUERY.items() if name != "path"}
    report = evaluate(query=no_path, gallery=GALLERY, similarity=DESCENDING, protocol="no-cameras")
    assert report.per_query["n_positives"][0] == 3
    empty = QUERY | {"path": [""]}
    report = evaluate(query=empty, gallery=GALLERY | {"path": [""] * 5}, similarity=DESCENDING, protocol="no-cameras")
    assert report.per_query["n_positives"][0] == 3


def test_every_protocol_says_what_it_does() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.description
        assert protocol.rule


@pytest.mark.parametrize("camera", [None, [-1]])
def test_without_cameras_the_rule_is_off_and_the_report_says_so(camera: list[int] | None) -> None:
    query = {name: values for name, values in (QUERY | {"camera": camera}).items() if values is not None}
    report = evaluate(query=query, gallery=GALLERY, similarity=DESCENDING)
    assert report.per_query["n_positives"][0] == 2  # all but the own image
    assert report.notes == (
        "no camera is known in query: the junk rule (same identity and same camera as the query) is off, "
        "images from every camera count",
    )
    assert report.notes[0] in str(report)
    assert evaluate(query=query, gallery=GALLERY, similarity=DESCENDING, protocol="no-cameras").notes == ()


def test_partly_unknown_cameras_are_counted() -> None:
    report = evaluate(query=QUERY, gallery=GALLERY | {"camera": [2, -1, 1, 2, -1]}, similarity=DESCENDING)
    assert report.per_query["n_positives"][0] == 2  # the image of unknown camera is not junk
    assert "the camera of 2 of 5 gallery images is unknown" in report.notes[0]


def other_clothes(query: Columns, gallery: Columns) -> Tensor:
    return same("identity", query, gallery) & same("clothes", query, gallery)


def test_a_function_is_a_protocol() -> None:
    query, gallery = QUERY | {"clothes": ["red"]}, GALLERY | {"clothes": ["red", "blue", "red", "red", ""]}
    report = evaluate(query=query, gallery=gallery, similarity=DESCENDING, protocol=other_clothes)
    assert report.per_query["n_positives"][0] == 1  # own image and the one in the same clothes are junk
    assert report.protocol == "other_clothes"
    with pytest.raises(
        UserError, match=r"'clothes' in both query and gallery; .* share are: camera, digest, identity, path"
    ):
        first_rank(other_clothes)
    named = Protocol("clothes", "cloth-changing", other_clothes, "same identity, same clothes", "in {clothes}")
    with pytest.raises(UserError, match="all 3 images of identity 7 in the gallery are in red"):
        first_rank(named, query, gallery | {"clothes": ["red"] * 5})


@pytest.mark.parametrize(
    ("junk", "message"),
    [
        (
            lambda q, g: torch.zeros(1, 4, dtype=torch.bool),
            r"returned torch.bool \[1, 4\]; it must .* \[1, 5\]",
        ),
        (lambda q, g: torch.zeros(1, 5), r"returned torch.float32 \[1, 5\]"),
        (lambda q, g: False, "returned bool"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(junk: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        first_rank(junk)


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(UserError, match="unknown protocol 'duke'; valid are market1501, cross-camera, no-cameras"):
        get_protocol("duke")


def mixed() -> Report:
    """0 is scored; 1 and 2 only have images from their own camera; 3 is absent; 4 finds only itself."""
    return evaluate(
        query={"identity": [1, 7, 7, 9, 5], "camera": [0, 2, 2, 0, 0], "path": ["", "", "", "", "own.jpg"]},
        gallery={
            "identity": [1, 7, 7, 7, 5],
            "camera": [1, 2, 2, 2, -1],
            "path": ["", "", "", "", "own.jpg"],
        },
        similarity=np.zeros((5, 5)),
    )


def test_queries_without_a_match_are_counted_named_and_explained() -> None:
    report = mixed()
    assert (report.counts["valid_queries"], report.counts["queries"]) == (1, 5)
    assert np.isnan(report.per_query["ap"]).tolist() == [False, True, True, True, True]
    note = report.notes[-1]
    assert "4 of 5 queries have no valid match and are not scored (rows 1, 2, 3 and 4)" in note
    assert "2 because every match is junk (junk = same identity and same camera as the query)" in note
    assert "query 1 (identity 7, camera 2): all 3 images of identity 7 in the gallery are from camera 2" in note
    assert "1 because their identity is not in the gallery: for example query 3 (identity 9, camera 0)" in note
    assert "query 4 (identity 5, camera 0): the only image of identity 5" in note
    assert note.endswith("in the gallery is the query image itself")


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (
            {"identity": ["x"], "camera": [3]},
            {"identity": ["x", "y"], "camera": [3, 1]},
            r"Nothing to score under protocol 'market1501': 1 of 1 .* is from camera 3\. Check the camera "
            "column; protocol='no-cameras'",
        ),
        ({"identity": ["x"]}, {"identity": ["y", "z"]}, "not in the gallery: .* name identities alike"),
        (
            {"identity": ["x"], "path": ["1.jpg"]},
            {"identity": ["x", "y"], "path": ["1.jpg", "2.jpg"]},
            "is the query image itself. The gallery must hold other images",
        ),
    ],
)
def test_no_valid_match_at_all_is_an_error_that_names_the_rule(query: object, gallery: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(query=query, gallery=gallery, similarity=np.zeros((1, 2)))
