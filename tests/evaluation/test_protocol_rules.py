"""Every named protocol against its rule written out as loops over single images, and what each one says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipreid.errors import UserError
from clipreid.evaluation import PROTOCOLS, Report, evaluate, get_protocol
from clipreid.evaluation.protocols import VIEWS

Row = dict[str, object]
Table = dict[str, np.ndarray]
DRAWN = ("cuhk03-classic", "vehicleid")
DIRECTIONS = [name for name in PROTOCOLS if "-to-" in name and name != "text-to-image"]


def known(a: Row, b: Row, column: str) -> bool:
    return a[column] not in (-1, "") and b[column] not in (-1, "")


def alike(a: Row, b: Row, column: str) -> bool:
    return known(a, b, column) and a[column] == b[column]


def is_junk(name: str, q: Row, g: Row) -> bool:
    """What the papers say, one pair at a time; the query's own image is dealt with elsewhere."""
    same_identity = q["identity"] == g["identity"]
    market = same_identity and alike(q, g, "camera")
    if name in ("market1501", "cuhk03-np", "veri"):
        return market
    if name in ("cross-camera", "cuhk03-classic"):
        return alike(q, g, "camera")
    if name == "cloth-changing":
        return market or (same_identity and alike(q, g, "clothes"))
    if name == "same-clothes":
        return market or (same_identity and known(q, g, "clothes") and q["clothes"] != g["clothes"])
    if name == "aerial-ground":
        return same_identity and alike(q, g, "view")
    if name in DIRECTIONS:
        asked, answering = (VIEWS[word] for word in name.split("-to-"))
        return q["view"] != asked or g["view"] != answering or market
    assert name in ("no-cameras", "text-to-image", "vehicleid", "leave-one-out")
    return False


def rows(table: Table) -> list[Row]:
    return [{name: values[i].item() for name, values in table.items()} for i in range(len(table["identity"]))]


def hits(name: str, scores: np.ndarray, query: Row, gallery: list[Row]) -> list[int]:
    """Ranks of the matches among what is not junk; of equal similarities the mistakes come first."""
    own = name != "text-to-image"
    kept = [
        (-score, query["identity"] == row["identity"])
        for score, row in zip(scores, gallery, strict=True)
        if not is_junk(name, query, row) and not (own and alike(query, row, "path"))
    ]
    return [rank for rank, (_, right) in enumerate(sorted(kept), start=1) if right]


def problem(seed: int, q: int = 40, g: int = 90) -> tuple[np.ndarray, Table, Table]:
    """Similarities with ties; unknown values everywhere; some images are in both tables."""
    rng = np.random.default_rng(seed)
    tables = []
    for n, high in ((q, 14), (g, 11)):
        identity = rng.integers(0, high, n)
        clothes = [f"{i}{c}" if c else "" for i, c in zip(identity, rng.choice(["", "a", "b"], n), strict=True)]
        tables.append(
            {
                "identity": identity,
                "camera": rng.integers(-1, 3, n),
                "view": rng.integers(-1, 3, n),
                "clothes": np.array(clothes),
                "path": np.array([""] * n, dtype="<U9"),
            }
        )
    query, gallery = tables
    for i in range(0, q, 3):  # the query's own image, with all its columns
        for name, column in gallery.items():
            column[i] = query[name][i]
        query["path"][i] = gallery["path"][i] = f"{i}.jpg"
    return rng.integers(0, 12, (q, g)).astype(np.float32), query, gallery


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in (*DRAWN, "leave-one-out")])
@pytest.mark.parametrize("seed", range(3))
def test_the_rule_written_out_gives_the_same_figures(name: str, seed: int) -> None:
    similarity, query, gallery = problem(seed)
    report = evaluate(query=query, gallery=gallery, similarity=similarity, protocol=name, chunk=16)
    expected = [hits(name, similarity[i], row, rows(gallery)) for i, row in enumerate(rows(query))]
    ap = [np.mean([k / r for k, r in enumerate(found, 1)]) if found else np.nan for found in expected]
    np.testing.assert_allclose(report.per_query["ap"], ap, rtol=1e-12)
    assert report.per_query["n_positives"].tolist() == [len(found) for found in expected]
    assert report.metrics["mAP"] == pytest.approx(np.nanmean(ap))
    assert 0 < report.counts["valid_queries"] == sum(map(bool, expected))


