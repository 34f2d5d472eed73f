"""Figures that can hardly be right get a line, sound ones do not; distances are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.report import Report

quick = settings(max_examples=40, deadline=None)
IDENTITY = np.repeat(np.arange(10), 4)
PATHS = {"path": [f"{i}.jpg" for i in range(40)]}


def scored(strength: float, seed: int = 0, camera: np.ndarray | None = None) -> Report:
    """40 images of 10 identities against themselves; strength: of what the identity adds to noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((40, 16)) + strength * random.standard_normal((10, 16))[IDENTITY]
    table = {"identity": IDENTITY, **PATHS} | ({} if camera is None else {"camera": camera})
    return evaluate(x, x, table, table, "no-cameras")


def test_perfect_chance_and_between() -> None:
    assert scored(9).notes[-1].startswith("rank-1 is 100 %, which is rarely true: look for copies")
    assert scored(0).notes[-1].startswith("rank-1 is 10.0 %, no better than chance (7.7 %): look whether identities")
    assert not any("rank-1" in note for note in scored(1.2).notes)


def test_few_queries_show_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((6, 4))
    assert not evaluate(x, -x, {"identity": range(6)}, {"identity": [*range(5), 9]}, "no-cameras").notes[1:]


def test_identities_of_one_camera_each() -> None:
    which = "this figure says nothing about finding somebody at another camera"
    assert scored(1.2, camera=np.ones(40, int)).notes[-1] == f"all images are of one camera: {which}"
    assert scored(1.2, camera=IDENTITY % 3).notes[-1] == f"every identity is seen by one camera only: {which}"
    for camera in (np.arange(40) % 2, np.full(40, -1), np.r_[IDENTITY[:-1] % 3, -1]):
        assert not any(which in note for note in scored(1.2, camera=camera).notes)


def test_all_mistakes_at_one_camera() -> None:
    """Every fourth image is of camera 7, and shows nothing."""
    random = np.random.default_rng(0)
    camera = np.where(np.arange(40) % 4 == 3, 7, np.arange(40) % 4)
    x = random.standard_normal((40, 16)) + 9 * random.standard_normal((10, 16))[IDENTITY] * (camera != 7)[:, None]
    table = {"identity": IDENTITY, "camera": camera, **PATHS}
    (note,) = [text for text in evaluate(x, x, table, table).notes if "camera, number" in text]
    assert note.startswith("all 10 queries whose first hit is wrong are of one camera, number 7, which has 25 % of")
    spread = table | {"camera": np.arange(40) % 3}
    assert not any("camera, number" in text for text in evaluate(x, x, spread, spread).notes)


def test_similarity_one() -> None:
    x = np.random.default_rng(0).standard_normal((40, 16))
    x[7] = x[20] * (1 + 1e-9)
    table = {"identity": IDENTITY, **PATHS}
    assert "2 queries find an image at similarity 1.0, such as query 7:" in " ".join(evaluate(x, x, table, table).notes)
    x[7, 0] += 0.1
    assert "similarity 1.0" not in " ".join(evaluate(x, x, table, table).notes)


# distances ----------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 1000), st.sampled_from([1.5, 3.0]))
def test_distances_are_refused_and_their_negative_is_not(seed: int, strength: float) -> None:
    random = np.random.default_rng(seed)
    people = random.standard_normal((20, 16))
    query = strength * people + random.standard_normal((20, 16))
    gallery = strength * np.repeat(people, 3, axis=0) + random.standard_normal((60, 16))
    distance = np.linalg.norm(query[:, None] - gallery, axis=2)
    tables = {"identity": np.arange(20)}, {"identity": np.repeat(np.arange(20), 3)}
    figures = evaluate(similarity=-distance, query=tables[0], gallery=tables[1]).metrics
    if figures["rank1"] < 0.7:
        return
    for asked in (distance, torch.tensor(distance), iter([distance])):
        with pytest.raises(UserError, match=r"similarity: \d+ % of the queries have a match in the last place of all"):
            evaluate(similarity=asked, query=tables[0], gallery=tables[1])


@quick
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(10, 30))
def test_other_similarities_are_not_taken_for_distances(seed: int, people: int, queries: int) -> None:
    """Chance, ties, and features that know cameras only, whose matches at the other camera lie behind."""
    random = np.random.default_rng(seed)
    query = {"identity": random.integers(0, people, queries), "camera": random.integers(0, 2, queries)}
    gallery = {"identity": np.repeat(np.arange(people), 6), "camera": np.arange(6 * people) % 2}
    by_camera = (query["camera"][:, None] == gallery["camera"]) + 0.1 * random.random((queries, 6 * people))
    for similarity in (random.random(by_camera.shape), np.zeros(by_camera.shape), by_camera):
        for protocol in ("market1501", "no-cameras"):
            evaluate(similarity=similarity, query=query, gallery=gallery, protocol=protocol)


def test_a_list_of_tensors_is_named() -> None:
    x = torch.randn(4, 3)
    table = {"identity": [0, 0, 1, 1]}
    with pytest.raises(UserError, match=r"gallery_features is a list of tensors; .*: torch.stack\(gallery_features\)"):
        evaluate(x, list(x), table, table)
    assert evaluate(x.tolist(), list(x.numpy()), table, table).counts["copies"] == 4
