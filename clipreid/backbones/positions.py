"""Position tables on another grid: resized once, when a tower is built."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from clipreid.errors import UserError

Grid = tuple[int, int]  # (rows, columns) of patches
PositionMode = Literal["bicubic", "bilinear"]


def resize_positions(table: Tensor, native: Grid, grid: Grid, mode: PositionMode = "bicubic") -> Tensor:
    """A position table learned on the `native` grid, for another grid.

    `bicubic` (no antialias, half-pixel centres) equals transformers' `interpolate_pos_encoding`;
    `bilinear` is what CLIP-ReID does. A CLS row in front is kept as it is.

    Args:
        table: [h*w, C] or [1 + h*w, C] with (h, w) = `native`.

    Returns:
        [H*W, C] or [1 + H*W, C] with (H, W) = `grid`; the same table where the grids are equal.

    Raises:
        UserError: unknown mode. ValueError: the table does not have the native grid's number of rows.
    """
    if mode not in get_args(PositionMode):
        raise UserError(f"positions={mode!r} is unknown; choose from {', '.join(get_args(PositionMode))}")
    cls, patches = _split(table, native)
    if native == grid:
        return table
    image = rearrange(patches, "(h w) c -> 1 c h w", h=native[0])
    image = F.interpolate(image, size=grid, mode=mode, align_corners=False)
    return torch.cat([cls, rearrange(image, "1 c h w -> (h w) c")])


def square_positions(table: Tensor, grid: Grid, native: Grid) -> Tensor:
    """The way back: a table on the finer `native` grid whose bicubic resize to `grid` is exactly `table`.

    A tower trained on 16x8 positions can so be published with the square table that transformers expects.
    Of the many solutions: bicubic enlargement plus the least-norm correction, so that it stays smooth.

    Args:
        table: [h*w, C] or [1 + h*w, C] with (h, w) = `grid`.

    Returns:
        [H*W, C] or [1 + H*W, C] with (H, W) = `native`, in the table's dtype.

    Raises:
        ValueError: no such table exists (the native grid is coarser in some direction), or wrong row count.
    """
    cls, patches = _split(table, grid)
    count = native[0] * native[1]
    # Column i of the resize matrix is what becomes of a table that is 1 at patch i and 0 elsewhere.
    identity = torch.eye(count, dtype=torch.float64, device=table.device)
    resize = resize_positions(identity, native, grid)  # [h*w, H*W]
    wanted = patches.double()
    start = resize_positions(wanted, grid, native)
    solution = start + torch.linalg.pinv(resize) @ (wanted - resize @ start)
    residual = (resize @ solution - wanted).abs().max().item()
    if residual > 1e-6 * max(1.0, wanted.abs().max().item()):
        raise ValueError(
            f"no {native[0]}x{native[1]} position table resizes to this {grid[0]}x{grid[1]} one "
            f"(best residual {residual:.2g}): take a native grid at least as fine in both directions"
        )
    return torch.cat([cls, solution.to(table.dtype)])


def _split(table: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """CLS rows [0 or 1, C] and patch rows [h*w, C]."""
    extra = len(table) - grid[0] * grid[1]
    if extra not in (0, 1):
        raise ValueError(f"a position table with {len(table)} rows does not fit a {grid[0]}x{grid[1]} grid")
    return table[:extra], table[extra:]
