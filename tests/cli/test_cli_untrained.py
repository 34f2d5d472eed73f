"""Untrained backbones and colour stripes as RUN, the floor, and camera centring, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from test_cli import Capture, cache, crops, metrics, refused, run  # noqa: F401 (fixtures)

import clipreid
from clipreid.cli import main
from clipreid.data import load_data
from clipreid.evaluation.floor import colour_floor
from clipreid.hub.files import CAMERA_MEANS

# ruff: noqa: F811 (fixtures)


def rows(said: str) -> dict[str, list[str]]:
    """The figures of the last table: {model: cells}."""
    lines = [line.split() for line in said.splitlines() if line.count("%") == 5]
    return {cells[1]: cells[3:] for cells in lines if len(cells) == 8}  # data, model, protocol, figures


def test_a_backbone_is_scored_with_floor_centring_reranking_and_a_page(
    crops: Path, tmp_path: Path, capsys: Capture
) -> None:
    report, data = tmp_path / "report", f"folder:{crops}"
    asked = ["evaluate", "tiny-clip", "--data", data, "--floor", "--by", "camera", "--open-set", "--rerank", "aqe"]
    main([*asked, "--centre-cameras", "gallery", "--report", str(report), "--queries", "2"])
    said = capsys.readouterr().out
    assert "tiny-clip: tiny-clip, untrained" in said
    assert "nothing is written" not in said
    assert f"written: {report / 'index.html'}" in said
    found = rows(said)
    assert set(found) == {
        "colour",
        "colour+centred-gallery",
        "zero-shot",
        "zero-shot+centred-gallery",
        "zero-shot+centred-gallery+aqe",
    }
    street = load_data(data)
    floor = colour_floor(street)
    assert found["colour"][0] == f"{100 * floor.reports['concat'].metrics['mAP']:.1f}%"
    for word in ("camera centring: means of 4 cameras, from 24 images", "transductive", "95%", "centring  mAP "):
        assert word in said
    assert "camera centring: means of 4 cameras" in (report / "index.html").read_text()
    assert "tiny-clip, untrained, clipreid" in (report / "index.html").read_text()

    table, split = street.splits["query"].metadata(), street.splits["query"]
    model = clipreid.load("tiny-clip")
    parts = model.embed_parts(model.crops([split.image(i) for i in range(len(split))]))
    scored = [
        clipreid.evaluate(parts[name], parts[name], table, table, protocol=street.protocol).metrics["mAP"]
        for name in ("concat", "projection")
    ]
    assert found["zero-shot"][0] == f"{100 * max(scored):.1f}%"  # the better of the two, as zero-shot everywhere


def test_colour_as_run_and_models_against_each_other(crops: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    data = ["--data", f"folder:{crops}"]
    main(["evaluate", "colour", *data])
    said = capsys.readouterr().out
    assert set(rows(said)) == {"colour"}
    assert "nothing is written: colour is untrained" in said
    main(["compare", "tiny-clip", str(run), "--floor", "--weight", "0.5", "--report", str(tmp_path / "report")])
    said = capsys.readouterr().out
    assert "tiny-clip: tiny-clip, untrained" in said
    assert "floor" in said
    entry = json.loads((tmp_path / "report" / "comparison.json").read_text())[f"folder:{crops}"]
    assert [model["name"] for model in entry["models"]] == ["tiny-clip", "run"]
    assert entry["floor"]["mAP"] == pytest.approx(colour_floor(load_data(data[1])).reports["concat"].metrics["mAP"])
    assert entry["fusion"]["weight"] == 0.5
    assert not (run / "metrics.json").exists()


@pytest.fixture
def known(tmp_path: Path, crops: Path) -> list[str]:
    """A data set with six training images of each camera."""
    lines = ["image,identity,camera,split"]
    for split in ("train", "test"):
        for file in sorted((crops / split).iterdir()):
            name = "train" if split == "train" else "query" if file.name[6] in "12" else "gallery"
            for again in range(3 if name == "train" else 1):
                place = tmp_path / "again" / f"{again}-{file.name}"
                place.parent.mkdir(exist_ok=True)
                place.symlink_to(file)
                lines.append(f"{place},{file.name[:4]},{file.name[6]},{name}")
    (tmp_path / "known.csv").write_text("\n".join(lines))
    return ["--data", f"csv:{tmp_path / 'known.csv'}"]


def test_two_models_are_centred_alike(known: list[str], capsys: Capture) -> None:
    main(["compare", "colour", "tiny-siglip2", *known, "--centre-cameras", "train", "--floor"])
    said = capsys.readouterr().out
    assert said.count("note      camera centring") == 1
    assert "means of 4 cameras, from 24 images of the train split; inductive" in said
    assert "colour+centred-train" in said


def test_a_run_gets_its_rows_and_keeps_means_only_where_asked(run: Path, crops: Path, capsys: Capture) -> None:
    data = f"folder:{crops}"
    main(["evaluate", str(run), "--centre-cameras", "gallery", "--zero-shot", "--floor"])
    names = {"stage2", "zero-shot", "colour"}
    assert set(metrics(run)[data]) == names | {f"{name}+centred-gallery" for name in names}
    assert "transductive" in metrics(run)[data]["stage2+centred-gallery"]["notes"][0]
    assert not (run / CAMERA_MEANS).exists()
    capsys.readouterr()


def test_kept_means_serve_search_and_are_those_of_the_training_images(
    run: Path, crops: Path, known: list[str], tmp_path: Path, capsys: Capture
) -> None:
    main(["evaluate", str(run), *known, "--centre-cameras", "train", "--keep-means"])
    said = capsys.readouterr().out
    assert f"kept      {run / CAMERA_MEANS}" in said
    gallery, query = str(tmp_path / "g.parquet"), str(crops / "test" / "0101_c1s1_000001_00.jpg")
    main(["embed", str(run), str(crops / "test"), "--output", gallery, "--pattern", "market1501"])
    capsys.readouterr()
    ask = ["search", str(run), "--gallery", gallery, "--image", query, "--json", "--top", "24"]
    found = {}
    for how in (["train", "--query-camera", "1"], ["gallery", "--query-camera", "1"], ["gallery"]):
        main([*ask, "--centre-cameras", *how])
        both = capsys.readouterr()
        hits = json.loads(both.out)["queries"][0]["results"]
        found[" ".join(how)] = {Path(hit["path"]).name: hit["similarity"] for hit in hits}, both.err
    assert "of csv:" in found["train --query-camera 1"][1]
    assert "whose cameras are taken to be those of the gallery" in found["train --query-camera 1"][1]
    assert "1 of 1 queries are of an unknown or another camera" in found["gallery"][1]

    model, names = clipreid.load(run), sorted(file.name for file in (crops / "test").iterdir())
    x = model.embed([crops / "test" / name for name in names])
    y = model.embed(sorted((crops / "train").iterdir()))
    for how, means in (("train", y.unflatten(0, (2, 4)).mean(0)), ("gallery", x.unflatten(0, (6, 4)).mean(0))):
        centred = (x.unflatten(0, (6, 4)) - means).flatten(0, 1)
        centred = centred / centred.norm(dim=1, keepdim=True)
        expected = dict(zip(names, (centred @ centred[names.index(Path(query).name)]).tolist(), strict=True))
        assert found[f"{how} --query-camera 1"][0] == pytest.approx(expected, abs=1e-4)

    other = ["search", str(run), "--gallery", gallery, "--image", query, "--centre-cameras", "train", "--strength", "0"]
    assert "was made by another model" in refused(capsys, *other)

    centred = str(tmp_path / "c.parquet")
    embed = ["embed", str(run), str(crops / "test"), "--output", centred, "--pattern", "market1501"]
    main([*embed, "--centre-cameras", "train"])
    assert f"camera centring: means of 4 cameras, from 24 images kept in {run}" in capsys.readouterr().out
    main([*ask[:3], centred, *ask[4:], "--query-camera", "1"])
    hits = json.loads(capsys.readouterr().out)["queries"][0]["results"]
    both = found["train --query-camera 1"][0]
    assert {Path(hit["path"]).name: hit["similarity"] for hit in hits} == pytest.approx(both, abs=1e-5)
    again = ["search", str(run), "--gallery", centred]
    assert "its features are centred: leave --centre-cameras out" in refused(
        capsys, *again, "--image", query, "--centre-cameras", "gallery"
    )
    assert "no sentence can be compared with them" in refused(capsys, *again, "--text", "a red coat")
    (run / CAMERA_MEANS).unlink()
    assert "holds no camera means; take --centre-cameras gallery, or make them: clipreid evaluate" in refused(
        capsys, *ask, "--centre-cameras", "train"
    )


def test_a_backbone_is_searched_and_exported(
    crops: Path, tmp_path: Path, tiny_folder: Callable[[str], Path], capsys: Capture
) -> None:
    gallery = str(tmp_path / "g.parquet")
    main(["embed", "tiny-clip", str(crops / "test"), "--output", gallery, "--pattern", "market1501"])
    assert "tiny-clip: 24 images" in capsys.readouterr().out
    query = crops / "test" / "0101_c1s1_000001_00.jpg"
    for asked in (["--image", str(query)], ["--text", "a person in a red coat"]):
        main(["search", "tiny-clip", "--gallery", gallery, "--top", "3", "--json", *asked])
        found = json.loads(capsys.readouterr().out)
        assert found["run"] == "tiny-clip"
        assert len(found["queries"][0]["results"]) == 3
    assert "made by another model (tiny-clip" in refused(
        capsys, "search", "tiny-siglip2", "--gallery", gallery, "--image", query
    )
    backbone = f"hf:{tiny_folder('clip')}"
    main(["export", backbone, "--format", "onnx", "--output", str(tmp_path / "onnx")])
    assert json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())["D"] == sum(
        clipreid.load(backbone).widths.values()
    )
    assert "at most in onnxruntime" in capsys.readouterr().out


def test_what_cannot_work_is_refused_by_name(run: Path, crops: Path, tmp_path: Path, capsys: Capture) -> None:
    data, output = ["--data", f"folder:{crops}"], ["--output", str(tmp_path / "new")]
    gallery = tmp_path / "c.parquet"
    main(["embed", "colour", str(crops / "test"), "--output", str(gallery)])
    capsys.readouterr()
    Image.new("RGB", (16, 32)).save(tmp_path / "q.jpg")
    image = ["--gallery", gallery, "--image", tmp_path / "q.jpg"]
    cases: list[tuple[list[object], str]] = [
        (["evaluate", "tiny-clip"], "tiny-clip is untrained, so there is no data of its own: name what to test on"),
        (["evaluate", "tiny-clip", *data, "--zero-shot"], "--zero-shot: tiny-clip is untrained itself"),
        (["evaluate", "tiny-clip", *data, "--strength", "0,1"], "--strength: tiny-clip is untrained, there is no"),
        (["evaluate", run, "--strength", "0,1", "--floor"], "leave out --floor"),
        (["evaluate", run, "--keep-means"], "--keep-means keeps the means of --centre-cameras train"),
        (["evaluate", "colour", *data, "--centre-cameras", "train", "--keep-means"], "has no run folder to keep them"),
        (["evaluate", "tiny-clop", *data], "did you mean tiny-clip?"),
        (["compare", "zero-shot", "tiny-clip", *data], "zero-shot against tiny-clip: it is untrained itself"),
        (["compare", "colour", "tiny-clip"], "name what to test on with --data"),
        (["export", "tiny-clip", "--format", "merged", *output], "untrained and has no adapter to merge"),
        (["export", "colour", "--format", "onnx", *output], "colour has no weights to export"),
        (["embed", "colour", crops, *output, "--centre-cameras", "gallery"], "no known camera has 5 images or more"),
        (
            ["embed", "colour", crops, *output, "--centre-cameras", "train"],
            "colour is untrained: take --centre-cameras",
        ),
        (["embed", "tiny-clip", crops, *output, "--strength", "0.5"], "strength 0.5: tiny-clip is untrained"),
        (["search", "colour", "--gallery", gallery, "--text", "a red coat"], "colour has no text tower"),
        (
            ["search", "colour", "--gallery", gallery, "--text", "a coat", "--centre-cameras", "gallery"],
            "no camera took",
        ),
        (["search", "colour", *image, "--query-camera", "1"], "says which mean --centre-cameras subtracts"),
        (
            ["search", "colour", *image, "--centre-cameras", "gallery", "--query-camera", "1", "2"],
            "--query-camera: 2 cameras for 1 images: give one for all, or one for each",
        ),
        (["search", "colour", *image, "--centre-cameras", "gallery"], "no known camera has 5 images or more"),
        (
            ["search", "colour", *image, "--centre-cameras", "train"],
            "colour is untrained: take --centre-cameras gallery",
        ),
    ]
    for words, message in cases:
        assert message in refused(capsys, *words), words
    assert not (tmp_path / "new").exists()
