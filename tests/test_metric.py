"""A metric that is not the cosine, and not symmetric, goes through everything that compares images."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_cli import KEYS, metrics, refused
from test_text_tower import make_toy
from torch import Tensor, nn

import clipreid
from clipreid import reports
from clipreid.cli import main
from clipreid.data import ReIDData, load_data
from clipreid.errors import UserError
from clipreid.evaluation import camera_pairs, evaluate, open_set
from clipreid.evaluation import score as score_module
from clipreid.evaluation.rescore import rescore
from clipreid.evaluation.score import score
from clipreid.metric import Cosine, Metric
from clipreid.model import ReIDModel
from clipreid.reports import html

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> ReIDData:
    """Blurred noise, in which nobody is easily found: figures tell one metric from another."""
    root, rng = tmp_path_factory.mktemp("metric") / "crops", np.random.default_rng(0)
    for split, first, count in (("train", 1, 2), ("test", 101, 5)):
        (root / split).mkdir(parents=True)
        for number in range(first, first + count):
            for camera in range(1, 5):
                noise = Image.fromarray(rng.integers(0, 256, (6, 3, 3), dtype=np.uint8))
                noise.resize((32, 64), Image.Resampling.BICUBIC).save(
                    root / split / f"{number:04d}_c{camera}s1_0_00.png"
                )
    return load_data(f"folder:{root}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "metric-cache"))


@pytest.fixture
def run(toy: ModuleType, tmp_path: Path) -> Path:
    """A run whose query is not to the gallery what the gallery is to the query: q.g - g[0]."""
    make_toy(toy, tmp_path / "run", metric="uneven")
    return tmp_path / "run"


def by_hand(model: ReIDModel, data: ReIDData) -> tuple[Tensor, Tensor]:
    """Features and similarities of all test images among each other; `street` has one split for both."""
    split = data.splits["query"]
    features = model.embed([split.image(i) for i in range(len(split))])
    return features, features @ features.T - features[:, 0]


class Learned(Metric):
    """A metric with a weight of its own."""

    name = "learned"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        return -self.weight * torch.cdist(query.double(), gallery.double() + 1)


def test_the_cosine_and_a_metric_of_ones_own() -> None:
    query, gallery = torch.randn(3, 5), torch.randn(4, 5)
    expected = F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T
    torch.testing.assert_close(Cosine()(query, 7 * gallery), expected)
    with pytest.raises(NotImplementedError):
        Metric()(query, gallery)
    assert (Cosine().cosine, Metric().cosine, Learned().cosine) == (True, False, False)


def test_a_metric_is_part_of_the_model() -> None:
    """Its weights are trained, saved with the heads, and decide what a gallery was made with."""
    from clipreid.backbones import load_backbone
    from clipreid.hub.folder import head_state
    from clipreid.search.format import model_print

    model = ReIDModel(load_backbone("tiny-clip"), "head", metric=Learned())
    assert "metric.weight" in head_state(model)
    before = model_print(model)
    with torch.no_grad():
        model.metric.weight += 1  # type: ignore[operator]
    assert model_print(model) != before


def test_the_test_feature_is_scored_by_it_and_its_parts_by_their_cosine(
    run: Path, street: ReIDData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table = clipreid.load(run), street.splits["query"].metadata()
    features, similarity = by_hand(model, street)
    given: dict[str, Any] = {"query": table, "gallery": table, "protocol": street.protocol}
    expected = evaluate(similarity=similarity, **given).metrics
    assert expected["mAP"] != pytest.approx(evaluate(features, features, **given).metrics["mAP"])
    assert expected["mAP"] != pytest.approx(evaluate(similarity=similarity.T, **given).metrics["mAP"])
    for rows in (None, 5):  # all queries at once, and five at a time
        if rows is not None:
            monkeypatch.setattr(score_module, "chunk_size", lambda chunk, sizes: 5)
        found = score(street, model)
        assert found.reports["concat"].metrics == pytest.approx(expected)
        assert found.entry()["mAP"] == pytest.approx(expected["mAP"])
        torch.testing.assert_close(found.similarity(), similarity)
        assert found.compared().keys() == {"similarity"}
    for part in ("final", "projection"):
        cosines = found.query_features[part]
        assert found.reports[part].metrics == pytest.approx(evaluate(cosines, cosines, **given).metrics)
        assert found.compared(part).keys() == {"query_features", "gallery_features"}
        torch.testing.assert_close(found.similarity(part), cosines @ cosines.T)
    captions = score(captioned(street), model, protocol="text-to-image")  # text is compared with the projection
    assert captions.compared().keys() == {"query_features", "gallery_features"}


def captioned(data: ReIDData) -> ReIDData:
    from dataclasses import replace

    from clipreid.data import Split

    query = data.splits["query"]
    files = [{"path": str(query.path(i))} for i in range(len(query))]
    words = [f"person {identity}" for identity in query.identities]
    split = Split.from_columns("query", files, query.identities.tolist(), query.cameras.tolist(), caption=words)
    return replace(data, splits=data.splits | {"query": split})


def test_open_set_and_camera_pairs_and_the_page_ask_it(
    run: Path, street: ReIDData, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = spy(monkeypatch, html, "section_of"), spy(monkeypatch, reports, "ranked_lists")
    asked = ("--by", "camera-pair", "--open-set", "--report", str(tmp_path / "report"))
    main(["evaluate", str(run), "--data", street.name, *asked])
    said = capsys.readouterr().out
    _, similarity = by_hand(clipreid.load(run), street)
    table = street.splits["query"].metadata()
    how: dict[str, Any] = {"query": table, "gallery": table, "protocol": street.protocol, "similarity": similarity}
    entry = metrics(run)[street.name]["toy"]
    assert {key: entry[key] for key in KEYS} == pytest.approx(evaluate(**how).metrics)
    assert entry["open_set"] == pytest.approx(open_set(**how).to_dict(), abs=1e-6)
    assert str(camera_pairs(**how)) in said
    ((_, page),) = given[0]
    torch.testing.assert_close(page["similarity"], similarity)
    assert "query_features" not in page
    ((lists, _),) = given[1]
    torch.testing.assert_close(lists[3]["toy"], similarity)
    assert (lists[3]["zero-shot"] - lists[3]["zero-shot"].T).abs().max() < 1e-6  # which is compared by cosine
    assert f"<td>{100 * entry['mAP']:.1f}" in (tmp_path / "report" / "index.html").read_text()


def spy(patch: pytest.MonkeyPatch, place: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of `place.name`, which still does its work."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real: Callable[..., Any] = getattr(place, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    patch.setattr(place, name, watched)
    return calls


def test_models_of_different_metrics_are_compared_each_by_its_own(
    run: Path, toy: ModuleType, street: ReIDData, tmp_path: Path, capsys: Capture
) -> None:
    make_toy(toy, tmp_path / "even")
    main(["compare", str(tmp_path / "even"), str(run), "--data", street.name, "--report", str(tmp_path / "report")])
    assert f"even: {tmp_path / 'even'}, tiny-clip, method toy, tuning lora" in capsys.readouterr().out
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())[street.name]
    table = street.splits["query"].metadata()
    given: dict[str, Any] = {"query": table, "gallery": table, "protocol": street.protocol}
    features, _ = by_hand(clipreid.load(tmp_path / "even"), street)
    _, similarity = by_hand(clipreid.load(run), street)
    expected = [evaluate(features, features, **given).metrics, evaluate(similarity=similarity, **given).metrics]
    for side, figures in zip(found["models"], expected, strict=True):
        assert {key: side["metrics"][key] for key in KEYS} == pytest.approx(figures)
    assert found["difference"]["mAP"] == pytest.approx(expected[1]["mAP"] - expected[0]["mAP"])


def test_what_looks_at_cosines_refuses_it_by_name_before_anything_is_scored(
    run: Path, toy: ModuleType, street: ReIDData, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = score(street, clipreid.load(run))
    with pytest.raises(UserError, match=r"^re-ranking by kwf compares features by cosine, .* own metric \(uneven\)"):
        rescore(found, "kwf")
    make_toy(toy, tmp_path / "even")
    monkeypatch.setattr("clipreid.evaluation.score.score", None)
    why = "compares features by cosine, and this model compares them by its own metric (uneven)"
    said = refused(capsys, "evaluate", run, "--data", street.name, "--rerank", "k-reciprocal")
    assert f"--rerank k-reciprocal {why}" in said
    assert not (run / "metrics.json").exists()
    for flags in (("--weight", "0.5"), ("--fuse",)):
        if flags == ("--fuse",):
            monkeypatch.setattr("clipreid.cli.compare._check_fusion", lambda *args: None)  # there is no val split
        assert f"--fuse {why}" in refused(capsys, "compare", run, tmp_path / "even", "--data", street.name, *flags)


def test_a_run_is_scored_by_it_while_it_is_trained(toy: ModuleType, street: ReIDData, tmp_path: Path) -> None:
    """`measure` writes the figures that `evaluate` finds again."""
    from dataclasses import replace

    from clipreid.config import configure
    from clipreid.methods import build
    from clipreid.training.launch import measure
    from clipreid.training.run import open_run

    flags, config = configure(toy, data=(street.name,), output=tmp_path / "new", threads=1, metric="uneven")
    run = open_run(toy, flags, config)
    model = build(toy, run.backbone, run.config).eval()
    measure(replace(run, data=replace(run.data, tests=[street])), model, "toy")
    table = street.splits["query"].metadata()
    _, similarity = by_hand(model, street)
    expected = evaluate(query=table, gallery=table, protocol=street.protocol, similarity=similarity).metrics
    entry = metrics(run.folder)[street.name]["toy"]
    assert {key: entry[key] for key in KEYS} == pytest.approx(expected)
    assert np.isfinite(entry["mAP"])
