"""The synthetic street says what is true, shows what is there, and is too hard for captions alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from streets import VIEWS, population

from clipreid.data.synthetic import SETS, street
from clipreid.data.synthetic.camera import draw_pose, make_camera, render
from clipreid.data.synthetic.figure import Style
from clipreid.data.synthetic.occluders import OBJECTS, cover
from clipreid.data.synthetic.people import Person, caption, draw_person
from clipreid.data.synthetic.street import paint
from clipreid.evaluation import evaluate

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
    clothes = {
        f"{person.top_colour} {pattern}{person.top}",
        f"{person.bottom_colour} {person.bottom}",
        f"{person.shoes_colour} shoes",
    }
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
def test_a_painted_image_comes_with_the_caption_of_its_pose(monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    monkeypatch.setattr(street, "draw_pose", lambda camera, rng: replace(draw_pose(camera, rng), angle=VIEWS[view]))
    for name in SETS:
        for shot in street._shots(name, "query")[::100]:
            assert paint(shot)[1] == caption(population()[name, "query"][shot.number], VIEWS[view])


def test_captions_of_the_caption_set_are_all_different() -> None:
    everyone = [
        p
        for (name, split), members in population().items()
        if name == "synthetic:captions"
        for p in members.values()
        if split != "query"
    ]
    assert len(everyone) >= 550
    for angle in VIEWS.values():
        assert len({caption(person, angle) for person in everyone}) == len(everyone)


# How hard it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["synthetic", "synthetic:new-cameras", "synthetic:large"])
def test_captioned_attributes_alone_do_not_solve_it(name: str) -> None:
    """Headroom: a model that knows every captioned attribute of every image perfectly, and nothing else."""
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
    assert 0.5 < worst < 0.85
    assert worst < chance < 0.92


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
