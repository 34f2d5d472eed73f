"""A full or read-only disk, images that vanish: scores are printed all the same, and nothing half-written stays."""

import errno
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_cli import make_run

from clipreid.cli import main

Capture = pytest.CaptureFixture[str]
ENDINGS = ("index.html", "ranked_lists.png", "metrics.json", "queries.csv", "comparison.json", "changed.png")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "faults-cache"))


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """run/ and crops/."""
    from launching import paint_street

    paint_street(tmp_path / "crops", train=2, test=3)
    make_run(tmp_path / "run", tiny_folder("clip"), "lora", [f"folder:{tmp_path / 'crops'}"])
    return tmp_path


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands write at their end finds no room: a part is written, then the disk is full."""

    def refuse(file: Path) -> None:
        with open(file, "wb") as handle:
            handle.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_bytes(file: Path, content: bytes) -> int:
        return refuse(file) if str(file).endswith(ENDINGS) else plain(file, content)  # type: ignore[func-returns-value]

    def savefig(figure: Figure, file: Path | BytesIO, **how: Any) -> None:
        return refuse(file) if isinstance(file, Path) else draw(figure, file, **how)

    plain, draw = Path.write_bytes, Figure.savefig
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Figure, "savefig", savefig)


def ended(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(str(caught.value.code))


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.usefixtures("full")
def test_scores_are_printed_on_a_full_disk(home: Path, capsys: Capture) -> None:
    before = files(home)
    assert ended("evaluate", home / "run", "--report", home / "report") == 2
    said = capsys.readouterr()
    rows = [line.split()[:2] for line in said.out.splitlines()]
    assert any("stage2" in row for row in rows)  # the last table
    assert any("zero-shot" in row for row in rows)
    assert "not everything could be written" in said.out
    for file in (home / "run" / "metrics.json", home / "report" / "ranked_lists.png"):
        assert f"{file} cannot be written (No space left on device): make room" in said.err
    assert "Traceback" not in said.err
    assert files(home) == before


@pytest.mark.usefixtures("full")
def test_a_comparison_is_printed_on_a_full_disk(home: Path, capsys: Capture) -> None:
    before = files(home)
    assert ended("compare", "zero-shot", home / "run", "--report", home / "report") == 2
    said = capsys.readouterr()
    assert "mAP" in said.out
    assert "the queries that changed most" in said.out
    assert f"{home / 'report'}" in said.err
    assert "cannot be written (No space left on device)" in said.err
    assert files(home) == before


def test_images_that_vanish_after_scoring(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipreid.cli import evaluate as command

    plain = command.explain

    def explain(found: object) -> None:
        plain(found)  # type: ignore[arg-type]
        shutil.rmtree(home / "crops")
        shutil.rmtree(os.environ["CLIPREID_CACHE"])

    monkeypatch.setattr(command, "explain", explain)
    monkeypatch.setattr(command, "_has_backbone", lambda config: False)
    assert ended("evaluate", home / "run", "--report", home / "report") == 2
    said = capsys.readouterr()
    assert "stage2" in said.out.rpartition("protocol")[2]  # the last table
    assert "crops/test/" in said.err
    assert "cannot be decoded" in said.err
    assert files(home / "run").count("metrics.json") == 1


def test_images_that_vanish_before_scoring_are_named(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipreid.cli import evaluate as command

    plain = command.known_offsets
    monkeypatch.setattr(command, "known_offsets", lambda *how: shutil.rmtree(home / "crops") or plain(*how))
    assert ended("evaluate", home / "run") == 2
    assert "crops/test/0101_c1s1_000001_00.jpg: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_an_export_is_whole_or_not_there(
    name: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipreid.export import transformers_folder

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "README.md":
        monkeypatch.setattr(Path, "write_text", refuse)
    else:
        monkeypatch.setattr(transformers_folder, "save_file", refuse)
    (home / "there").mkdir()
    for output in ("new", "there"):
        assert ended("export", home / "run", "--format", "merged", "--output", home / output) == 2
        said = f"error: {home / output} cannot be written (No space left on device): make room, or give another place"
        assert said in capsys.readouterr().err
    assert not (home / "new").exists()
    assert list((home / "there").iterdir()) == []
