"""Sampled classes: in each step, classifiers and texts of the batch's identities and of some others, drawn at random.

Partial FC (An et al., arXiv 2010.05222; Killing Two Birds with One Stone, CVPR 2022): the softmax of the identity loss
is over the positives and a random part of the negatives, as if there were no other identities. Here the texts of the
image-to-text loss are sampled alike (assumed). Label smoothing is over what is sampled.

Gradients, logits and what processes exchange are then as large as the sample. Classifiers and Adam's moments are kept
of all identities, and those that are not sampled do not move: neither by momentum nor by weight decay, which a plain
Adam would go on applying to them. Adam's bias correction counts, for each identity, the steps in which it was sampled.

G images of the global batch, P identities in it, I identities in all, S sampled ones, D width of a feature.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipreid.data import seed_for
from clipreid.model import ReIDModel
from clipreid.training.run import Run
from clipreid.training.stage import Batch

CLASSES = 5413  # keeps these draws apart from those of augmentation


def sample_size(config: Any, identities: int) -> int | None:
    """S: the share `sample_classes` of I, at least the P of a batch; None where all are compared."""
    share = getattr(config, "sample_classes", 1.0)
    size = max(config.identities_per_batch, math.ceil(share * identities)) if share < 1 else identities
    return size if size < identities else None


def draw_classes(own: Tensor, identities: int, size: int, seed: int, epoch: int, step: int) -> Tensor:
    """The sampled identities [S], sorted: those of the global batch, own [P] long, and others at random; the same in
    every process."""
    generator = torch.Generator().manual_seed(seed_for(seed, epoch, step, CLASSES))
    order = torch.rand(identities, generator=generator)
    order[own] = -1  # first
    return order.topk(size, largest=False).indices.sort().values


def place(labels: Tensor, batch: Batch) -> Tensor:
    """Labels [G] as numbers in what the batch samples; as they are where it samples nothing."""
    return torch.searchsorted(batch["classes"], labels) if "classes" in batch else labels


def seen(table: Tensor, batch: Batch, dim: int = 0) -> Tensor:
    """The sampled part of a table that has the identities in dimension `dim`."""
    return table.index_select(dim, batch["classes"]) if "classes" in batch else table


class SampledRows(nn.Module):
    """The sampled rows of every classifier, [S, D] each, as the parameters that are trained in the place of these.

    The classifiers [I, D] get no gradient; `step`, before each step of the optimiser, does Adam on their sampled rows.

    Attributes:
        memory: (a module with the classifiers), for the checkpoint.
    """

    def __init__(self, model: ReIDModel, size: int) -> None:
        super().__init__()
        necks: Any = model.necks
        tables: dict[str, nn.Parameter] = {name: neck.classifier.weight for name, neck in necks.items()}
        self.rows = nn.ParameterDict({name: x.new_zeros(size, x.shape[1]) for name, x in tables.items()})
        self.classes = torch.zeros(size, dtype=torch.long)
        self.memory = (nn.Module(),)  # in a tuple, so that it is no part of this module
        for name, table in tables.items():
            table.requires_grad_(False)
            self.memory[0].register_parameter(name, table)  # itself: its storage is changed by DistributedDataParallel

    def table(self, name: str) -> Tensor:
        return self.memory[0].get_parameter(name)

    @torch.no_grad()
    def forward(self, classes: Tensor) -> dict[str, Tensor]:
        """The rows of the sampled classes [S] by the name of the neck, to be trained in this step."""
        self.classes = classes
        for name, rows in self.rows.items():
            rows.copy_(self.table(name).index_select(0, classes))
        return dict(self.rows.items())

    @torch.no_grad()
    def step(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        """A hook before a step of Adam or AdamW: steps the sampled rows, and leaves it nothing of them to do.

        The state is of all identities: "exp_avg", "exp_avg_sq" [I, D], and "step" [I], how often each was sampled.
        """
        names = {id(rows): name for name, rows in self.rows.items()}
        for group in optimiser.param_groups:
            for rows in group["params"]:
                if id(rows) in names and rows.grad is not None:
                    table, state = self.table(names[id(rows)]), optimiser.state[rows]
                    if not state:
                        state |= {"step": table.new_zeros(len(table))}
                        state |= {name: torch.zeros_like(table) for name in ("exp_avg", "exp_avg_sq")}
                    state["step"] = state["step"].to(table.device)  # torch loads it where it finds it
                    decoupled = isinstance(optimiser, torch.optim.AdamW)
                    adam_rows(table, self.classes, rows.grad, state, group, decoupled)
                    rows.grad = None


def adam_rows(
    table: Tensor, at: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], decoupled: bool
) -> None:
    """A step of Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) on the rows `at` [S] of a table [I, D], in place.

    gradient: [S, D].  state: of all rows, as of `SampledRows.step`.  group: of the optimiser.  decoupled: decay as
    AdamW's.
    """
    beta1, beta2 = group["betas"]
    weight = table.index_select(0, at)
    if decoupled:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
    else:
        gradient = gradient.add(weight, alpha=group["weight_decay"])
    count = state["step"].index_select(0, at) + 1  # [S]
    first = state["exp_avg"].index_select(0, at).lerp_(gradient, 1 - beta1)
    second = state["exp_avg_sq"].index_select(0, at).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2**count)[:, None]).sqrt_().add_(group["eps"])
    weight.addcdiv_(first / (1 - beta1**count)[:, None], root, value=-group["lr"])
    for whole, part in (
        (table, weight), (state["step"], count), (state["exp_avg"], first), (state["exp_avg_sq"], second)
    ):  # fmt: skip
        whole.index_copy_(0, at, part)


def sample_rows(run: Run, model: ReIDModel, config: Any) -> SampledRows | None:
    """What the settings sample of the model's classifiers; None where every step sees all of them."""
    total = len(run.data.names)
    if (size := sample_size(config, total)) is None:
        return None
    run.log.say(f"classifiers and texts: {size:,} of {total:,} identities in each step (--sample-classes)")
    return SampledRows(model, size).to(run.device)


def memory_of(sampled: SampledRows | None) -> nn.Module | None:
    """The memory of a stage that samples."""
    return None if sampled is None else sampled.memory[0]
