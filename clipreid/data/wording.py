"""Captions that stay true when their image is mirrored: left and right change places. English."""

from __future__ import annotations

import re

SIDES = (
    ("left", "right"), ("lefts", "rights"), ("leftmost", "rightmost"), ("leftward", "rightward"),
    ("leftwards", "rightwards"), ("lefthand", "righthand"), ("lefthanded", "righthanded"),
)  # fmt: skip
CASES = (str.lower, str.capitalize, str.upper)
OTHER = {case(a): case(b) for pair in SIDES for a, b in (pair, pair[::-1]) for case in CASES}
WORD = re.compile(rf"\b(?:{'|'.join(OTHER)})\b")


def mirror_words(sentence: str) -> str:
    """The sentence for the mirrored image: "a bag in her left hand" <-> "a bag in her right hand".

    Whole words in lower case, Capitalised or in CAPITALS, also in front of a hyphen or an apostrophe (left-hand,
    left's). Twice gives the sentence again. Words are not understood: "right away" becomes "left away", and "the bag
    that he left" "the bag that he right"; captions in other languages stay as they are.
    """
    return WORD.sub(lambda found: OTHER[found[0]], sentence)
