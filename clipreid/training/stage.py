"""A stage of training, declared: what is trained, on which batches, by which optimisers, for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

# This process's share of a batch: "pixels" [B, 3, H, W] or "features" [B, E], "labels" [B] long 0..I-1, "cameras" and
# "views" [B] long (-1 = unknown), "rows" [B] long (of the training images). Where classes are
# sampled, "classes" [S] long, sorted, the same in every process. A method may add keys.
Batch = dict[str, Tensor]
Losses = dict[str, Tensor]  # weighted scalars by name: "id_loss", "triplet_loss", ...


@dataclass
class Stage:
    """What `clipreid.training.train` needs to know; a method's `stages` yields one after the other.

    Attributes:
        name: the key in log.jsonl, checkpoints, config.json and metrics.json. Nothing else may spell it.
        module: `module(batch)` -> weighted losses, which the loop sums; `module(batch, turn)` with several optimisers.
            It gathers labels together with features (`clipreid.distributed.gather`). Its trainable parameters and
            buffers are checkpointed. The method must have put it on `run.device` before it makes the optimisers; the
            model that `stages` is given is there already.
        batches: epoch -> this process's batches of that epoch, made when they are asked for. Pure in (seed, epoch,
            rank), but it may look at the module at the start of an epoch (pseudo-labels): see `whole_epochs`.
        optimisers: one, or several that take turns on every batch. Each group's rate is its `base` (its first rate,
            where there is none) times `rate`.
        rate: of the epoch, counted from 0, as a fraction -> factor on every base rate.
        epochs: how many.
        shared: whether every process gets the same whole batches (cached features), not its share of them.
        clip_norm: the norm of all gradients of an optimiser to which larger ones are shortened; None: as they are.
        memory: EMA teacher, proxies, queues: checkpointed whole, never stepped by an optimiser. The loop moves it to
            `run.device` before anything else.
        after_step: called with the batch after every step.
        after_epoch: called with the number of epochs done.
        identities: per-identity tensors that identities.safetensors keeps once the stage is done, by name.
        line_every: epochs between two lines of progress.
        checkpoint_every: epochs between two checkpoints.
        whole_epochs: `batches` looks at the module: an epoch is resumed from its start only, whatever
            `--checkpoint-steps` says.
    """

    name: str
    module: nn.Module
    batches: Callable[[int], Sequence[Batch]]
    optimisers: tuple[Optimizer, ...]
    rate: Callable[[float], float]
    epochs: int
    shared: bool = False
    clip_norm: float | None = None
    memory: nn.Module | None = None
    after_step: Callable[[Batch], None] | None = None
    after_epoch: Callable[[int], None] | None = None
    identities: Callable[[], dict[str, Tensor]] | None = None
    line_every: int = 1
    checkpoint_every: int = 1
    whole_epochs: bool = False
