"""Captions of the training images: one drawn for each image of a batch, mirrored with it, what is odd counted.

N training images, G of a batch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipreid.backbones.tokenizer import unread
from clipreid.data import seed_for
from clipreid.data.wording import mirror_words

Captions = Sequence[Sequence[str]]  # the sentences of each image [N]; none where it has no caption
EPOCH_OF_CAPTIONS = 7919  # keeps the draws of captions apart from those of augmentation
EACH = 7907  # and those of `each_once`
NONE = -1  # instead of the number of a sentence: the image has none


def said_of(captions: Captions) -> list[list[str]]:
    """The sentences that say something: without those that have neither letter nor digit, in any script."""
    return [[sentence for sentence in each if any(map(str.isalnum, sentence))] for each in captions]


def odd_captions(captions: Captions, tokenizer: Any) -> list[str]:
    """Sentences that count what is unusual among the captions; tokenizer: whose context cuts them."""
    kept, notes = said_of(captions), []
    sentences = sorted({sentence for each in kept for sentence in each})
    if silent := sum(not each for each in kept):
        notes.append(f"{silent:,d} of {len(kept):,d} images have none, and take part in the losses of images only")
    if blank := sum(map(len, captions)) - sum(map(len, kept)):
        notes.append(f"{blank:,d} without a letter or digit count as none")
    if other := sum(not _latin(sentence) for sentence in sentences):
        notes.append(
            f"{other:,d} of {len(sentences):,d} texts have letters of other scripts than Latin: they are read as the "
            "tokenizer splits them, which the weights may not know; left and right in them are not exchanged"
        )
    if note := unread(tokenizer, sentences):
        notes.append(note)
    return notes


def _latin(sentence: str) -> bool:
    if sentence.isascii():
        return True
    return all("LATIN" in unicodedata.name(letter, "") for letter in sentence if letter.isalpha())


def draw_captions(captions: Captions, rows: Tensor, seed: int, epoch: int, nth: int) -> Tensor:
    """The number of one sentence of each image in `rows` [G], `NONE` where it has none: the same for the same image,
    seed, epoch and step in every process."""
    found = []
    for row in rows.tolist():
        generator = torch.Generator().manual_seed(seed_for(seed, epoch, nth, EPOCH_OF_CAPTIONS + row))
        count = len(captions[row])
        found.append(int(torch.randint(count, (1,), generator=generator)) if count else NONE)
    return torch.tensor(found, dtype=torch.long)


def each_once(captions: Captions, size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Every sentence of every image once an epoch, shuffled, as IRRA samples them; an image without one comes once.

    Returns:
        The images, and which of their sentences: [steps, size] each; `NONE` where there is none. What is left over of
        an epoch is not used in it.
    """
    pairs = [(row, which) for row, each in enumerate(captions) for which in range(len(each)) or (NONE,)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed_for(seed, epoch, 0, EACH)))
    drawn = torch.tensor(pairs, dtype=torch.long)[order[: len(pairs) // size * size]]  # [steps * size, 2]
    return drawn[:, 0].view(-1, size), drawn[:, 1].view(-1, size)


def tokenised(captions: Captions, tokenizer: Any, rows: Tensor, which: Tensor, mirrored: Tensor) -> dict[str, Tensor]:
    """Keys of a batch of B images: "captions" [B, L] token ids, those of an empty text where there is no sentence, and
    "captioned" [B] bool.

    rows, which: [B], as drawn.  mirrored: [B] bool, whether the image is: then left and right in its text are, too.
    """
    texts = []
    for row, nth, is_mirrored in zip(rows.tolist(), which.tolist(), mirrored.tolist(), strict=True):
        text = captions[row][nth] if nth != NONE else ""
        texts.append(mirror_words(text) if is_mirrored else text)
    return {"captions": tokenizer(texts), "captioned": which != NONE}
