"""Splits by identity: properties over generated sets, what is refused, and what the table is read as."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipreid.data import ReIDData, Split, load_data
from clipreid.data.split import (
    LEAST,
    Pool,
    find_queries,
    image_files,
    pool_images,
    shuffled,
    split_folds,
    split_once,
    write_table,
)
from clipreid.errors import UserError

Images = list[tuple[str, int]]  # identity and camera of each image


def pool_of(images: Images) -> Pool:
    table = [{"path": f"/crops/{n}.jpg"} for n in range(len(images))]
    split = Split.from_columns("train", table, [name for name, _ in images], [camera for _, camera in images])
    return pool_images(ReIDData("folder:/crops", {"train": split}, "market1501"))


@st.composite
def sets(draw: st.DrawFn) -> Images:
    """2 to 12 identities of 1 to 5 images; cameras all known, some known, or none."""
    cameras = draw(st.sampled_from([st.just(-1), st.integers(1, 3), st.integers(-1, 2)]))
    names = draw(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=2, max_size=12, unique=True))
    images = [(name, draw(cameras)) for name in names for _ in range(draw(st.integers(1, 5)))]
    return draw(st.permutations(images))


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, or the text of its error."""
    try:
        return call()
    except UserError as error:
        return str(error)


def check(pool: Pool, parts: np.ndarray, queries: np.ndarray) -> None:
    """What holds of every split."""
    names, cameras = pool.images.identities, pool.images.cameras
    assert len(parts) == len(queries) == len(names)
    assert set(parts.tolist()) <= {"train", "val", "test"}
    for name in set(names.tolist()):
        assert len(set(parts[names == name].tolist())) == 1  # never divided
    tested = parts == "test"
    assert not (queries & ~tested).any()
    known = cameras[tested]
    by_camera = bool((known >= 0).all()) and len(set(known.tolist())) > 1
    for row in np.flatnonzero(tested).tolist():  # a query exactly where there is a match
        others = tested & (names == names[row]) & (np.arange(len(names)) != row)
        assert queries[row] == bool((others & (cameras != cameras[row]) if by_camera else others).any())
    single = np.isin(names, pool.kinds["single"])
    assert (parts[single] == "test").all()
    assert not queries[single].any()
    assert len(set(names[queries].tolist())) >= LEAST
    assert len(set(names[parts == "train"].tolist())) >= LEAST


@given(sets(), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.2, 0.4]), st.integers(0, 9), st.randoms())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_identities_stay_whole_and_every_image_is_accounted_for(
    images: Images, test: float, val: float, seed: int, random: np.random.Generator
) -> None:
    pool = pool_of(images)
    parts = outcome(lambda: split_once(pool, test, val, seed))
    if isinstance(parts, str):
        assert re.search("give (a larger share|smaller shares)|shares lie between", parts)
        return
    check(pool, parts, find_queries(pool, parts))
    assert (split_once(pool_of(images), test, val, seed) == parts).all()
    by_name = dict(zip(pool.images.identities.tolist(), parts.tolist(), strict=True))
    random.shuffle(images)  # the order in which a reader finds the images decides nothing
    again = pool_of(images)
    moved = dict(zip(again.images.identities.tolist(), split_once(again, test, val, seed).tolist(), strict=True))
    assert moved == by_name
    matching = pool.kinds["matching"]
    assert abs(sum(by_name[name] == "test" for name in matching) - test * len(matching)) <= 0.5 + 1e-9
    if val:
        assert sum(by_name[name] == "val" for name in matching) >= LEAST


@given(sets(), st.integers(2, 5), st.sampled_from([0.0, 0.3]), st.integers(0, 9))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_folds_test_each_identity_once(images: Images, folds: int, val: float, seed: int) -> None:
    pool = pool_of(images)
    found = outcome(lambda: split_folds(pool, folds, val, seed))
    if isinstance(found, str):
        assert re.search("give (at least 2 folds|a larger share|smaller shares)", found)
        return
    assert len(found) == folds
    for parts in found:
        check(pool, parts, find_queries(pool, parts))
    times = sum((parts == "test").astype(int) for parts in found)
    single = np.isin(pool.images.identities, pool.kinds["single"])
    assert (times[~single] == 1).all()
    assert (times[single] == folds).all()  # distractors of every gallery


def test_the_order_is_fixed_for_good() -> None:
    names = [f"p{n}" for n in range(6)]
    assert shuffled(names, 0) == ["p0", "p2", "p4", "p5", "p3", "p1"]
    assert shuffled(names, 1) != shuffled(names, 0)
    without = [name for name in shuffled(names, 0) if name != "p4"]
    assert shuffled(set(names) - {"p4"}, 0) == without  # one name more or less moves no other


