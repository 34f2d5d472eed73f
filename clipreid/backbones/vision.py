"""The image tower: one thin ViT for CLIP (CLS token, projection) and SigLIP (attention-pooling head)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from clipreid.backbones.transformer import MLP, Encoder, init_encoder, init_linear, run_block

About = Mapping[str, Tensor]  # what is known of the images: "cameras" [B], "views" [B], ...


class Hook(Protocol):
    """What the tower asks around its blocks (`clipreid.hooks.TokenHook`)."""

    def before(self, layer: int, x: Tensor, about: About) -> Tensor: ...

    def after(self, layer: int, x: Tensor, about: About) -> Tensor: ...


@dataclass(frozen=True)
class VisionConfig:
    """The shape of an image tower. `image_size` (height, width) and `patch_size`, `stride` are in pixels."""

    image_size: tuple[int, int] = (256, 128)
    patch_size: int = 16
    stride: int | None = None  # None: patch_size; smaller means overlapping patches
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    embed_dim: int = 512  # CLIP: output of the projection; SigLIP: equal to width
    pooling: Literal["cls", "attention"] = "cls"  # CLIP | SigLIP
    activation: str = "quick_gelu"  # quick_gelu | gelu | gelu_tanh
    eps: float = 1e-5  # of every LayerNorm

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches: floor((size - patch) / stride) + 1."""
        stride = self.stride or self.patch_size
        height, width = self.image_size
        return (height - self.patch_size) // stride + 1, (width - self.patch_size) // stride + 1


@dataclass
class Tokens:
    """Everything the image tower knows about a batch. B images, N patches, C tower width, E embedding."""

    cls: Tensor | None  # [B, C] CLS after the final norm; None for SigLIP
    patches: Tensor  # [B, N, C] patch tokens after the final norm
    grid: tuple[int, int]  # (h, w) of the image; N = h * w unless a hook added or dropped tokens
    taps: dict[int, Tensor]  # {layer: [B, 1+N, C] or [B, N, C]}, no final norm
    pooled: Tensor  # [B, E] projection | pooling head


class PatchEmbeddings(nn.Module):
    """Pixels to patch tokens with positions (and a CLS token first, for CLIP)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        has_cls = config.pooling == "cls"
        stride = config.stride or config.patch_size
        rows, columns = config.grid
        if has_cls:
            self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride, bias=not has_cls)
        self.position_embedding = nn.Embedding(rows * columns + has_cls, config.width)

    def forward(self, pixels: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, (1+)N, C]
        x = rearrange(self.patch_embedding(pixels), "b c h w -> b (h w) c")
        if hasattr(self, "class_embedding"):
            cls = repeat(self.class_embedding, "c -> b 1 c", b=x.shape[0]).to(x.dtype)  # len() would fix B in an export
            x = torch.cat([cls, x], dim=1)
        return x + self.position_embedding.weight


class PoolingHead(nn.Module):
    """SigLIP's head: one learned probe attends to all tokens, then a residual MLP (arXiv 2303.15343)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.layernorm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C] -> [B, C]
        probe = self.probe.to(x.dtype).expand(x.shape[0], 1, -1)
        y = self.attention(probe, x, x, need_weights=False)[0][:, 0]  # [B, C]
        return y + self.mlp(self.layernorm(y))


