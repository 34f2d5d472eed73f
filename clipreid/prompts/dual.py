"""Two sentences per identity with the same learned tokens: the individual, and the individual behind an occluder.

I identities, M learned tokens of each, K classes of occluders (1: one for all), L tokens of an occluder, W text width,
E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.errors import UserError
from clipreid.prompts.identity import IdentityPrompts, shared_out
from clipreid.prompts.template import Template


class DualPrompts(IdentityPrompts):
    """ "a photo of a X X X X person." and "a photo of a X X X X person occluded by O O." (DPL-ReID, arXiv 2605.19527).

    The X are the identity's own in both sentences; the O are shared by all identities, and either one set for all
    occluders or one for each class of them. As an `IdentityPrompts` it gives the first sentence. The wording of the
    second one, L = 2 and the initial values (normal, std 0.02, as of the X) are assumed: the paper's text was not at
    hand.

    Args:
        backbone, identities, noun, tokens, generator: as of `IdentityPrompts`; the O are drawn behind the X.
        classes: K; 1 where all occluders have the same tokens.
        occluder_tokens: L, at least 1.

    Raises:
        UserError: as `IdentityPrompts`; nouns of different lengths.

    Attributes:
        context: the X, [I, M, W].
        occluder: the O, [K, L, W].
    """

    def __init__(
        self,
        backbone: Backbone,
        identities: int,
        noun: str | Sequence[str] = "person",
        tokens: int = 4,
        generator: torch.Generator | None = None,
        *,
        classes: int = 1,
        occluder_tokens: int = 2,
    ) -> None:
        super().__init__(backbone, identities, noun, tokens, generator)
        nouns = [noun] if isinstance(noun, str) else noun
        sentences = [sentence.removesuffix(".") + " occluded by {occluder}." for sentence in self.template.sentences]
        slots, flags = {"id": tokens, "occluder": occluder_tokens}, {"occluder": "--occluder-tokens"}
        flags |= {"id": "--prompt-tokens"}
        try:
            self.occluded = Template(backbone, sentences, slots, flags=flags, otherwise="use --prompts identity")
        except UserError:  # itself a ValueError
            raise
        except ValueError as error:  # the nouns stand before the second slot
            raise UserError(
                f"--prompts dual: {', '.join(map(repr, dict.fromkeys(nouns)))} have different numbers of tokens in "
                f"{backbone.name}, and the sentence needs equal ones: give one --noun, or take --prompts identity"
            ) from error
        drawn = torch.empty(classes, occluder_tokens, self.text.width).normal_(std=0.02, generator=generator)
        self.occluder = nn.Parameter(drawn)

    def encode_occluded(self, identities: Tensor, kinds: Tensor) -> Tensor:
        """Identity numbers [n] and classes of occluders [n], 0..K-1 (any where K is 1), to text features [n, E]."""
        kinds = kinds if len(self.occluder) > 1 else torch.zeros_like(kinds)
        learned = F.embedding(kinds, self.occluder.flatten(1)).view(len(kinds), *self.occluder.shape[1:])  # [n, L, W]
        return self.occluded.encode({**self._slots(identities), "occluder": learned}, self.kind[identities])

    def forward_occluded(self, identities: Tensor, kinds: Tensor) -> Tensor:
        """The same, where every process has the same n: each encodes its share, gathered with gradient."""
        return shared_out(self.encode_occluded, identities, kinds)

    @torch.no_grad()
    def occluded_bank(self, batch_size: int = 256) -> Tensor:
        """The text features of all identities behind all classes of occluders, [K, I, E]."""
        pairs = torch.cartesian_prod(*(torch.arange(len(x)) for x in (self.occluder, self.context)))  # [K * I, 2]
        parts = pairs.to(self.context.device).split(batch_size)
        found = torch.cat([self.encode_occluded(part[:, 1], part[:, 0]) for part in parts])
        return found.view(len(self.occluder), len(self.context), -1)
