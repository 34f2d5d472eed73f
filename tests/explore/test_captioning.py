"""Captions by zero-shot classification: the table of prompts, the sentences, the probabilities, the accuracies."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipreid.data.synthetic.people import _VALUES
from clipreid.errors import UserError
from clipreid.explore.attribute_prompts import PromptTable, Row, people, prompts_for, read_prompts, vehicles
from clipreid.explore.captioning import Guess, accuracies, confident, guess_attributes

SMALL = PromptTable(
    (
        Row("hat", "none", "a {noun} without a hat", ""),
        Row("hat", "cap", "a {noun} with a cap", "a {hat_colour} cap"),
        Row("hat_colour", "orange", "a {noun} in an orange cap", "orange"),
        Row("hat_colour", "blue", "a {noun} in a blue cap", "blue"),
        Row("hat_colour", "blue", "a {noun} in a blue beanie", "navy"),
        Row("bag", "big", "a {noun} with a big bag", "a big bag"),
        Row("bag", "small", "a {noun} with a small bag", "a small bag"),
    )
)


def test_our_table_for_people_has_the_street_s_words() -> None:
    assert {name: sorted(values) for name, values in people().values.items()} == {
        name: sorted(values) for name, values in _VALUES.items()
    }
    assert prompts_for("pedestrian") == people()
    assert prompts_for("car") == vehicles()
    with pytest.raises(UserError, match=r"no table of prompts for 'antelope'.*--prompts FILE"):
        prompts_for("antelope")


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ({"hat": "cap", "hat_colour": "orange", "bag": "big"}, "a photo of a person with an orange cap and a big bag"),
        ({"hat": "cap", "hat_colour": "blue"}, "a photo of a person with a blue cap"),
        ({"hat": "cap"}, "a photo of a person with a cap"),
        ({"hat": "none", "hat_colour": "blue", "bag": "small"}, "a photo of a person with a small bag"),
        ({"hat": "none"}, ""),
        ({"hat_colour": "blue"}, ""),  # no row says what a colour of nothing is
        ({}, ""),
    ],
)
def test_a_caption_says_what_is_known_and_nothing_of_what_is_not_there(known: dict[str, str], sentence: str) -> None:
    assert SMALL.caption(known, "person") == sentence


def test_what_is_unknown_may_still_have_a_colour() -> None:
    table = people()
    worn = {"top_colour": "red", "pattern": "plain", "hair_colour": "grey"}
    assert table.caption(worn, "person") == "a photo of a person with red clothes above the waist and grey hair"
    assert table.settled(worn) == worn
    whole = {"top": "jacket", "top_colour": "orange", "pattern": "striped", "bottom": "skirt", "bottom_colour": "blue",
             "shoes_colour": "black", "hair": "bald", "hair_colour": "red", "hat": "none", "hat_colour": "pink",
             "bag": "handbag", "bag_colour": "white"}  # fmt: skip
    assert table.caption(whole, "person") == (
        "a photo of a person with an orange striped jacket, a blue skirt, black shoes, a bald head and a white handbag"
    )
    assert whole.keys() - table.settled(whole).keys() == {"hair_colour", "hat_colour"}
    assert vehicles().caption({"type": "van", "colour": "red"}, "vehicle") == (
        "a photo of a vehicle with the shape of a van and a red body"
    )


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(SMALL.to_csv())
    assert read_prompts(tmp_path / "table.csv") == SMALL
    rows = [{"attribute": r.attribute, "value": r.value, "prompt": r.prompt, "words": r.words} for r in SMALL.rows]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    assert read_prompts(tmp_path / "table.json") == SMALL


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("hat", "cap", "a cap", "")], r"hat has one value \(cap\)"),
        ([("hat", "cap", "a cap", "a {size} cap"), ("hat", "no", "none", "")], r"\{size\} in the words of hat is no"),
        ([("hat", "cap", "", ""), ("hat", "no", "none", "")], "hat=cap has an empty prompt"),
        ([("a", "1", "x", "{b}"), ("a", "2", "x", ""), ("b", "1", "x", "{a}"), ("b", "2", "x", "")],
         "the words of b stand in those of a"),
    ],
)  # fmt: skip
def test_tables_that_ask_nothing_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptTable(tuple(Row(*row) for row in rows))


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("attribute,value,prompt\nhat,cap,a cap\n")
    (tmp_path / "b.json").write_text('{"hat": "cap"}')
    with pytest.raises(UserError, match=r"a\.csv, row 1 has no words: the columns are attribute, value, prompt, words"):
        read_prompts(tmp_path / "a.csv")
    with pytest.raises(UserError, match="no list of objects"):
        read_prompts(tmp_path / "b.json")


def test_probabilities_are_a_softmax_over_the_mean_sentence_of_each_value() -> None:
    def embed_text(sentences: list[str]) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(sum(map(ord, sentence))) for sentence in sentences]
        return F.normalize(torch.stack([torch.randn(8, generator=seed) for seed in seeds]), dim=1)

    model: Any = SimpleNamespace(source=(SimpleNamespace(logit_scale=7.0),), embed_text=embed_text)
    features = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    found = guess_attributes(model, features, SMALL, "dog")
    orange, cap, beanie = embed_text(["a dog in an orange cap", "a dog in a blue cap", "a dog in a blue beanie"])
    blue = (cap + beanie) / 2
    for row, feature in enumerate(features):
        scores = torch.tensor([7 * float(feature @ orange), 7 * float(feature @ blue / blue.norm())]).exp()
        shares = scores / scores.sum()
        assert found["hat_colour"].values[row] == ("orange", "blue")[int(shares.argmax())]
        assert float(found["hat_colour"].confidence[row]) == pytest.approx(float(shares.max()), abs=1e-6)


GUESSES = {
    "hat": Guess(["cap", "none", "cap", "cap"], torch.tensor([0.9, 0.8, 0.4, 0.7])),
    "hat_colour": Guess(["blue", "blue", "orange", "blue"], torch.tensor([0.9, 0.9, 0.9, 0.2])),
    "bag": Guess(["big"] * 4, torch.full((4,), 0.3)),
}


def test_values_that_are_not_likely_are_not_said() -> None:
    assert confident(GUESSES, SMALL, 0.5) == [{"hat": "cap", "hat_colour": "blue"}, {"hat": "none"}, {}, {"hat": "cap"}]
    assert confident(GUESSES, SMALL, 0.95) == [{}] * 4


def test_accuracy_is_over_images_whose_truth_is_a_value_of_the_table() -> None:
    truth = [{"hat": "cap"}, {"hat": "none"}, {"hat": "none"}, {"hat": "fez"}]
    found = accuracies(GUESSES, [each | {"size": "7"} for each in truth], SMALL, 0.5)
    assert found.keys() == {"hat"}
    hat = found["hat"]
    assert (hat.images, hat.uniform) == (3, 0.5)
    assert hat.right == pytest.approx(2 / 3)
    assert hat.majority == pytest.approx(2 / 3)
    assert (hat.said, hat.said_right) == (pytest.approx(2 / 3), 1.0)
    assert accuracies(GUESSES, truth, SMALL, 0.99)["hat"].said_right is None