class VisionTower(nn.Module):
    """A ViT whose modules carry the names of transformers' `CLIPVisionModel` / `SiglipVisionModel`.

    So a peft adapter trained on this tower loads on those models and back. Freshly built, it is
    initialised for training from scratch (`reset_parameters`); loaders replace the weights.

    Args:
        config: shape, activation, pooling; `config.image_size` fixes the position table.
        gradient_checkpointing: recompute the blocks in the backward pass instead of storing activations.

    Raises:
        ValueError: image smaller than a patch, unknown activation, width not a multiple of heads,
            or an embedding size that differs from the width for attention pooling.
    """

    def __init__(self, config: VisionConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        if min(config.grid) < 1:
            raise ValueError(f"image size {config.image_size} is smaller than one {config.patch_size} patch")
        if config.pooling == "attention" and config.embed_dim != config.width:
            raise ValueError(f"attention pooling gives width {config.width}, not {config.embed_dim}")
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        width, eps = config.width, config.eps
        self.embeddings = PatchEmbeddings(config)
        if config.pooling == "cls":
            self.pre_layrnorm = nn.LayerNorm(width, eps=eps)  # transformers' spelling
        self.encoder = Encoder(config.depth, width, config.heads, config.mlp_width, config.activation, eps)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        if config.pooling == "cls":
            self.visual_projection = nn.Linear(width, config.embed_dim, bias=False)
        else:
            self.head = PoolingHead(config)
        self.reset_parameters()

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    @property
    def stride(self) -> int:
        return self.config.stride or self.config.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def has_cls(self) -> bool:
        return self.config.pooling == "cls"

    def reset_parameters(self) -> None:
        """CLIP's scaled normal initialisation (see `init_encoder`), for training from scratch."""
        std = self.width**-0.5
        conv = self.embeddings.patch_embedding
        if conv.weight.is_meta:  # shapes only, which torch takes long to fill with nothing
            return
        nn.init.normal_(conv.weight, std=(3 * self.patch_size**2) ** -0.5)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=std)
        init_encoder(self.encoder)
        self.post_layernorm.reset_parameters()
        if self.has_cls:
            nn.init.normal_(self.embeddings.class_embedding, std=std)
            self.pre_layrnorm.reset_parameters()
            init_linear(self.visual_projection, std)
            return
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        nn.init.normal_(self.head.probe, std=std)
        nn.init.normal_(self.head.attention.in_proj_weight, std=std)
        nn.init.zeros_(self.head.attention.in_proj_bias)
        init_linear(self.head.attention.out_proj, std)
        init_linear(self.head.mlp.fc1, (2 * self.width) ** -0.5)
        init_linear(self.head.mlp.fc2, std)
        self.head.layernorm.reset_parameters()

    def forward(
        self, pixels: Tensor, taps: Sequence[int] = (), hooks: Sequence[Hook] = (), about: About | None = None
    ) -> Tokens:
        """Images to tokens.

        Args:
            pixels: [B, 3, H, W], normalised with the backbone's mean and std; H, W as `config.image_size`.
            taps: 1-based layers whose output (behind the hooks of that layer, no final norm) is kept in `Tokens.taps`.
            hooks: asked with tokens [B, T, C]: `before(0)` with the embedded tokens, before CLIP's pre-norm;
                `before(i)` in front of block i; `after(i)` behind it, in reverse order, so that each finds what it
                inserted where it put it. For CLIP the first token stays CLS.
            about: what the hooks are told of the images, by name, [B] each.

        Raises:
            ValueError: wrong image size, or a layer that does not exist.
        """
        self._check(pixels, taps)
        about = about or {}
        kept: dict[int, Tensor] = {}
        x = self.embeddings(pixels)  # [B, T, C], T = 1+N for CLIP, N for SigLIP
        for hook in hooks:
            x = hook.before(0, x, about)
        if self.has_cls:
            x = self.pre_layrnorm(x)
        for layer, block in enumerate(self.encoder.layers, start=1):
            for hook in hooks:
                x = hook.before(layer, x, about)
            x = run_block(block, x, recompute=self.gradient_checkpointing)
            for hook in reversed(hooks):
                x = hook.after(layer, x, about)
            if layer in taps:
                kept[layer] = x
        x = self.post_layernorm(x)
        if self.has_cls:
            cls, patches = x[:, 0], x[:, 1:]
            return Tokens(cls, patches, self.grid, kept, self.visual_projection(cls))
        return Tokens(None, x, self.grid, kept, self.head(x))

    def _check(self, pixels: Tensor, taps: Sequence[int]) -> None:
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.config.image_size):
            height, width = self.config.image_size
            raise ValueError(
                f"pixels have shape {list(pixels.shape)}, this tower takes [B, 3, {height}, {width}]; "
                "resize the images or load the backbone with another image_size"
            )
        if wrong := [tap for tap in taps if not 1 <= tap <= self.depth]:
            raise ValueError(f"no layer {wrong}: taps go from 1 to {self.depth}")