def test_the_rules_differ() -> None:
    """No two named protocols agree on this problem, but those that share the market rule."""
    similarity, query, gallery = problem(0)
    names = [name for name in PROTOCOLS if name not in ("cuhk03-np", "veri", "leave-one-out")]
    found = [evaluate(query=query, gallery=gallery, similarity=similarity, protocol=name).metrics for name in names]
    assert len({tuple(metrics.values()) for metrics in found}) == len(names)


# random galleries -----------------------------------------------------------------------------------------


def drawn_ranks(name: str, similarity: np.ndarray, query: Table, gallery: Table, draws: int, seed: int) -> np.ndarray:
    """[draws, Q]: shuffle the gallery, keep the first allowed image of each identity, rank the one match."""
    ranks = np.full((draws, len(similarity)), np.nan)
    theirs = rows(gallery)
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(len(theirs))
        for i, ours in enumerate(rows(query)):
            chosen: dict[object, int] = {}
            for j in order.tolist():
                if not is_junk(name, ours, theirs[j]):
                    chosen.setdefault(theirs[j]["identity"], j)
            match = chosen.get(ours["identity"])
            if match is None or alike(ours, theirs[match], "path"):
                continue
            others = [j for j in chosen.values() if j != match and not alike(ours, theirs[j], "path")]
            ranks[draw, i] = 1 + sum(similarity[i, j] >= similarity[i, match] for j in others)
    return ranks


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("chunk", [7, None])
def test_draws_equal_the_loops_draw_by_draw(name: str, chunk: int | None) -> None:
    similarity, query, gallery = problem(3)
    rules = replace(get_protocol(name), draws=6, seed=5)
    report = evaluate(query=query, gallery=gallery, similarity=similarity, protocol=rules, chunk=chunk)
    ranks = drawn_ranks(name, similarity, query, gallery, 6, 5)
    scored = ~np.isnan(ranks)
    assert report.counts["valid_queries"] == scored.any(0).sum()
    each = [(1 / row[ok]).mean() for row, ok in zip(ranks, scored, strict=True)]
    assert report.metrics["mAP"] == pytest.approx(np.mean(each), abs=1e-12)
    assert report.std["mAP"] == pytest.approx(np.std(each), abs=1e-12)
    for k in (1, 5, 10):
        each = [(row[ok] <= k).mean() for row, ok in zip(ranks, scored, strict=True)]
        assert report.metrics[f"rank{k}"] == pytest.approx(np.mean(each), abs=1e-12)
        assert report.std[f"rank{k}"] == pytest.approx(np.std(each), abs=1e-12)
    some = scored.any(0)
    np.testing.assert_allclose(report.per_query["first_rank"][some], np.nanmean(ranks[:, some], 0), rtol=1e-12)
    assert np.isnan(report.per_query["ap"][~some]).all()


def test_every_image_of_an_identity_is_drawn_equally_often() -> None:
    """One stranger with 4 images, one of them closer than the match: rank 2 in a quarter of the draws."""
    gallery = {"identity": [1, 2, 2, 2, 2], "camera": [2] * 5, "path": list("abcde")}
    query = {"identity": [1], "camera": [1], "path": ["q"]}
    rules = replace(get_protocol("cuhk03-classic"), draws=2000)
    report = evaluate(query=query, gallery=gallery, similarity=[[0.5, 0.9, 0.1, 0.2, 0.3]], protocol=rules)
    assert report.metrics["rank1"] == pytest.approx(0.75, abs=0.03)


def vehicles() -> Report:
    rng = np.random.default_rng(0)
    table = {"identity": np.repeat(np.arange(9), 4), "path": [f"{i}.jpg" for i in range(36)]}
    features = rng.standard_normal((9, 16))[table["identity"]] + 0.8 * rng.standard_normal((36, 16))
    return evaluate(features, features, table, table, protocol="vehicleid")


def test_vehicleid_parts_one_set_of_images_and_says_how_far_the_draws_differ() -> None:
    report = vehicles()
    assert report.counts["valid_queries"] == 36
    assert 0.5 < report.metrics["rank1"] < 1  # an image that found itself would always be first
    note = report.notes[0]
    assert note.startswith("means of 10 draws (seed 0); standard deviation over the draws: mAP ")
    assert f"rank-1 {100 * report.std['rank1']:.2f}%" in note
    assert note in str(report)
    assert report.to_dict()["std"] == report.std
    assert vehicles().metrics == report.metrics


def test_a_query_whose_own_image_is_always_drawn_is_explained() -> None:
    table = {"identity": [1, 1, 2, 2], "path": ["a", "b", "c", "d"]}
    rules = replace(get_protocol("vehicleid"), draws=1)
    report = evaluate(query=table, gallery=table, similarity=np.zeros((4, 4)), protocol=rules)
    assert report.counts["valid_queries"] == 2
    assert "2 because the query image itself was drawn every time: for example query" in report.notes[-1]


