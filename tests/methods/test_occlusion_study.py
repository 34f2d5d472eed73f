"""The occlusion study: the same draws for every run, what is measured, what is written, what is refused."""

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import tyro
from launching import load_recipe, paint_street
from short_runs import short_run

import clipreid
from clipreid import explore
from clipreid.cli import main
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.evaluation import compare, confidence, evaluate, occlusion
from clipreid.evaluation.occlusion import (
    Occluders,
    Place,
    hidden_patches,
    occluded_queries,
    over_draws,
    places,
    pooling_inside,
    study,
)
from clipreid.evaluation.score import score
from clipreid.methods import clip_reid, saga


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("occlusion_study")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("study") / "crops", train=4, test=3)


@pytest.fixture(scope="module")
def runs(street: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    short_run(clip_reid, street, folder / "cls-0")
    short_run(saga, street, folder / "saga-0", folder / "cls-0")
    return folder / "cls-0", folder / "saga-0"


def parse(recipe: ModuleType, *args: object) -> Any:
    return tyro.cli(recipe.OcclusionStudy, args=[*map(str, args)], config=(tyro.conf.OmitArgPrefixes,))


def test_the_study_writes_table_curves_and_pictures(
    recipe: ModuleType, runs: tuple[Path, Path], street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("--severities", 0, 0.4, "--draws", 2, "--threads", 1, "--queries", 2, "--fusions", "0,0,3", "0.3,1,1")
    output = tmp_path / "study"
    recipe.main(parse(recipe, "--run", *runs, "--data", f"folder:{street}", "--output", output, *cells))
    with open(output / "occlusion.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["arm"] for row in rows} == {"cls", "saga"}
    assert {row["condition"] for row in rows} == {"mask", "object", "person"}
    parts = {"concat", "saga", "final", "projection"}
    assert {row["aggregation"] for row in rows if row["arm"] == "cls"} == parts - {"saga"}
    assert {row["aggregation"] for row in rows if row["arm"] == "saga"} == parts | {"0:0:3", "0.3:1:1"}
    for fusion, same in (("0:0:3", "projection"), ("0.3:1:1", "concat")):  # the run's own weights: its test feature
        figures = (
            [row["mAP"] for row in rows if row["arm"] == "saga" and row["aggregation"] == x] for x in (fusion, same)
        )
        assert len({tuple(each) for each in figures}) == 1
    lines = [row for row in rows if (row["arm"], row["aggregation"]) == ("saga", "saga")]
    assert [(row["severity"], row["draw"]) for row in lines[:3]] == [("0.0", "0"), ("0.4", "0"), ("0.4", "1")]
    assert len(lines) == 9
    data = load_data(f"folder:{street}")
    clean = score(data, clipreid.load(runs[1])).reports["saga"].metrics["mAP"]
    for row in lines:
        if row["severity"] == "0.0":
            assert float(row["mAP"]) == pytest.approx(clean, abs=1e-5)  # nothing hidden: as `evaluate` says
            assert row["inside"] == ""
        else:
            assert float(row["reached"]) == pytest.approx(0.4, abs=0.03)
            assert 0 < float(row["inside"]) < 1
    assert all(row["inside"] == "" for row in rows if row["arm"] == "cls")
    table = (output / "occlusion.md").read_text()
    assert "clean" in table
    assert "with 40% hidden" in table
    assert {"occlusion.png", "queries-cls-0.png", "queries-saga-0.png"} <= {file.name for file in output.iterdir()}
    assert "mAP" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already and not empty: name a new folder"):
        recipe.main(parse(recipe, "--run", *runs, "--output", output))


def test_what_the_study_refuses_before_it_hides_anything(
    recipe: ModuleType, runs: tuple[Path, Path], street: Path, tmp_path: Path
) -> None:
    given = ("--run", runs[1], "--data", f"folder:{street}", "--output", tmp_path / "study", "--threads", 1)
    for wrong, message in (
        (("--validate",), "--validate: .* has no val split"),
        (("--fusions", "2,a"), "--fusions 2,a: numbers with commas"),
        (("--fusions", "2,1"), "--fusions: a weight for each of saga, final, projection"),
        (("--fusions", "0,0,0"), "--fusions: a weight for each"),
    ):
        with pytest.raises(UserError, match=message):
            recipe.main(parse(recipe, *given, *wrong))
    assert list((tmp_path / "study").iterdir()) == []  # a second try goes into the same folder


@torch.no_grad()
def test_a_query_that_is_in_the_gallery_does_not_find_its_own_clean_image(
    runs: tuple[Path, Path], street: Path
) -> None:
    data, model = load_data(f"folder:{street}"), clipreid.load(runs[0])
    all_images = data.splits["gallery"]
    single = all_images.select(range(0, len(all_images), 3))
    own = replace(data, splits={"query": single, "gallery": all_images}, protocol="no-cameras")
    (found,) = study(own, model, [Place("mask", 0.0, 0)], Occluders.of(data))
    features = model.embed([all_images.image(row) for row in range(len(all_images))])
    rows = [*range(0, len(all_images), 3)]
    hits = []
    for row in rows:
        order = [at for at in (features @ features[row]).argsort(descending=True).tolist() if at != row]
        hits.append(all_images.identities[order[0]] == all_images.identities[row])
    assert found.reports["concat"].metrics["rank1"] == pytest.approx(sum(hits) / len(hits))


def test_every_severity_meets_the_same_draws(street: Path) -> None:
    data, generator = load_data(f"folder:{street}"), torch.Generator().manual_seed(1)
    query, occluders = data.splits["query"], Occluders.of(data)
    crops = torch.randint(0, 256, (len(query), 3, 128, 64), dtype=torch.uint8, generator=generator)

    def hide(condition: Any, severity: float, draw: int = 0) -> Any:
        place = Place(condition, severity, draw)
        (found,) = occluded_queries(crops, query, place, occluders, (0.5, 0.5, 0.5))
        return found

    for condition in occlusion.CONDITIONS:
        some, more = hide(condition, 0.2), hide(condition, 0.5)
        assert torch.equal(some.masks, hide(condition, 0.2).masks)
        assert torch.equal(some.kinds, more.kinds)
        assert not torch.equal(some.masks, hide(condition, 0.2, draw=1).masks)
        assert torch.equal(hide(condition, 0.0).pixels, crops)
    some, more = hide("mask", 0.2), hide("mask", 0.5)
    assert not (some.masks & ~more.masks).any()
    assert (some.pixels[some.masks[:, None].expand(-1, 3, -1, -1)] == 128).all()


def test_weight_inside_is_what_lies_on_hidden_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :, :1] = True, True  # the upper half; a quarter, half of the left patches; nothing
    assert hidden_patches(masks, (2, 2)).tolist() == [
        [[True, True], [False, False]], [[True, False], [True, False]], [[False, False], [False, False]],
    ]  # fmt: skip
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(2, 2, 2)
    monkeypatch.setattr(occlusion, "pooling_weights", lambda model, crops: weights[: len(crops)])
    model: Any = SimpleNamespace()
    inside, covered = pooling_inside(model, torch.zeros(3, 3, 4, 4, dtype=torch.uint8), masks)
    assert inside == pytest.approx(((0.1 + 0.2) + (0.1 + 0.3)) / 2)
    assert covered == pytest.approx(0.5)
    assert pooling_inside(model, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), masks[2:]) == (None, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["rain"], [0.4], 3), "--conditions rain: choose among mask, object, person"),
        ((["mask"], [0.4, 1.2], 3), "--severities 1.2: a share that is hidden, from 0 to below 1"),
        ((["mask"], [0.4], 0), "at least one draw"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        places(*given)


def test_draws_are_averaged_query_by_query_so_that_they_stay_paired() -> None:
    drawn = torch.Generator().manual_seed(2)
    table = {"identity": [0, 1, 2, 3] * 3, "camera": [0] * 12}
    gallery = {"identity": [0, 1, 2, 3] * 3, "camera": [1] * 12}
    sides = [
        [
            evaluate(torch.randn(12, 8, generator=drawn), torch.randn(12, 8, generator=drawn), table, gallery)
            for _ in range(3)
        ]
        for _ in range(2)
    ]
    found = over_draws(sides[0])
    assert found.metrics["mAP"] == pytest.approx(sum(one.metrics["mAP"] for one in sides[0]) / 3)
    own = confidence(found)
    for name, value in found.metrics.items():
        assert own[name][0] <= value <= own[name][1]
    same = compare(found, over_draws(sides[0]))
    assert same.difference_interval["mAP"] == (0.0, 0.0)
    other = compare(found, over_draws(sides[1]))
    expected = sum(one.metrics["mAP"] for one in sides[1]) / 3 - found.metrics["mAP"]
    assert other.difference["mAP"] == pytest.approx(expected)
    hit = [sum(one.per_query["first_rank"] <= 1 for one in sides[0]) / 3]
    assert found.per_query["rank1"] == pytest.approx(hit[0])


def test_clean_queries_are_scored_once() -> None:
    assert places(["mask", "object"], [0.4, 0], 2) == [
        Place("mask", 0, 0), Place("mask", 0.4, 0), Place("mask", 0.4, 1),
        Place("object", 0, 0), Place("object", 0.4, 0), Place("object", 0.4, 1),
    ]  # fmt: skip


def test_report_and_notebook_show_what_each_patch_counts(runs: tuple[Path, Path], street: Path, tmp_path: Path) -> None:
    data = f"folder:{street}"
    for run, shown in zip(runs, (False, True), strict=True):
        main(["evaluate", str(run), "--data", data, "--report", str(tmp_path / run.name), "--threads", "1"])
        assert (tmp_path / run.name / "patches.png").exists() == shown
        assert ("What each patch counts" in (tmp_path / run.name / "index.html").read_text()) == shown
    images = [load_data(data).splits["query"].image(row) for row in range(2)]
    figure = explore.draw_anchors(clipreid.load(runs[1]), images)
    assert [cell.get_title() for cell in figure.axes] == ["query", "weights", "anchors", "", "", ""]
    weights = figure.axes[1].images[0].get_array()
    assert weights.mean() == pytest.approx(1, abs=1e-5)  # what a patch gets on average
    with pytest.raises(UserError, match="this model has no anchors"):
        explore.draw_anchors(clipreid.load(runs[0]), images)
