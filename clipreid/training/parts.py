"""`--accumulate N`: every batch is embedded in N parts, and what is computed stays the same.

The tower embeds one part after the other and keeps nothing but the features. Necks, batch statistics, mining and losses
see those of the whole batch, as without the flag. Their gradients go back part after part: the tower runs again, now
with what a gradient needs, from the same random state. This is GradCache (Gao et al., arXiv 2101.06983), written as
recomputation of each part (`torch.utils.checkpoint`) in `ReIDModel.forward`. It holds the activations of one part
instead of all, and takes one more forward pass.

It needs features of an image that depend on this image alone. A method says so by a function
`by_parts(config) -> bool`; one without that function is refused.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipreid.config import RunConfig, name_of
from clipreid.errors import UserError


def check_parts(method: ModuleType, flags: RunConfig, config: Any, processes: int = 1) -> None:
    """Refuses, with `UserError`, more parts than a process has images, and methods that look at several images at once.

    processes: 1 also where that is not known yet.
    """
    if flags.accumulate == 1:
        return
    alone = getattr(method, "by_parts", lambda config: False)
    if not alone(config):
        raise UserError(
            f"--accumulate {flags.accumulate}: {name_of(method)} does not embed its images one by one with these "
            "settings, so parts of a batch would be trained otherwise: leave it out; smaller batches "
            "(--identities-per-batch) and --gradient-checkpointing save memory, too"
        )
    P, K = config.identities_per_batch, config.images_per_identity
    if P is not None and K is not None and flags.accumulate > P * K // processes:
        raise UserError(
            f"--accumulate {flags.accumulate}: a batch has {P * K // processes} images in each process, and cannot be "
            "embedded in more parts"
        )


def check_norms(image: nn.Module, parts: int) -> None:
    """Refuses, with `UserError`, an image tower that is trained with batch norms: they would see one part only."""
    if parts > 1 and any(isinstance(each, _BatchNorm) and each.training for each in image.modules()):
        raise UserError(
            f"--accumulate {parts}: the image tower has batch norms, which would see a part of the batch: leave it out"
        )
