"""A sentence with named slots: some of its tokens are vectors that are given, or learned, instead of words.

n texts, T sentences, L tokens of a text, m tokens of a slot, W text width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreid.backbones import Backbone, TextTower
from clipreid.prompts.layout import lay_out, word_ids


class Template(nn.Module):
    """A sentence whose slots take token embeddings: `"a photo of a {id} person occluded by {occluder}."`.

    The text tower is the backbone's own and stays there: it is no part of this module (neither of its parameters nor
    of its state), and the template does not decide whether it is trained. Fixed words are looked up in the tower's
    table at every call. A causal tower reads the sentence up to its EOT only (12 tokens for a CLIP-ReID prompt instead
    of 77): exact, because nothing behind EOT can influence it. A bidirectional one (SigLIP) reads its full length.

    Args:
        backbone: whose tokenizer and text tower are used.
        sentences: one, or T that differ in their fixed words; each names every slot once, as a word of its own. The
            slots must be at the same token positions in all of them.
        slots: {name: number of tokens}; 0 leaves the slot out, as if the sentence had been written without it.
        flags: {name: flag that sets its number of tokens}, for error messages.
        otherwise: what to do without prompts, for error messages: "use --prompts none".

    Raises:
        UserError: no tokenizer, one that does not give each placeholder one token, or a sentence that does not fit
            into the tower's context.
        ValueError: sentences that do not name every slot once, or have them at different positions.
    """

    def __init__(
        self,
        backbone: Backbone,
        sentences: str | Sequence[str],
        slots: Mapping[str, int],
        *,
        flags: Mapping[str, str] | None = None,
        otherwise: str = "",
    ) -> None:
        super().__init__()
        self.source = (backbone,)  # in a tuple, so that the towers are no part of this module
        self.sentences = (sentences,) if isinstance(sentences, str) else tuple(sentences)
        self.slots, self.flags, self.otherwise = dict(slots), dict(flags or {}), otherwise
        if not self.sentences:
            raise ValueError("a template needs at least one sentence")
        laid = [lay_out(backbone, each, self.slots, self.flags, otherwise) for each in self.sentences]
        self.starts = laid[0][1]  # {slot: position of its first token}, in the order of the sentence
        for sentence, (_, starts) in zip(self.sentences, laid, strict=True):
            if list(starts.items()) != list(self.starts.items()):
                raise ValueError(f"{sentence!r} and {self.sentences[0]!r} do not have their slots at the same tokens")
        device = backbone.text.embeddings.token_embedding.weight.device
        ids = torch.tensor([found for found, _ in laid], device=device)  # [T, L]
        pool = backbone.text.pool_index(ids)  # [T]
        if backbone.text.causal:
            ids = ids[:, : int(pool.max()) + 1]
        self.ids: Tensor
        self.pool: Tensor
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("pool", pool, persistent=False)

    @property
    def text(self) -> TextTower:
        return self.source[0].text

    def with_slots(self, **counts: int) -> Template:
        """The same sentences with other numbers of tokens in some slots."""
        slots = self.slots | counts
        found = Template(self.source[0], self.sentences, slots, flags=self.flags, otherwise=self.otherwise)
        return found.to(self.ids.device)

    def embeddings(self, slots: Mapping[str, Tensor], kind: Tensor | None = None) -> Tensor:
        """The whole sentences as token embeddings, ready for the text tower.

        Args:
            slots: {name: [n, m, W], or [1, m, W] for the same tokens in every text}.
            kind: [n] long, 0..T-1: which sentence each text takes; needed when there are several.

        Returns:
            [n, L, W]; L ends at the last EOT for a causal tower and is the context length for a bidirectional one.

        Raises:
            ValueError: slots missing, unknown, of another shape, or of different numbers of texts.
        """
        count, width = self._count(slots, kind), self.text.width
        fixed = self.text.embed(self.ids)  # [T, L, W]
        if kind is None:
            fixed = fixed.expand(count, -1, -1)
        else:  # F.embedding, not indexing: its backward is deterministic
            fixed = F.embedding(kind, fixed.flatten(1)).view(count, self.ids.shape[1], width)
        parts, at = [], 0
        for name, start in self.starts.items():
            parts += [fixed[:, at:start], slots[name].expand(count, -1, -1)]
            at = start + self.slots[name]
        return torch.cat([*parts, fixed[:, at:]], dim=1)

    def encode(self, slots: Mapping[str, Tensor], kind: Tensor | None = None) -> Tensor:
        """Text features [n, E], not normalised; arguments and errors as of `embeddings`."""
        with torch.autocast(self.ids.device.type, enabled=False):  # the same precision in training and in a text bank
            x = self.embeddings(slots, kind)
            pool = self.pool.expand(len(x)) if kind is None else self.pool[kind]
            return self.text(x, pool)

    def _count(self, slots: Mapping[str, Tensor], kind: Tensor | None) -> int:
        """The number of texts n."""
        if slots.keys() != self.slots.keys():
            raise ValueError(f"slots {sorted(slots)} given, the template has {sorted(self.slots)}")
        for name, x in slots.items():
            if x.dim() != 3 or tuple(x.shape[1:]) != (self.slots[name], self.text.width):
                raise ValueError(f"slot {name!r} is {list(x.shape)}: [n, {self.slots[name]}, {self.text.width}] needed")
        if kind is None and len(self.ids) > 1:
            raise ValueError(f"give kind: which of the {len(self.ids)} sentences each text takes")
        counts = {len(x) for x in slots.values()}
        several = counts - {1}
        count = len(kind) if kind is not None else (several.pop() if several else 1)
        if counts - {1, count}:
            raise ValueError(f"slots of {sorted(counts)} texts given for {count}: each needs {count}, or 1 for all")
        return count


def word_embeddings(backbone: Backbone, words: str) -> Tensor:
    """The embeddings of plain words as they stand within a sentence, [m, W], without start or end token.

    For the initial values of slots; a copy, without gradient, on the text tower's device.

    Raises:
        UserError: no tokenizer, no tokens at all, or more than the context holds.
    """
    table = backbone.text.embeddings.token_embedding.weight
    return backbone.text.embed(torch.tensor(word_ids(backbone, words), device=table.device)).detach().clone()
