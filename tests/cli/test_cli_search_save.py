"""`clipreid search --embed IMAGES --text "..." --save DIR`: type a sentence, save the top 10, in one command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_hub import make_run

from clipreid.cli import main
from clipreid.search import Gallery

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """run/, crops/ with 12 images, and a gallery of them."""
    home = tmp_path_factory.mktemp("saving")
    make_run(tiny_folder("clip"), home / "run")
    rng = np.random.default_rng(0)
    (home / "crops").mkdir()
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(home / f"crops/{n:02d}.png")
    main(["embed", str(home / "run"), str(home / "crops"), "--output", str(home / "g.parquet")])
    return home


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def search(*args: object) -> None:
    main(["search", "run", *map(str, args)])


def refused(capsys: Capture, *args: object) -> str:
    with pytest.raises(SystemExit) as ended:
        search(*args)
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "found.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_folder_a_sentence_and_the_top_ten_are_saved_in_one_command(
    there: Path, tmp_path: Path, capsys: Capture
) -> None:
    gallery, saved = tmp_path / "new.parquet", tmp_path / "found"
    search("--gallery", gallery, "--embed", "crops", "--text", "a red hat", "--save", saved, "--json")
    told = capsys.readouterr()
    hits = json.loads(told.out)["queries"][0]["results"]  # nothing but JSON
    assert "12 images" in told.err
    assert len(Gallery.open(gallery)) == 12
    assert [Path(hit["path"]).name for hit in hits] == [row["file"][3:] for row in rows_of(saved)]
    assert sorted(path.name for path in saved.iterdir()) == sorted(
        [row["file"] for row in rows_of(saved)] + ["found.csv"]
    )
    assert len(hits) == 10
    for nth, row in enumerate(rows_of(saved), start=1):
        assert (row["query"], row["rank"], row["file"][:3]) == ("a red hat", str(nth), f"{nth:02d}_")
        assert (saved / row["file"]).read_bytes() == Path(row["path"]).read_bytes()
        assert float(row["similarity"]) == pytest.approx(hits[nth - 1]["similarity"], abs=1e-6)


def test_the_second_sentence_finds_the_gallery_made(there: Path, tmp_path: Path, capsys: Capture) -> None:
    before = (there / "g.parquet").read_bytes()
    search("--gallery", "g.parquet", "--embed", "crops", "--text", "a hat", "--save", tmp_path / "found")
    told = capsys.readouterr()
    assert "nothing left to do" in told.err
    assert f"written: {tmp_path / 'found' / 'found.csv'}" in told.out
    assert (there / "g.parquet").read_bytes() == before


def test_several_queries_have_folders_of_their_own(there: Path, tmp_path: Path) -> None:
    search("--gallery", "g.parquet", "--text", "a hat", "a bag", "--top", 2, "--save", tmp_path / "found")
    rows = rows_of(tmp_path / "found")
    assert [(row["query"], row["file"].split("_")[0]) for row in rows] == [
        ("a hat", "query-1/1"),
        ("a hat", "query-1/2"),
        ("a bag", "query-2/1"),
        ("a bag", "query-2/2"),
    ]
    assert all((tmp_path / "found" / row["file"]).is_file() for row in rows)


def test_of_images_that_are_gone_the_table_has_the_names(there: Path, tmp_path: Path, capsys: Capture) -> None:
    crops, gallery = tmp_path / "crops", tmp_path / "g.parquet"
    crops.mkdir()
    for n in range(3):
        (crops / f"{n}.png").write_bytes((there / f"crops/{n:02d}.png").read_bytes())
    main(["embed", "run", str(crops), "--output", str(gallery)])
    (crops / "1.png").unlink()
    capsys.readouterr()
    search("--gallery", gallery, "--text", "a hat", "--save", tmp_path / "found")
    assert "note: 1 of the images found are gone" in capsys.readouterr().err
    assert {row["path"]: bool(row["file"]) for row in rows_of(tmp_path / "found")} == {
        str(crops / f"{n}.png"): n != 1 for n in range(3)
    }


def test_images_inside_a_data_set_become_png_files(there: Path, tmp_path: Path) -> None:
    import datasets

    rows = [{"image": {"bytes": (there / f"crops/{n:02d}.png").read_bytes(), "path": None}} for n in range(3)]
    kinds = datasets.Features(
        {"image": datasets.Image(), "identity": datasets.Value("string"), "camera": datasets.Value("int32")}
    )
    table = datasets.Dataset.from_list([row | {"identity": "a", "camera": 1} for row in rows], features=kinds)
    for split in ("query", "gallery"):
        table.to_parquet(tmp_path / "crops" / f"{split}.parquet")
    search(
        "--gallery", tmp_path / "g.parquet", "--embed", f"hub:{tmp_path / 'crops'}", "--text", "a hat",
        "--save", tmp_path / "found",
    )  # fmt: skip
    saved = [Image.open(tmp_path / "found" / row["file"]) for row in rows_of(tmp_path / "found")]
    whole = {Image.open(there / f"crops/{n:02d}.png").tobytes() for n in range(3)}
    assert {image.convert("RGB").tobytes() for image in saved} == whole


def test_mistakes_are_named(there: Path, tmp_path: Path, capsys: Capture) -> None:
    asked = ("--gallery", "g.parquet", "--text", "a hat")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    said = refused(capsys, *asked, "--save", tmp_path / "full")
    assert f"--save {tmp_path / 'full'} is there already and not empty: name a new folder" in said
    said = refused(capsys, *asked, "--embed", "crops/00.png")
    assert "--gallery" in said
    assert "from other images" in said
    assert "--overwrite" in said
    assert "--overwrite is for a gallery that is made here: give --embed" in refused(capsys, *asked, "--overwrite")
    assert "--embed crops" in refused(capsys, "--gallery", "crops", "--text", "a hat")
    assert "search with --embed IMAGES" in refused(capsys, "--gallery", "none.parquet", "--text", "a hat")
    assert not (tmp_path / "found").exists()
