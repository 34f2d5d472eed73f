"""Hidden words of a caption are found with the help of its image: the interaction encoder of IRRA.

B images with a caption each, N image tokens, L text tokens, E embedding, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipreid.backbones import Tokens, VisionTower
from clipreid.backbones.text import TextTower
from clipreid.backbones.transformer import Encoder, init_encoder, init_linear, quick_gelu

PER_HEAD = 64  # width of a head


def image_tokens(tower: VisionTower, tokens: Tokens) -> Tensor:
    """All tokens of the last layer in the space of the texts [B, (1+)N, E]: CLIP's projection of each, CLS first; of
    SigLIP, whose pooling head gives one feature only, the patches as they are."""
    if tokens.cls is None:
        return tokens.patches
    return torch.cat([tokens.pooled[:, None], tower.visual_projection(tokens.patches)], dim=1)


class InteractionEncoder(nn.Module):
    """Masked text tokens ask the tokens of their image, then `depth` blocks and a head over the vocabulary (IRRA: Jiang
    and Ye, CVPR 2023, arXiv 2303.12501, section 3.2).

    The mask is a learned vector in the place of a token's embedding: tokenizers have no such token, and the table of a
    text tower with adapters is frozen (there: a row of the table). Only needed in training.

    Args:
        tower: whose texts are read; its widths and vocabulary.
        depth: blocks behind the cross-attention.
    """

    def __init__(self, tower: TextTower, depth: int = 4) -> None:
        super().__init__()
        width = tower.embed_dim
        heads = math.gcd(width, max(1, width // PER_HEAD))
        self.mask = nn.Parameter(torch.empty(tower.width))
        self.norm_text, self.norm_image, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.encoder = Encoder(depth, width, heads, 4 * width, "quick_gelu", 1e-5)
        self.dense, self.norm_head = nn.Linear(width, width), nn.LayerNorm(width)
        self.vocabulary = nn.Linear(width, tower.config.vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scaled normal, as CLIP's blocks are (and there)."""
        width = self.dense.in_features
        write = (2 * width * max(1, len(self.encoder.layers))) ** -0.5
        nn.init.normal_(self.mask, std=0.02)
        init_encoder(self.encoder)
        nn.init.normal_(self.cross.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.cross.out_proj.weight, std=write)
        init_linear(self.dense, (2 * width) ** -0.5)
        init_linear(self.vocabulary, write)

    def embed(self, tower: TextTower, ids: Tensor, hidden: Tensor) -> Tensor:
        """Token ids [B, L] to embeddings [B, L, W], the mask where `hidden` [B, L] says so."""
        found = tower.embed(ids)
        return torch.where(hidden[..., None], self.mask.to(found.dtype), found)

    def forward(self, texts: Tensor, images: Tensor, asked: Tensor) -> Tensor:
        """Logits [n, V] of the tokens that are asked.

        Args:
            texts: [B, L, E], every token of the masked texts (`TextTower` without a pool), padding included.
            images: [B, N, E], of `image_tokens`.
            asked: [B, L] bool, n of them.
        """
        keys = self.norm_image(images)
        x = self.cross(self.norm_text(texts), keys, keys, need_weights=False)[0]  # [B, L, E]
        for block in self.encoder.layers:
            x = block(x)
        x = self.norm(x)[asked]  # [n, E]
        return self.vocabulary(self.norm_head(quick_gelu(self.dense(x))))
