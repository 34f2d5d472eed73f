"""`clipreid data split`, as typed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipreid.cli import main
from clipreid.data import load_data

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def crops(tmp_path: Path) -> str:
    """12 people at two cameras, two images each; one who was seen once, and one by one camera only."""
    rng = np.random.default_rng(0)
    seen = [(f"p{n}", camera, k) for n in range(12) for camera in (1, 2) for k in (1, 2)]
    for name, camera, k in [*seen, ("once", 1, 1), ("alone", 1, 1), ("alone", 1, 2)]:
        file = tmp_path / "crops" / "train" / name / f"cam{camera}_{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 12, 3), dtype=np.uint8)).save(file)
    return f"folder:{tmp_path / 'crops'}"


def refused(capsys: Capture, *args: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["data", "split", *map(str, args)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_one_split_is_a_table_that_is_fit(crops: str, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out"
    ask = ["data", "split", crops, "--by", "identity", "--test", "0.25", "--val", "0.2", "--seed", "3", "--output"]
    main([*ask, str(output)])
    said = capsys.readouterr().out
    assert f"written: {output / 'split.csv'}; read with --data csv:{output / 'split.csv'}" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["query", "12", "3", "2"] in rows
    assert ["val", "8", "2", "2"] in rows
    assert "1 identities with one image are distractors of the gallery" in said
    assert "1 identities seen by one camera are trained on, or distractors where tested" in said
    assert "queries   12 of 12 have a match under protocol market1501" in said
    assert "expect    3 identities asked for: 95 % intervals about " in said
    main([*ask, str(tmp_path / "again")])
    assert (output / "split.csv").read_text() == (tmp_path / "again" / "split.csv").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", f"csv:{output / 'split.csv'}"])
    assert ended.value.code == 0, capsys.readouterr().out
    assert "split.csv is there already: give another --output, or --overwrite" in refused(capsys, *ask[2:], output)
    main([*ask, str(output), "--overwrite"])


def test_folds_are_a_table_each(crops: str, tmp_path: Path, capsys: Capture) -> None:
    main(["data", "split", crops, "--cross-validate", "3", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "expect    fold 3, 4 identities asked for" in said
    assert "expect    all folds, 12 identities asked for" in said
    tested = []
    for n in (1, 2, 3):
        read = load_data(f"csv:{tmp_path / 'out' / f'fold{n}.csv'}")
        asked = set(read.splits["query"].identities.tolist())
        assert not asked & set(read.splits["train"].identities.tolist())
        tested += sorted(asked)
    assert sorted(tested) == sorted(f"p{n}" for n in range(12))


def test_mistakes_are_named(crops: str, tmp_path: Path, capsys: Capture) -> None:
    output = ("--output", tmp_path / "out")
    both = refused(capsys, crops, "--cross-validate", 3, "--test", 0.3, *output)
    assert "--cross-validate N tests on one of N parts at a time: leave out --test" in both
    assert "--test 0.05 of 12 identities" in refused(capsys, crops, "--test", 0.05, *output)
    assert not (tmp_path / "out").exists()
    (tmp_path / "crops" / "train" / "p1").rename(tmp_path / "crops" / "train" / "p1 ")
    said = refused(capsys, crops, *output)
    assert "a table does not give back what was written ('p1" in said
    assert "begin or end with a space" in said
