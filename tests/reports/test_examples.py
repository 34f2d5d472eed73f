"""What the page shows: lists that agree with the figures, a fair choice of queries, confusions counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.reports.examples import find_examples
from clipreid.reports.thumbnails import overlay_attention, thumbnail


class Street:
    def __init__(self, identity: Any, camera: Any) -> None:
        self.table = {"identity": np.asarray(identity), "camera": np.asarray(camera)}

    def metadata(self) -> dict[str, Any]:
        return self.table

    def image(self, i: int) -> Image.Image:
        raise AssertionError("nothing is drawn here")


@given(seed=st.integers(0, 10**6), levels=st.integers(1, 12), top=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_lists_agree_with_the_figures(seed: int, levels: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    query, gallery = (Street(rng.integers(0, 5, n), rng.integers(0, 3, n)) for n in (10, 25))
    query.table["identity"][0], query.table["camera"][0] = gallery.table["identity"][0], gallery.table["camera"][0] + 1
    similarity = torch.from_numpy(rng.integers(0, levels, (10, 25)) / 8)
    report = evaluate(similarity=similarity, query=query.table, gallery=gallery.table)
    examples = find_examples(report, query, gallery, similarity=similarity, queries=10, top=top)
    assert {q.row for q in examples.all} == set(np.flatnonzero(~np.isnan(report.per_query["ap"])))
    for q in examples.all:
        counted = [r for r in q.results if r.rank is not None]
        assert [r.rank for r in counted] == list(range(1, len(counted) + 1))
        right = [r.rank for r in counted if r.kind == "right"]
        first = report.per_query["first_rank"][q.row]
        assert right[:1] == ([first] if first <= top else [])
        values = [r.similarity for r in q.results]
        assert values == sorted(values, reverse=True)
        for r in q.results:
            assert r.similarity == similarity[q.row, r.row]
            same = query.table["identity"][q.row] == gallery.table["identity"][r.row]
            seen = query.table["camera"][q.row] == gallery.table["camera"][r.row]
            assert r.kind == ("wrong" if not same else "junk" if seen else "right")
        assert sum(r.kind == "junk" for r in q.results) <= 3
        assert q.hidden == 0 or sum(r.kind == "junk" for r in q.results) == 3


def small() -> tuple[Street, Street, torch.Tensor]:
    """Queries a, a, b, c; a's first query finds b twice before a, its second c; c finds a; b is right."""
    query, gallery = Street(["a", "a", "b", "c"], [1, 1, 1, 1]), Street(["a", "b", "b", "c"], [2, 2, 2, 2])
    rows = [[0.5, 0.9, 0.8, 0.1], [0.5, 0.1, 0.2, 0.6], [0.1, 0.9, 0.3, 0.2], [0.7, 0.2, 0.2, 0.7]]
    return query, gallery, torch.tensor(rows)


def test_confusions_are_counted_once_for_each_query() -> None:
    query, gallery, similarity = small()
    report = evaluate(similarity=similarity, query=query.table, gallery=gallery.table)
    found = find_examples(report, query, gallery, similarity=similarity).confused
    assert [(pair.identities, pair.queries, pair.total, pair.example) for pair in found] == [
        (("a", "c"), 2, 3, (3, 0)),  # 0.7, a tie, which goes against the query
        (("a", "b"), 1, 3, (0, 1)),
    ]
    assert find_examples(report, query, gallery, similarity=similarity, pairs=1).confused == found[:1]


def test_the_hardest_are_the_hardest_of_the_rest_and_identities_differ() -> None:
    n = 30
    query, gallery = Street(np.repeat(np.arange(n), 2), np.zeros(2 * n)), Street(np.arange(n), np.ones(n))
    similarity = torch.rand(2 * n, n, generator=torch.Generator().manual_seed(0))
    report = evaluate(similarity=similarity, query=query.table, gallery=gallery.table)
    examples = find_examples(report, query, gallery, similarity=similarity, queries=8)
    drawn, hardest = [q.row for q in examples.drawn], [q.row for q in examples.hardest]
    assert not set(drawn) & set(hardest)
    for rows in (drawn, hardest):
        assert len({row // 2 for row in rows}) == len(rows) == 8
    ap = report.per_query["ap"]
    best_of = {i: min(ap[row] for row in (2 * i, 2 * i + 1) if row not in drawn) for i in range(n)}
    assert [ap[row] for row in hardest] == sorted(best_of.values())[:8]
    again = find_examples(report, query, gallery, similarity=similarity, queries=8, seed=1)
    assert drawn != [q.row for q in again.drawn]


def test_maps_belong_to_their_queries() -> None:
    query, gallery, similarity = small()
    report = evaluate(similarity=similarity, query=query.table, gallery=gallery.table)

    def look(rows: list[int]) -> np.ndarray:
        return np.array([np.full((2, 2), row) for row in rows])

    examples = find_examples(report, query, gallery, similarity=similarity, look=look, queries=2)
    assert examples.has_attention
    assert [(q.look == q.row).all() for q in examples.all] == [True] * 4  # type: ignore[union-attr]
    blind = find_examples(report, query, gallery, similarity=similarity, look=lambda rows: None)
    assert not blind.has_attention
    with pytest.raises(UserError, match="the report is of 4 queries, these are 3"):
        find_examples(report, Street(["a", "b", "c"], [1, 1, 1]), gallery, similarity=similarity)


def test_what_was_looked_at_glows() -> None:
    share = np.zeros((4, 2))
    share[3, 0] = 1.0
    glow = np.asarray(overlay_attention(Image.new("RGB", (50, 100), "gray"), share)).astype(int).sum(2)
    assert glow.shape == (192, 96)
    assert glow[-24:, :40].mean() > 2 * glow[:96].mean()


def test_thumbnails_are_small_and_never_enlarged() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 256, 3), dtype=np.uint8))
    assert thumbnail(noise).startswith("data:image/jpeg;base64,")
    assert len(thumbnail(noise)) < 30_000  # noise is the worst there is: 20 queries x 12 images stay below 7 MB
    assert len(thumbnail(Image.new("RGB", (8, 16)))) < 1000
