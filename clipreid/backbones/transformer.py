"""The transformer block that both towers are made of: plain modules with the names of transformers 5."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the activation of OpenAI's CLIP weights (openai/CLIP, model.py)."""
    return x * (1.702 * x).sigmoid()


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU: SigLIP in transformers and big_vision."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
}


class Attention(nn.Module):
    """Multi-head self-attention with four plain `nn.Linear`, so that LoRA can reach each of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:  # [B, N, C] -> [B, N, C]
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (rearrange(p, "b n (h d) -> b h n d", h=self.heads) for p in projected)
        y = attend(q, k, v, causal)  # [B, H, N, C/H]
        return self.out_proj(rearrange(y, "b h n d -> b n (h d)"))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention, [B, H, N, D] each.

    Half precision on a CPU is computed in float32: PyTorch 2.14 takes over three times as long for its gradients.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class MLP(nn.Module):
    """Two linear layers with the activation named in the tower's config."""

    def __init__(self, width: int, mlp_width: int, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:  # [..., C] -> [..., C]
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:  # [B, N, C] -> [B, N, C]
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The stack of blocks, `encoder.layers.N` in a state dict. The towers walk through it themselves."""

    def __init__(self, depth: int, width: int, heads: int, mlp_width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads, mlp_width, activation, eps) for _ in range(depth))


def run_block(block: nn.Module, x: Tensor, *, causal: bool = False, recompute: bool = False) -> Tensor:
    """One block; with `recompute` its activations are not stored but computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, x, causal, use_reentrant=False)
    return block(x, causal)


def init_encoder(encoder: Encoder) -> None:
    """Initialise for training from scratch, as CLIP does (arXiv 2103.00020, section 2.4; openai/CLIP).

    Normal weights: width^-0.5 for what reads the stream, scaled down by (2 depth)^-0.5 for what writes
    into it, (2 width)^-0.5 for the first MLP layer; zero biases; unit LayerNorms.
    """
    for block in encoder.layers:
        assert isinstance(block, Block)
        width = block.self_attn.q_proj.in_features
        read, write = width**-0.5, (2 * width * len(encoder.layers)) ** -0.5
        for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            init_linear(linear, read)
        init_linear(block.self_attn.out_proj, write)
        init_linear(block.mlp.fc1, (2 * width) ** -0.5)
        init_linear(block.mlp.fc2, write)
        block.layer_norm1.reset_parameters()
        block.layer_norm2.reset_parameters()


def init_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights of the given standard deviation, zero bias."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
