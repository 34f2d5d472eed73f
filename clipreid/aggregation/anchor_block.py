"""A transformer block in which patches attend to anchors.

B images, N patches, K anchors (text and domain), C tower width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class AnchorBlock(nn.Module):
    """Pre-norm block in which patches attend to anchors; `mlp_width` 0 leaves the feed-forward part out."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: Callable[[Tensor], Tensor],
        eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads, self.activation, self.dropout, self.has_mlp = heads, activation, dropout, mlp_width > 0
        self.norm_patches, self.norm_anchors = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        if self.has_mlp:
            self.norm_mlp = nn.LayerNorm(width, eps=eps)
            self.fc1, self.fc2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, N, C] and anchors [B, K, C] to patches and the attention without dropout [B, H, N, K]."""
        y = self.norm_anchors(anchors)
        projected = (self.q_proj(self.norm_patches(x)), self.k_proj(y), self.v_proj(y))
        q, k, v = (rearrange(p, "b n (h d) -> b h n d", h=self.heads) for p in projected)
        logits = q @ k.transpose(2, 3) * q.shape[3] ** -0.5  # [B, H, N, K]
        attention = logits.float().softmax(dim=3)
        mixed = F.dropout(attention, self.dropout, self.training).to(v.dtype) @ v  # [B, H, N, C/H]
        x = x + self.out_proj(rearrange(mixed, "b h n d -> b n (h d)"))
        if self.has_mlp:
            x = x + self.fc2(self.activation(self.fc1(self.norm_mlp(x))))
        return x, attention

    @torch.no_grad()
    def copy_from(self, block: Any) -> None:
        """Takes the weights of a tower's block, with its adapters; both norms of the attention from its first.

        Raises ValueError for a block of another shape or number of heads.
        """
        attention, mlp = block.self_attn, block.mlp
        if attention.heads != self.heads:
            raise ValueError(f"the tower's block has {attention.heads} heads, this one {self.heads}")
        pairs: list[tuple[Any, Any]] = [(self.norm_patches, block.layer_norm1), (self.norm_anchors, block.layer_norm1)]
        pairs += [
            (getattr(self, name), getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        ]
        if self.has_mlp:
            pairs += [(self.norm_mlp, block.layer_norm2), (self.fc1, mlp.fc1), (self.fc2, mlp.fc2)]
        for mine, theirs in pairs:
            for own, found in zip((mine.weight, mine.bias), _effective(theirs), strict=True):
                if own.shape != found.shape:
                    raise ValueError(f"the tower's block has weights {list(found.shape)} where {list(own.shape)} are")
                own.copy_(found)


def _effective(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, with what peft's adapters add to it."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    weight = base.weight.detach()
    if base is not layer and not layer.merged and not layer.disable_adapters:
        weight = weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    return weight, base.bias
