"""Attribute experts: a LoRA for each attribute in the last blocks, chosen by what is known of the image.

B images, T tokens, C width of the tower; E experts, r rank, A attributes of an image; D and O: input and output of a
linear layer.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.distributed import gather, world
from clipreid.errors import UserError
from clipreid.hooks.base import TokenHook

LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.fc1", "mlp.fc2")  # of each block with experts
# Whose experts work on the images that are in the tower now, and how much, [B, E]. Each thread has its own.
ROUTED: ContextVar[tuple[object, Tensor] | None] = ContextVar("ROUTED", default=None)


class Experts(nn.Module):
    """E low-rank updates of one linear layer; called by it, as a forward hook.

    y = W x + sum_e w_e B_e A_e x with A_e [r, D] and B_e [O, r], and weights w [B, E] of each image: all images and
    experts in two matrix products.
    """

    def __init__(self, count: int, rank: int, linear: nn.Linear, owner: object) -> None:
        super().__init__()
        self.owner = owner
        self.down = nn.Parameter(torch.zeros(count, rank, linear.in_features))  # [E, r, D]
        self.up = nn.Parameter(torch.zeros(count, rank, linear.out_features))  # [E, r, O]

    def reset_parameters(self) -> None:
        """As LoRA: A is drawn, B is zero, so that the tower is unchanged before training."""
        bound = 1 / math.sqrt(self.down.shape[2])  # that of `nn.Linear`
        nn.init.uniform_(self.down, -bound, bound)
        nn.init.zeros_(self.up)

    def forward(self, linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the layer returned, [B, T, O], plus the experts' updates."""
        routed = ROUTED.get()
        if routed is None or routed[0] is not self.owner:
            return output
        return output + self.update(inputs[0], routed[1]).to(output.dtype)

    def update(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [B, T, D] and weights [B, E] to the sum of the updates, [B, T, O]."""
        h = F.linear(x, self.down.flatten(0, 1).to(x.dtype))  # [B, T, E r]
        h = h * weights.repeat_interleave(self.down.shape[1], dim=1)[:, None].to(h.dtype)
        return h @ self.up.flatten(0, 1).to(h.dtype)


class AttributeExperts(TokenHook):
    """Experts for `codes` [E] in the last blocks of a tower, with an oracle as router: the attributes of each image.

    With A(x) the experts whose attribute the image has, each linear layer of those blocks gets

        alpha / r * sum_{a in A(x)} B_a A_a x / |A(x)|

    An image of which no such attribute is known has no expert, and is what the tower alone makes of it.

    Of what is known of the images it reads "attributes" [B, A, 2] (`clipreid.data.attributes.attribute_codes`); in
    training, each attribute of an image is hidden with the probability `hide`, by draws from "rows" that are the
    same in every process.

    Args:
        tower: whose last `blocks` blocks get experts; its linear layers call them.
        codes: of values (`by` value) or of attributes (`by` attribute).
        mix: mean, or sum: without the division by |A(x)|.

    Raises:
        UserError: more blocks than there are; a tower that recomputes its blocks in the backward pass, when it is no
            longer known which images they were.

    Attributes:
        muted: codes of experts that do not take part, for analyses; |A(x)| still counts them, so that the others do
            what they did before.
    """

    reads = ("attributes",)

    def __init__(
        self,
        tower: Any,
        codes: Sequence[int],
        blocks: int = 4,
        rank: int = 8,
        alpha: float = 16.0,
        by: Literal["value", "attribute"] = "value",
        mix: Literal["mean", "sum"] = "mean",
        hide: float = 0.0,
    ) -> None:
        super().__init__()
        if blocks > tower.depth:
            raise UserError(f"--expert-blocks {blocks}: the tower has {tower.depth} blocks")
        if tower.gradient_checkpointing:
            raise UserError("attribute experts do not work with gradient checkpointing: load the backbone without it")
        self.column, self.mix, self.hide, self.scale = int(by == "value"), mix, hide, alpha / rank
        self.depth, self.owner, self.muted = tower.depth, object(), frozenset[int]()
        self.codes: Tensor
        self.register_buffer("codes", torch.tensor(codes, dtype=torch.long), persistent=False)  # [E]
        self.experts = nn.ModuleDict()
        for layer in range(tower.depth - blocks + 1, tower.depth + 1):
            for name in LINEARS:
                linear = tower.encoder.layers[layer - 1].get_submodule(name)
                experts = Experts(len(codes), rank, linear, self.owner)
                self.experts[f"{layer}_{name.replace('.', '_')}"] = experts
                linear.register_forward_hook(experts)

    def reset_parameters(self) -> None:
        """Draws all experts."""
        for experts in self.experts.values():
            experts.reset_parameters()  # type: ignore[operator]

    def route(self, about: Mapping[str, Tensor]) -> Tensor | None:
        """The weight of each expert for each image, [B, E]; None where no attributes are given."""
        if "attributes" not in about:
            return None
        given = about["attributes"][..., self.column]  # [B, A]
        if self.training and self.hide:
            given = given.masked_fill(hidden(about["rows"], given.shape[1], self.hide).to(given.device), -1)
        active = (given[..., None] == self.codes).any(1)  # [B, E]
        count = active.sum(1, keepdim=True).clamp_min(1) if self.mix == "mean" else 1
        if self.muted:
            active = active & ~torch.isin(self.codes, torch.tensor(sorted(self.muted), device=self.codes.device))
        return self.strength * self.scale * active.float() / count

    def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Nothing to the tokens [B, T, C]; in front of the first block the experts are chosen."""
        if layer == 0:
            weights = self.route(about)
            ROUTED.set(None if weights is None else (self.owner, weights))
        return x

    def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Nothing to the tokens; behind the last block no expert is chosen any more."""
        if layer == self.depth:
            ROUTED.set(None)
        return x

    def bake(self, tower: nn.Module) -> None:
        """Raises `UserError`: the experts need attributes, which an exported tower is not given."""
        raise UserError(
            "attribute experts need the attributes of each image, which an exported model is not given: it cannot be "
            "exported; use clipreid.load and model.embed(images, attributes=[...])"
        )


def hidden(rows: Tensor, count: int, share: float) -> Tensor:
    """Which attributes [B, A] of these images are hidden in this step, bool: an image's draws depend on the images of
    the global batch, and not on the number of processes. count: A."""
    every = gather(rows)  # [G]
    drawn = torch.Generator().manual_seed(zlib.crc32(every.cpu().numpy().tobytes()))
    rank, processes = world()
    return (torch.rand(len(every), count, generator=drawn) < share).chunk(processes)[rank]
