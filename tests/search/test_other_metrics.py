"""A model that compares images by a metric of its own is refused, by its name, by whatever can only use the cosine."""

from pathlib import Path
from types import ModuleType

import pytest
from launching import paint_street
from test_text_tower import make_toy

import clipreid
from clipreid import explore
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.export import export_merged, export_onnx
from clipreid.metric import Cosine, Metric, needs_cosine
from clipreid.model import ReIDModel, untrained_model
from clipreid.search import Gallery, embed, find_images

BY = r"compares features by cosine, and this model compares them by its own metric \(uneven\): use clipreid evaluate or"


@pytest.fixture
def uneven(toy: ModuleType, tmp_path: Path) -> ReIDModel:
    make_toy(toy, tmp_path / "uneven", metric="uneven")
    return clipreid.load(tmp_path / "uneven")


@pytest.fixture
def even(toy: ModuleType, tmp_path: Path) -> ReIDModel:
    make_toy(toy, tmp_path / "even")
    return clipreid.load(tmp_path / "even")


def test_the_metric_of_a_run_is_loaded(uneven: ReIDModel, even: ReIDModel) -> None:
    assert (uneven.metric.name, even.metric.name) == ("uneven", "cosine")
    needs_cosine(Cosine(), "search")
    with pytest.raises(UserError, match=r"^search compares features by cosine, .* its own metric \(metric\)"):
        needs_cosine(Metric(), "search")


def test_galleries(crops: Path, uneven: ReIDModel, even: ReIDModel, tmp_path: Path) -> None:
    images, file = find_images([str(crops / "part0")]), tmp_path / "g.parquet"
    with pytest.raises(UserError, match=rf"^a gallery {BY}"):
        embed(uneven, images, file)
    assert not list(tmp_path.glob("*g.parquet*"))
    embed(even, images, file)
    Gallery.open(file).check(even)
    with pytest.raises(UserError, match=rf"^search in a gallery {BY}"):
        Gallery.open(file).check(uneven)


def test_the_commands(
    crops: Path, uneven: ReIDModel, even: ReIDModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert ended.value.code == 2
        return capsys.readouterr().err

    file = tmp_path / "g.parquet"
    assert "by its own metric (uneven)" in refused("embed", tmp_path / "uneven", crops, "--output", file)
    assert not file.exists()
    main(["embed", str(tmp_path / "even"), str(crops), "--output", str(file)])
    query = next(crops.rglob("*.png"))
    for ask in (("--image", query), ("--text", "a person in red")):
        assert "by its own metric (uneven)" in refused("search", tmp_path / "uneven", "--gallery", file, *ask)
    out = tmp_path / "out"
    assert "by its own metric (uneven)" in refused("export", tmp_path / "uneven", "--format", "onnx", "--output", out)
    said = refused("export", tmp_path / "even", "--format", "merged", "--output", out)
    assert "the method toy is not among those" in said
    assert not out.exists()


def test_exports(uneven: ReIDModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^an ONNX graph {BY}"):
        export_onnx(uneven, tmp_path / "out")
    with pytest.raises(UserError, match=rf"^the feature of --format merged {BY}"):
        export_merged(uneven, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fusion(uneven: ReIDModel, even: ReIDModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    street = paint_street(tmp_path / "street", train=2, test=3)
    domains = {"in-domain": load_data(f"folder:{street}")}
    theirs, ours = explore.score_domains(uneven, domains), explore.score_domains(even, domains)
    for pair in ((theirs, ours), (ours, theirs)):
        with pytest.raises(UserError, match=rf"^fusion {BY}"):
            explore.fused_precision(*pair, 0.5)
    explore.fused_precision(ours, ours, 0.5)
    runs = [str(tmp_path / name) for name in ("even", "uneven")]
    data = ["--data", f"folder:{street}", "--threads", "1"]
    main(["compare", *runs, *data])  # each by its own metric
    capsys.readouterr()
    for pair in (runs, runs[::-1]):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *pair, *data, "--weight", "0.5"])
        assert ended.value.code == 2
        assert "by its own metric (uneven)" in capsys.readouterr().err


def test_a_model_without_a_method_has_a_gallery_too(crops: Path, tmp_path: Path) -> None:
    """The backbone alone."""
    model, images = untrained_model(load_backbone("tiny-clip")), find_images([str(crops / "part0")])
    embed(model, images, tmp_path / "g.parquet")
    Gallery.open(tmp_path / "g.parquet").check(untrained_model(load_backbone("tiny-clip")))
    with pytest.raises(UserError, match="made by another model"):
        Gallery.open(tmp_path / "g.parquet").check(untrained_model(load_backbone("tiny-clip"), "mean"))
