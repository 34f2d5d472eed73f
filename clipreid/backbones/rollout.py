"""Where an image tower looked: attention rollout, from the queries and keys of its blocks.

Abnar & Zuidema, "Quantifying attention flow in transformers", arXiv 2005.00928, section 3: with A_l the attention of
block l (mean over heads) and half of each token passed on by the residual connection, R = prod_l (A_l + I) / 2 says how
much of each input token reaches each output token. B images, T tokens, N patches (T = 1+N with a CLS token), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from clipreid.backbones.transformer import Attention
from clipreid.backbones.vision import About, Hook, VisionTower


def attention_rollout(
    tower: VisionTower, pixels: Tensor, hooks: Sequence[Hook] = (), about: About | None = None
) -> Tensor:
    """Normalised pixels [B, 3, H, W] to maps [B, h, w], float32: the share of each patch in the tower's pooled feature.

    A map sums to one. CLIP: the CLS token's row of R, without CLS itself. SigLIP: the attention of the pooling head's
    probe, times R. The blocks' own q_proj and k_proj are used, so adapters in them count; the tower is run as it is,
    and left as it was. Memory: B x heads x T^2 for one block at a time.

    Raises:
        ValueError: a hook added or dropped tokens, so that there is no patch to each token; what the tower refuses.
    """
    h, w = tower.grid
    tokens = h * w + tower.has_cls
    flow: list[Tensor] = []  # R so far [B, T, T], one element

    def mix(attention: Tensor) -> None:  # [B, T, T]
        if attention.shape[-1] != tokens:
            raise ValueError(
                f"a block saw {attention.shape[-1]} tokens instead of {tokens}: hooks that add or drop "
                "tokens leave no map of the image"
            )
        step = (attention + torch.eye(tokens, device=attention.device)) / 2
        flow[:] = [step @ flow[0] if flow else step]

    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False), _watched(tower, mix) as probed:
        tower(pixels.to(next(tower.parameters()).dtype), hooks=hooks, about=about)
    (rolled,) = flow
    if tower.has_cls:
        seen = rolled[:, 0, 1:]  # [B, N]
    else:
        (probe,) = probed  # [B, 1, N]
        seen = (probe @ rolled)[:, 0]  # [B, N]
    seen = seen / seen.sum(1, keepdim=True)
    return rearrange(seen, "b (h w) -> b h w", h=h)


@contextmanager
def _watched(tower: VisionTower, mix: Callable[[Tensor], None]) -> Iterator[list[Tensor]]:
    """Meanwhile `mix` is given the attention [B, T, T] of each block, in order; yields the pooling head's [B, 1, N].

    Hooks read the input of the attention modules; they compute beside them what fused attention does not return.
    """
    probed: list[Tensor] = []

    def on_block(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        mix(_attention(module, inputs[0]))

    def on_head(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.MultiheadAttention)
        probe, x, _ = inputs
        probed.append(_probe_attention(module, probe, x))

    watched = [module for module in tower.encoder.modules() if isinstance(module, Attention)]  # in order
    handles = [module.register_forward_pre_hook(on_block) for module in watched]
    if not tower.has_cls:
        handles.append(tower.head.attention.register_forward_pre_hook(on_head))
    try:
        yield probed
    finally:
        for handle in handles:
            handle.remove()


def _attention(module: Attention, x: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)), mean over heads: [B, T, C] -> [B, T, T]."""
    q, k = (rearrange(p(x).float(), "b t (h d) -> b h t d", h=module.heads) for p in (module.q_proj, module.k_proj))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)


def _probe_attention(module: nn.MultiheadAttention, probe: Tensor, x: Tensor) -> Tensor:
    """The same for the pooling head's one query: [B, 1, C], [B, N, C] -> [B, 1, N]."""
    in_weight, in_bias = module.in_proj_weight.float(), module.in_proj_bias.float()
    c = module.embed_dim
    q = nn.functional.linear(probe.float(), in_weight[:c], in_bias[:c])
    k = nn.functional.linear(x.float(), in_weight[c : 2 * c], in_bias[c : 2 * c])
    q, k = (rearrange(p, "b t (h d) -> b h t d", h=module.num_heads) for p in (q, k))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