def five(count: int = 5) -> Images:
    return [(f"p{n}", camera) for n in range(count) for camera in (1, 2)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda pool: split_once(pool, 0.0), r"--test 0 --val 0: shares lie between 0 and 1"),
        (lambda pool: split_once(pool, 0.7, 0.3), r"--test 0.7 --val 0.3: .* must leave a part to train on"),
        (lambda pool: split_once(pool, 0.1), r"--test 0.1 of 5 identities with images at two cameras is 1, and 2 are"),
        (lambda pool: split_once(pool, 0.4, 0.1), r"--val 0.1 of 5 identities .* is 1, .*larger share, or more images"),
        (lambda pool: split_once(pool, 0.9), r"fewer than 2 of 5 identities are left to train on: give smaller"),
        (lambda pool: split_folds(pool, 1), r"--cross-validate 1: give at least 2 folds, of at least 2 .* at most 2"),
        (lambda pool: split_folds(pool, 3), r"--cross-validate 3: .* of the 5 identities .* at most 2"),
        (lambda pool: split_folds(pool, 2, 1.0), r"--val 1: a share lies between 0 and 1"),
    ],
)
def test_shares_that_leave_nothing_are_refused(call: Callable[[Pool], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(pool_of(five()))


def test_one_camera_makes_no_query() -> None:
    pool = pool_of([*five(8), *[(f"alone{n}", 1) for n in range(4) for _ in range(3)], ("once", 2)])
    assert pool.kinds["one camera"] == ["alone0", "alone1", "alone2", "alone3"]
    assert pool.kinds["single"] == ["once"]
    parts = split_once(pool, 0.5)
    names, queries = pool.images.identities, find_queries(pool, parts)
    assert sorted(set(names[queries])) == sorted(set(names[parts == "test"]) & set(pool.kinds["matching"]))
    assert sum(parts[names == name][0] == "test" for name in pool.kinds["one camera"]) == 2


def test_a_public_set_keeps_its_splits() -> None:
    data = pool_of(five()).images
    with pytest.raises(UserError, match="market1501:/m has its own splits, and figures on other ones cannot"):
        pool_images(ReIDData("market1501:/m", {"train": data}, "market1501"))


def test_an_image_counts_once_and_under_one_identity() -> None:
    image = [{"path": "/c/a.jpg"}, {"path": "/c/./a.jpg"}, {"path": None, "bytes": b"x"}, {"path": "n", "bytes": b"x"}]
    split = Split.from_columns("train", image, ["p", "p", "q", "q"], caption=["red", "red\nblue", "", "green"])
    pool = pool_images(ReIDData("csv:t.csv", {"train": split, "val": split}, "no-cameras"))
    assert pool.images.identities.tolist() == ["p", "q"]
    assert pool.images.captions.tolist() == ["red\nblue", "green"]
    assert pool.notes[0] == "the splits of csv:t.csv (train, val) are put together and shared out anew"
    assert pool.notes[1].startswith("2 identities are in several of its splits (such as 'p'): one name")
    assert pool.notes[2] == "6 images were listed more than once, and are taken once"
    both = Split.from_columns("train", image[:2], ["p", "q"])
    with pytest.raises(UserError, match=r"/c/\./a.jpg is under two identities, 'p' and 'q': correct one"):
        pool_images(ReIDData("csv:t.csv", {"train": both}, "no-cameras"))


def test_the_table_is_read_as_it_was_meant(tmp_path: Path) -> None:
    crops = tmp_path / "my, crops"
    crops.mkdir()
    rows = [*five(6), ("lone", 1)]
    images = [{"path": str(crops / f"{n}.jpg")} for n in range(len(rows))]
    for image in images:
        Path(image["path"]).touch()
    images[3] = {"path": "in/parquet.png", "bytes": b"encoded"}
    captions = [f'"{name}", camera {camera}\nsecond' for name, camera in rows]
    count = len(rows)
    more = {"view": [7] * count, "session": ["2024-01-02"] * count, "tracklet": [str(n) for n in range(count)]}
    split = Split.from_columns("train", images, *zip(*rows, strict=True), caption=captions, **more)
    pool = pool_images(ReIDData("hub:x/y", {"train": split}, "market1501"))
    parts = split_once(pool, 0.4)
    queries, table = find_queries(pool, parts), tmp_path / "out" / "split.csv"
    write_table(pool, parts, queries, image_files(pool.images, table.parent), table)
    read = load_data(f"csv:{table}")
    assert {name: len(split) for name, split in read.splits.items()} == {"train": 8, "query": 4, "gallery": 5}
    assert read.protocol == "market1501"
    assert "lone" in read.splits["gallery"].identities
    for part, chosen in (("train", parts == "train"), ("query", queries), ("gallery", parts == "test")):
        wanted, found = pool.images.select(np.flatnonzero(chosen)), read.splits[part]
        for column in ("identities", "cameras", "views", "captions", "sessions", "tracklets"):
            assert getattr(found, column).tolist() == getattr(wanted, column).tolist()
    (inside,) = (tmp_path / "out" / "images").iterdir()
    assert (inside.name, inside.read_bytes()) == ("000003.png", b"encoded")
    with open(table, newline="") as handle:
        lines = list(csv.DictReader(handle))
    kept = {"image", "identity", "camera", "split", "view", "caption", "session", "tracklet"}
    assert lines[0].keys() == kept  # clothes, which nobody knows here, is no empty column
    assert {line["image"] for line in lines} <= {f"../my, crops/{n}.jpg" for n in range(13)} | {"images/000003.png"}
