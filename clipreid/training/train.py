"""The only training loop: every stage of every method goes through it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from clipreid.hub.files import CHECKPOINTS
from clipreid.training import checkpoint
from clipreid.training.checkpoint import Done
from clipreid.training.harness import Progress
from clipreid.training.run import Run
from clipreid.training.speed import Gauge
from clipreid.training.stage import Batch, Losses, Stage
from clipreid.training.trackers import show_crops
from clipreid.training.watch import EVERY, Watch, doubt_losses, gradient_norm


def train(stage: Stage, run: Run) -> None:
    """Trains `stage.module` in place, from the last checkpoint of the stage where the run folder has one.

    The checkpoint of a finished stage is loaded and nothing is trained. On the same machine a resumed stage ends bit
    for bit as an uninterrupted one: batches and rates are functions of epoch and step, and everything else that changes
    is in the checkpoint.

    Raises:
        UserError: damaged checkpoints, or one of another model; losses or gradients that are not finite.
    """
    if stage.memory is not None:
        stage.memory.to(run.device)
    done = _resume(stage, run)
    wrapped = _prepare(stage, run) if done.epoch < stage.epochs else stage.module
    progress: Progress | None = None
    gauge: Gauge | None = None
    watch = Watch(stage, run, done)
    for epoch in range(done.epoch, stage.epochs):
        batches = stage.batches(epoch)
        left, steps = stage.epochs - epoch, len(batches)
        if progress is None:
            progress = Progress(run.log, stage.name, left, steps, done=epoch * steps)
            progress.count_on(done.step, done.counted, run.device)
        gauge = gauge or Gauge(stage, run, left * steps)
        wrapped.train()
        for nth in range(done.step if epoch == done.epoch else 0, steps):
            batch = batches[nth]
            if epoch == nth == 0:
                show_crops(stage, run, batch)
            set_rates(stage, epoch + nth / steps)
            with gauge.step(batch):
                losses, norm = _step(stage, wrapped, batch, run)
            if stage.after_step is not None:
                stage.after_step(batch)
            watch.update(nth, losses, norm)
            progress.least = gauge.least
            progress.update(losses, len(batch["labels"]) * (1 if stage.shared else run.processes))
            keep = _kept_within(stage, run, nth + 1, steps)
            if keep or (nth + 1) % EVERY == 0:
                watch.check(epoch + 1, batches)
            if keep:
                _save(stage, run, Done(epoch, nth + 1, progress.counted() | watch.counted()))
        now, last = epoch + 1, epoch + 1 == stage.epochs
        watch.check(now, batches)
        if last or now % stage.line_every == 0:
            logged = watch.figures()
            progress.close_epochs(now, stage.epochs, logged, rate=stage.optimisers[0].param_groups[0]["lr"])
        if stage.after_epoch is not None:
            stage.after_epoch(now)
        if last or now % stage.checkpoint_every == 0:
            _save(stage, run, Done(now, 0, progress.counted() | watch.counted()))
        run.accelerator.wait_for_everyone()
    stage.module.eval()
    doubt_losses(stage, run)


def _kept_within(stage: Stage, run: Run, nth: int, steps: int) -> bool:
    """Whether a checkpoint is due after `nth` steps of an epoch, before its end."""
    every = run.flags.checkpoint_steps
    return every is not None and nth < steps and nth % every == 0 and not stage.whole_epochs


def _save(stage: Stage, run: Run, done: Done) -> None:
    if run.main:
        checkpoint.save(run.folder / CHECKPOINTS, stage, done)


def _step(stage: Stage, wrapped: nn.Module, batch: Batch, run: Run) -> tuple[Losses, Tensor]:
    """One step of every optimiser on the batch; the losses of all turns, and the norm of all gradients."""
    found: Losses = {}
    norms: list[Tensor] = []
    for turn, optimiser in enumerate(stage.optimisers):
        losses = wrapped(batch) if len(stage.optimisers) == 1 else wrapped(batch, turn)
        optimiser.zero_grad(set_to_none=True)
        run.accelerator.backward(_total(list(losses.values())))
        norms.append(gradient_norm(optimiser))
        if stage.clip_norm is not None:  # what is logged is the norm before
            run.accelerator.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], stage.clip_norm)
        optimiser.step()
        found |= losses
    return found, torch.stack(norms).norm()


def _total(losses: Sequence[Tensor]) -> Tensor:
    return sum(losses[1:], start=losses[0])


def set_rates(stage: Stage, progress: float) -> None:
    """Sets the rate of every group at `progress` epochs (fractional, from 0)."""
    factor = stage.rate(progress)
    for optimiser in stage.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("base", group["lr"]) * factor


def _resume(stage: Stage, run: Run) -> Done:
    """How far the stage had come at its last whole checkpoint, its state restored."""
    done = checkpoint.resume(run.folder / CHECKPOINTS, stage, run.log.say)
    if not done.begun:
        return done
    if done.epoch == stage.epochs:
        run.log.say(f"{stage.name}  finished before: taken from {run.folder}")
    else:
        run.log.say(f"{stage.name}  resumes after {done}")
    return done


def _prepare(stage: Stage, run: Run) -> nn.Module:
    """The module as accelerate wraps it for processes and precision, compiled where that is asked for.

    A stage on cached features is not: other numbers of identities in every batch would be other code.
    """
    turns = len(stage.optimisers) > 1  # each of which uses some of the parameters
    run.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=turns)
    if run.flags.compile and not stage.shared:
        stage.module.compile()  # in place: names in checkpoints stay as they are
    wrapped: nn.Module = run.accelerator.prepare(stage.module)
    return wrapped
