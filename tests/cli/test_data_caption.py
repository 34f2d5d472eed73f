"""`clipreid data caption`: what is written is read again, and what cannot work is refused."""

import csv
from pathlib import Path

import pytest
from launching import paint_street, write_attributes

from clipreid.cli.data_caption import Caption
from clipreid.data import load_data
from clipreid.data.attributes import split_with
from clipreid.data.convert import convert
from clipreid.errors import UserError
from clipreid.explore.attribute_prompts import people


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attributes(paint_street(tmp_path_factory.mktemp("caption") / "crops", train=2, test=2))


def test_captions_and_attributes_are_read_by_every_command(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Caption(f"folder:{street}", tmp_path / "out", threads=1, noun="person")()
    said = capsys.readouterr().out
    data = load_data(f"csv:{tmp_path / 'out' / 'captions.csv'}")
    before = load_data(f"folder:{street}")
    with open(tmp_path / "out" / "confidence.csv") as handle:
        sure = list(csv.DictReader(handle))
    assert len(sure) == sum(map(len, before.splits.values()))
    row = 0
    for name, split in before.splits.items():
        now = data.splits[name]
        assert now.identities.tolist() == split.identities.tolist()
        assert now.cameras.tolist() == split.cameras.tolist()
        assert [Path(path).resolve() for path in now.paths] == [Path(path).resolve() for path in split.paths]
        for caption, known in zip(now.captions, now.attributes, strict=True):
            assert caption == people().caption(known, "person")
            for attribute in people().values:
                assert (attribute in known) <= (float(sure[row][attribute]) >= 0.5)
            row += 1
    assert any(caption for split in data.splits.values() for caption in split.captions)
    table = next(line for line in said.splitlines() if line.startswith("top_colour"))
    assert table.split()[:2] == ["top_colour", str(len(sure))]
    assert "9.1%" in table  # chance: one of eleven colours
    assert (tmp_path / "out" / "prompts.csv").read_text() == people().to_csv()


def test_images_inside_of_the_data_become_files_and_prompts_of_one_s_own_are_asked(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(f"folder:{street}", noun="person")
    bare = {name: split_with(split, [{}] * len(split)) for name, split in data.splits.items()}
    convert(type(data)(data.name, bare, data.protocol, "dog"), tmp_path / "converted", progress=False)
    rows = "attribute,value,prompt,words\nmood,glad,a happy {noun},a smile\nmood,sad,a sad {noun},no smile\n"
    (tmp_path / "mine.csv").write_text(rows)
    Caption(f"hub:{tmp_path / 'converted'}", tmp_path / "out", prompts=tmp_path / "mine.csv", splits=("train",),
            least_confidence=0.0, threads=1)()  # fmt: skip
    found = load_data(f"csv:{tmp_path / 'out' / 'captions.csv'}")
    assert set(found.splits) == {"train"}
    train = found.splits["train"]
    assert len(train) == len(list((tmp_path / "out" / "images").iterdir())) == 8
    words = {"glad": "a photo of a dog with a smile", "sad": "a photo of a dog with no smile"}
    assert train.captions.tolist() == [words[each["mood"]] for each in train.attributes]
    assert "nobody knows how often these are right" in capsys.readouterr().out


def test_what_cannot_work_is_refused_before_anything_is_written(street: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    data = f"folder:{street}"
    for flags, message in (
        (Caption(data, tmp_path / "full"), "not empty: name a new folder"),
        (Caption(data, tmp_path / "out", least_confidence=1.5), "--least-confidence 1.5: must be at least 0 and"),
        (Caption(data, tmp_path / "out", splits=("val",)), "--splits val: .* has train, query, gallery"),
        (Caption(data, tmp_path / "out", splits=("query",)), "--splits query: .* name both of them"),
        (Caption(data, tmp_path / "out", model="colour"), "no text tower"),
        (Caption(data, tmp_path / "out", noun="antelope"), "no table of prompts for 'antelope'"),
    ):
        with pytest.raises(UserError, match=message):
            flags()
    assert not (tmp_path / "out").exists()
