"""The loop: what it does in a step and in an epoch, what it keeps, and that a resumed stage ends as a whole one."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file
from torch import Tensor
from toys import CLIPPED, SIZE, STEPS, Killed, dying, toy_batches, toy_run, toy_stage, train_both, turns_stage, weights

from clipreid.errors import UserError
from clipreid.training import checkpoint
from clipreid.training.batches import Lazy
from clipreid.training.checkpoint import Done
from clipreid.training.run import Run
from clipreid.training.stage import Batch, Stage
from clipreid.training.train import set_rates, train
from clipreid.training.watch import rise


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path / "run")


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def kept(run: Run) -> list[str]:
    return sorted(os.listdir(run.folder / "checkpoints")) if (run.folder / "checkpoints").exists() else []


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# Steps ------------------------------------------------------------------------------------------------------------


def test_it_is_the_loop_that_anybody_would_write(run: Run) -> None:
    """Losses summed, one step a batch, each group's rate times the factor of that moment, the teacher behind it."""
    stage, plain = toy_stage(run), toy_stage(run)
    train(stage, run)
    (optimiser,), toy, teacher = plain.optimisers, plain.module.train(), plain.memory
    means: list[dict[str, float]] = []
    for epoch in range(4):
        sums = {"id_loss": 0.0, "size_loss": 0.0}
        for nth, batch in enumerate(toy_batches(run)(epoch)):
            factor = 1 - (epoch + nth / STEPS) / 8
            optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = 0.05 * factor, 0.01 * factor
            losses = toy(batch)
            optimiser.zero_grad()
            (losses["id_loss"] + losses["size_loss"]).backward()
            optimiser.step()
            teacher.follow(toy)
            sums = {name: value + losses[name].item() for name, value in sums.items()}
        means.append({name: value / STEPS for name, value in sums.items()})
    assert_equal(weights(stage), weights(plain))
    assert int(stage.memory.steps) == 4 * STEPS
    for nth, (line, mean) in enumerate(zip(lines(run), means, strict=True), start=1):
        assert (line["stage"], line["epoch"], line["step"]) == ("toy", nth, nth * STEPS)
        assert {name: line[name] for name in mean} == pytest.approx(mean)
        assert line["loss"] == pytest.approx(sum(mean.values()))
        assert line["rate"] == pytest.approx(0.05 * (1 - (nth - 1 / STEPS) / 8))  # of the last step
    assert not stage.module.training


def test_two_optimisers_take_turns_on_the_same_batch(run: Run) -> None:
    """The second sees what the step of the first has changed, and each changes its own parameters only."""
    stage, plain = turns_stage(run), turns_stage(run)
    train(stage, run)
    first, second = plain.optimisers
    for epoch in range(2):
        for batch in toy_batches(run)(epoch):
            for turn, optimiser in enumerate((first, second)):
                (loss,) = plain.module(batch, turn).values()
                plain.module.zero_grad()
                loss.backward()
                optimiser.step()
    assert_equal(weights(stage), weights(plain))
    for line in lines(run):
        assert {"first_loss", "second_loss"} <= line.keys()
        assert line["loss"] == pytest.approx(line["first_loss"] + line["second_loss"])


def test_rates_are_set_for_every_group_of_every_optimiser(run: Run) -> None:
    """By its `base`, or its first rate, which is remembered: also by a checkpoint."""
    stage = turns_stage(run, rate=lambda at: at / 2)
    stage.optimisers[1].param_groups[0]["base"] = 8.0
    for at, expected in ((0.5, [0.0125, 2.0]), (1.0, [0.025, 4.0]), (0.5, [0.0125, 2.0])):
        set_rates(stage, at)
        assert [optimiser.param_groups[0]["lr"] for optimiser in stage.optimisers] == pytest.approx(expected)
    checkpoint.save(run.folder, stage, Done(1))
    again = turns_stage(run, rate=lambda at: at / 2)
    checkpoint.load(run.folder / "turns-00001", again)
    set_rates(again, 1.0)
    assert [optimiser.param_groups[0]["lr"] for optimiser in again.optimisers] == pytest.approx([0.025, 4.0])


