"""What goes wrong in a stage without an exception: losses that are not finite, gradients that grow, losses that rise.

Nothing is copied from the device in most steps: every 50th asks, the end of an epoch, and what is about to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.hub.files import BAD_BATCH, write_json
from clipreid.reports.training_curves import read_losses
from clipreid.training import checkpoint
from clipreid.training.checkpoint import Done
from clipreid.training.run import Run
from clipreid.training.stage import Batch, Losses, Stage

NORM, START = "gradient_norm", "first_step_loss"
NONE = 2**31  # steps: no step of the epoch was bad
EVERY = 50  # steps, between two looks: what is not finite trains no longer than that
SHOWN = 3  # images that an error names
LOST = 0.5  # of what the loss had fallen by, before a rise is warned of
NOISE = 0.1  # of the first epoch's loss: means of epochs differ by chance
FAR = 2.0  # times the loss of the first step, before anything was trained


class Watch:
    """The gradient norms of a stage, and the first step of an epoch with losses or gradients that are not finite.

    done: how far an earlier command came.
    """

    def __init__(self, stage: Stage, run: Run, done: Done) -> None:
        self.stage, self.run, self.fresh = stage, run, not done.begun
        zero = torch.zeros(())
        self.sum, self.most = (done.counted.get(name, zero).to(run.device) for name in (NORM, f"{NORM}_max"))
        self.steps = int(done.counted.get("steps", 0))
        self.first = torch.full((), NONE, device=run.device)  # over the whole stage: it ends with the first one
        self.values: Losses = {}  # of that step, of any other before there is one
        self.start = done.counted.get(START)  # the loss of the first step, until a line has said it

    def update(self, nth: int, losses: Losses, norm: Tensor) -> None:
        """Counts step `nth` of the epoch; norm: of all its gradients."""
        values = {name: x.detach().float().to(self.first.device) for name, x in {**losses, NORM: norm}.items()}
        if self.fresh:
            self.fresh = False
            self.start = torch.stack([values[name] for name in losses]).sum()
        sound = torch.stack(list(values.values())).isfinite().all()
        new = ~sound & (self.first == NONE)
        self.values = {name: torch.where(new, x, self.values.get(name, x)) for name, x in values.items()}
        self.first = torch.where(new, nth, self.first)
        self.sum, self.most = self.sum + values[NORM], torch.maximum(self.most, values[NORM])
        self.steps += 1

    def check(self, epoch: int, batches: Sequence[Batch]) -> None:
        """Ends the run where a loss or a gradient of the epoch was not finite, before anything of that is kept.

        The images of the first such batch are written into the run folder.  epoch: counted from 1.  batches: its.

        Raises:
            UserError: with stage, epoch, step, images, and what to do.
        """
        step = int(self.run.accelerator.gather(self.first.reshape(1)).min())  # all processes end, or none
        if step == NONE:
            return
        rows = self._rows(batches[step])
        found = self.run.data.paths(rows) if self.run.data is not None else []
        values = {name: float(x) for name, x in self.values.items()}
        bad = [name for name, value in values.items() if not torch.tensor(value).isfinite()] or list(values)
        file, last = self.run.folder / BAD_BATCH, checkpoint.where_last(self.run.folder)
        record = {
            "stage": self.stage.name,
            "epoch": epoch,
            "step": step + 1,
            "values": {name: str(value) for name, value in values.items()},  # JSON has no NaN
            "rates": [group["lr"] for optimiser in self.stage.optimisers for group in optimiser.param_groups],
            "rows": rows,
            "paths": found,
        }
        if self.run.main:
            write_json(file, record)
        images = ", on " * bool(found) + ", ".join(found[:SHOWN]) + ", ..." * (len(found) > SHOWN)
        raise UserError(
            f"{self.stage.name}: {', '.join(bad)} not finite in epoch {epoch}, step {step + 1}{images}; the batch is "
            f"in {file}. Nothing from that step on was kept: {last}. --resume continues from there, but with the same "
            "flags it comes to the same place, unless the device failed: lower the learning rates (--rate, "
            "--prompt-rate, ...) and start anew with --overwrite, or in another --output"
        )

    def _rows(self, batch: Batch) -> list[int]:
        """The training images of the whole batch, by their row; none where the batch does not say."""
        if "rows" not in batch:
            return []
        rows = batch["rows"] if self.stage.shared else self.run.accelerator.gather(batch["rows"])
        return [int(row) for row in rows]

    def figures(self) -> dict[str, float]:
        """For a line of the log: the mean and the largest gradient norm since the last line; the loss of the first step
        in the first one."""
        found = {NORM: float(self.sum) / max(self.steps, 1), f"{NORM}_max": float(self.most)}
        if self.start is not None:
            found[START], self.start = float(self.start), None
        self.sum, self.most, self.steps = torch.zeros_like(self.sum), torch.zeros_like(self.most), 0
        return found

    def counted(self) -> dict[str, Tensor]:
        """What was counted since the last line, for a checkpoint."""
        return {NORM: self.sum, f"{NORM}_max": self.most} | ({} if self.start is None else {START: self.start})


def gradient_norm(optimiser: torch.optim.Optimizer) -> Tensor:
    """The norm of all gradients of its parameters together, a scalar on their device."""
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def rise(losses: Sequence[float], start: float | None) -> str | None:
    """A warning where a stage ends with a loss that has risen, by more than chance.

    That is: of what the mean loss had fallen by since the first epoch, half is lost again, and this is more than a
    tenth of the first one; or it is twice the loss of the first step.

    losses: the means of the epochs that were logged.  start: the loss of the first step, where it is known.
    """
    first, lowest, last = losses[0], min(losses), losses[-1]
    climbed = last - lowest > max(LOST * (first - lowest), NOISE * abs(first))
    if not (climbed or (start is not None and last - start > (FAR - 1) * abs(start))):
        return None
    before = "" if start is None else f"{start:.4g} in the first step, "
    return (
        f"the loss has risen: {before}{first:.4g} in the first epoch, {lowest:.4g} in the best, {last:.4g} in the last"
        ": the training may have diverged; lower the learning rates (--rate, --prompt-rate, ...), or train for fewer "
        "epochs"
    )


def doubt_losses(stage: Stage, run: Run) -> None:
    """Warns where the loss of a finished stage has risen, by the lines of log.jsonl, also of an earlier command."""
    found = read_losses(run.log.file).get(stage.name)
    if found and (text := rise([line["loss"] for line in found], found[0].get(START))):
        run.log.warn(text, stage.name)
