"""The text tower: CLIP's causal transformer (pooled at EOT) or SigLIP's bidirectional one (last token)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipreid.backbones.transformer import Encoder, init_encoder, init_linear, run_block


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text tower."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    embed_dim: int = 512
    causal: bool = True  # CLIP: causal, pooled at EOT; SigLIP: bidirectional, pooled at the last token
    activation: str = "quick_gelu"  # quick_gelu | gelu | gelu_tanh
    eps: float = 1e-5
    eot_id: int | None = None  # causal: the token to pool at; None: the largest id of a row (OpenAI)


class TokenEmbeddings(nn.Module):
    """The two tables: tokens and positions. `TextTower` adds them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)


def pool_positions(ids: Tensor, causal: bool, eot_id: int | None) -> Tensor:
    """The token that stands for the text [n]: the first EOT of each row of ids [n, L] when causal
    (without an `eot_id` the first occurrence of the row's largest id), else the last token of the row."""
    if not causal:
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    if eot_id is None:
        return ids.argmax(dim=-1)
    return (ids == eot_id).int().argmax(dim=-1)


class TextTower(nn.Module):
    """A text transformer with the module names of transformers' `CLIPTextModel` / `SiglipTextModel`.

    The last projection is `text_projection` (CLIP, no bias) or `head` (SigLIP, with bias), as there.
    Freshly built, it is initialised for training from scratch; loaders replace the weights.
    """

    def __init__(self, config: TextConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        width, eps = config.width, config.eps
        self.embeddings = TokenEmbeddings(config)
        self.encoder = Encoder(config.depth, width, config.heads, config.mlp_width, config.activation, eps)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        if config.causal:
            self.text_projection = nn.Linear(width, config.embed_dim, bias=False)
        else:
            self.head = nn.Linear(width, config.embed_dim)
        self.reset_parameters()

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def context_length(self) -> int:
        return self.config.context_length

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def reset_parameters(self) -> None:
        """CLIP's scaled normal initialisation (see `init_encoder`), for training from scratch."""
        if self.embeddings.token_embedding.weight.is_meta:  # as in the image tower
            return
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.01)
        init_encoder(self.encoder)
        self.final_layer_norm.reset_parameters()
        init_linear(self.text_projection if self.causal else self.head, self.width**-0.5)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [n, L] to token embeddings [n, L, W], without positions."""
        return self.embeddings.token_embedding(ids)

    def pool_index(self, ids: Tensor) -> Tensor:
        """Which token to pool [n], see `pool_positions`."""
        return pool_positions(ids, self.causal, self.config.eot_id)

    def forward(self, embeddings: Tensor, pool: Tensor | None) -> Tensor:
        """Token embeddings to text features.

        Args:
            embeddings: [n, L, W] without positions (`embed`, or learned prompts). A causal tower may be given
                prompts cut after the last EOT: exact, for nothing behind EOT can influence it. A
                bidirectional one needs L = context_length, padding included.
            pool: [n] long, the index of the token to pool; None: none of them is.

        Returns:
            [n, E], not normalised; without `pool` every token projected alike, [n, L, E].

        Raises:
            ValueError: too many tokens, or a bidirectional tower given fewer than its context length.
        """
        length = embeddings.shape[1]
        if length > self.context_length or (not self.causal and length != self.context_length):
            rule = "at most" if self.causal else "exactly"
            raise ValueError(f"{length} tokens given, this text tower takes {rule} {self.context_length}")
        x = embeddings + self.embeddings.position_embedding.weight[:length]  # [n, L, W]
        for block in self.encoder.layers:
            x = run_block(block, x, causal=self.causal, recompute=self.gradient_checkpointing)
        if pool is not None:
            x = x.take_along_dim(pool[:, None, None], dim=1)[:, 0]  # [n, W]
        x = self.final_layer_norm(x)
        return self.text_projection(x) if self.causal else self.head(x)

    def encode(self, ids: Tensor) -> Tensor:
        """Token ids [n, L] to text features [n, E]; a causal tower reads only up to the last EOT."""
        pool = self.pool_index(ids)
        if self.causal and len(ids):
            ids = ids[:, : int(pool.max()) + 1]
        return self(self.embed(ids), pool)
