"""The synthetic street: the same images for everybody, named sets of disjoint people, painted once."""

import hashlib
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streets import population

from clipreid.data import SCHEMA, load_data
from clipreid.data.synthetic import SETS, load_synthetic, pretraining, street, wardrobe
from clipreid.data.synthetic.camera import CROP
from clipreid.data.synthetic.people import CAPTIONED, TRAITS, Person, differences
from clipreid.data.synthetic.scenes import HOME_SCENES, NEW_SCENES, PRETRAIN_SCENES, scene
from clipreid.data.synthetic.street import Shot, paint
from clipreid.errors import UserError

# The same images for everybody ----------------------------------------------------------------------------------

# sha256 of some images of each kind, with Pillow 13 and numpy 2.4. Renewed by: python tests/data/test_synthetic.py
HASHES = {
    1: {
        "synthetic/train": "4a0f4bdab93cc149",
        "synthetic:new-cameras/query": "6e122a0561edd0a1",
        "synthetic:occluded/query": "6492b5a3a6e13e07",
        "synthetic:captions/gallery": "bc4ed2c78c3a9168",
        "pretraining": "f1276b55f4bca7a7",
    },
}
PAINTED = ("synthetic/train", "synthetic:new-cameras/query", "synthetic:occluded/query", "synthetic:captions/gallery")
SHOTS = (
    Shot("synthetic", "train", 17, 0, 1),
    Shot("synthetic:new-cameras", "query", 611, 5, 0),
    Shot("synthetic:occluded", "query", 1805, 2, 0),
    Shot("synthetic:captions", "train", 2103, 4, 0),
)


