"""Similarity distribution matching and masked words, against loops written from the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clipreid.losses import mask_words, sdm_loss, word_loss
from clipreid.losses.words import IGNORED


def sdm_in_loops(image: list[list[float]], text: list[list[float]], labels: list[int], scale: float) -> float:
    """Section 3.3 of IRRA, one pair after the other."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    def one_way(rows: list[list[float]], columns: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            grown = [math.exp(scale * cosine(row, column)) for column in columns]
            mine = [label == labels[i] for label in labels]
            for value, own in zip(grown, mine, strict=True):
                p, q = value / sum(grown), own / sum(mine)
                total += p * math.log(p / (q + 1e-8))
        return total / len(rows)

    return one_way(image, text) + one_way(text, image)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.sampled_from([1.0, 5.0, 50.0]))
def test_sdm_is_that_of_the_paper(seed: int, count: int, identities: int, scale: float) -> None:
    drawn = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, 3, generator=drawn)
    labels = torch.randint(0, identities, (count,), generator=drawn)
    found = sdm_loss(image, text, labels, scale)
    expected = sdm_in_loops(image.tolist(), text.tolist(), labels.tolist(), scale)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(found, sdm_loss(text, image, labels, scale))  # both ways alike
    torch.testing.assert_close(found, sdm_loss(3 * image, text / 2, labels, scale))  # cosines


def test_sdm_is_small_where_pairs_match_and_shares_among_an_identity() -> None:
    labels, same = torch.tensor([0, 0, 1, 2]), torch.eye(3)[[0, 0, 1, 2]]
    assert sdm_loss(same, same, labels, 50).abs() < 1e-5  # each text of an identity gets half
    assert sdm_loss(same, same[[2, 2, 0, 1]], labels, 50) > 10
    gone = torch.randn(4, 3, requires_grad=True)
    sdm_loss(gone, same, labels, 50).backward()
    assert gone.grad is not None
    assert gone.grad.isfinite().all()


# Masked words -----------------------------------------------------------------------------------------------------


def masked_in_loops(
    ids: list[int], words: list[bool], drawn: list[list[float]], ordinary: list[int], share: float
) -> list:
    """(read token or "mask", wanted) of each token."""
    chosen = [word and u < share for word, u in zip(words, drawn[0], strict=True)]
    alone = any(words) and not any(chosen)
    if alone:
        smallest = min(u for u, word in zip(drawn[0], words, strict=True) if word)
        chosen[drawn[0].index(smallest)] = True
    found: list[tuple[int | str, int]] = []
    for token, pick, what, by in zip(ids, chosen, drawn[1], drawn[2], strict=True):
        if not pick:
            found.append((token, IGNORED))
        elif what < 0.8 or alone:
            found.append(("mask", token))
        else:
            found.append((ordinary[int(by * len(ordinary))] if what < 0.9 else token, token))
    return found


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_masking_is_that_of_the_loops(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (4, 7), generator=generator)
    words, drawn = ids > 2, torch.rand(3, 4, 7, generator=generator)
    words[0] = False
    ordinary = torch.tensor([3, 5, 8])
    masked = mask_words(ids, words, drawn, ordinary, share)
    for row in range(4):
        given_row = ids[row].tolist(), words[row].tolist(), drawn[:, row].tolist(), ordinary.tolist()
        expected = masked_in_loops(*given_row, share)
        read = ["mask" if h else t for h, t in zip(masked.hidden[row].tolist(), masked.ids[row].tolist(), strict=True)]
        assert list(zip(read, masked.wanted[row].tolist(), strict=True)) == expected


def test_how_many_words_are_hidden_replaced_and_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (2000, 50), generator=generator)
    words = torch.ones_like(ids, dtype=torch.bool)
    words[:, :10] = False  # start, end, padding
    masked = mask_words(ids, words, torch.rand(3, 2000, 50, generator=generator), torch.arange(1000, 2000))
    asked = masked.wanted != IGNORED
    assert not asked[:, :10].any()
    assert asked.any(1).all()
    share = asked.sum() / words.sum()
    assert share == pytest.approx(0.15, abs=0.005)
    replaced = asked & (masked.ids != ids)
    assert masked.hidden.sum() / asked.sum() == pytest.approx(0.8, abs=0.01)
    assert replaced.sum() / asked.sum() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(masked.wanted[asked], ids[asked])
    assert torch.equal(masked.ids[~replaced], ids[~replaced])
    assert len(masked.ids[replaced].unique()) > 600  # any other token: about 1,200 draws from 1,000


def test_the_loss_of_words_is_a_sum_to_be_divided_by_all_processes() -> None:
    logits, wanted = torch.randn(5, 11, requires_grad=True), torch.tensor([0, 3, 10, 3, 1])
    total, count = word_loss(logits, wanted)
    torch.testing.assert_close(total / count, F.cross_entropy(logits, wanted))
    nothing, none = word_loss(logits[:0], wanted[:0])
    assert (nothing.item(), none.item()) == (0, 0)
    nothing.backward()
    assert logits.grad is not None  # every process takes part in the backward pass
    assert not logits.grad.any()
