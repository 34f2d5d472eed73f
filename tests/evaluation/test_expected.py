"""The interval to expect: measured on the test set itself, for one test set and for folds together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.data import ReIDData, Split
from clipreid.evaluation import evaluate
from clipreid.evaluation.expected import Colours, expected_width, joined
from clipreid.evaluation.floor import colour_floor


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    files, names = [], np.repeat([f"p{n}" for n in range(16)], 2)
    for n in range(32):
        shade = np.random.default_rng(n // 2).integers(90, 150, 3)
        pixels = np.clip(shade + rng.normal(0, 60, (64, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        files.append({"path": str(tmp_path / f"{n}.png")})
    return Split.from_columns("all", files, names.tolist(), [1, 2] * 16)


def test_it_is_the_floor_of_the_same_rows(images: Split) -> None:
    part = np.arange(32) < 20
    report = Colours.of(images).score(part, part, "market1501")
    tested = images.select(np.flatnonzero(part))
    data = ReIDData("csv:x", {"query": tested, "gallery": tested}, "market1501")
    assert report.metrics["mAP"] == pytest.approx(colour_floor(data).reports["concat"].metrics["mAP"])
    assert report.counts["query_identities"] == 10


def test_folds_together_are_all_queries_and_are_known_better(images: Split) -> None:
    colours, half = Colours.of(images), np.arange(32) < 16
    reports = [colours.score(part, part, "market1501") for part in (half, ~half)]
    whole = joined(reports)
    ap = np.concatenate([report.per_query["ap"] for report in reports])
    assert whole.metrics["mAP"] == pytest.approx(ap.mean())
    widths = [np.diff(report.intervals["mAP"])[0] for report in (whole, *reports)]
    assert widths[0] < max(widths[1:])


def test_what_cannot_be_decoded_is_left_out_and_counted(images: Split, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(b"no image")
    colours = Colours.of(images)
    assert np.flatnonzero(colours.bad).tolist() == [3]
    everything = np.ones(32, bool)
    assert colours.score(everything, everything, "no-cameras").counts["gallery"] == 31


def test_the_width_to_expect_is_that_of_a_share_of_one_half() -> None:
    rng = np.random.default_rng(0)
    people, share = 400, 0.15  # of each identity one query, found or not at all
    query = {"identity": np.arange(people)}
    gallery = {"identity": np.concatenate([np.arange(people), np.full(people, -7)])}
    similarity = np.zeros((people, 2 * people))
    found = rng.random(people) < share
    similarity[np.arange(people), np.arange(people)] = np.where(found, 1.0, 0.5)
    similarity[:, people:] = 0.7  # a distractor image before those that are not found
    report = evaluate(query=query, gallery=gallery, similarity=similarity, protocol="no-cameras")
    low, high = report.intervals["rank1"]
    assert high - low == pytest.approx(3.92 * np.sqrt(share * (1 - share) / people), rel=0.15)
    assert expected_width(report, "rank1") == pytest.approx(1.96 / np.sqrt(people), rel=0.15)
    perfect = evaluate(query=query, gallery=query, similarity=np.eye(people), protocol="no-cameras")
    assert expected_width(perfect, "mAP") == pytest.approx(1.96 / 20)  # nothing is known but the number