def pixel_hash(images: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for pixels in images:
        assert pixels.shape == (*CROP, 3)
        assert pixels.dtype == np.uint8
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def hashes() -> dict[str, str]:
    """Of 25 images each: all cameras, all bags from all sides, all kinds of clothes."""
    found = {}
    for kind in PAINTED:
        shots = street._shots(*kind.split("/"))[:: 11 if "query" in kind else 35]
        found[kind] = pixel_hash([paint(shot)[0] for shot in shots[:25]])
    held_out = pretraining.captioned_images(25, seed=1).pixels
    return found | {"pretraining": pixel_hash(list(held_out.transpose(0, 2, 3, 1)))}


def test_pixels_are_those_of_this_version() -> None:
    found = hashes()
    assert found == HASHES.get(street.VERSION), (
        "the street is painted differently than version "
        f"{street.VERSION} was. If the renderer was changed: raise VERSION in clipreid/data/synthetic/street.py (the "
        "images kept on people's disks are painted anew only then), pretrain the tiny backbones again, and renew "
        "HASHES with `python tests/data/test_synthetic.py`. If only Pillow or numpy is another: see whether the "
        "images differ visibly; if they do, treat it as a change of the renderer, else renew HASHES."
    )


def test_painting_depends_on_nothing_but_the_shot() -> None:
    """Neither on what was painted before nor on the global generators."""
    first = [paint(shot) for shot in SHOTS]
    wardrobe.appearance.cache_clear()
    scene.cache_clear()
    np.random.seed(3)
    for shot, (pixels, words) in reversed(list(zip(SHOTS, first, strict=True))):
        again = paint(shot)
        assert np.array_equal(again[0], pixels)
        assert again[1] == words


# The named sets ---------------------------------------------------------------------------------------------------


def test_named_sets_have_the_promised_sizes() -> None:
    sizes = {name: {split: len(people) for (n, split), people in population().items() if n == name} for name in SETS}
    assert list(SETS) == [f"synthetic{n}" for n in ("", ":new-cameras", ":large", ":occluded", ":captions")]
    assert sizes["synthetic"]["train"] >= 300
    assert sizes["synthetic"]["val"] >= 50
    assert sizes["synthetic:large"]["query"] >= 750
    for name in SETS:
        assert sizes[name]["query"] == sizes[name]["gallery"] >= 150
    for name, split in population():
        shots = street._shots(name, split)
        assert len(set(shots)) == len(shots)
        cameras: dict[int, set[int]] = {}
        for shot in shots:
            cameras.setdefault(shot.number, set()).add(shot.camera)
        assert cameras.keys() == population()[name, split].keys()
        assert {len(seen) for seen in cameras.values()} == {2 if split == "query" else 6}
        assert set.union(*cameras.values()) == set(range(6))


def test_no_identity_is_in_two_sets_or_two_splits() -> None:
    numbers: Counter[int] = Counter()
    people: Counter[Person] = Counter()
    for (name, split), members in population().items():
        if split == "query":  # those of the gallery
            assert members == population()[name, "gallery"]
            continue
        numbers.update(members.keys())
        people.update(members.values())
    assert set(numbers.values()) == {1}
    assert set(people.values()) == {1}


def test_cameras_and_backgrounds_of_sets_and_pretraining_are_apart() -> None:
    assert not HOME_SCENES.keys() & NEW_SCENES.keys()
    assert not PRETRAIN_SCENES.keys() & (HOME_SCENES | NEW_SCENES).keys()
    home, new = (street.cameras_of(SETS[name]) for name in ("synthetic", "synthetic:new-cameras"))
    assert [c.scene for c in home] == list(HOME_SCENES)
    assert [c.scene for c in new] == list(NEW_SCENES)
    assert len({c.seed for c in home + new}) == 12
    for name in SETS:
        assert street.cameras_of(SETS[name]) == (new if name == "synthetic:new-cameras" else home)


def test_look_alikes_differ_in_exactly_two_attributes_at_least_one_uncaptioned() -> None:
    """Numbers 6i .. 6i+2 are a family, never split between splits; 6i+3 .. 6i+5 are strangers."""
    found: Counter[str] = Counter()
    for (name, split), members in population().items():
        if not SETS[name].look_alikes or split == "query":
            continue
        families = [number for number in members if number % 6 == 0]
        assert 3 * len(families) >= 0.4 * len(members)
        for head in families:
            for sibling in (members[head + 1], members[head + 2]):
                unlike = differences(members[head], sibling)
                assert len(unlike) == 2
                assert set(unlike) & set(TRAITS)
                found.update("captioned" if field in CAPTIONED else "never captioned" for field in unlike)
        for number, person in members.items():
            if number % 6 >= 3:
                assert len(differences(person, members.get(number - 1, members[families[0]]))) > len(TRAITS)
    assert found["never captioned"] >= found["captioned"] > 0  # at least half of what separates look-alikes


# Loading, keeping, looking ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A few images of each split, kept in a fresh cache."""
    every = street._shots
    monkeypatch.setattr(street, "_shots", lambda name, split: every(name, split)[:7])
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    return monkeypatch


def test_load_gives_images_with_all_their_columns(few: pytest.MonkeyPatch) -> None:
    data = load_synthetic("synthetic", progress=False)
    assert (data.name, data.protocol, data.noun) == ("synthetic", "market1501", "person")
    assert list(data.splits) == ["train", "val", "query", "gallery"]
    for name, split in data.splits.items():
        shots = street._shots("synthetic", name)
        assert split.table.features == SCHEMA
        assert split.identities.tolist() == [f"{s.number:04d}" for s in shots]
        assert split.cameras.tolist() == [s.camera + 1 for s in shots]
        assert len(set(split.paths)) == len(split) == 7
        for i in (0, 6):
            pixels, words = paint(shots[i])
            assert np.array_equal(np.asarray(split.image(i)), pixels)
            assert split.captions[i] == words
    assert not set(data.splits["query"].paths) & set(data.splits["gallery"].paths)


def test_images_are_painted_once(few: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_data("synthetic:occluded").splits["query"]

    def refuse(*args: Any) -> None:
        raise AssertionError("painted again")

    few.setattr(street, "_build", refuse)
    again = load_data("synthetic:occluded").splits["query"]
    assert again.table[0] == first.table[0]
    kept = tmp_path / "cache" / f"synthetic-v{street.VERSION}-{len(SCHEMA)}" / "synthetic-occluded"
    assert {p.name for p in kept.iterdir() if p.is_dir()} == {"query", "gallery"}  # and no scratch folder


def test_a_cache_that_cannot_be_written(few: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    few.setenv("CLIPREID_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*: set CLIPREID_CACHE to a folder that can be written"):
        load_synthetic("synthetic", progress=False)


def test_unknown_sets_name_the_valid_ones() -> None:
    valid = "synthetic, synthetic:new-cameras, synthetic:large, synthetic:occluded, synthetic:captions"
    with pytest.raises(UserError, match=rf"'synthetic:ocluded': did you mean .*occluded'\? .* {valid}"):
        load_synthetic("synthetic:ocluded")
    with pytest.raises(UserError, match=rf"no synthetic set 'zzz': the sets are {valid}"):
        load_synthetic("zzz")


def test_pretraining_images_are_the_same_for_the_same_seed() -> None:
    a, b, other = (pretraining.captioned_images(3, seed) for seed in (2, 2, 4))
    assert np.array_equal(a.pixels, b.pixels)
    assert a.people == b.people
    assert a.captions() == b.captions()
    assert a.captions(index=np.array([2])) == [a.captions()[2]]
    assert not any(np.array_equal(x, y) for x in a.pixels for y in other.pixels)
    assert not set(a.people) & {p for members in population().values() for p in members.values()}


def test_the_contact_sheet_command_draws_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["synthetic", "--sheet", str(file), "--people", "3"])
    runpy.run_module("clipreid.data.synthetic", run_name="__main__", alter_sys=True)
    with Image.open(file) as sheet:
        assert sheet.size == (12 * CROP[1], 3 * CROP[0])
        pixels = np.asarray(sheet)
    home = [paint(Shot("synthetic", "gallery", 354, camera, 0))[0] for camera in range(6)]
    assert np.array_equal(pixels[: CROP[0], : 6 * CROP[1]], np.concatenate(home, axis=1))
    printed = capsys.readouterr().out
    assert "0354  the head of a family" in printed
    assert "out.png: 3 people" in printed


if __name__ == "__main__":
    print(f"    {street.VERSION}: {{")
    for where, value in hashes().items():
        print(f'        "{where}": "{value}",')
    print("    },")
