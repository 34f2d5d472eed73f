"""Text anchors: a few short phrases, partly learned, as points in the text space that image patches are compared with.

K anchors, m learnable and f frozen slots, W text width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipreid.backbones import Backbone
from clipreid.errors import UserError
from clipreid.prompts.template import Template, word_embeddings

# Ours: SAGA's code has 24 phrases on body parts, clothing, bags, headwear, pose, shoes and overall look.
PHRASES = (
    "head and hair",
    "face",
    "neck and collar",
    "shoulders and upper back",
    "arms and sleeves",
    "hands and what they hold",
    "front of the shirt",
    "waist and belt",
    "hips",
    "thighs and knees",
    "lower legs",
    "colour of the shirt",
    "colour of the trousers",
    "print on the shirt",
    "coat or jacket",
    "dress or skirt",
    "long trousers",
    "shorts and bare legs",
    "hat, cap or hood",
    "backpack",
    "handbag or shoulder bag",
    "shoes and socks",
    "walking pose",
    "overall look",
)


class TextAnchors(nn.Module):
    """K learned text features from phrases (SAGA-ReID, arXiv 2604.22190, as its published code is described).

    Each text is m learnable slots, f frozen slots, the noun and a full stop, read by the frozen text tower (whose
    weights are no part of this module). Values and their sources: K = 24, m = 4 and f = 12, the initial values of both
    kinds of slots, and the order are from a reading of the code. Assumed: the full stop is the sentence's own, and a
    phrase with fewer tokens than learnable slots gives some of them twice.

    `forward` needs no argument. In evaluation mode and without gradient the features are computed once and kept, until
    the mode, the device, the slots or the text tower's weights change (in place, as optimisers and
    `load_state_dict` do).

    Args:
        backbone: whose text tower reads the texts; it is frozen here.
        phrases: of the anchors. What has no `frozen` tokens is filled up with their mean; what has more is cut
            (`cut` lists these phrases), but the learnable slots start from the whole phrase.
        noun: what the individuals are.
        learnable: m, at least 1; initial values are m evenly sampled tokens of the phrase + N(0, 0.01^2).
        frozen: f, 0 or more.
        noun_tokens: tokens of the noun; None: as many as it has. Where the noun is not known (it is a text, and not
            published), its number of tokens makes the place that the saved ones are loaded into.
        count: K. The first K phrases are taken; where there are fewer, they are taken again from the first (with
            other noise). None: one anchor for each phrase.
        generator: draws the noise.

    The frozen slots and the noun are saved with the learnable ones, as vectors: `phrases` and `noun` need not be known
    to load them, only their numbers. They are embeddings of words, which can be found from them.

    Raises:
        UserError: no tokenizer, a phrase without words, no phrases, numbers out of range, or a sentence that does not
            fit into the tower's context.
    """

    def __init__(
        self,
        backbone: Backbone,
        phrases: Sequence[str] = PHRASES,
        noun: str = "person",
        learnable: int = 4,
        frozen: int = 12,
        count: int | None = None,
        noun_tokens: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        count = len(phrases) if count is None else count
        for flag, value, least in (("learnable", learnable, 1), ("frozen", frozen, 0), ("anchors", count, 1)):
            if value < least:
                raise UserError(f"text anchors: {flag} = {value}, and at least {least} is needed")
        if not phrases:
            raise UserError("text anchors: no phrases: give at least one")
        text = backbone.text.requires_grad_(False)
        self.source = (text,)  # in a tuple, so that the tower is no part of this module
        own = word_embeddings(backbone, noun)  # [tokens of the noun, W]
        noun_tokens = len(own) if noun_tokens is None else noun_tokens
        slots = {"learnable": learnable, "frozen": frozen, "noun": noun_tokens}
        sentence = "{learnable} {frozen} {noun}."
        flags = {"frozen": "--frozen-slots"}  # the one to lower where the context is short
        self.template = Template(backbone, sentence, slots, flags=flags)
        self.phrases = tuple(phrases[nth % len(phrases)] for nth in range(count))
        words = [word_embeddings(backbone, phrase) for phrase in self.phrases]  # [tokens of the phrase, W] each
        self.cut = tuple(p for p, x in zip(self.phrases, words, strict=True) if 0 < frozen < len(x))
        noise = torch.empty(count, learnable, text.width).normal_(std=0.01, generator=generator).to(words[0])
        self.context = nn.Parameter(torch.stack([_sampled(x, learnable) for x in words]) + noise)  # [K, m, W]
        self.frozen: Tensor
        self.register_buffer("frozen", torch.stack([_padded(x, frozen) for x in words]))  # [K, f, W]
        self.noun: Tensor
        self.register_buffer("noun", _padded(own, noun_tokens)[None])  # [1, n, W]
        self._kept: tuple[list[tuple[Tensor, int]], Tensor] | None = None

    def forward(self) -> Tensor:
        """The anchors [K, E], not normalised; with gradient to `context` when there is one."""
        (text,) = self.source
        if text.embeddings.token_embedding.weight.device != self.context.device:
            text.to(self.context.device)
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._encode()
        state = [(x, x._version) for x in (self.context, self.frozen, self.noun, *text.parameters())]
        if self._kept is None or not _same(self._kept[0], state):
            self._kept = state, self._encode()
        return self._kept[1]

    def _encode(self) -> Tensor:
        return self.template.encode({"learnable": self.context, "frozen": self.frozen, "noun": self.noun})

    def train(self, mode: bool = True) -> TextAnchors:
        """As of any module; what was kept is computed again after training."""
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> TextAnchors:  # another device or precision
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:  # copies do not take along what is kept, the tower's weights among it
        return self.__dict__ | {"_kept": None}

    def extra_repr(self) -> str:
        return f"anchors={len(self.context)}, learnable={self.context.shape[1]}, frozen={self.frozen.shape[1]}"


class FreeAnchors(nn.Module):
    """K free vectors [K, E] in the place of text features: the control that shows what the texts are worth.

    Truncated normal, std 0.02 (reading of SAGA's code). Assumed: they live in the text space, so that all that
    follows is the same.
    """

    def __init__(self, count: int, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        drawn = torch.empty(count, width)
        self.context = nn.Parameter(nn.init.trunc_normal_(drawn, std=0.02, generator=generator))

    def forward(self) -> Tensor:
        return self.context


def read_phrases(file: Path | None) -> Sequence[str]:
    """One phrase per line, UTF-8; the built-in ones without a file. Raises `UserError` for an unusable file."""
    if file is None:
        return PHRASES
    try:
        phrases = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--phrases {file} cannot be read ({error}): give one phrase per line") from error
    if not phrases:
        raise UserError(f"--phrases {file} has no phrases: give one per line")
    return phrases


def _same(state: list[tuple[Tensor, int]], other: list[tuple[Tensor, int]]) -> bool:
    """Whether these are the same tensors, and none was changed in place."""
    return len(state) == len(other) and all(a is b and v == w for (a, v), (b, w) in zip(state, other, strict=True))


def _sampled(tokens: Tensor, count: int) -> Tensor:
    """`count` of the tokens [t, W], evenly spaced from the first to the last."""
    places = torch.linspace(0, len(tokens) - 1, count, device=tokens.device).round().long()
    return tokens[places]


def _padded(tokens: Tensor, count: int) -> Tensor:
    """The first `count` of the tokens [t, W], filled up with the mean of all."""
    mean = tokens.mean(0, keepdim=True)
    return torch.cat([tokens[:count], mean.expand(max(0, count - len(tokens)), -1)])
