"""`clipreid embed` and `clipreid search`, as typed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_only import save_osnet
from PIL import Image
from test_hub import make_run

import clipreid
from clipreid.cli import main
from clipreid.search import Gallery

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """run/, crops/ with 12 images of 4 people at 3 cameras, and a gallery of them."""
    home = tmp_path_factory.mktemp("home")
    make_run(tiny_folder("clip"), home / "run")
    rng = np.random.default_rng(0)
    for n in range(12):
        file = home / "crops" / f"person{n // 3}" / f"cam{n % 3 + 1}_{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(file)
    run("embed", home / "run", home / "crops", "--output", home / "g.parquet", "--pattern", "identity/cam")
    return home


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def run(*args: object) -> None:
    main([str(arg) for arg in args])


def refused(capsys: Capture, *args: object) -> str:
    """What a command that ends with status 2 says on stderr."""
    with pytest.raises(SystemExit) as ended:
        run(*args)
    assert ended.value.code == 2
    return capsys.readouterr().err


def ask(capsys: Capture, *args: object) -> list[dict]:
    capsys.readouterr()
    run("search", "run", "--gallery", "g.parquet", "--json", *args)
    return json.loads(capsys.readouterr().out)["queries"]


# embed ------------------------------------------------------------------------------------------------------------


def test_folders_files_and_globs_each_image_once(there: Path, tmp_path: Path, capsys: Capture) -> None:
    run(
        "embed",
        "run",
        "crops/person1",
        "crops/person0/cam1_0.png",
        "crops/**/cam1_*.png",
        "crops/person1/",
        "--output",
        tmp_path / "g.parquet",
    )
    gallery = Gallery.open(tmp_path / "g.parquet")
    names = [Path(row["path"]).relative_to(there / "crops").as_posix() for row in gallery.rows(range(len(gallery)))]
    assert names == [
        "person1/cam1_3.png",
        "person1/cam2_4.png",
        "person1/cam3_5.png",
        "person0/cam1_0.png",
        "person2/cam1_6.png",
        "person3/cam1_9.png",
    ]
    assert "6 images" in capsys.readouterr().out


def test_identity_and_camera_come_from_the_pattern(there: Path) -> None:
    rows = Gallery.open("g.parquet").rows(range(12))
    assert [(row["identity"], row["camera"]) for row in rows] == [(f"person{n // 3}", n % 3 + 1) for n in range(12)]


def test_a_data_set_brings_its_own(there: Path, tmp_path: Path) -> None:
    for split in ("query", "gallery"):
        folder = tmp_path / "data" / split / "anna"
        folder.mkdir(parents=True)
        Image.open(there / "crops/person0/cam1_0.png").save(folder / "photo_cam7.png")
    run("embed", "run", f"folder:{tmp_path / 'data'}", "--split", "query", "--output", tmp_path / "g.parquet")
    (row,) = Gallery.open(tmp_path / "g.parquet").rows([0])
    assert row == {"path": str(tmp_path / "data/query/anna/photo_cam7.png"), "identity": "anna", "camera": 7}


def test_what_embed_was_told_is_kept(there: Path, tmp_path: Path) -> None:
    run("embed", "run", "crops", "--strength", "0.5", "--output", tmp_path / "g.parquet")
    about = Gallery.open(tmp_path / "g.parquet").about
    assert (about["strength"], about["run"], about["sources"]) == (0.5, "run", [str(there / "crops")])
    assert (about["image_size"], about["dimension"]) == ([64, 32], sum(about["parts"].values()))
    assert about["clipreid"] == clipreid.__version__


def test_repeated_it_says_that_there_is_nothing_to_do(there: Path, capsys: Capture) -> None:
    run("embed", "run", "crops", "--output", "g.parquet", "--pattern", "identity/cam")
    said = capsys.readouterr().out
    assert "nothing left to do" in said
    assert "there: g.parquet, 12 images" in said
    assert "written" not in said


def test_where_stderr_is_no_terminal_progress_is_lines(
    there: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = ("embed", "run", "crops", "--batch-size", 5, "--output")
    run(*embed, tmp_path / "g.parquet")
    assert "images" not in capsys.readouterr().err  # done within a minute
    monkeypatch.setattr("clipreid.cli.search.EVERY", 0.0)
    run(*embed, tmp_path / "h.parquet")
    lines = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert re.fullmatch(r"  5 of 12 images, [\d.,]+ a second, 0:00:\d\d left", lines[1])
    assert lines[-1].startswith("  12 of 12 images")


def test_the_help_says_what_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        run("embed", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "hub:... (required)" in said


def test_mistakes_of_embed_are_named(there: Path, tmp_path: Path, capsys: Capture) -> None:
    output = ("--output", tmp_path / "g.parquet")
    assert "no such file or folder, and it is no data set" in refused(capsys, "embed", "run", "cops", *output)
    assert "the glob finds nothing" in refused(capsys, "embed", "run", "crops/*.jpg", *output)
    assert "no images below" in refused(capsys, "embed", "run", "run", *output)
    assert "do not fit the pattern" in refused(capsys, "embed", "run", "crops", *output, "--pattern", "market1501")
    assert "no group (?P<identity>" in refused(capsys, "embed", "run", "crops", *output, "--pattern", "x")
    assert "works with csv:, hub: and coco: only" in refused(
        capsys, "embed", "run", "crops", *output, "--columns", "identity=pid"
    )
    assert "--pattern reads paths of" in refused(capsys, "embed", "run", "synthetic", *output, "--pattern", "folder")
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "data/train/a/1.png")
    said = refused(capsys, "embed", "run", f"folder:{tmp_path / 'data'}", *output)
    assert "has no split 'gallery': give --split train" in said
    said = refused(capsys, "embed", "run", f"folder:{tmp_path / 'data' / 'train'}", *output, "--pattern", "identity/")
    assert "has no split 'gallery': give --split train" in said  # not split yet: all of it is train
    assert "is not a folder" in refused(capsys, "embed", "nowhere", "crops", *output)
    assert "strength" in refused(capsys, "embed", "run", "crops", *output, "--strength", "2")
    assert not (tmp_path / "g.parquet").exists()


# search -----------------------------------------------------------------------------------------------------------


def test_json_is_all_there_is_and_is_right(there: Path, capsys: Capture) -> None:
    asked = ["crops/person0/cam1_0.png", "crops/person2/cam3_8.png"]
    found = ask(capsys, "--image", *asked, "--top", 12)
    model = clipreid.load("run")
    paths = sorted(str(path) for path in (there / "crops").rglob("*.png"))
    true = (model.embed(asked).double() @ model.embed(paths).double().T).numpy()
    for query, entry, row in zip(asked, found, true, strict=True):
        assert entry["image"] == query
        assert [hit["path"] for hit in entry["results"]] == [paths[i] for i in np.argsort(-row, kind="stable")]
        assert [hit["rank"] for hit in entry["results"]] == list(range(1, 13))
        np.testing.assert_allclose([hit["similarity"] for hit in entry["results"]], -np.sort(-row), atol=1e-6)
        assert [hit["itself"] for hit in entry["results"]] == [True] + [False] * 11
        assert entry["results"][0]["identity"] == Path(query).parent.name


def test_text_is_compared_with_the_projection(there: Path, capsys: Capture) -> None:
    (entry,) = ask(capsys, "--text", "a person with a red backpack", "--top", 12)
    model = clipreid.load("run")
    paths = sorted(str(path) for path in (there / "crops").rglob("*.png"))
    images = model.embed_parts(model.crops(paths))["projection"]
    true = (images @ model.embed_text(["a person with a red backpack"]).T)[:, 0].numpy()
    assert entry["text"] == "a person with a red backpack"
    assert [hit["path"] for hit in entry["results"]] == [paths[i] for i in np.argsort(-true, kind="stable")]
    np.testing.assert_allclose([hit["similarity"] for hit in entry["results"]], -np.sort(-true), atol=1e-5)


def test_sentences_without_quotes_get_a_hint(there: Path, capsys: Capture) -> None:
    asked = ("search", "run", "--gallery", "g.parquet", "--top", 1, "--text")
    run(*asked, "a", "red", "backpack")
    said = capsys.readouterr()
    assert 'needs quotes: --text "a red backpack"' in said.err
    assert said.out.count("similarity") == 3  # it may have been meant
    run(*asked, "car", "red backpack")
    run(*asked, "car")
    assert "quotes" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"write model\.embed_text\(\[sentence\]\)"):
        clipreid.load("run").embed_text("a red backpack")


def test_a_sentence_beyond_the_context_is_said(there: Path, capsys: Capture) -> None:
    asked = ("search", "run", "--gallery", "g.parquet", "--top", 1, "--text")
    run(*asked, "a person with " + "a red backpack and " * 40)
    said = capsys.readouterr()
    assert re.search(r"note: the text is longer than the \d+ tokens .*: of it \(\d+ tokens\) \d+ of \d+ char", said.err)
    run(*asked, "a person with a red backpack")
    assert "note" not in capsys.readouterr().err


def test_tables_show_what_was_found(there: Path, capsys: Capture) -> None:
    run("search", "run", "--gallery", "g.parquet", "--image", "crops/person0/cam1_0.png", "--top", "3")
    said = capsys.readouterr().out
    assert re.search(r"rank +similarity +path +identity +camera", said)
    first = r"\n +1 +1\.0000+ +crops/person0/cam1_0\.png \(the query itself\) +person0 +1\n"
    assert re.search(first, said)
    assert len(re.findall(r"^ +[123] +\d", said, re.MULTILINE)) == 3


def test_the_default_is_no_more_than_there_is(there: Path, tmp_path: Path, capsys: Capture) -> None:
    run("embed", "run", "crops/person0", "--output", tmp_path / "small.parquet")
    capsys.readouterr()
    run("search", "run", "--gallery", tmp_path / "small.parquet", "--json", "--image", "crops/person0/cam1_0.png")
    (entry,) = json.loads(capsys.readouterr().out)["queries"]
    assert len(entry["results"]) == 3
    assert len(ask(capsys, "--image", "crops/person0/cam1_0.png")[0]["results"]) == 10


def test_cameras_are_filtered(there: Path, capsys: Capture) -> None:
    image = ("--image", "crops/person0/cam1_0.png")
    (only,) = ask(capsys, *image, "--camera", 2, 3)
    (without,) = ask(capsys, *image, "--not-camera", 1)
    assert only == without
    assert {hit["camera"] for hit in only["results"]} == {2, 3}
    assert len(only["results"]) == 8


def test_repeated_flags_are_all_answered(there: Path, capsys: Capture) -> None:
    first, second = "crops/person0/cam1_0.png", "crops/person2/cam3_8.png"
    found = ask(capsys, "--image", first, "--camera", 2, "--image", second, "--camera", 3, "--top", 2)
    assert found == ask(capsys, "--image", first, second, "--camera", 2, 3, "--top", 2)
    assert [entry["image"] for entry in found] == [first, second]
    assert len(ask(capsys, "--text", "a red coat", "--text", "a bag")) == 2
    said = refused(capsys, "search", "run", "--gallery", "g.parquet", "--image", first, "--top", 1, "--top", 2)
    assert "--top is given twice, '1' and '2', and takes one value: give it once" in said


def test_leaving_out_a_camera_that_is_not_there_is_said(there: Path, capsys: Capture) -> None:
    image = ("--gallery", "g.parquet", "--image", "crops/person0/cam1_0.png")
    run("search", "run", *image, "--not-camera", 7)
    assert "note: --not-camera 7 leaves nothing out: g.parquet has the cameras 1, 2, 3" in capsys.readouterr().err


def test_strength_0_says_that_it_is_not_the_row_zero_shot(there: Path, tmp_path: Path, capsys: Capture) -> None:
    run("embed", "run", "crops", "--output", tmp_path / "zero.parquet", "--strength", "0")
    said = capsys.readouterr().err
    assert "note: --strength 0 is the untrained backbone with the whole test feature (final + projection)" in said


def test_the_page_holds_everything_and_believes_nothing(there: Path, tmp_path: Path, capsys: Capture) -> None:
    odd = tmp_path / "<script>alert(1)</script>"
    odd.mkdir(parents=True)
    for n, file in enumerate(sorted((there / "crops").rglob("*.png"))[:3]):
        Image.open(file).save(odd / f"<b>&{n}.png")
    gallery = tmp_path / "odd.parquet"
    run("embed", "run", odd, "--output", gallery, "--pattern", r"(?P<identity><b>)")
    (odd / "<b>&1.png").unlink()
    capsys.readouterr()
    search = ("search", "run", "--gallery", gallery, "--top", 3)
    run(*search, "--report", tmp_path / "page", "--image", odd / "<b>&0.png", "crops/person3/cam1_9.png")
    assert "index.html" in capsys.readouterr().out
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<script" not in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;0.png" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert page.count("data:image/jpeg;base64,") == 2 + 2 * 2  # queries, and the two that are left, twice
    assert page.count("cannot<br>be found") == 2
    assert "the query itself" in page
    run(*search, "--report", tmp_path / "words", "--text", "<i>somebody</i>")
    page = (tmp_path / "words" / "index.html").read_text()
    assert "&lt;i&gt;somebody" in page
    assert "<i>" not in page


def test_mistakes_of_search_are_named(there: Path, tmp_path: Path, capsys: Capture) -> None:
    search, image = ("search", "run", "--gallery"), ("--image", "crops/person0/cam1_0.png")
    assert "give one of them, not both" in refused(capsys, *search, "g.parquet", *image, "--text", "x")
    assert "give query images or query sentences" in refused(capsys, *search, "g.parquet")
    assert "is empty" in refused(capsys, *search, "g.parquet", "--text", " ")
    assert "is no file: make a gallery" in refused(capsys, *search, "h.parquet", *image)
    assert "--top 13: give 1 to 12" in refused(capsys, *search, "g.parquet", *image, "--top", 13)
    assert "no camera 4" in refused(capsys, *search, "g.parquet", *image, "--camera", 4)
    assert "--image crops: is a folder: name images" in refused(capsys, *search, "g.parquet", "--image", "crops")
    assert "--image nowhere.png: no such file" in refused(capsys, *search, "g.parquet", "--image", "nowhere.png")
    (tmp_path / "bad.png").write_text("no image")
    assert "cannot be used" in refused(capsys, *search, "g.parquet", "--image", tmp_path / "bad.png")
    said = refused(capsys, *search, "g.parquet", *image, "--strength", "0.25")
    assert "was made by another model (" in said
    assert "its strength is 1.0, here 0.25" in said
    assert "is a file: give a folder" in refused(capsys, *search, "g.parquet", *image, "--report", "g.parquet")


def test_a_model_without_text_cannot_be_asked_in_words(there: Path, tmp_path: Path, capsys: Capture) -> None:
    """An image-only tower, which has one part only."""
    file, _ = save_osnet("x0_25", tmp_path)
    make_run(f"osnet:x0_25/{file}", tmp_path / "run", tuning="head")
    run("embed", tmp_path / "run", "crops", "--output", tmp_path / "g.parquet")
    said = refused(capsys, "search", tmp_path / "run", "--gallery", tmp_path / "g.parquet", "--text", "x")
    assert "has no text tower" in said


@pytest.mark.slow
def test_under_torchrun_the_processes_share_the_work(there: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    embed = [
        "-m",
        "clipreid",
        "embed",
        "run",
        "crops",
        "--output",
        str(tmp_path / "g.parquet"),
        "--pattern",
        "identity/cam",
    ]
    done = subprocess.run([*launch, *embed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line.partition(":")[0] for line in done.stdout.splitlines() if line.endswith("g.parquet, 12 images")]
    assert told in (["written"], ["there"])  # by the first process only; the other may have done it all before
    one, both = Gallery.open("g.parquet"), Gallery.open(tmp_path / "g.parquet")
    assert both.rows(range(12)) == one.rows(range(12))
    for (_, a), (_, b) in zip(one.blocks(), both.blocks(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
