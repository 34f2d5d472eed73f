"""Copies of a query under its own identity are junk, counted and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipreid.backbones import load_backbone
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.evaluation import evaluate, open_set
from clipreid.evaluation.score import score
from clipreid.evaluation.unmatched import unmatched
from clipreid.model import untrained_model

quick = settings(max_examples=40, deadline=None)
IDENTITY = np.repeat(np.arange(10), 4)
NOISE = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
TABLE = {"identity": IDENTITY}
NAMED = TABLE | {"path": [f"{i}.jpg" for i in range(40)]}


def note(report: Any) -> str:
    (found,) = [text for text in report.notes if "left out as junk" in text]
    return found


def test_the_same_features_are_copies_where_nothing_else_is_known() -> None:
    report = evaluate(NOISE, NOISE, TABLE, TABLE)
    assert report.metrics == evaluate(NOISE, NOISE, NAMED, NAMED).metrics  # the query itself, by its path
    assert report.counts["copies"] == 40
    assert note(report).startswith(
        "40 of 40 queries are copies of gallery images of their identity (query 0 = gallery 0; the same features, bit "
        "for bit): the copies are left out as junk"
    )
    moved = NAMED | {"path": [f"/data/{i}.jpg" for i in range(40)]}
    assert "(0.jpg = /data/0.jpg; the same features" in note(evaluate(NOISE, NOISE, NAMED, moved))
    assert open_set(NOISE, NOISE, TABLE, TABLE) == open_set(NOISE, NOISE, NAMED, NAMED)


def test_copies_can_be_counted() -> None:
    report = evaluate(NOISE, NOISE, TABLE, TABLE, count_copies=True)
    assert report.metrics["rank1"] == 1
    assert report.counts["copies"] == 0
    assert "copies of queries count as matches (count_copies)" in report.notes


def test_the_querys_own_file_is_no_copy() -> None:
    report = evaluate(NOISE, NOISE, NAMED, NAMED)
    assert report.counts["copies"] == 0
    assert "junk: " not in " ".join(report.notes)
    twice = np.r_[0:40, 5]  # image 5 is there under another name
    more = {"identity": IDENTITY[twice], "path": [*NAMED["path"], "again.jpg"]}
    report = evaluate(NOISE, NOISE[twice], NAMED, more)
    assert report.counts["copies"] == 1
    assert "1 of 40 queries is a copy of gallery images of their identity (5.jpg = again.jpg;" in note(report)
    assert report.per_query["n_positives"][5] == 3


def test_half_precision_on_one_side_hides_no_copy() -> None:
    assert evaluate(NOISE.astype(np.float16), NOISE, TABLE, TABLE).counts["copies"] == 40
    assert evaluate(torch.tensor(NOISE).bfloat16(), torch.tensor(NOISE), TABLE, TABLE).counts["copies"] == 40


@pytest.mark.parametrize("features", [np.eye(10)[IDENTITY], np.ones((40, 3)), np.sign(NOISE[:, :2])])
def test_features_that_tell_no_images_apart_show_no_copies(features: np.ndarray) -> None:
    assert evaluate(features, features, TABLE, TABLE).counts["copies"] == 0


def test_copies_under_another_identity_stay_mistakes() -> None:
    others = {"identity": np.r_[IDENTITY[4:], IDENTITY[:4]]}
    report = evaluate(NOISE, NOISE, TABLE, others)
    assert report.counts["copies"] == 0
    assert report.metrics["rank1"] == 0
    assert "40 queries find an image at similarity 1.0, such as query 0" in report.notes[-1]


def test_nothing_is_left_where_all_matches_are_copies() -> None:
    with pytest.raises(UserError, match="4 because the only match is the query image itself: for example query 0"):
        evaluate(NOISE[:4], NOISE[:4], {"identity": range(4)}, {"identity": range(4)})
    table = {"identity": ["a", "b"], "digest": [1, 2]}
    assert unmatched(table, {"identity": ["a", "a", "b", "b"], "digest": [1, 1, 2, 3]}, "no-cameras") == [
        (0, "all 2 images of identity a in the gallery are the query itself or copies of it")
    ]


@quick
@given(st.integers(0, 10_000), st.sampled_from(["market1501", "cross-camera", "no-cameras", "vehicleid"]))
def test_digests_take_out_what_they_say_and_change_nothing_else(seed: int, protocol: str) -> None:
    random = np.random.default_rng(seed)
    sides = [
        {
            "identity": random.integers(0, 6, n),
            "camera": random.integers(0, 3, n),
            "path": np.array([f"{name}{i}" for i in range(n)]),
            "digest": random.integers(0, 60, n),
        }
        for n, name in ((20, "q"), (60, "g"))
    ]
    similarity = random.random((20, 60))
    alike = [sides[0][name][:, None] == sides[1][name] for name in ("identity", "digest")]
    copy = alike[0] & alike[1]
    found = evaluate(similarity=similarity, query=sides[0], gallery=sides[1], protocol=protocol)
    assert found.counts["copies"] == copy.any(1).sum()
    for row in range(20):  # alone, against a gallery without its copies
        query = {name: values[[row]] for name, values in sides[0].items() if name != "digest"}
        gallery = {name: values[~copy[row]] for name, values in sides[1].items() if name != "digest"}
        if protocol == "vehicleid":  # what is drawn depends on the gallery
            continue
        try:
            alone = evaluate(
                similarity=similarity[[row]][:, ~copy[row]], query=query, gallery=gallery, protocol=protocol
            )
        except UserError:
            assert found.per_query["n_positives"][row] == 0
        else:
            assert found.per_query["ap"][row] == alone.per_query["ap"][0]
    unlike = [side | {"digest": np.full(len(side["path"]), -1)} for side in sides]
    plain = [{name: values for name, values in side.items() if name != "digest"} for side in sides]
    clean = [evaluate(None, None, *tables, protocol, similarity) for tables in (unlike, plain)]
    assert clean[0].metrics == clean[1].metrics


def test_drawn_galleries_never_hold_a_copy_as_the_match() -> None:
    table = NAMED | {"digest": np.arange(40)}
    more = {"identity": np.r_[IDENTITY, IDENTITY], "digest": np.r_[0:40, 0:40]}
    more["path"] = np.array([f"{i}.jpg" for i in range(80)])  # of each image a copy
    similarity = np.random.default_rng(1).random((40, 80))
    similarity[np.arange(40), np.arange(40) + 40] = 2
    report = evaluate(similarity=similarity, query=table, gallery=more, protocol="vehicleid")
    assert report.counts["copies"] == 40
    assert report.metrics["rank1"] < 0.5


# from the command ---------------------------------------------------------------------------------------------


def paint(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 64)).save(file)
    return file


@pytest.mark.parametrize("how", ["same bytes", "link", "other format", "other spelling"])
def test_noise_is_scored_as_noise(tmp_path: Path, how: str) -> None:
    """A query folder made by copying one image of each identity out of the gallery."""
    for who in range(12):
        files = [paint(tmp_path / "gallery" / f"p{who}" / f"{n}.png", 10 * who + n) for n in range(3)]
        query = tmp_path / "query" / f"p{who}" / "q.png"
        query.parent.mkdir(parents=True)
        if how == "same bytes":
            query.write_bytes(files[0].read_bytes())
        elif how == "other format":
            Image.open(files[0]).save(query.with_suffix(".bmp"))
        else:
            query.symlink_to(files[0].parent / "../p0/.." / files[0].parent.name / "0.png")
    model = untrained_model(load_backbone("tiny-clip"))
    data = load_data(f"folder:{tmp_path}", pattern="identity/")
    found = score(data, model)
    report = found.reports["concat"]
    assert report.counts["copies"] == 12
    assert "(the same pixels" in note(report).replace("; ", " (")
    assert report.metrics["rank1"] < 0.5
    assert found.entry()["counts"]["copies"] == 12
    counted = score(data, model, count_copies=True).reports["concat"]
    assert counted.metrics["rank1"] == 1
    assert any("12 queries find an image at similarity 1.0" in text for text in counted.notes)


def test_all_against_all_is_as_before(tmp_path: Path) -> None:
    for who in range(6):
        for n in range(3):
            paint(tmp_path / "test" / f"p{who}" / f"{n}.png", 10 * who + n)
    report = score(
        load_data(f"folder:{tmp_path}", pattern="identity/"), untrained_model(load_backbone("tiny-clip"))
    ).reports["concat"]
    assert report.counts["copies"] == 0
    assert report.counts["valid_queries"] == 18
    assert not any("junk:" in text or "copies" in text for text in report.notes if "rank-1" not in text)
