"""Captions of mirrored images: left and right change places, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipreid.data.wording import OTHER, mirror_words

PAIRS = [
    ("a bag in her left hand", "a bag in her right hand"),
    ("Left-handed, the RIGHT sleeve is torn", "Right-handed, the LEFT sleeve is torn"),
    ("the leftmost of three, walking rightwards", "the rightmost of three, walking leftwards"),
    ("left and right", "right and left"),
    ("the left's shoe; (right)", "the right's shoe; (left)"),
    ("a bright cleft in an upright leftover", "a bright cleft in an upright leftover"),  # no word of its own
    ("un sac à gauche", "un sac à gauche"),  # English only
    ("he turns right away", "he turns left away"),  # words are not understood: documented
    ("", ""),
]


@pytest.mark.parametrize(("sentence", "mirrored"), PAIRS)
def test_left_and_right_change_places(sentence: str, mirrored: str) -> None:
    assert mirror_words(sentence) == mirrored
    assert mirror_words(mirrored) == sentence


PIECES = st.one_of(
    st.sampled_from([*OTHER, "leFt", "bright", "a", "-", " ", "'s", "_", "é", "左", "\n"]), st.text(max_size=4)
)


@given(st.lists(PIECES, max_size=12), st.sampled_from(["", " ", "-"]))
def test_twice_gives_the_sentence_again(pieces: list[str], between: str) -> None:
    sentence = between.join(pieces)
    assert mirror_words(mirror_words(sentence)) == sentence


@given(st.lists(st.sampled_from([*OTHER, "hat", "of"]), min_size=1, max_size=6))
def test_every_word_of_a_side_is_exchanged(words: list[str]) -> None:
    assert mirror_words(" ".join(words)).split(" ") == [OTHER.get(word, word) for word in words]