def test_the_rate_is_asked_for_fractions_of_epochs_from_0(run: Run) -> None:
    asked: list[float] = []
    train(toy_stage(run, rate=lambda at: asked.append(at) or 1.0, epochs=2), run)  # type: ignore[func-returns-value]
    assert asked == pytest.approx([nth / STEPS for nth in range(2 * STEPS)])


def test_batches_are_made_one_by_one_when_they_are_needed(run: Run) -> None:
    """Whoever re-labels at the start of an epoch sees what the epoch before left."""
    seen: list[str] = []

    def batches(epoch: int) -> Lazy:
        seen.append(f"epoch {epoch}")
        whole = toy_batches(run)(epoch)
        return Lazy(STEPS, lambda nth: seen.append(f"made {nth}") or whole[nth])  # type: ignore[func-returns-value]

    stage = toy_stage(run, batches=batches, epochs=2, after_step=lambda batch: seen.append("step"))
    stage.after_epoch = lambda done: seen.append(f"after {done}")
    train(stage, run)
    epoch = [word for nth in range(STEPS) for word in (f"made {nth}", "step")]
    assert seen == ["epoch 0", *epoch, "after 1", "epoch 1", *epoch, "after 2"]


def test_images_are_counted_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the batch stands for as many images as there are processes, a shared batch for its own."""
    from clipreid.training.harness import Progress

    counted: list[int] = []
    monkeypatch.setattr(Progress, "update", lambda self, losses, images: counted.append(images))
    monkeypatch.setattr(Progress, "close_epochs", lambda *args, **more: None)
    monkeypatch.setattr(Run, "processes", 2)
    train(toy_stage(run, epochs=1), run)
    train(toy_stage(run, name="other", epochs=1, shared=True), run)
    assert counted == [2 * SIZE] * STEPS + [SIZE] * STEPS


class Named:
    """Stands in for the data of a run: only the files of its training images."""

    def paths(self, rows: list[int]) -> list[str]:
        return [f"{row}.jpg" for row in rows]


def poisoned(run: Run, value: float, **more: Any) -> Stage:
    """A stage with one bad value in the second batch of its third epoch; batches say their images."""
    whole = toy_batches(run)

    def batches(epoch: int) -> list[Batch]:
        found = [batch | {"rows": 10 * nth + torch.arange(SIZE)} for nth, batch in enumerate(whole(epoch))]
        if epoch == 2:
            found[1]["pixels"][0, 0] = value
        return found

    return toy_stage(run, batches=batches, **more)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_end_the_run_and_spoil_no_checkpoint(run: Run, value: float) -> None:
    """The message has stage, epoch, step and images, a file the whole batch; from the last checkpoint it goes on."""
    run.data = Named()  # type: ignore[assignment]
    with pytest.raises(UserError) as caught:
        train(poisoned(run, value, line_every=3), run)
    said, kept_now = str(caught.value), run.folder / "checkpoints" / "toy-00002"
    assert said.startswith(
        "toy: id_loss, size_loss, gradient_norm not finite in epoch 3, step 2, on 10.jpg, 11.jpg, 12.jpg, ...; "
    )
    assert f"the last checkpoint is {kept_now}" in said
    assert "lower the learning rates" in said
    bad = json.loads((run.folder / "bad_batch.json").read_text())
    assert (bad["stage"], bad["epoch"], bad["step"]) == ("toy", 3, 2)
    assert bad["rows"] == list(range(10, 10 + SIZE))
    assert bad["paths"] == [f"{row}.jpg" for row in bad["rows"]]
    assert bad["values"].keys() == {"id_loss", "size_loss", "gradient_norm"}
    assert not any(math.isfinite(float(x)) for x in bad["values"].values())
    assert kept(run) == ["toy-00001", "toy-00002"]
    healthy = toy_stage(run)
    train(healthy, run)
    whole = toy_run(run.folder.parent / "whole")
    expected = toy_stage(whole)
    train(expected, whole)
    assert_equal(weights(healthy), weights(expected))


def test_gradients_that_are_not_finite_in_the_last_step_are_noticed_before_the_checkpoint(run: Run) -> None:
    """All losses of the epoch are finite: the weights are spoiled by its last step."""

    class Spoils(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad / 0

    stage = toy_stage(run)
    forward, steps = stage.module.forward, [0]

    def spoiling(batch: Batch) -> dict[str, Tensor]:
        losses = forward(batch)
        steps[0] += 1
        return {name: Spoils.apply(x) for name, x in losses.items()} if steps[0] == 2 * STEPS else losses

    stage.module.forward = spoiling  # type: ignore[method-assign]
    with pytest.raises(UserError, match=rf"toy: gradient_norm not finite in epoch 2, step {STEPS}; "):
        train(stage, run)
    assert kept(run) == ["toy-00001"]


def test_gradient_norms_are_logged(run: Run) -> None:
    """Mean and maximum over the steps since the last line, of all gradients together."""
    train(toy_stage(run, epochs=2, line_every=2), run)
    plain, norms = toy_stage(run), []
    (optimiser,), toy = plain.optimisers, plain.module.train()
    for epoch in range(2):
        for nth, batch in enumerate(toy_batches(run)(epoch)):
            set_rates(plain, epoch + nth / STEPS)
            optimiser.zero_grad()
            sum(toy(batch).values()).backward()
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in toy.parameters() if p.grad is not None)))
            optimiser.step()
    (line,) = lines(run)
    assert line["gradient_norm"] == pytest.approx(sum(norms) / len(norms))
    assert line["gradient_norm_max"] == pytest.approx(max(norms))


def test_gradients_are_clipped_by_the_norm_of_all_of_them_and_logged_as_they_were(run: Run) -> None:
    clip: float = CLIPPED["clip_norm"]
    stage, plain, norms = toy_stage(run, **CLIPPED), toy_stage(run), []
    train(stage, run)
    (optimiser,), toy = plain.optimisers, plain.module.train()
    for epoch in range(4):
        for nth, batch in enumerate(toy_batches(run)(epoch)):
            set_rates(plain, epoch + nth / STEPS)
            optimiser.zero_grad()
            sum(toy(batch).values()).backward()
            gradients = [p.grad for p in toy.parameters() if p.grad is not None]
            norms.append(math.sqrt(sum(float(x.square().sum()) for x in gradients)))
            for x in gradients:
                x.mul_(min(1.0, clip / norms[-1]))
            optimiser.step()
    assert sum(norm > clip for norm in norms) > len(norms) / 2
    for name, x in plain.module.state_dict().items():
        torch.testing.assert_close(stage.module.state_dict()[name], x, atol=1e-5, rtol=1e-5)
    assert max(line["gradient_norm_max"] for line in lines(run)) == pytest.approx(max(norms), rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "start", "warned"),
    [
        ([3.0, 2.0, 1.0], 3.5, False),
        ([3.0], 3.5, False),
        ([3.0, 3.1], None, False),  # chance
        ([3.0, 1.0, 1.3], 3.5, False),
        ([0.02, 0.01, 0.011], None, False),
        ([3.0, 1.0, 2.2], 3.5, True),  # more than half of what it had fallen by
        ([3.0, 4.0], None, True),
        ([30_000.0, 25_000.0, 18_442.0], 5.0, True),  # diverged within the first epoch
        ([18_442.0], 5.0, True),
        ([1.179, 1.103, 1.067, 1.175], 1.162, False),  # chance, with three small batches in an epoch
        ([-3.0, -2.0], -2.5, True),
        ([-3.0, -3.5], -2.5, False),
    ],
)
def test_a_loss_that_has_risen_by_more_than_chance_is_warned_of(
    losses: list[float], start: float | None, warned: bool
) -> None:
    assert (rise(losses, start) is not None) == warned


def test_a_diverged_stage_is_warned_of_at_the_end_of_the_run(run: Run) -> None:
    """Also where an earlier command trained it, and after a resume."""

    def rising(epochs: int) -> Stage:
        return toy_stage(run, rate=lambda at: 1e3 if at >= 3 else 1e-3, epochs=epochs)

    train(toy_stage(run, name="sound"), run)
    train(rising(3), run)
    assert run.log.warned == []
    first = lines(run)[4]["first_step_loss"]
    train(rising(5), run)
    (text,) = run.log.warned
    assert text.startswith(f"toy  the loss has risen: {first:.4g} in the first step, ")
    run.log.warned.clear()
    train(rising(5), run)
    assert run.log.warned == [text]


# Epochs -----------------------------------------------------------------------------------------------------------


def test_lines_and_checkpoints_are_as_rare_as_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last epoch has both."""
    saved: list[int] = []
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, stage, done: (saved.append(done.epoch), save(folder, stage, done))
    )
    train(toy_stage(run, epochs=7, line_every=3, checkpoint_every=2), run)
    assert [line["epoch"] for line in lines(run)] == [3, 6, 7]
    assert saved == [2, 4, 6, 7]
    assert kept(run) == ["toy-00006", "toy-00007"]
    said = capsys.readouterr().out
    assert said.count("toy  epoch") == 3
    assert "toy  epoch 7/7" in said


