"""SAGA: patches of an intermediate layer meet anchors, and those that fit one anchor clearly count more.

B images, N patches, C tower width, E text embedding, H heads, K text anchors, M domain anchors of each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from clipreid.aggregation.anchor_block import AnchorBlock
from clipreid.aggregation.base import Aggregator, HasTokens, patch_tokens

Kind = Literal["saga", "repeated", "mean", "cls"]
Score = Literal["max", "entropy", "uniform"]


@dataclass
class Aligned:
    """What SAGA finds in a batch."""

    feature: Tensor  # [B, C]
    weights: Tensor  # [B, N] how much each patch counts; each row sums to one
    attention: Tensor | None  # [B, N, K+M] of the last block, mean over heads; None for the kinds mean and cls
    anchors: Tensor | None  # [K, C] text anchors in the space of the tokens, for `anchor_diversity_loss`

    @property
    def assignment(self) -> Tensor | None:
        """The anchor that each patch attends to most, [B, N]; from K on it is a domain anchor."""
        return None if self.attention is None else self.attention.argmax(2)


class SAGA(nn.Module):
    """Anchor-guided aggregation of patch tokens (SAGA-ReID, arXiv 2604.22190), built from a description of its code.

    With X [B, N, C] the patches of an intermediate layer and A [B, K+M, C] the anchors:

        A = map(text anchors), domain(mean of X)
        X = X + attention(LN X, LN A, LN A);  X = X + mlp(LN X)          `blocks` times
        s_n = max over anchors of the last block's attention, mean over heads
        feature = sum_n s_n X_n / sum_n s_n

    What a patch attends with never passes dropout on its way to s (in the published code it does, in training).

    Where the values come from. From the code: text map bias-free and xavier; domain anchors by Linear, GELU, Linear
    from the mean patch, M = 3, put beside the text anchors; 2 pre-norm blocks with patches as queries, initialised from
    the tower's block (both norms of the attention from its first); score `max`, mean over heads; no final norm on X.
    Deliberately other than the code: as many heads as the tower, and its activation, so that copied weights mean what
    they meant (the code has 8 heads and GELU). From the project's own list of controls: `kind`, `feed_forward`, `score`
    uniform. Assumed: initial weights of what is not copied (PyTorch's), score `entropy`, where `repeated` takes its
    keys from, `centre`. Dropout is 0.1 on attention in the code and 0 here: its masks would depend on how a batch is
    divided among processes.

    There is no option that scales the text anchors: the norm in front of the attention takes every scale away. What it
    leaves is their common direction. Raw text features lie in a narrow cone and stay there under a linear map, so that
    all anchors are nearly the same key; `centre` subtracts their mean before the map.

    Args:
        width: C.
        embed_dim: E.
        heads, mlp_width, activation, eps: of the tower's blocks (`SAGA.like` reads them).
        blocks: refinement blocks, at least 1.
        domain: M, 0 for none.
        score: what makes a patch count: `max`; `entropy`, exp(-entropy) of its attention; `uniform`, nothing.
        kind: `saga`. Controls: `repeated`, in which the mean patch, mapped, stands K times in the place of the text
            anchors (same capacity, no text); `mean` and `cls`, in which the mean patch or the CLS token is the only
            patch, and stands for the text anchors too (same capacity, nothing to choose among). The control with free
            anchors is a matter of what is passed.
        count: K of `repeated`.
        feed_forward: False leaves the feed-forward network out.
        centre: subtract the mean of the text anchors.
        dropout: on attention while training, never on pooling weights.

    Raises:
        ValueError: unknown kind or score, no block, or a width that is not a multiple of the heads.
    """

    def __init__(
        self,
        width: int,
        embed_dim: int,
        heads: int,
        mlp_width: int,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        eps: float = 1e-5,
        *,
        blocks: int = 2,
        domain: int = 3,
        score: Score = "max",
        kind: Kind = "saga",
        count: int = 24,
        feed_forward: bool = True,
        centre: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for what, value, valid in (("kind", kind, get_args(Kind)), ("score", score, get_args(Score))):
            if value not in valid:
                raise ValueError(f"no {what} {value!r}: choose one of {', '.join(valid)}")
        if blocks < 1 or domain < 0 or count < 1:
            raise ValueError(f"blocks={blocks}, domain={domain}, count={count}: at least 1, 0 and 1 are needed")
        self.width, self.embed_dim, self.domain, self.count = width, embed_dim, domain, count
        self.score, self.kind, self.centre = score, kind, centre
        self.blocks = nn.ModuleList()
        self.map = nn.Linear(embed_dim if kind == "saga" else width, width, bias=False)
        nn.init.xavier_uniform_(self.map.weight)
        if domain:
            self.domain_mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, domain * width))
        for _ in range(blocks):
            self.blocks.append(AnchorBlock(width, heads, mlp_width if feed_forward else 0, activation, eps, dropout))

    @classmethod
    def like(cls, block: Any, embed_dim: int, copy: bool = True, **options: Any) -> SAGA:
        """For the tower that `block` belongs to (with the names of `clipreid.backbones.transformer.Block`).

        copy: every refinement block starts from the weights of `block`, adapters included.
        """
        attention, mlp = block.self_attn, block.mlp
        width, mlp_width = attention.q_proj.in_features, mlp.fc1.out_features
        eps = block.layer_norm1.eps
        found = cls(width, embed_dim, attention.heads, mlp_width, mlp.activation, eps, **options)
        for mine in found.blocks if copy else ():
            assert isinstance(mine, AnchorBlock)
            mine.copy_from(block)
        return found

    @property
    def needs_anchors(self) -> bool:
        """Whether `forward` reads text anchors."""
        return self.kind == "saga"

    def forward(self, patches: Tensor, anchors: Tensor | None = None, cls: Tensor | None = None) -> Aligned:
        """Aggregates the patches of each image.

        Args:
            patches: [B, N, C], an intermediate layer's, no final norm, without CLS.
            anchors: text anchors [K, E], not normalised; needed by the kind `saga`.
            cls: [B, C]; needed by the kind `cls`.

        Raises:
            ValueError: anchors or CLS missing, or a wrong shape.
        """
        if self.kind == "cls" and cls is None:
            raise ValueError("the kind cls needs the CLS token")
        weights = torch.full_like(patches[..., 0], 1 / max(1, patches.shape[1]), dtype=torch.float32)  # [B, N]
        x, single = patches, self.kind in ("mean", "cls")
        if single:
            x = repeat(patches.mean(1) if cls is None or self.kind == "mean" else cls, "b c -> b 1 c")
        text, keys = self._keys(x, anchors)
        for block in self.blocks:
            x, attention = block(x, keys)
        if single:
            return Aligned(x[:, 0], weights, None, None)
        attention = attention.float().mean(1)  # [B, N, K+M]
        if self.score != "uniform":
            score = attention.amax(2) if self.score == "max" else _concentration(attention)
            weights = score / score.sum(1, keepdim=True)  # [B, N]; a score is at least 1/(K+M)
        return Aligned(torch.einsum("bn,bnc->bc", weights.to(x.dtype), x), weights, attention, text)

    def _keys(self, patches: Tensor, anchors: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Text anchors in the space of the tokens [K, C], and all anchors of each image [B, K+M, C]."""
        mean, text = patches.mean(1), None  # [B, C]
        if self.kind != "saga":
            keys = repeat(self.map(mean), "b c -> b k c", k=self.count)
        else:
            if anchors is None or anchors.dim() != 2 or anchors.shape[1] != self.embed_dim:
                given = "none" if anchors is None else list(anchors.shape)
                raise ValueError(f"text anchors [K, {self.embed_dim}] are needed, and {given} given")
            text = self.map(anchors - anchors.mean(0) if self.centre else anchors)
            keys = repeat(text, "k c -> b k c", b=patches.shape[0])
        if self.domain:
            own = rearrange(self.domain_mlp(mean), "b (m c) -> b m c", m=self.domain)
            keys = torch.cat([keys, own], dim=1)
        return text, keys

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, score={self.score!r}, domain={self.domain}, centre={self.centre}"


class SagaAggregator(Aggregator):
    """SAGA beside another aggregator: one feature more, `saga` [B, C], with a neck of its own; nothing is replaced.

    Args:
        saga: the module.
        anchors: called without arguments, gives the text anchors [K, E]; None for kinds that need none.
        layer: of the patches, counted from 1 (`default_layer`).
        beside: gives `final` and `projection` (`clipreid.aggregation.Taps`), and whatever else is trained.
        fusion: weights of `saga`, `final` and `projection` in the test feature; 0 leaves a feature out. The code has
            (2, 0.2, 0.05), for one data set (10, 1, 0); the paper, as it is cited, has no third. They differ by test
            set: choose them on validation.
        standardise: subtract the mean of each dimension of the feature and divide by its deviation, both of the global
            batch in training (`standardised`, by the losses) and kept for test. Not in the code.

    Raises:
        ValueError: anchors missing, or weights that are negative or all 0.
    """

    def __init__(
        self,
        saga: SAGA,
        anchors: nn.Module | None,
        layer: int,
        beside: Aggregator,
        fusion: tuple[float, float, float] = (1.0, 0.0, 0.0),
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if saga.needs_anchors and anchors is None:
            raise ValueError("the kind saga needs anchors")
        if min(fusion) < 0 or not sum(fusion):
            raise ValueError(f"fusion={fusion}: weights of 0 or more are needed, and one above 0")
        self.saga, self.layer, self.beside = saga, layer, beside
        self.anchors = anchors if saga.needs_anchors else None
        self.taps = tuple(dict.fromkeys((*beside.taps, layer)))
        self.widths = {**beside.widths, "saga": saga.width}
        self.necks, self.reads = (*beside.necks, "saga"), beside.reads
        weights = {name: w for name, w in zip(("saga", "final", "projection"), fusion, strict=True) if w}
        self.test, self.weights = tuple(weights), tuple(weights.values())
        self.norm = nn.BatchNorm1d(saga.width, affine=False) if standardise else None
        self.aligned: Aligned | None = None  # of the last batch in training, for its losses

    def align(self, patches: Tensor, final: Tensor) -> Aligned:
        """Patches [B, N, C] of the layer and `final` [B, C] to the feature and how it came about."""
        anchors = self.anchors() if self.anchors is not None else None
        found: Aligned = self.saga(patches, anchors, final)
        return found

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens of B images to the features of `beside`, and `saga` [B, C]."""
        found = self.beside(tokens, about)
        aligned = self.align(patch_tokens(tokens, self.layer), found["final"])
        self.aligned = aligned if self.training else None
        return found | {"saga": aligned.feature if self.training else self.standardised(aligned.feature)}

    def standardised(self, feature: Tensor) -> Tensor:
        """The feature [G, C] of the whole global batch as it is compared, in training; of any images, at test."""
        if self.norm is None or (self.training and len(feature) < 2):
            return feature
        found: Tensor = self.norm(feature)
        return found

    @torch.no_grad()
    def bake(self) -> None:
        """Keeps the anchors as they are now, without the text tower that computed them."""
        self.beside.bake()
        if self.anchors is not None:
            self.anchors = FixedAnchors(self.anchors())


class FixedAnchors(nn.Module):
    """Anchors [K, E] that stay as they are, without a text tower: for an exported model."""

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.detach().clone())

    def forward(self) -> Tensor:
        return self.anchors


def default_layer(depth: int) -> int:
    """Which layer's patches are taken: block 9 of 12 in SAGA's code; three quarters of other depths (assumed)."""
    return max(1, round(0.75 * depth))


def _concentration(attention: Tensor) -> Tensor:
    """exp(-entropy) of each row [B, N, K] to [B, N]: 1/K of an even one, 1 where it is all on one anchor."""
    return (attention * attention.clamp_min(1e-12).log()).sum(2).exp()
