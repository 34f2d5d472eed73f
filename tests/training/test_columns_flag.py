"""--columns and --unknown: from the flag to every table of a run, and from the run to its evaluation."""

import io
from pathlib import Path

import datasets
import pytest
from PIL import Image

from clipreid.cli.evaluate import Evaluate
from clipreid.cli.scoring import read_tests
from clipreid.config import RunConfig
from clipreid.errors import UserError
from clipreid.training.sets import read_sets


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A set to train and test on, and another one to test on, whose columns are called who and place."""
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)
    features = datasets.Features(image=datasets.Image(), who=datasets.Value("int64"), place=datasets.Value("int64"))
    for number, (place, part) in enumerate((("a", "train"), ("a", "test"), ("b", "test"))):
        rows: dict[str, list[object]] = {"image": [], "who": [], "place": []}
        for who in range(2):
            for camera in range(2):
                buffer = io.BytesIO()
                Image.new("RGB", (16, 32), (50 * who, 50 * camera, 50 * number)).save(buffer, "PNG")
                rows["image"].append({"bytes": buffer.getvalue(), "path": None})
                rows["who"].append(10 * number + who)
                rows["place"].append(camera)
        (tmp_path / place).mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / place / f"{part}.parquet")
    return f"hub:{tmp_path / 'a'}", f"hub:{tmp_path / 'b'}"


def test_they_reach_every_table_of_a_run(tables: tuple[str, str]) -> None:
    own, other = tables
    _, mixture, scored = read_sets(RunConfig(data=(own,), test=(other,), columns="identity=who,camera=place"))
    assert set(mixture.sets[0].splits["train"].identities) == {"0", "1"}
    assert [sorted(set(data.splits["query"].identities)) for data in scored] == [["10", "11"], ["20", "21"]]
    assert [data.protocol for data in scored] == ["cross-camera", "cross-camera"]
    with pytest.raises(UserError, match=r"no column 'identity'\. Columns found: image \(Image\), who \(int64\)"):
        read_sets(RunConfig(data=(own,)))
    with pytest.raises(UserError, match="--columns names columns of tables and works with csv:, hub: and coco: only"):
        read_sets(RunConfig(data=("synthetic",), columns="identity=who"))


def test_an_evaluation_takes_those_of_the_run_or_its_own(tables: tuple[str, str], tmp_path: Path) -> None:
    own, other = tables
    config = {"run": {"data": [own], "test": [other], "columns": "identity=who"}}
    found = read_tests(Evaluate(run=tmp_path), tmp_path, config)
    assert [data.name for data in found] == [own, other]
    assert found[1].splits["query"].cameras.tolist() == [-1] * 4
    (given,) = read_tests(Evaluate(run=tmp_path, data=(other,), columns="identity=who,camera=place"), tmp_path, {})
    assert given.splits["query"].cameras.tolist() == [0, 1, 0, 1]
    with pytest.raises(UserError, match="works with csv:, hub: and coco: only"):
        read_tests(Evaluate(run=tmp_path, data=("synthetic",), columns="identity=who"), tmp_path, {})


def test_unknown_individuals_of_a_run_are_those_of_its_evaluation(tables: tuple[str, str], tmp_path: Path) -> None:
    own, other = tables
    _, _, scored = read_sets(RunConfig(data=(own,), test=(other,), columns="identity=who", unknown=("10", "20,99")))
    assert [set(data.splits["query"].identities) for data in scored] == [{"11"}, {"21"}]
    config = {"run": {"data": [own], "test": [other], "columns": "identity=who", "unknown": ["10", "20,99"]}}
    found = read_tests(Evaluate(run=tmp_path), tmp_path, config)
    assert [set(data.splits["query"].identities) for data in found] == [{"11"}, {"21"}]
    asked = Evaluate(run=tmp_path, data=(other,), columns="identity=who", unknown=("21",))
    assert set(read_tests(asked, tmp_path, config)[0].splits["query"].identities) == {"20"}
    with pytest.raises(
        UserError, match="--unknown names unknown identities and works with folder:, csv:, hub:, coco: and yolo:"
    ):
        read_sets(RunConfig(data=("synthetic",), unknown=("0",)))
