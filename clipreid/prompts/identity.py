"""Per-identity prompts: "a photo of a [X]1 [X]2 [X]3 [X]4 person.", the four X learned for every identity.

I identities, M learned tokens, L prompt tokens, W text width, E embedding; T different nouns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.distributed import gather, world
from clipreid.prompts.template import Template


class IdentityPrompts(nn.Module):
    """Learned text features, one per identity (CLIP-ReID, arXiv 2211.13977, section 3.2).

    Only `context` is trained; the text tower is frozen here.

    Args:
        backbone: whose text tower encodes the prompts.
        identities: I.
        noun: what the individuals are: "person", "vehicle", ...; or I nouns, one for each identity.
        tokens: M.
        generator: draws the initial tokens (normal, std 0.02).

    Attributes:
        context: the learned tokens [I, M, W].
        template: the sentences, one for each different noun, with the slot `id`.
        kind: which sentence each identity takes, [I], 0..T-1.

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
        self.text = backbone.text.requires_grad_(False)  # a part of this module, so that it moves to its device
        sentences = ["a photo of a {id} " + kind.replace("{", "{{").replace("}", "}}") + "." for kind in kinds]
        flags, otherwise = {"id": "--prompt-tokens"}, "use --prompts none"
        self.template = Template(backbone, sentences, {"id": tokens}, flags=flags, otherwise=otherwise)
        self.kind: Tensor
        self.register_buffer("kind", torch.tensor([kinds.index(n) for n in nouns]), persistent=False)
        drawn = torch.empty(identities, tokens, self.text.width).normal_(std=0.02, generator=generator)
        self.context = nn.Parameter(drawn)

    def _slots(self, identities: Tensor) -> dict[str, Tensor]:
        # F.embedding, not indexing: its backward is deterministic
        learned = F.embedding(identities, self.context.flatten(1))  # [n, M * W]
        return {"id": learned.view(len(identities), *self.context.shape[1:])}

    def prompt(self, identities: Tensor) -> Tensor:
        """Identity numbers [n] to prompt embeddings [n, L, W], ready for the text tower."""
        return self.template.embeddings(self._slots(identities), self.kind[identities])

    def encode(self, identities: Tensor) -> Tensor:
        """Identity numbers [n] to text features [n, E], not normalised."""
        return self.template.encode(self._slots(identities), self.kind[identities])

    def forward(self, identities: Tensor) -> Tensor:
        """Identity numbers [n], the same in every process, to text features [n, E].

        Under several processes each encodes its share and the shares are gathered with gradient.
        """
        return shared_out(self.encode, identities)

    @torch.no_grad()
    def bank(self, batch_size: int = 256) -> Tensor:
        """The text features of all identities, [I, E]."""
        everyone = torch.arange(len(self.context), device=self.context.device)
        return torch.cat([self.encode(part) for part in everyone.split(batch_size)])


def shared_out(encode: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """`encode(*numbers)` [n, E] of numbers [n] that every process has alike: each encodes its share of the rows, and
    the shares are gathered with gradient."""
    rank, size = world()
    if size == 1:
        return encode(*numbers)
    count = len(numbers[0])
    share = -(-count // size)
    padded = [F.pad(x, (0, share * size - count)) for x in numbers]  # number 0 fills up; cut off below
    return gather(encode(*(x[rank * share : (rank + 1) * share] for x in padded)))[:count]
