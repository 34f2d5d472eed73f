"""The masked cosine: against a loop over queries, in chunks, at its ends."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreid.metric import Cosine, MaskedCosine, masked_cosine


def looped(feature: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    """<f^, normalise(m w^)>, one query and one gallery image at a time, in double precision."""
    found = torch.zeros(len(feature), len(other), dtype=torch.float64)
    for i, (f, m) in enumerate(zip(feature.double().tolist(), mask.double().tolist(), strict=True)):
        for j, w in enumerate(other.double().tolist()):
            masked = [a * b / math.hypot(*w) for a, b in zip(m, w, strict=True)]
            dot = sum(a * b for a, b in zip(f, masked, strict=True))
            found[i, j] = dot / math.hypot(*f) / math.hypot(*masked)
    return found


def drawn(queries: int, gallery: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    f, w = torch.randn(queries, width, generator=generator), torch.randn(gallery, width, generator=generator)
    return 3 * f, torch.rand(queries, width, generator=generator), 0.2 * w


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_it_equals_a_loop_over_queries(queries: int, gallery: int, width: int, seed: int) -> None:
    feature, mask, other = drawn(queries, gallery, width, seed)
    found = masked_cosine(feature, mask, other)
    assert (found.double() - looped(feature, mask, other)).abs().max() <= 1e-6
    both = torch.cat([feature, mask], 1), torch.cat([other, torch.rand_like(other)], 1)
    assert (MaskedCosine()(*both).double() - looped(feature, mask, other)).abs().max() <= 1e-6


def test_at_the_width_of_vit_b() -> None:
    feature, mask, other = drawn(4, 9, 768)
    assert (masked_cosine(feature, mask, other).double() - looped(feature, mask, other)).abs().max() <= 1e-6


@pytest.mark.parametrize("chunk", [1, 2, 5, 63, 64, 65, 100])
def test_chunks_of_queries_change_no_bit(chunk: int) -> None:
    feature, mask, other = drawn(130, 301, 96)
    query, gallery = torch.cat([feature, mask], 1), torch.cat([other, other.abs()], 1)
    query, gallery = F.normalize(query), F.normalize(gallery)  # as test features are
    whole = MaskedCosine()(query, gallery)
    assert torch.equal(torch.cat([MaskedCosine()(part, gallery) for part in query.split(chunk)]), whole)


def test_the_gallery_in_tiles_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    feature, mask, other = drawn(70, 301, 32)
    query, gallery = torch.cat([feature, mask], 1), torch.cat([other, other.abs()], 1)
    whole = MaskedCosine()(query, gallery)
    monkeypatch.setattr("clipreid.metric.TILE", 64)
    assert torch.equal(MaskedCosine()(query, gallery), whole)


def test_only_the_mask_of_the_query_counts_and_it_is_not_symmetric() -> None:
    feature, mask, other = drawn(3, 3, 8)
    query, gallery = torch.cat([feature, mask], 1), torch.cat([other, mask.flip(0)], 1)
    metric = MaskedCosine()
    found = metric(query, gallery)
    assert torch.equal(found, metric(query, torch.cat([other, torch.zeros_like(other)], 1)))
    assert not torch.allclose(found, metric(gallery, query).T, atol=1e-3)
    assert not torch.allclose(found, metric(torch.cat([feature, mask.flip(0)], 1), gallery), atol=1e-3)


def test_lengths_do_not_count_and_an_even_mask_is_the_cosine() -> None:
    feature, mask, other = drawn(4, 6, 16)
    found = masked_cosine(feature, mask, other)
    torch.testing.assert_close(masked_cosine(7 * feature, 0.01 * mask, 100 * other), found)
    even = masked_cosine(feature, torch.full_like(mask, 0.5), other)
    torch.testing.assert_close(even, Cosine()(feature, other))


def test_its_ends() -> None:
    """What the mask hides does not count: an image equal in the rest has similarity 1 to what the query shows there."""
    f = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    w = torch.tensor([[1.0, 2.0, 9.0, -9.0], [0.0, 0.0, 1.0, 1.0]])
    hides = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(masked_cosine(f, hides, w), torch.tensor([[1.0, 0.0]]))
    assert masked_cosine(f, torch.ones_like(f), w)[0, 0] < 0.2
    for zero in (masked_cosine(0 * f, hides, w), masked_cosine(f, 0 * hides, w), masked_cosine(f, hides, 0 * w)):
        assert torch.equal(zero, torch.zeros(1, 2))
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(3)]
    masked_cosine(*given).sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in given)


def test_what_it_says_of_itself_and_odd_widths() -> None:
    metric = MaskedCosine()
    assert (metric.name, metric.cosine, metric.bounded, Cosine().bounded) == ("masked cosine", False, True, True)
    for widths in ((3, 3), (4, 6)):
        with pytest.raises(ValueError, match=r"test features of widths \d and \d: \[feature \| mask\] has an even one"):
            metric(torch.randn(2, widths[0]), torch.randn(2, widths[1]))