# what they say --------------------------------------------------------------------------------------------


def test_leave_one_out_is_every_image_against_the_others() -> None:
    similarity, _, gallery = problem(0, q=90)
    gallery = gallery | {"path": np.array([f"{i}.jpg" for i in range(90)])}
    report = evaluate(query=gallery, gallery=gallery, similarity=similarity, protocol="leave-one-out")
    expected = [hits("leave-one-out", similarity[i], row, rows(gallery)) for i, row in enumerate(rows(gallery))]
    assert report.per_query["first_rank"].tolist() == [found[0] for found in expected]
    other = gallery | {"path": np.array([f"{i + 1}.jpg" for i in range(90)])}
    with pytest.raises(UserError, match="1 query images are not in the gallery by their path"):
        evaluate(query=other, gallery=gallery, similarity=similarity, protocol="leave-one-out")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("leave-one-out", "path"),
        ("vehicleid", "path"),
        ("cuhk03-classic", "camera"),
        ("cloth-changing", "clothes"),
        ("same-clothes", "clothes"),
        ("aerial-ground", "view"),
        *((name, "view") for name in DIRECTIONS),
    ],
)
def test_what_a_protocol_cannot_do_without_is_asked_for(name: str, column: str) -> None:
    similarity, query, gallery = problem(0)
    unknown = {column: np.full(40, -1 if query[column].dtype.kind == "i" else "")}
    message = f"protocol '{name}' needs the column '{column}', and none is known in query: add it"
    with pytest.raises(UserError, match=message):
        evaluate(query=query | unknown, gallery=gallery, similarity=similarity, protocol=name)


def test_queries_of_another_view_are_not_asked_and_counted() -> None:
    query = {"identity": [1, 1, 2], "view": [0, 1, 0], "camera": [0, 5, 0]}
    gallery = {"identity": [1, 1, 2, 3], "view": [0, 1, 1, 1], "camera": [1, 6, 6, 6]}
    report = evaluate(query=query, gallery=gallery, similarity=np.eye(3, 4), protocol="aerial-to-ground")
    assert report.per_query["n_positives"].tolist() == [1, 0, 1]
    assert "1 because the protocol scores queries of view 0 (aerial) only: for example query 1 (" in report.notes[-1]
    assert "view 1" in report.notes[-1]
    with pytest.raises(UserError, match=r"scores queries of view 2 \(wearable\) only: check the column"):
        evaluate(query=query, gallery=gallery, similarity=np.eye(3, 4), protocol="wearable-to-aerial")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cloth-changing", "all 2 images of identity 1 in the gallery are from camera 0 or in clothes red"),
        ("aerial-ground", "all 2 images of identity 1 in the gallery are of view 0"),
        ("aerial-to-ground", "all 2 images of identity 1 in the gallery are not ground, or from camera 0"),
        ("cuhk03-classic", "all 2 images of identity 1 in the gallery are from camera 0"),
    ],
)
def test_no_match_at_all_names_the_rule_and_the_columns(name: str, message: str) -> None:
    query = {"identity": [1], "camera": [0], "view": [0], "clothes": ["red"]}
    gallery = {"identity": [1, 1, 2], "camera": [0, 0, 1], "view": [0, 0, 1], "clothes": ["red", "red", "blue"]}
    with pytest.raises(UserError, match=message):
        evaluate(query=query, gallery=gallery, similarity=np.zeros((1, 3)), protocol=name)


def test_same_clothes_asks_for_the_others() -> None:
    query = {"identity": [1], "camera": [0], "clothes": ["red"]}
    gallery = {"identity": [1, 2], "camera": [1, 1], "clothes": ["blue", "red"]}
    with pytest.raises(
        UserError, match=r"is from camera 0 or not in clothes red\. Check the clothes and camera column"
    ):
        evaluate(query=query, gallery=gallery, similarity=np.zeros((1, 2)), protocol="same-clothes")


def test_captions_may_find_the_image_that_they_describe() -> None:
    table = {"identity": [1, 2], "path": ["a", "b"]}
    report = evaluate(query=table, gallery=table, similarity=np.eye(2), protocol="text-to-image")
    assert report.metrics["rank1"] == 1.0
    with pytest.raises(UserError, match="the query image itself"):
        evaluate(query=table, gallery=table, similarity=np.eye(2), protocol="no-cameras")