def test_a_memory_is_on_the_runs_device_before_the_stage_begins_or_resumes(run: Run) -> None:
    for _ in range(2):  # trained, then taken from its checkpoint
        stage, moved = toy_stage(run, epochs=1), []
        stage.memory.to = lambda device, moved=moved: moved.append(device)  # type: ignore
        train(stage, run)
        assert moved == [run.device]


def test_what_after_epoch_changes_is_in_the_checkpoint(run: Run) -> None:
    def freeze(stage: Stage) -> Callable[[int], None]:
        def after(done: int) -> None:
            stage.memory.steps.fill_(-done)

        return after

    stage = toy_stage(run, epochs=2)
    stage.after_epoch = freeze(stage)
    train(stage, run)
    again = toy_stage(run, epochs=2)
    train(again, run)
    assert int(again.memory.steps) == -2


# Resume -----------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_loaded_and_not_trained(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage = toy_stage(run)
    train(stage, run)
    before = lines(run)
    capsys.readouterr()

    def never(*args: Any) -> Any:
        raise AssertionError("a finished stage is not trained")

    again = toy_stage(run, batches=never, rate=never, after_step=never, after_epoch=never)
    train(again, run)
    assert_equal(weights(again), weights(stage))
    assert not again.module.training
    assert capsys.readouterr().out == f"toy  finished before: taken from {run.folder}\n"
    assert lines(run) == before
    other = turns_stage(run)  # another stage of the same run begins at its own start
    train(other, run)
    assert kept(run) == ["toy-00003", "toy-00004", "turns-00001", "turns-00002"]


