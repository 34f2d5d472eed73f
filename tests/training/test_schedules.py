"""The published rates, epoch by epoch, and the shape of the cosine schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipreid.config import configure
from clipreid.methods import clip_reid
from clipreid.training.optimisers import stage_rate
from clipreid.training.schedules import cosine_factor, prompt_rate, step_factor

PAPER = configure(clip_reid, preset="paper", backbone="open_clip:ViT-B-16-quickgelu/openai")[1]


@pytest.mark.parametrize(("epoch", "rate"), [(1, 7.8e-5), (4, 2.82e-4), (5, 3.485e-4), (60, 1.755e-4), (120, 1e-6)])
def test_published_rates_of_stage_1(epoch: int, rate: float) -> None:
    """CLIP-ReID: 3.5e-4, 120 epochs, 5 of warm-up from 1e-5; stepped with the 1-based epoch."""
    found = prompt_rate(epoch, PAPER.prompt_epochs, PAPER.prompt_rate, PAPER.prompt_warmup)
    assert found == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("epochs", "rate"),
    [((1,), 9.5e-7), ((10, 20, 29), 5e-6), ((30, 49), 5e-7), ((50, 60), 5e-8)],
)
def test_published_rates_of_stage_2(epochs: tuple[int, ...], rate: float) -> None:
    """CLIP-ReID: 5e-6, warm-up over 10 epochs from a tenth, a tenth again at 30 and at 50."""
    factor = stage_rate(PAPER)
    for epoch in epochs:
        for within in (0, 0.5, 0.99):  # stepped once an epoch; the loop counts epochs from 0, as a fraction
            assert PAPER.rate * factor(epoch - 1 + within) == pytest.approx(rate)


def test_steps_without_warm_up() -> None:
    assert [step_factor(e, (2,), 0.5, 0, 0.1) for e in (1, 2, 3)] == [1.0, 0.5, 0.5]


def test_no_warm_up_in_stage_1() -> None:
    assert prompt_rate(1, 10, 1e-3, 0) == pytest.approx(1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(0.1 * math.pi)))


def test_cosine_warms_up_within_epochs_and_ends_at_zero() -> None:
    factors = [cosine_factor(p, 60, 5, 0.1) for p in (0, 2.5, 5, 32.5, 60)]
    assert factors == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])
    assert cosine_factor(0, 3, 0, 0.1) == 1.0
    assert cosine_factor(0, 1, 1, 0.1) == pytest.approx(0.1)  # nothing but warm-up


@given(st.floats(0, 60), st.floats(0, 60), st.floats(0, 10))
def test_cosine_rises_then_falls(a: float, b: float, warmup: float) -> None:
    a, b = min(a, b), max(a, b)
    first, second = cosine_factor(a, 60, warmup, 0.1), cosine_factor(b, 60, warmup, 0.1)
    assert 0 <= first <= 1
    if b <= warmup:
        assert first <= second + 1e-12
    if a >= warmup:
        assert first >= second - 1e-12
