"""The image of ranked lists: which queries, which results, and that something was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipreid.errors import UserError
from clipreid.evaluation.columns import Columns
from clipreid.reports.ranked_lists import MARGIN, RIGHT, WRONG, ranked_lists

N = 6  # identities, two images each, one camera on each side


class Street:
    def __init__(self, camera: int) -> None:
        self.camera = camera
        self.seen: list[int] = []

    def metadata(self) -> dict[str, Any]:
        return {"identity": np.repeat(np.arange(N), 2), "camera": np.full(2 * N, self.camera)}

    def image(self, i: int) -> Image.Image:
        self.seen.append(i)
        return Image.new("RGB", (20, 40), tuple(np.random.default_rng(i // 2).integers(40, 200, 3).tolist()))


@pytest.fixture
def streets() -> tuple[Street, Street]:
    return Street(0), Street(1)


def similarities(worse: int = 0) -> dict[str, torch.Tensor]:
    """A good model, and one that is wrong for the queries of one identity."""
    identity = torch.arange(N).repeat_interleave(2)
    good = (identity[:, None] == identity).float() + torch.linspace(0, 0.5, 2 * N)
    bad = torch.where((identity == worse)[:, None], -good, good)
    return {"zero-shot": bad, "stage 2": good}


def test_an_image_is_drawn(tmp_path: Path, streets: tuple[Street, Street]) -> None:
    path = tmp_path / "deep" / "lists.png"
    chosen = ranked_lists(path, *streets, similarities(), n_queries=2, top=3)
    image = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(image, axis=0)) > 50
    for colour in (RIGHT, WRONG):
        assert (image == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).sum() > 200
    again = tmp_path / "again.png"
    assert ranked_lists(again, *streets, similarities(), n_queries=2, top=3) == chosen
    assert again.read_bytes() == path.read_bytes()


def test_changed_queries_come_first_of_different_identities(tmp_path: Path, streets: tuple[Street, Street]) -> None:
    chosen = ranked_lists(tmp_path / "a.png", *streets, similarities(worse=4), n_queries=3, top=2)
    assert chosen[0] // 2 == 4
    assert len({row // 2 for row in chosen}) == 3
    hardest = dict(reversed(similarities(worse=3).items()))
    assert ranked_lists(tmp_path / "b.png", *streets, hardest, n_queries=1, choose="hardest")[0] // 2 == 3
    assert ranked_lists(tmp_path / "c.png", *streets, similarities(), top=1, choose=[7, 2]) == [7, 2]
    random = [
        ranked_lists(tmp_path / "d.png", *streets, similarities(), top=1, seed=s, choose="random") for s in (0, 1)
    ]
    assert random[0] != random[1]


def test_results_are_ranked_without_junk_and_ties_show_mistakes_first(tmp_path: Path) -> None:
    query, gallery = Street(0), Street(0)  # one camera: under market1501 every match would be junk
    same = {"flat": torch.zeros(2 * N, 2 * N)}
    with pytest.raises(UserError, match="from camera 0"):
        ranked_lists(tmp_path / "a.png", query, gallery, same, top=2, choose=[0])
    ranked_lists(tmp_path / "a.png", query, gallery, same, protocol="no-cameras", top=2, choose=[0])
    assert gallery.seen == [2, 3]
    gallery.seen.clear()
    by_index = {"index": torch.arange(2.0 * N).expand(2 * N, -1)}

    def no_five(query: Columns, gallery: Columns) -> torch.Tensor:
        return gallery["identity"].expand(len(query["identity"]), -1) == 5

    ranked_lists(tmp_path / "a.png", query, gallery, by_index, protocol=no_five, top=3, choose=[0])
    assert gallery.seen == [9, 8, 7]


def test_cells_have_the_shape_of_the_images(tmp_path: Path) -> None:
    class Wide(Street):
        def image(self, i: int) -> Image.Image:
            return super().image(i).resize((120, 40) if i % 3 else (20, 40))

    ranked_lists(tmp_path / "wide.png", Wide(0), Wide(1), similarities(), n_queries=1, top=6)
    ranked_lists(tmp_path / "tall.png", Street(0), Street(1), similarities(), n_queries=1, top=6)
    wide, tall = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("wide", "tall"))
    assert wide.shape[1] > 1.6 * tall.shape[1]
    assert wide.shape[0] < 0.8 * tall.shape[0]
    margin = np.array([int(MARGIN[i : i + 2], 16) for i in (1, 3, 5)])
    assert (wide == margin).all(-1).any()  # beside the tall one among wide ones, which is whole
    assert not (tall == margin).all(-1).any()


def test_refusals(tmp_path: Path, streets: tuple[Street, Street]) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UserError, match="nothing to draw"):
        ranked_lists(path, *streets, {})
    with pytest.raises(UserError, match="choose='best' is unknown; valid are random, hardest, changed"):
        ranked_lists(path, *streets, similarities(), choose="best")
    with pytest.raises(UserError, match=r"choose: row 99 .* not a query with a valid match"):
        ranked_lists(path, *streets, similarities(), choose=[0, 99])
    with pytest.raises(UserError, match="similarity has shape"):
        ranked_lists(path, *streets, {"m": torch.zeros(3, 3)})
    assert not path.exists()
