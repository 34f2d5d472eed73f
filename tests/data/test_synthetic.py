"""The synthetic street: the same for everybody, true in its captions, and too hard for captions alone."""

import hashlib
import re
import runpy
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipreid.data import SCHEMA, load_data
from clipreid.data.synthetic import SETS, load_synthetic, pretraining, street, wardrobe
from clipreid.data.synthetic.camera import CROP, draw_pose, make_camera, render
from clipreid.data.synthetic.figure import Style
from clipreid.data.synthetic.occluders import OBJECTS, cover
from clipreid.data.synthetic.people import CAPTIONED, TRAITS, Person, caption, differences, draw_person
from clipreid.data.synthetic.scenes import HOME_SCENES, NEW_SCENES, PRETRAIN_SCENES, scene
from clipreid.data.synthetic.street import Shot, paint
from clipreid.errors import UserError
from clipreid.evaluation import evaluate

VIEWS = {"from the front": 0.0, "from the side": np.pi / 2, "from behind": np.pi}


@cache
def population() -> dict[tuple[str, str], dict[int, Person]]:
    """{(set, split): {number: person}} of every named set."""
    return {
        (name, split): {n: street.person(n, named.look_alikes) for n in range(part.first, part.first + part.count)}
        for name, named in SETS.items()
        for split, part in named.parts.items()
    }


# The same pictures for everybody ----------------------------------------------------------------------------------

