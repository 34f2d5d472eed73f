"""Patch transfer: in training an image keeps the patches where another image's person is, and takes its others.

B images of this process, G of all processes, N = h x w patches, T tokens, C tower width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from clipreid.distributed import gather, world
from clipreid.hooks.base import TokenHook

TOP, OVERLAP = 0.1, 0.7  # of the pairing as published
FLOOR = 1e-6  # keeps random ties apart from real differences, which are at least 1 / N


class PatchTransfer(TokenHook):
    """Saliency-guided patch transfer (SPT: Tan et al., AAAI 2024), built from a description of its code.

    With M [N] the salient patches of an image, 1 or 0, image i gets a donor j and becomes

        x_i M_j + x_j (1 - M_j)

    at the level of embedded patches: person i shows where person j was visible, the background and what hid j come
    from j. The label stays that of i. `pair` says who the donor is. In training only; at test it does nothing.

    Of a batch it reads "salient" [B, N], 1 or 0, and "rows" [B], which seed its draws: batches depend on seed, epoch
    and step alone. Donors come from the global batch, so results do not depend on the number of processes.

    Assumed: donors are the other images of the batch, never the image itself; an image of which nothing would be left
    stays as it is; equal donors are drawn evenly. The donor's patches carry no gradient (to a patch embedding that is
    trained, under full tuning).

    Args:
        has_cls: whether the first token is CLS, which stays that of i.
        grid: (h, w).
        probability: that an image takes part in a step. 0.0 is the published default; what was used is not known.
    """

    def __init__(self, has_cls: bool, grid: tuple[int, int], probability: float) -> None:
        super().__init__()
        self.at, self.grid, self.probability = int(has_cls), grid, probability

    def before(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        """Embedded tokens [B, T, C], positions added, with patches of their donors."""
        if layer != 0 or not self.training or not self.probability or "salient" not in about:
            return x
        salient, rows = gather(about["salient"].float()), gather(about["rows"])  # [G, N], [G]
        drawn = torch.Generator().manual_seed(zlib.crc32(rows.cpu().numpy().tobytes()))
        donors = pair(salient.cpu() > 0.5, self.grid, drawn)  # [G]
        taken = torch.rand(len(rows), generator=drawn) < self.probability
        mine = slice(None) if world()[1] == 1 else slice(world()[0] * len(x), (world()[0] + 1) * len(x))
        donors = torch.where(taken, donors, -1)[mine].to(x.device)  # [B]
        patches = gather(x[:, self.at :].detach())[donors]  # [B, N, C]
        return torch.cat([x[:, : self.at], transfer(x[:, self.at :], patches, salient[donors], donors)], dim=1)

    def bake(self, tower: nn.Module) -> None:
        """Nothing: at test it does nothing."""


def transfer(x: Tensor, given: Tensor, salient: Tensor, donors: Tensor) -> Tensor:
    """x_i M_j + x_j (1 - M_j) for patches [B, N, C] and those of the donors, whose `salient` is [B, N].

    donors: [B]; those below 0 give nothing.
    """
    kept = ((salient > 0.5) | (donors < 0)[:, None])[..., None]  # [B, N, 1]
    return torch.where(kept, x, given.to(x.dtype))


def pair(salient: Tensor, grid: tuple[int, int], drawn: torch.Generator) -> Tensor:
    """Occlusion-aware pairing (SPT): a donor for each image whose visible person stands where the image's own does.

    Donors j are ranked by |shift(M_i, d) and M_j| / |M_j|, the best over all horizontal shifts d (patches that leave on
    one side come in on the other, as published). One is drawn among the best tenth (at least one) of those that
    overlap by more than 0.7 without a shift; where there is none, the best donor is taken.

    Args:
        salient: [G, N] bool.
        grid: (h, w).
        drawn: for the draws.

    Returns:
        [G] long; -1 for an image of which the donor would leave nothing, or that has no other beside it.
    """
    count = len(salient)
    if count < 2:
        return torch.full((count,), -1)
    maps = rearrange(salient.float(), "g (h w) -> g h w", h=grid[0])
    size = salient.float().sum(1).clamp_min(1)  # [G] of the donors
    overlap = salient.float() @ salient.float().T / size  # [G, G], without a shift
    best = overlap
    for shift in range(1, grid[1]):
        best = torch.maximum(best, maps.roll(shift, dims=2).flatten(1) @ salient.float().T / size)
    itself = torch.eye(count, dtype=torch.bool)
    ranked = (best + FLOOR * torch.rand(count, count, generator=drawn)).masked_fill(itself, -1.0)
    order = ranked.argsort(dim=1, descending=True)[:, : max(1, int(TOP * (count - 1)))]  # [G, top]
    near = overlap.gather(1, order) > OVERLAP
    chance = torch.rand(order.shape, generator=drawn).masked_fill(~near, -1.0)
    chosen = torch.where(near.any(1), chance.argmax(1), 0)  # [G] a place in `order`
    donors = order.gather(1, chosen[:, None])[:, 0]
    left = overlap.gather(1, donors[:, None])[:, 0] > 0
    return torch.where(left, donors, -1)
