"""Textual inversion: a small network turns the feature of an image into pseudo-words, which stand in a sentence.

n images, E width of features and texts, m pseudo-words, W text width, H hidden width, T different nouns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.prompts.template import Template

HIDDEN = 2  # layers


class Inversion(nn.Module):
    """Image features to pseudo-words: (Linear, dropout, ReLU) twice, then Linear, as the code of Pic2Word has it
    (arXiv 2302.03084).

    The feature is L2-normalised and then standardised, `(x / |x| - mean) / std`. Without `standardise` mean is 0 and
    std 1 / sqrt(E), so that the layers see numbers of about 1 whatever the backbone (assumed).

    Args:
        features: E.
        width: W.
        words: m.
        hidden: H.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, width: int, words: int = 1, hidden: int = 512) -> None:
        super().__init__()
        self.words, self.width, self.hidden = words, width, hidden
        self.layers = nn.ModuleList(nn.Linear(size, hidden) for size in [features, hidden][:HIDDEN])
        self.out = nn.Linear(hidden, words * width)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.full((features,), features**-0.5))

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Takes mean and standard deviation of each dimension from these images, [n, E]."""
        unit = F.normalize(features.float(), dim=1)
        self.mean.copy_(unit.mean(0))
        self.std.copy_(unit.std(0, correction=0).clamp_min(1e-6))

    def forward(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Image features [n, E] to pseudo-words [n, m, W].

        kept: [n, 2, H], what the hidden values are multiplied by before the ReLU (dropout: 0 or 1 / (1 - p)).
        """
        x = (F.normalize(features.float(), dim=1) - self.mean) / self.std  # [n, E]
        for nth, layer in enumerate(self.layers):
            x = layer(x)
            x = (x if kept is None else x * kept[:, nth]).relu()  # [n, H]
        found: Tensor = self.out(x)
        return found.view(len(x), self.words, self.width)


def kept_shares(count: int, hidden: int, dropout: float, generator: torch.Generator) -> Tensor:
    """What `Inversion` multiplies the hidden values of `count` images by: [count, 2, H], 0 or 1 / (1 - dropout)."""
    kept = torch.rand(count, HIDDEN, hidden, generator=generator) >= dropout
    return kept / (1 - dropout)


class InversionPrompts(nn.Module):
    """ "a photo of a {content} person." and "a {style} style photo." with the pseudo-words of an image in the slots.

    No parameter belongs to an identity: any image has its texts, also of identities that no training has seen. The text
    tower is frozen here. The wording is assumed (PDM, arXiv 2511.05092: its text was not at hand).

    Args:
        backbone: whose text tower encodes the sentences.
        content, style: the networks; without `style` there is no second sentence.
        nouns: what the individuals are; T different ones.

    Raises:
        UserError: no tokenizer, one that does not give each placeholder one token, or more than the context holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        content: Inversion,
        style: Inversion | None = None,
        nouns: Sequence[str] = ("person",),
    ) -> None:
        super().__init__()
        self.text = backbone.text.requires_grad_(False)  # a part of this module, so that it moves to its device
        self.content, self.style = content, style
        sentences = ["a photo of a {content} " + noun.replace("{", "{{").replace("}", "}}") + "." for noun in nouns]
        otherwise = "use --prompts identity"
        self.sentence = Template(
            backbone, sentences, {"content": content.words}, flags={"content": "--content-words"}, otherwise=otherwise
        )
        self.style_sentence = None
        if style is not None:
            slots, flags = {"style": style.words}, {"style": "--style-words"}
            self.style_sentence = Template(
                backbone, "a {style} style photo.", slots, flags=flags, otherwise="use --style none"
            )

    def content_texts(self, features: Tensor, kind: Tensor, kept: Tensor | None = None) -> Tensor:
        """Image features [n, E], and which noun each image has [n], to content texts [n, E], not normalised."""
        return self.sentence.encode({"content": self.content(features, kept)}, kind)

    def style_texts(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Image features [n, E] to style texts [n, E], not normalised. Raises ValueError without a style network."""
        if self.style is None or self.style_sentence is None:
            raise ValueError("these prompts have no style network")
        return self.style_sentence.encode({"style": self.style(features, kept)})
