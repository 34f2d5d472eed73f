"""Averages of weights: the recurrence by hand, resumed like everything else, and refused where they would be lost."""

from pathlib import Path

import pytest
import torch
from test_train import assert_equal
from torch import nn
from toys import toy_run, toy_stage, turns_stage, weights

from clipreid.training.averages import WeightAverage, averaged
from clipreid.training.train import train


def test_the_average_follows_the_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    module.register_parameter("frozen", frozen)
    average, kept = WeightAverage(module, 0.5), module.weight.item()
    for t, value in enumerate((3.0, -1.0, 2.0, 8.0, 5.0), start=1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.follow(module)
        decay = min(0.5, (1 + t) / (10 + t))
        kept = decay * kept + (1 - decay) * value
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(kept, rel=1e-6)
    assert frozen.item() == 1


def test_a_stage_ends_with_its_averages_interrupted_or_not(tmp_path: Path) -> None:
    plain = {"memory": None, "after_step": None}
    last = toy_stage(run := toy_run(tmp_path / "last"), **plain)
    train(last, run)
    whole = averaged(toy_stage(run := toy_run(tmp_path / "whole"), **plain), 0.9)
    train(whole, run)
    pairs = zip(whole.module.parameters(), last.module.parameters(), strict=True)
    assert all(torch.equal(a, b) != a.requires_grad for a, b in pairs)
    run = toy_run(tmp_path / "again")
    half = averaged(toy_stage(run, **plain), 0.9)
    half.batches, batches = (lambda epoch: batches(epoch) if epoch < 2 else stop()), half.batches
    with pytest.raises(KeyboardInterrupt):
        train(half, run)
    resumed = averaged(toy_stage(run, **plain), 0.9)
    train(resumed, run)
    assert_equal(weights(resumed), weights(whole))


def stop() -> None:
    raise KeyboardInterrupt


def test_what_has_a_memory_of_its_own_is_not_averaged(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    with pytest.raises(ValueError, match="toy has a memory or callbacks already"):
        averaged(toy_stage(run), 0.9)
    stage = turns_stage(run)
    assert averaged(stage, 0.0) is stage
