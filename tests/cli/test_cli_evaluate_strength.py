"""`clipreid evaluate --strength`: a table, an image, and figures that are those of the models themselves."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_cli import cache, crops, make_run, metrics, refused  # noqa: F401 (two are fixtures)

from clipreid.backbones.imported import IMPORTED
from clipreid.cli import main
from clipreid.cli.evaluate_strength import check_strengths
from clipreid.errors import UserError
from clipreid.reports.strength import plot_strength

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Callable[[str], Path], crops: Path) -> Path:  # noqa: F811
    return make_run(tmp_path / "run", tiny_folder("clip"), "lora", [f"folder:{crops}"])


@pytest.fixture
def abroad(crops: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The same street through tinted glass."""
    shutil.copytree(crops, tmp_path / "abroad")
    for file in (tmp_path / "abroad").rglob("*.jpg"):
        with Image.open(file) as image:
            seen = image.convert("RGB").point([v * 2 // 3 for v in range(256)] * 2 + list(range(256)))
        seen.save(file)
    return tmp_path / "abroad"


def test_every_strength_is_scored_and_kept(
    run: Path,
    crops: Path,  # noqa: F811
    abroad: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import clipreid.data.cache

    monkeypatch.setenv("CLIPREID_CACHE", str(run.parent / "cache"))
    decoded, decode = [], clipreid.data.cache.to_crop
    monkeypatch.setattr(clipreid.data.cache, "to_crop", lambda *a: (decoded.append(a[0]), decode(*a))[1])
    both = ["--data", f"folder:{crops}", "--data", f"folder:{abroad}"]
    main(["evaluate", str(run), "--strength", "1,0,0.5", *both])
    said, found = capsys.readouterr().out, metrics(run)
    assert len(decoded) == len(set(decoded)) == 2 * len(list((crops / "test").iterdir()))
    main(["evaluate", str(run), "--zero-shot", *both])
    plain = metrics(run)
    for data in (f"folder:{crops}", f"folder:{abroad}"):
        assert found[data].keys() == {"stage2@0", "stage2@0.5", "stage2"}
        assert found[data]["stage2"] == plain[data]["stage2"]
        assert found[data]["stage2@0"]["parts"] == plain[data]["zero-shot"]["parts"]
        assert plain[data].keys() == {"stage2@0", "stage2@0.5", "stage2", "zero-shot"}
    rows = [line.split() for line in said.splitlines() if line.startswith(f"{crops.name} ")]
    assert [row[1] for row in rows] == ["0", "0.5", "1"]
    assert rows[2][2] == f"{found[f'folder:{crops}']['stage2']['mAP']:.1%}"
    assert f"in-domain (trained on): {crops.name}" in said
    with Image.open(run / "strength.png") as image:
        assert image.width > 1.8 * image.height  # two panels


def test_with_a_report_folder_the_image_goes_there(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["evaluate", str(run), "--strength", "0.5", "--report", str(tmp_path / "seen")])
    assert not (tmp_path / "seen").exists()  # one point is no image
    capsys.readouterr()
    drawn: list[list[float]] = []

    def watched(curves: dict[str, dict[float, Any]], home: list[str]) -> Any:
        drawn.extend(map(list, curves.values()))
        return plot_strength(curves, home)

    monkeypatch.setattr("clipreid.reports.strength.plot_strength", watched)
    main(["evaluate", str(run), "--strength", "1,0", "--report", str(tmp_path / "seen")])
    assert drawn == [[0.0, 0.5, 1.0]]  # with what was scored before
    assert f"written: {run / 'metrics.json'}, {tmp_path / 'seen' / 'strength.png'}" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "seen").iterdir()] == ["strength.png"]
    assert not (run / "strength.png").exists()


def test_mistakes_are_named_before_anything_is_scored(run: Path, capsys: Capture) -> None:
    assert "--strength 2: 2 is no number from 0" in refused(capsys, "evaluate", run, "--strength", "2")
    for flag in (["--zero-shot"], ["--rerank", "kwf"], ["--by", "camera"], ["--open-set"]):
        assert f"leave out {flag[0]}" in refused(capsys, "evaluate", run, "--strength", "0,1", *flag)
    with pytest.raises(UserError, match="was imported, and holds no backbone"):
        check_strengths("0,1", [], run, {"backbone": {"name": IMPORTED, "vision": {}}})
    assert not (run / "metrics.json").exists()