# sha256 of some pictures of each kind, with Pillow 13 and numpy 2.4. Renewed by: python tests/data/test_synthetic.py
HASHES = {
    1: {
        "synthetic/train": "d78f5939f3339f4c",
        "synthetic:new-cameras/query": "6fb90e30eb7d1b67",
        "synthetic:occluded/query": "4d4b08ba98d117c5",
        "synthetic:captions/gallery": "ba426cd1a12ef8fd",
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


def pixel_hash(pictures: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for pixels in pictures:
        assert pixels.shape == (*CROP, 3)
        assert pixels.dtype == np.uint8
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def hashes() -> dict[str, str]:
    """Of 25 pictures each: all cameras, all bags from all sides, all kinds of clothes."""
    found = {}
    for kind in PAINTED:
        shots = street._shots(*kind.split("/"))[:: 11 if "query" in kind else 35]
        found[kind] = pixel_hash([paint(shot)[0] for shot in shots[:25]])
    held_out = pretraining.captioned_pictures(25, seed=1).pixels
    return found | {"pretraining": pixel_hash(list(held_out.transpose(0, 2, 3, 1)))}


def test_pixels_are_those_of_this_version() -> None:
    found = hashes()
    assert found == HASHES.get(street.VERSION), (
        "the street is painted differently than version "
        f"{street.VERSION} was. If the renderer was changed: raise VERSION in clipreid/data/synthetic/street.py (the "
        "pictures kept on people's disks are painted anew only then), pretrain the tiny backbones again, and renew "
        "HASHES with `python tests/data/test_synthetic.py`. If only Pillow or numpy is another: see whether the "
        "pictures differ visibly; if they do, treat it as a change of the renderer, else renew HASHES."
    )


def test_painting_depends_on_nothing_but_the_shot() -> None:
    """Neither on what was painted before nor on the global generators."""
    first = [paint(shot) for shot in SHOTS]
    wardrobe.look.cache_clear()
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
    found: Counter[str] = Counter()
    for (name, split), members in population().items():
        if not SETS[name].look_alikes or split == "query":
            continue
        for number, person in members.items():
            head = members[number - number % 3]  # a family is never split between splits
            if person is not head:
                unlike = differences(head, person)
                assert len(unlike) == 2
                assert set(unlike) & set(TRAITS)
                found.update("captioned" if field in CAPTIONED else "never captioned" for field in unlike)
    assert found["never captioned"] >= found["captioned"] > 0  # at least half of what separates look-alikes


# Captions ---------------------------------------------------------------------------------------------------------


def plain(phrase: str) -> str:
    return re.sub(r"^an? ", "", phrase)


def parse(words: str) -> tuple[str, str, set[str], set[str], str]:
    """Opening, view ("" if not said), and what is said of hair, clothes and bag, without articles."""
    pattern = r"(a photo of a person|a person|a pedestrian|someone)(?: (from .+?))?(?: with (.+?))?(?: wearing (.+?))?"
    match = re.fullmatch(pattern + r"(?: carrying (.+))?", words)
    assert match, words
    opening, view, hair, clothes, bag = (part or "" for part in match.groups())
    items = {plain(item) for item in re.split(r", | and ", clothes) if item}
    return opening, view, {plain(hair)} - {""}, items, plain(bag)


def truth(person: Person, view: str) -> tuple[set[str], set[str], str]:
    """What can truly be said of hair, clothes and bag."""
    pattern = "" if person.pattern == "plain" else f"{person.pattern} "
    clothes = {f"{person.top_colour} {pattern}{person.top}", f"{person.bottom_colour} {person.bottom}",
               f"{person.shoes_colour} shoes"}  # fmt: skip
    if person.hat != "none":
        clothes.add(f"{person.hat_colour} {person.hat}")
    hair = {"bald": "bald head", "ponytail": f"{person.hair_colour} ponytail"}
    hidden = person.bag == "none" or (person.bag == "backpack" and view == "from the front")
    bag = "" if hidden else f"{person.bag_colour} {person.bag}"
    return {hair.get(person.hair, f"{person.hair} {person.hair_colour} hair")}, clothes, bag


def some_people(count: int = 150) -> list[Person]:
    return [draw_person(np.random.default_rng([99, i])) for i in range(count)]


@pytest.mark.parametrize("view", VIEWS)
def test_full_captions_say_everything_that_is_true(view: str) -> None:
    """A backpack is not mentioned from the front; from the other sides it is."""
    people = some_people()
    for person in people:
        opening, said, hair, clothes, bag = parse(caption(person, VIEWS[view]))
        assert (opening, said) == ("a photo of a person", view)
        assert (hair, clothes, bag) == truth(person, view)
    packed = [p for p in people if p.bag == "backpack"]
    assert len(packed) > 10
    assert any("backpack" in caption(p, VIEWS[view]) for p in packed) == (view != "from the front")


@pytest.mark.parametrize("view", VIEWS)
def test_witnesses_vary_but_do_not_lie(view: str) -> None:
    rng, openings, lengths = np.random.default_rng(0), set(), set()
    for person in some_people():
        opening, said, hair, clothes, bag = parse(caption(person, VIEWS[view], rng))
        true_hair, true_clothes, true_bag = truth(person, view)
        assert said in ("", view)
        assert hair <= true_hair
        assert clothes <= true_clothes
        assert bag in ("", true_bag)
        assert clothes  # something is always said
        openings.add(opening)
        lengths.add(len(clothes))
    assert len(openings) == 4
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("view", VIEWS)
def test_a_painted_picture_comes_with_the_caption_of_its_pose(monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    monkeypatch.setattr(street, "draw_pose", lambda camera, rng: replace(draw_pose(camera, rng), angle=VIEWS[view]))
    for shot in SHOTS:
        who = street.person(shot.number, SETS[shot.set_name].look_alikes)
        assert paint(shot)[1] == caption(who, VIEWS[view])


def test_captions_of_the_caption_set_are_all_different() -> None:
    everyone = [p for (name, split), members in population().items() if name == "synthetic:captions"
                for p in members.values() if split != "query"]  # fmt: skip
    assert len(everyone) >= 550
    for angle in VIEWS.values():
        assert len({caption(person, angle) for person in everyone}) == len(everyone)


# How hard it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["synthetic", "synthetic:new-cameras", "synthetic:large"])
def test_captioned_attributes_alone_do_not_solve_it(name: str) -> None:
    """Headroom: a model that knows every captioned attribute of every picture perfectly, and nothing else."""
    tables, features = [], []
    for split in ("query", "gallery"):
        shots, people = street._shots(name, split), population()[name, split]
        tables.append({"identity": [s.number for s in shots], "camera": [s.camera for s in shots]})
        features.append([people[s.number].attributes() for s in shots])
    numbers = {item: i for i, item in enumerate(sorted({pair for row in features[1] for pair in row.items()}))}
    query, gallery = (np.zeros((len(rows), len(numbers))) for rows in features)
    for matrix, rows in zip((query, gallery), features, strict=True):
        for i, row in enumerate(rows):
            matrix[i, [numbers[pair] for pair in row.items()]] = 1
    apart = query.sum(1)[:, None] + gallery.sum(1)[None] - 2 * query @ gallery.T  # [Q, G] attributes that differ
    worst = evaluate(query=tables[0], gallery=tables[1], similarity=-apart).metrics["mAP"]
    luck = np.random.default_rng(0).uniform(0, 0.5, apart.shape)  # ties by chance instead of against the query
    chance = evaluate(query=tables[0], gallery=tables[1], similarity=luck - apart).metrics["mAP"]
    assert 0.5 < worst < 0.6
    assert 0.65 < chance < 0.78


def changed(a: np.ndarray, b: np.ndarray) -> int:
    """Pixels that clearly differ."""
    return int((np.abs(a.astype(int) - b).max(2) > 24).sum())


def test_a_backpack_shows_from_behind_and_hardly_from_the_front() -> None:
    camera = make_camera("wall", 100)
    seen: dict[str, list[int]] = {view: [] for view in VIEWS}
    for i, person in enumerate(some_people(12)):
        for view, angle in VIEWS.items():
            pose = replace(draw_pose(camera, np.random.default_rng(i)), angle=angle)
            with_bag, without = (
                render(replace(person, bag=bag, bag_colour="yellow"), camera, np.random.default_rng(i), pose)
                for bag in ("backpack", "none")
            )
            seen[view].append(changed(with_bag, without))
    front, side, behind = (np.mean(seen[view]) for view in VIEWS)
    assert min(seen["from the front"]) > 0  # the straps
    assert behind > 3 * front
    assert behind > side > front


@pytest.mark.parametrize("share", [0.25, 0.4, 0.6])
def test_occluders_hide_about_the_share_that_was_asked_for(share: float) -> None:
    hidden: dict[str, list[float]] = {}
    for i in range(60):
        canvas = Image.new("RGB", (128, 256), (1, 2, 3))
        kind = cover(canvas, np.random.default_rng(i), share, Style())
        hidden.setdefault(kind, []).append(float((np.asarray(canvas) != (1, 2, 3)).any(2).mean()))
    assert hidden.keys() == {*OBJECTS, "person"}
    people = hidden.pop("person")
    assert len(people) == pytest.approx(20, abs=8)  # one time in three
    assert 0.2 < min(people) < max(people) < 0.65  # a person is as broad as a person is
    for shares in hidden.values():
        assert shares == pytest.approx([share] * len(shares), abs=0.1)


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Means over 8x8 pixels, in which noise vanishes: [16, 8, 3]."""
    return pixels.reshape(16, 8, 8, 8, 3).mean((1, 3))


def test_queries_of_the_occluded_set_are_covered_and_its_gallery_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = (street._shots("synthetic:occluded", split)[::20] for split in ("query", "gallery"))
    covered, open_gallery = [paint(shot) for shot in queries], [paint(shot)[0] for shot in gallery]
    monkeypatch.setattr(street, "OCCLUDED", (0.0, 0.0))
    for shot, (pixels, words) in zip(queries, covered, strict=True):
        clear, same_words = paint(shot)
        assert words == same_words
        assert (np.abs(blocks(pixels) - blocks(clear)).max(2) > 16).mean() > 0.15
    for shot, pixels in zip(gallery, open_gallery, strict=True):
        assert np.array_equal(paint(shot)[0], pixels)
    assert not SETS["synthetic"].parts["query"].occluded


# Loading, keeping, looking ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A few pictures of each split, kept in a fresh cache."""
    every = street._shots
    monkeypatch.setattr(street, "_shots", lambda name, split: every(name, split)[:7])
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path / "cache"))
    return monkeypatch


def test_load_gives_pictures_with_all_their_columns(few: pytest.MonkeyPatch) -> None:
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
            assert np.array_equal(np.asarray(split.picture(i)), pixels)
            assert split.captions[i] == words
    assert not set(data.splits["query"].paths) & set(data.splits["gallery"].paths)


def test_pictures_are_painted_once(few: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_data("synthetic:occluded").splits["query"]

    def refuse(*args: Any) -> None:
        raise AssertionError("painted again")

    few.setattr(street, "_build", refuse)
    again = load_data("synthetic:occluded").splits["query"]
    assert again.table[0] == first.table[0]
    kept = tmp_path / "cache" / f"synthetic-v{street.VERSION}" / "synthetic-occluded"
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


def test_pretraining_pictures_are_the_same_for_the_same_seed() -> None:
    a, b, other = (pretraining.captioned_pictures(3, seed) for seed in (2, 2, 4))
    assert np.array_equal(a.pixels, b.pixels)
    assert a.people == b.people
    assert a.captions() == b.captions()
    assert a.captions(index=np.array([2])) == [a.captions()[2]]
    assert not any(np.array_equal(x, y) for x in a.pixels for y in other.pixels)
    assert not set(a.people) & {p for members in population().values() for p in members.values()}


def test_the_contact_sheet_command_draws_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["synthetic", "--sheet", str(file), "--people", "3"])
    runpy.run_module("clipreid.data.synthetic", run_name="__main__", alter_sys=True)
    with Image.open(file) as sheet:
        assert sheet.size == (12 * CROP[1], 3 * CROP[0])
        pixels = np.asarray(sheet)
    home = [paint(Shot("synthetic", "gallery", 351, camera, 0))[0] for camera in range(6)]
    assert np.array_equal(pixels[: CROP[0], : 6 * CROP[1]], np.concatenate(home, axis=1))
    printed = capsys.readouterr().out
    assert "0351  the head of the family" in printed
    assert "out.png: 3 people" in printed


if __name__ == "__main__":
    print(f"    {street.VERSION}: {{")
    for where, value in hashes().items():
        print(f'        "{where}": "{value}",')
    print("    },")
