"""Distillation: losses that hand what one space knows to another. C identities, E and D widths of two spaces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relation_loss(
    student: Tensor, teacher: Tensor, rows: Tensor, temperature: float = 0.1, *, itself: bool = True
) -> Tensor:
    """How far relations among the rows of one matrix are from those of another: the mean over `rows` of

    `KL(softmax(cos(t_i, .) / tau) || softmax(cos(s_i, .) / tau))`.

    The widths may differ, for only cosines inside each space are compared (relational knowledge distillation: Park et
    al., arXiv 1904.05068, and Passalis and Tefas, ECCV 2018).

    Args:
        student: [C, D], trained. teacher: [C, E].
        rows: [n] long, the i whose relations to all others are compared.
        temperature: tau.
        itself: whether i is among its own relations. Without it what all cosines have in common does not count, for a
            softmax does not see a constant.
    """
    logits = []
    for x in (student, teacher):
        unit = F.normalize(x.float(), dim=1)
        cosine = unit[rows] @ unit.T / temperature  # [n, C]
        logits.append(cosine if itself else cosine[_others(rows, len(x))].view(len(rows), len(x) - 1))
    found, wanted = (each.log_softmax(dim=1) for each in logits)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _others(rows: Tensor, count: int) -> Tensor:
    """[n, C] bool: all columns but the row itself."""
    return rows[:, None] != torch.arange(count, device=rows.device)
