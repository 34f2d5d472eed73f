"""Where the slots of a sentence are, among the token ids that a tokenizer makes of it.

A slot is filled with as many placeholder words as it has tokens. All that is known of a tokenizer is what it makes of
texts: sentences with other numbers of placeholders tell whether each of them is one token, where they are, and whether
the sentence was cut at the end.

L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from clipreid.backbones import Backbone
from clipreid.errors import UserError

PLACEHOLDERS = ("x", "q", "z")


def lay_out(
    backbone: Backbone, sentence: str, slots: Mapping[str, int], flags: Mapping[str, str], otherwise: str
) -> tuple[list[int], dict[str, int]]:
    """The token ids of a sentence [L], placeholders in its slots, and {slot: position of its first token}.

    Arguments and errors as of `clipreid.prompts.Template`. Slots without tokens have no position.
    """
    advice = f": {otherwise}" if otherwise else ""
    if backbone.tokenizer is None:
        raise UserError(f"backbone {backbone.name!r} has no tokenizer, which prompts need{advice}")
    names = [name for _, name, _, _ in Formatter().parse(sentence) if name is not None]
    if sorted(names) != sorted(slots):
        raise ValueError(f"{sentence!r} must name each of the slots {sorted(slots)} once")
    names = [name for name in names if slots[name]]
    starts, single = _positions(backbone, sentence, names, slots)
    if not single:
        raise UserError(
            f"the tokenizer of {backbone.name!r} does not give each placeholder x one token of its own{advice}"
        )
    ones, total = dict.fromkeys(names, 1), sum(slots.values())
    closing, (none, short, full) = _tokenise(backbone, [_fill(sentence, counts) for counts in ({}, ones, slots)])
    fits = _end(full, closing) == _end(short, closing) + total - len(names)
    if _end(short, closing) >= len(full) - 1:  # full to the last place: whole, or cut?
        fits &= _end(short, closing) == _end(none, closing) + len(names)
    if not fits:
        asked = "".join(f"{flag} {slots[name]}: " for name, flag in flags.items())
        raise UserError(
            f"{asked}the sentence {sentence!r} with {total} tokens in its slots does not fit into the {len(full)} "
            f"tokens of {backbone.name!r}: choose fewer"
        )
    return full, starts


def word_ids(backbone: Backbone, words: str) -> list[int]:
    """The token ids of plain words as they stand within a sentence, without start or end token.

    Raises:
        UserError: no tokenizer, no tokens at all, or more than the context holds.
    """
    if backbone.tokenizer is None:
        raise UserError(f"backbone {backbone.name!r} has no tokenizer: it cannot read {words!r}")
    closing, (lead, row) = _tokenise(backbone, ["a", f"a {words}"])
    begin, end = _end(lead, closing), _end(row, closing)
    if begin >= end:
        raise UserError(f"the tokenizer of {backbone.name!r} finds no words in {words!r}")
    if end >= len(row) - 1:
        raise UserError(f"{words!r} does not fit into the {len(row)} tokens of {backbone.name!r}: shorten it")
    return row[begin:end]


def _positions(
    backbone: Backbone, sentence: str, names: list[str], slots: Mapping[str, int]
) -> tuple[dict[str, int], bool]:
    """{slot: position of its first token}, and whether each placeholder is one token.

    Each slot is looked at in sentences that fill the slots before it and none behind it: first with one placeholder,
    then with two. One more must move the rest by one place. The last token is not looked at: in a row that was cut, it
    is not the sentence's.
    """
    starts, single = dict[str, int](), True
    for nth, name in enumerate(names):
        before = {earlier: slots[earlier] for earlier in names[:nth]}
        _, (one, two) = _tokenise(backbone, [_fill(sentence, before | {name: count}) for count in (1, 2)])
        place = _first_difference(one, two)
        single &= two[place + 1 : -1] == one[place:-2]
        starts[name] = place - 1
    return starts, single


def _fill(sentence: str, counts: Mapping[str, int]) -> str:
    """The sentence with placeholders in its slots; a slot without any takes the space before it away."""
    pieces = [(literal, name) for literal, name, _, _ in Formatter().parse(sentence)]
    starts = {word[0] for literal, _ in pieces for word in literal.lower().split()}
    free = [word for word in PLACEHOLDERS if word not in starts]  # no fixed token can be taken for it
    if not free:
        raise ValueError(f"{sentence!r}: the words of a template cannot begin with each of {', '.join(PLACEHOLDERS)}")
    text = ""
    for literal, name in pieces:
        text += literal
        count = counts.get(name, 0) if name is not None else 0
        if count:
            text += " ".join([free[0]] * count)
        elif name is not None:
            text = text.rstrip(" ")
    return text


def _tokenise(backbone: Backbone, texts: list[str]) -> tuple[list[int], list[list[int]]]:
    """What follows the last word of a text (EOT and padding, or padding alone), and the ids of texts, n rows of L."""
    assert backbone.tokenizer is not None
    rows: list[list[int]] = backbone.tokenizer(["a", "a a", *texts]).tolist()
    short = rows[0]
    closing = short[_first_difference(short, rows[1]) :]
    return closing + [short[-1]] * len(short), rows[2:]


def _end(row: list[int], closing: list[int]) -> int:
    """How many tokens of a row come before its closing ones."""
    return next(end for end in range(len(row) + 1) if row[end:] == closing[: len(row) - end])


def _first_difference(one: list[int], other: list[int]) -> int:
    """The first place where two rows of ids differ; the last place, where they are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one) - 1)
