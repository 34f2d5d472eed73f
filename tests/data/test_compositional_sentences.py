"""The compositional test: true sentences are true, false ones false, and a bag of words answers the controls only."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipreid.data.synthetic.compositional import CONTROLS, KINDS, Choice, choices_of
from clipreid.data.synthetic.people import Person, caption, draw_person
from clipreid.data.synthetic.street import _shots, paint, people_seen
from clipreid.evaluation.compositional import accuracy_rows, right_choices

NAME = "synthetic:captions"


@pytest.fixture(scope="module")
def people() -> list[tuple[Person, float]]:
    rng = np.random.default_rng(0)
    return [(draw_person(rng), float(rng.uniform(-np.pi, np.pi))) for _ in range(400)]


@pytest.fixture(scope="module")
def choices(people: list[tuple[Person, float]]) -> list[Choice]:
    return choices_of(people)


def test_who_is_seen_is_who_was_painted() -> None:
    shots, seen = _shots(NAME, "query"), people_seen(NAME, "query")
    assert len(shots) == len(seen)
    for row in (0, 1, 57, len(seen) - 1):
        assert paint(shots[row])[1] == caption(*seen[row])


def is_true(text: str, person: Person, angle: float) -> bool:
    """Whether a sentence is true, by rules of its own."""
    if found := re.search(r"wearing (\w+) (\S+) and (\w+) (\w+)$", text):
        return found.groups() == (person.top_colour, person.top, person.bottom_colour, person.bottom)
    if found := re.search(r"(with|without) a (.+)$", text):
        return (found[2] in (person.bag, person.hat)) == (found[1] == "with")
    if text.endswith(("from the front", "from behind")):
        return text.endswith("front") == (abs(angle) < np.pi / 2)
    assert text.endswith(("to the right", "to the left")), text
    return text.endswith("right") == (angle > 0)  # radians, -pi to pi; a positive side points to the right


def test_true_sentences_are_true_and_false_ones_false(
    people: list[tuple[Person, float]], choices: list[Choice]
) -> None:
    assert {choice.kind for choice in choices} == set(KINDS)
    assert set(CONTROLS) < set(KINDS)
    for choice in choices:
        assert is_true(choice.true, *people[choice.row]), choice
        assert not is_true(choice.false, *people[choice.row]), choice
        assert choice.answer in choice.true


def test_a_false_sentence_has_a_word_or_two_changed(choices: list[Choice]) -> None:
    for choice in choices:
        words = [set(text.split()) for text in (choice.true, choice.false)]
        assert len(words[0] - words[1]) <= 2, choice
        if choice.kind == "colours swapped":
            assert words[0] == words[1]


def test_what_is_hidden_or_hardly_seen_is_not_asked(people: list[tuple[Person, float]], choices: list[Choice]) -> None:
    for choice in choices:
        person, angle = people[choice.row]
        if "backpack" in choice.true + choice.false and person.bag == "backpack":
            assert np.cos(angle) <= 0.6
        if choice.kind == "left or right":
            assert abs(np.sin(angle)) > 0.7


def test_in_a_mirror_left_and_right_change_places(people: list[tuple[Person, float]], choices: list[Choice]) -> None:
    both = choices_of([*people, *((person, -angle) for person, angle in people)])
    seen = {choice.row: choice for choice in choices if choice.kind == "left or right"}
    mirrored = {c.row - len(people): c for c in both if c.kind == "left or right" and c.row >= len(people)}
    assert seen.keys() == mirrored.keys()
    for row, choice in mirrored.items():
        assert (choice.true, choice.false) == (seen[row].false, seen[row].true)


def test_the_same_seed_gives_the_same_choices(people: list[tuple[Person, float]], choices: list[Choice]) -> None:
    assert choices == choices_of(people)
    assert choices != choices_of(people, seed=1)


def test_a_bag_of_words_answers_controls_and_nothing_else(
    people: list[tuple[Person, float]], choices: list[Choice]
) -> None:
    """Sentences as counts of words; an image as the words that are true of it, with every colour and side."""
    vocabulary = {
        word: nth for nth, word in enumerate(sorted({w for c in choices for w in (c.true + " " + c.false).split()}))
    }

    def bag(text: str) -> torch.Tensor:
        counts = torch.zeros(len(vocabulary))
        for word in text.split():
            counts[vocabulary[word]] += word not in ("with", "without", "left", "right")
        return counts

    images = []
    for person, angle in people:
        seen = f"{person.top_colour} {person.top} and {person.bottom_colour} {person.bottom}"
        things = " ".join(thing for thing in (person.bag, person.hat) if thing != "none")
        images.append(bag(f"{seen} {things} {'front' if np.cos(angle) > 0 else 'behind'}"))
    rows = [choice.row for choice in choices]
    true, false = (
        F.normalize(torch.stack([bag(getattr(c, side)) for c in choices]), dim=1) for side in ("true", "false")
    )
    right = right_choices(F.normalize(torch.stack(images), dim=1)[rows], true, false)
    kinds, answers = [c.kind for c in choices], [c.answer for c in choices]
    table = {row["kind"]: str(row["right"]) for row in accuracy_rows(right, kinds, answers, np.asarray(rows))}
    for kind in KINDS:
        share = float(table[kind].split("%")[0])
        assert share > 95 if kind in CONTROLS else share == 50, (kind, table[kind])
