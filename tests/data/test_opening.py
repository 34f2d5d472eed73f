"""Blank images, images under two identities and images that are trained and tested on: said, and refused when many."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_check import noise

from clipreid.data import ReIDData, Split, load_data, pixel_cache
from clipreid.data.check import check, read_and_check
from clipreid.data.opening import Opened, check_apart, check_images, conflicts, opened
from clipreid.errors import UserError

SIZE = (32, 16)
SEE = "`clipreid data check own` names them all"


def split_of(folder: Path, seeds: list[int], identities: list[str] | None = None, name: str = "train") -> Split:
    """Images by seed, -1 is blank; equal seeds are copies, as PNG and BMP in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.{('png', 'bmp')[i % 2]}" for i in range(len(seeds))]
    for path, seed in zip(paths, seeds, strict=True):
        (Image.new("RGB", (32, 64), (9, 90, 200)) if seed < 0 else noise(seed)).save(path)
    who = [str(seed) for seed in seeds] if identities is None else identities
    return Split.from_columns(name, [{"path": str(path)} for path in paths], who)


def open_(split: Split, part: str = "training") -> list[Opened]:
    cache = pixel_cache(split, SIZE, progress=False)
    return opened("own", part, [split], [cache])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))


def test_clean_images_need_no_word(tmp_path: Path) -> None:
    train, test = (split_of(tmp_path / name, list(range(at, at + 20))) for name, at in (("a", 0), ("b", 20)))
    assert check_images(open_(train)) == []
    assert check_apart(open_(train), open_(test, "test")) == []


def test_blank_images(tmp_path: Path) -> None:
    few = open_(split_of(tmp_path / "a", [-1, *range(19)]))
    (note,) = check_images(few)
    first = tmp_path / "a" / "000.png"
    assert note == f"own: 1 of 20 training images are of one flat colour ({first}): nobody is in them; {SEE}"
    with pytest.raises(UserError, match=r"own: 3 of 20 .* With more than 10 % of such images the data are not fit"):
        check_images(open_(split_of(tmp_path / "b", [-1, -1, -1, *range(17)])))


def test_images_under_two_identities(tmp_path: Path) -> None:
    seeds = [*range(49), 7]
    (note,) = check_images(open_(split_of(tmp_path / "a", seeds, [*map(str, range(49)), "again"])))
    assert "own: 2 of 50 training images are there under two identities, pixel for pixel (" in note
    assert "007.bmp is 7" in note
    assert "049.bmp is again): one must be wrong" in note
    assert check_images(open_(split_of(tmp_path / "b", seeds))) == []  # the same identity: counted twice, no more
    with pytest.raises(UserError, match=r"2 of 11 training images .* With more than 5 % of such images"):
        check_images(open_(split_of(tmp_path / "c", [*range(10), 7], [*map(str, range(10)), "again"])))


def test_a_conflict_between_query_and_gallery(tmp_path: Path) -> None:
    parts = open_(split_of(tmp_path / "q", [0, 1], name="query"), "test")
    parts += open_(split_of(tmp_path / "g", [0, *range(2, 60)], ["other", *map(str, range(2, 60))]), "test")
    (note,) = check_images(parts)
    assert "own: 2 of 61 test images are there under two identities" in note
    assert f"{tmp_path}/q/000.png is 0, {tmp_path}/g/000.png is other" in note


def test_test_images_that_are_trained_on(tmp_path: Path) -> None:
    train = open_(split_of(tmp_path / "a", [-1, *range(29)]))
    (note,) = check_apart(train, open_(split_of(tmp_path / "b", [-1, 3, *range(40, 60)]), "test"))
    pair = f"{tmp_path}/b/001.bmp = {tmp_path}/a/004.png"
    assert note.startswith(f"own: 1 of 22 test images are training images as well ({pair}): they are learned, then")
    with pytest.raises(UserError, match=r"own: 2 of 6 test images are training .* With more than 5 % of such images"):
        check_apart(train, open_(split_of(tmp_path / "c", [3, 4, 40, 41, 42, 43]), "test"))


def test_they_cost_nothing_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path / "a", [-1, *range(19)])
    first = open_(split)
    monkeypatch.setattr("clipreid.data.cache.to_crop", lambda *_: pytest.fail("decoded again"))
    again = open_(split)
    assert again[0].digests.tolist() == first[0].digests.tolist()
    assert again[0].blank.tolist() == [True] + [False] * 19
    assert len(set(again[0].digests.tolist())) == 20


def test_pairs_of_conflicts() -> None:
    digests, who = np.array([5, 5, 6, 5, 6, 8, 8]), np.array(["a", "b", "c", "a", "c", "d", "e"])
    assert conflicts(digests, who, np.ones(7, bool)) == [(0, 1), (1, 3), (5, 6)]
    assert conflicts(digests, who, np.arange(7) < 5) == [(0, 1), (1, 3)]


# `clipreid data check` has the same bounds --------------------------------------------------------------------


def severities(splits: dict[str, Split]) -> dict[str, str]:
    data = ReIDData("own", splits, "no-cameras")
    return {finding.kind: finding.severity for finding in check(data).findings}


def test_the_check_of_a_data_set_has_the_same_bounds(tmp_path: Path) -> None:
    def found(name: str, seeds: list[int], who: list[str]) -> dict[str, str]:
        return severities({"train": split_of(tmp_path / name, seeds, who)})

    people = [str(i % 20) for i in range(40)]
    few = found("a", [*range(39), -1], people)
    assert few["blank image"] == "note"
    assert found("b", [*range(35), *[-1] * 5], people)["blank image"] == "fault"
    assert found("c", [*range(40), 7], [*people, "9"])["duplicate within train, of two identities"] == "note"
    many = found("d", [*range(40), 7, 8, 9], [*people, "9", "1", "2"])
    assert many["duplicate within train, of two identities"] == "fault"


def test_copies_of_queries_make_a_set_unfit_when_many(tmp_path: Path) -> None:
    def found(name: str, queries: list[int]) -> dict[str, str]:
        query = split_of(tmp_path / name / "q", queries, [str(i % 5) for i in range(len(queries))], "query")
        gallery = split_of(tmp_path / name / "g", list(range(20)), [str(i % 5) for i in range(20)], "gallery")
        return severities({"query": query, "gallery": gallery})

    assert found("a", [0, *range(100, 114)])["duplicate across query and gallery"] == "note"
    assert found("b", [0, 1, *range(100, 113)])["duplicate across query and gallery"] == "fault"


def test_one_file_under_two_identities(tmp_path: Path) -> None:
    """A table that names a file again, for somebody else: refused by the reader, noticed in Python."""
    split_of(tmp_path, list(range(12)))
    files = [*sorted(tmp_path.glob("0*")), tmp_path / "000.png"]
    who = [*(str(n % 4) for n in range(12)), "999"]
    rows = [f"{file.name},{name}" for file, name in zip(files, who, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["image,identity", *rows]))
    with pytest.raises(UserError, match=r"line 14: .*000.png is of identity '999' here and of '0' in .*, line 2"):
        load_data(f"csv:{tmp_path / 't.csv'}")
    report, _ = read_and_check(f"csv:{tmp_path / 't.csv'}")
    assert not report.fit
    split = Split.from_columns("train", [{"path": str(file)} for file in files], who)
    found = check(ReIDData("own", {"train": split}, "no-cameras")).findings
    (finding,) = [each for each in found if each.kind == "the same file, of two identities"]
    assert (finding.severity, finding.items) == ("fault", ("000.png (train): 0, 999",))
    with pytest.raises(UserError, match="2 of 13 training images are there under two identities"):
        check_images(open_(split))
