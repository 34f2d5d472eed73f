"""Per-identity prompts: "a photo of a [X]1 [X]2 [X]3 [X]4 person.", the four X learned for every identity.

I identities, M learned tokens, L prompt tokens, W text width, E embedding; T different nouns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.distributed import gather, world
from clipreid.errors import UserError


class IdentityPrompts(nn.Module):
    """Learned text features, one per identity (CLIP-ReID, arXiv 2211.13977, section 3.2).

    Only `context` is trained. A causal text tower reads the prompt up to its EOT only (12 tokens for CLIP instead
    of 77): exact, for nothing behind EOT can influence it. A bidirectional one reads its full length.

    Args:
        backbone: whose text tower encodes the prompts; it is frozen here.
        identities: I.
        noun: what the individuals are: "person", "vehicle", ...; or I nouns, one for each identity.
        tokens: M.
        generator: draws the initial tokens (normal, std 0.02).

    Raises:
        UserError: no tokenizer, one that does not give each placeholder one token, or more than the context holds.
        ValueError: not as many nouns as identities.
    """

    def __init__(
        self,
        backbone: Backbone,
        identities: int,
        noun: str | Sequence[str] = "person",
        tokens: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        nouns = [noun] * identities if isinstance(noun, str) else list(noun)
        if len(nouns) != identities:
            raise ValueError(f"{len(nouns)} nouns for {identities} identities: give one, or one for each")
        kinds = list(dict.fromkeys(nouns))
        self.text = backbone.text.requires_grad_(False)
        templates = [_template(backbone, kind, tokens) for kind in kinds]
        ids, start = torch.cat([found for found, _ in templates]), templates[0][1]  # [T, L]
        pool = backbone.text.pool_index(ids)  # [T]
        if self.text.causal:
            ids = ids[:, : int(pool.max()) + 1]
        with torch.no_grad():
            embedded = self.text.embed(ids.to(self.text.embeddings.token_embedding.weight.device))  # [T, L, W]
        self.kind: Tensor
        self.pool: Tensor
        self.prefix: Tensor
        self.suffix: Tensor
        self.register_buffer("kind", torch.tensor([kinds.index(n) for n in nouns]), persistent=False)  # [I], 0..T-1
        self.register_buffer("pool", pool, persistent=False)
        self.register_buffer("prefix", embedded[:, :start], persistent=False)
        self.register_buffer("suffix", embedded[:, start + tokens :], persistent=False)
        drawn = torch.empty(identities, tokens, self.text.width).normal_(std=0.02, generator=generator)
        self.context = nn.Parameter(drawn)  # [I, M, W]

    def prompt(self, identities: Tensor) -> Tensor:
        """Identity numbers [n] to prompt embeddings [n, L, W], ready for the text tower."""
        count, (_, tokens, width) = len(identities), self.context.shape
        # F.embedding, not indexing: its backward is deterministic
        learned = F.embedding(identities, self.context.flatten(1)).view(count, tokens, width)
        kind = self.kind[identities]  # [n]
        return torch.cat([self.prefix[kind], learned, self.suffix[kind]], dim=1)

    def encode(self, identities: Tensor) -> Tensor:
        """Identity numbers [n] to text features [n, E], not normalised."""
        with torch.autocast(identities.device.type, enabled=False):  # the same precision in training and in the bank
            return self.text(self.prompt(identities), self.pool[self.kind[identities]])

    def forward(self, identities: Tensor) -> Tensor:
        """Identity numbers [n], the same in every process, to text features [n, E].

        Under several processes each encodes its share and the shares are gathered with gradient.
        """
        rank, size = world()
        if size == 1:
            return self.encode(identities)
        share = -(-len(identities) // size)
        padded = F.pad(identities, (0, share * size - len(identities)))  # identity 0 fills up; cut off below
        return gather(self.encode(padded[rank * share : (rank + 1) * share]))[: len(identities)]

    @torch.no_grad()
    def bank(self, batch_size: int = 256) -> Tensor:
        """The text features of all identities, [I, E]."""
        everyone = torch.arange(len(self.context), device=self.context.device)
        return torch.cat([self.encode(part) for part in everyone.split(batch_size)])


def _template(backbone: Backbone, noun: str, tokens: int) -> tuple[Tensor, int]:
    """Token ids of the prompt [1, L] with placeholders, and where the placeholders begin."""
    if backbone.tokenizer is None:
        raise UserError(f"backbone {backbone.name!r} has no tokenizer, which prompts need: use --prompts none")
    sentences = [f"a photo of a{' x' * count} {noun}." for count in (0, 1, tokens)]
    none, one, ids = backbone.tokenizer(sentences)  # [L] each
    start = int((none != one).int().argmax())
    if not torch.equal(one[start + 1 :], none[start:-1]):  # one placeholder moves the rest by one place
        raise UserError(
            f"the tokenizer of {backbone.name!r} does not give each placeholder x one token of its own: "
            "use --prompts none"
        )
    room = max(start, len(none) - tokens)  # what is behind must be padding
    if not torch.equal(ids[start + tokens :], none[start:room]) or bool((none[room:] != none[-1]).any()):
        raise UserError(
            f"--prompt-tokens {tokens}: the sentence with {tokens} learned tokens does not fit into the {len(none)} "
            f"tokens of {backbone.name!r}: choose fewer"
        )
    return ids[None], start
