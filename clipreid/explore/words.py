"""Which words learned tokens resemble, and whether these words are true.

n identities looked at, M tokens of each, W text width, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.backbones import Backbone
from clipreid.errors import UserError
from clipreid.explore.learned import Learned

MARKS = ("Ġ", "▁")  # of tokens that begin a word (byte-level BPE, sentencepiece)
END = "</w>"  # of tokens that end one (CLIP's BPE)


@dataclass(frozen=True)
class Words:
    """The words most like each of some vectors, best first: words str [..., top], cosine float [..., top]."""

    words: np.ndarray
    cosine: np.ndarray


def vocabulary(backbone: Backbone) -> dict[str, int]:
    """The words, made of letters and longer than two, that are a single token of the backbone: word -> token id.

    In CLIP's BPE an ending such as "ing" cannot be told from a word.

    Raises UserError for a backbone without tokenizer, or one whose vocabulary cannot be read.
    """
    words: dict[str, int] = {}
    for token, number in _tokens(backbone):
        marked = token.endswith(END) or token.startswith(MARKS)
        word = token.removesuffix(END).lstrip("".join(MARKS)).lower()
        if marked and word.isalpha() and len(word) > 2:
            words.setdefault(word, number)
    return dict(sorted(words.items()))


def nearest_words(learned: Learned, identities: Sequence[int], top: int = 5) -> Words:
    """The words whose embeddings are most like each learned token, by cosine: [n, M, top].

    As Zhou et al. looked at their learned context (CoOp, arXiv 2109.01134, section 4.4). A token is free to lie where
    no word is: see `chance_cosine` for how near a random vector comes.
    """
    words, table = _embeddings(learned.backbone)
    return _best(learned.tokens[list(identities)], table, words, top)


def chance_cosine(learned: Learned, draws: int = 1000, seed: int = 0) -> float:
    """How near the nearest word is to a random direction, on average: what `nearest_words` gives for nothing."""
    drawn = torch.randn(draws, learned.tokens.shape[2], generator=torch.Generator().manual_seed(seed))
    words, table = _embeddings(learned.backbone)
    return float(_best(drawn, table, words, 1).cosine.mean())


def said_truly(words: np.ndarray, captions: Sequence[str], among: Sequence[str] | None = None) -> dict[str, float]:
    """How many of the words [n, top] stand in the identity's own caption, and in those of others.

    captions: [n], one of each identity (several joined will do).  among: only these words count.

    Returns:
        own: share of the words that stand in the own caption; others: the mean share over all other captions, which is
        what words of anybody would reach.
    """
    if len(words) != len(captions) or len(words) < 2:
        raise ValueError(f"{len(words)} rows of words and {len(captions)} captions: two or more of both are needed")
    spoken = [set(_split(caption)) for caption in captions]
    kept = None if among is None else set(among)
    rows = [[word for word in row if kept is None or word in kept] for row in words]
    hits = np.array([[sum(word in s for word in row) for s in spoken] for row in rows], dtype=float)  # [n, n]
    total = max(1, sum(map(len, rows)))
    own = float(np.trace(hits))
    return {"own": own / total, "others": (float(hits.sum()) - own) / (len(rows) - 1) / total}


def _split(text: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in text.lower()).split()


def _best(vectors: Tensor, table: Tensor, words: Sequence[str], top: int) -> Words:
    """vectors [..., W], table [V, W]."""
    if not 1 <= top <= len(words):
        raise UserError(f"top={top}: there are {len(words)} words")
    cosine, index = (F.normalize(vectors, dim=-1) @ F.normalize(table, dim=-1).T).topk(top, dim=-1)
    return Words(np.array(words)[index.cpu().numpy()], cosine.cpu().numpy())


def _embeddings(backbone: Backbone) -> tuple[list[str], Tensor]:
    """The words and their embeddings [V, W]."""
    words = vocabulary(backbone)
    return list(words), backbone.text.embeddings.token_embedding.weight.detach()[list(words.values())]


def _tokens(backbone: Backbone) -> Iterator[tuple[str, int]]:
    if backbone.tokenizer is None:
        raise UserError(f"{backbone.name} has no tokenizer: there are no words to compare with")
    inner: Any = backbone.tokenizer
    backbone.tokenizer(["a"])  # open_clip's is made at its first use
    while inner is not None:
        for name in ("get_vocab", "encoder"):
            found = getattr(inner, name, None)
            table = found() if callable(found) else found
            if isinstance(table, Mapping):
                yield from table.items()
                return
        inner = getattr(inner, "tokenizer", None) or getattr(inner, "_tokenizer", None)
    raise UserError(f"the tokenizer of {backbone.name} does not tell its vocabulary")