@pytest.mark.parametrize("make", [toy_stage, turns_stage])
@pytest.mark.parametrize("every", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, make: Callable[..., Stage], every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in every epoch, in the middle of one and between two; a stage made anew takes everything from the file."""
    whole = toy_run(tmp_path / "whole")
    expected = make(whole, epochs=5)
    train(expected, whole)
    run = toy_run(tmp_path / "killed")
    for epoch, step in ((0, 1), (1, 2), (3, 0), (3, 1), (4, 2)):
        stage = make(run, epochs=5, checkpoint_every=every)
        stage.batches = dying(stage.batches, (epoch, step))
        with pytest.raises(Killed):
            train(stage, run)
        assert kept_epoch(run) == epoch // every * every
    capsys.readouterr()
    torch.manual_seed(99)  # nothing of the random state of this process counts
    stage = make(run, epochs=5, checkpoint_every=every)
    train(stage, run)
    assert capsys.readouterr().out.startswith(f"{stage.name}  resumes after epoch 4\n")
    assert_equal(weights(stage), weights(expected))
    for ours, theirs in zip(stage.optimisers, expected.optimisers, strict=True):
        assert json.dumps(ours.state_dict()["param_groups"]) == json.dumps(theirs.state_dict()["param_groups"])
        for entry, other in zip(
            ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True
        ):
            assert all(torch.equal(torch.as_tensor(entry[key]), torch.as_tensor(other[key])) for key in other)
    losses = {line["epoch"]: line["loss"] for line in lines(run)}
    assert losses == {line["epoch"]: line["loss"] for line in lines(whole)}


@pytest.mark.parametrize(("make", "every"), [(toy_stage, 1), (toy_stage, 2), (turns_stage, 1)])
def test_resumed_within_an_epoch_it_ends_bit_for_bit_as_uninterrupted(
    tmp_path: Path, make: Callable[..., Stage], every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in every step; what the log says of an epoch, or of two, is of all their steps."""
    whole, run = toy_run(tmp_path / "whole"), toy_run(tmp_path / "killed", checkpoint_steps=every)
    expected = make(whole, epochs=4, line_every=2)
    train(expected, whole)
    for epoch in range(4):
        for step in range(STEPS):
            stage = make(run, epochs=4, line_every=2)
            stage.batches = dying(stage.batches, (epoch, step))
            with pytest.raises(Killed):
                train(stage, run)
            last = step // every * every
            name = f"{stage.name}-{epoch:05d}" + f"+{last:05d}" * bool(last)
            assert kept(run)[-1:] == [name] * bool(epoch or last)
            assert len(kept(run)) <= 2
    capsys.readouterr()
    stage = make(run, epochs=4, line_every=2)
    train(stage, run)
    assert capsys.readouterr().out.startswith(f"{stage.name}  resumes after epoch 3 and 2 steps of the next\n")
    assert_equal(weights(stage), weights(expected))
    timed = {"images_per_second", "step_ms", "mfu"}
    found, wanted = ([{k: line[k] for k in line.keys() - timed} for line in lines(each)] for each in (run, whole))
    assert found == wanted


def test_a_stage_that_looks_at_its_module_is_resumed_from_the_start_of_an_epoch(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run", checkpoint_steps=1)
    stage = toy_stage(run, whole_epochs=True)
    stage.batches = dying(stage.batches, (2, 2))
    with pytest.raises(Killed):
        train(stage, run)
    assert kept(run) == ["toy-00001", "toy-00002"]


def test_losses_that_are_not_finite_end_a_long_epoch_early_and_spoil_no_checkpoint_within(tmp_path: Path) -> None:
    """Noticed before what is about to be kept, and after 50 steps where nothing is."""
    for every, seen, last in ((4, 8, "toy-00000+00004"), (None, 50, None)):
        run = toy_run(tmp_path / str(every), checkpoint_steps=every)
        whole, steps = toy_batches(run, 120)(0), [0]

        def make(nth: int, whole: Lazy = whole, steps: list[int] = steps) -> Batch:
            steps[0] = max(steps[0], nth + 1)
            return whole[nth] if nth != 4 else {**whole[nth], "pixels": whole[nth]["pixels"] / 0}

        with pytest.raises(UserError, match=r"not finite in epoch 1, step 5; .*Nothing from that step on was kept"):
            train(toy_stage(run, batches=lambda epoch, make=make: Lazy(120, make)), run)
        assert steps == [seen]
        assert kept(run) == [last] * bool(last)


def kept_epoch(run: Run) -> int:
    """The epochs of the last checkpoint, 0 without one."""
    found = sorted((run.folder / "checkpoints").glob("*-*"))
    return int(found[-1].name.rpartition("-")[2]) if found else 0


def test_steps_of_a_resumed_stage_are_counted_on(run: Run) -> None:
    train(toy_stage(run, epochs=2), run)
    train(toy_stage(run, epochs=3), run)
    assert [(line["epoch"], line["step"]) for line in lines(run)] == [(1, STEPS), (2, 2 * STEPS), (3, 3 * STEPS)]


def test_steps_are_counted_on_where_epochs_have_different_numbers_of_them(tmp_path: Path) -> None:
    def uneven(run: Run) -> Stage:
        return toy_stage(run, batches=lambda epoch: toy_batches(run, 4 - epoch)(epoch))

    whole, run = toy_run(tmp_path / "whole"), toy_run(tmp_path / "killed", checkpoint_steps=1)
    train(uneven(whole), whole)
    stage = uneven(run)
    stage.batches = dying(stage.batches, (2, 1))
    with pytest.raises(Killed):
        train(stage, run)
    train(uneven(run), run)
    steps = [[line["step"] for line in lines(each)] for each in (whole, run)]
    assert steps == [[4, 7, 9, 10]] * 2


# Processes --------------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Of one optimiser, and of two that take turns: with several processes nobody waits for what a turn leaves out."""
    in_processes(2, train_both, tmp_path / "two")
    run = toy_run(tmp_path / "one")
    found = load_file(tmp_path / "two" / "weights.safetensors")
    for stage in (turns_stage(run), toy_stage(run), toy_stage(run, **CLIPPED)):
        train(stage, run)
        for name, expected in weights(stage).items():
            torch.testing.assert_close(found[f"{stage.name}.{name}"], expected, atol=1e-5, rtol=1e-4)
    both = zip(lines(run), lines(toy_run(tmp_path / "two")), strict=True)
    assert all(one["loss"] == pytest.approx(two["loss"], abs=1e-5) for one, two in both)
