"""Texts to token ids as the weights were trained: CLIP ends at EOT, SigLIP lower-cases; both are padded."""

import json
import string
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from clipreid.backbones.text import TextConfig, pool_positions
from clipreid.disk import read_json
from clipreid.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 2048  # tokens of a text that are counted by open_clip's tokenizers
PUNCTUATION = str.maketrans("", "", string.punctuation)


class FastTokenizer:
    """A `tokenizers` tokenizer with fixed context length.

    Args:
        tokenizer: from `tokenizers`; its own padding and truncation are switched off.
        context_length: L, the length of every row.
        causal: CLIP (pool at EOT) or SigLIP (pool at the last token, whatever it is).
        eot_id: closes every text; None adds nothing. Needed when causal.
        pad_id: fills the rest of the row.
        lower: lower-case the texts first (SigLIP; for CLIP the tokenizer's own normalizer does it).
        strip_punctuation: remove it first (SigLIP 1 as published: big_vision's canonicalisation).
        never_first: an id to drop at the start (a BOS that the weights never saw).
    """

    def __init__(
        self,
        tokenizer: RustTokenizer,
        context_length: int,
        *,
        causal: bool,
        eot_id: int | None,
        pad_id: int = 0,
        lower: bool = False,
        strip_punctuation: bool = False,
        never_first: int | None = None,
    ) -> None:
        if causal and eot_id is None:
            raise ValueError("a causal text tower pools at EOT: eot_id is needed")
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.context_length, self.causal = context_length, causal
        self.eot_id, self.pad_id, self.never_first = eot_id, pad_id, never_first
        self.lower, self.strip_punctuation = lower, strip_punctuation

    def __call__(self, texts: list[str]) -> Tensor:
        """n texts to ids [n, L]; too long ones are cut, EOT kept."""
        rows = [self._fit(ids) for ids in self._closed([texts] if isinstance(texts, str) else texts)]
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has with its EOT, before anything is cut."""
        return [len(ids) for ids in self._closed(texts)]

    def eot(self, ids: Tensor) -> Tensor:
        """Pool positions [n] of ids [n, L]: the first EOT when causal, else the last token."""
        return pool_positions(ids, self.causal, self.eot_id)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, readable by transformers' `AutoTokenizer`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "padding_side": "right",
            "pad_token": self.tokenizer.id_to_token(self.pad_id),
        }
        config["add_eos_token"] = self.eot_id is not None
        if self.eot_id is not None:
            config["eos_token"] = self.tokenizer.id_to_token(self.eot_id)
        if self.never_first is not None:
            config |= {"bos_token": self.tokenizer.id_to_token(self.never_first), "add_bos_token": False}
        if self.strip_punctuation:
            config["strip_punctuation"] = True
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _clean(self, text: str) -> str:
        if self.strip_punctuation:
            text = " ".join(text.replace("_", " ").translate(PUNCTUATION).split())
        return text.lower() if self.lower else text

    def _closed(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each text and EOT behind them, of any length."""
        for encoding in self.tokenizer.encode_batch([self._clean(text) for text in texts]):
            ids = list(encoding.ids)
            if ids and ids[0] == self.never_first:
                ids = ids[1:]
            if self.eot_id is not None and (not ids or ids[-1] != self.eot_id):
                ids = [*ids, self.eot_id]
            yield ids

    def _fit(self, ids: list[int]) -> list[int]:
        if len(ids) > self.context_length:
            keep = self.context_length - (self.eot_id is not None)
            ids = ids[:keep] + ids[-1:] * (self.eot_id is not None)
        return ids + [self.pad_id] * (self.context_length - len(ids))


def read_tokenizer(folder: Path, config: TextConfig, pad_id: int | None) -> FastTokenizer | None:
    """The tokenizer of a transformers-format folder; None where it has none.

    The rules of the family hold, whatever the files leave open. CLIP: rows as in the files, EOT kept when a text is
    cut. SigLIP (2) was trained on lower-cased texts closed by EOS, without BOS, padded on the right to the context
    length (64), SigLIP 1 also without punctuation (big_vision; transformers' `SiglipTokenizer` and
    `Siglip2Tokenizer`); `add_eos_token: false` and `add_bos_token: true` in tokenizer_config.json are obeyed.

    Args:
        config: of the text tower that the ids are for.
        pad_id: from the model's config, used when the tokenizer files name no padding token.

    Raises:
        UserError: an unreadable tokenizer.json, or no end-of-text token.
    """
    settings_file = folder / "tokenizer_config.json"
    settings = _settings(settings_file) if settings_file.is_file() else {}
    kind = settings.get("tokenizer_class", "")
    tokenizer = _read_rust_tokenizer(folder, kind)
    if tokenizer is None:
        return None
    eos_id = _token_id(tokenizer, settings.get("eos_token"))
    named_pad = _token_id(tokenizer, settings.get("pad_token"))
    if named_pad is None and tokenizer.padding:
        named_pad = tokenizer.padding["pad_id"]
    pad_id = pad_id if named_pad is None else named_pad
    found = (config.eot_id, eos_id, tokenizer.token_to_id(END)) if config.causal else (eos_id,)
    eot_id = next((i for i in found if i is not None), None)
    if not config.causal and settings.get("add_eos_token") is False:
        eot_id = None
    elif eot_id is None:
        raise UserError(f"{folder}: no end-of-text token: set eos_token in tokenizer_config.json")
    if config.causal:
        return FastTokenizer(tokenizer, config.context_length, causal=True, eot_id=eot_id, pad_id=pad_id or 0)
    return FastTokenizer(
        tokenizer,
        config.context_length,
        causal=False,
        eot_id=eot_id,
        pad_id=pad_id or 0,
        lower=True,
        strip_punctuation=settings.get("strip_punctuation", kind.startswith("SiglipTokenizer")),
        never_first=None if settings.get("add_bos_token") else _token_id(tokenizer, settings.get("bos_token")),
    )


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = read_json(file)
        if isinstance(settings, dict):
            return settings
        raise ValueError(f"it is {type(settings).__name__}")
    except ValueError as error:
        raise UserError(f"{file} is no JSON object ({error}): download the tokenizer again") from error


def _read_rust_tokenizer(folder: Path, kind: str) -> RustTokenizer | None:
    """The tokenizer of the `tokenizers` library, made by transformers where the folder has older files only."""
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return RustTokenizer.from_file(str(file))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(f"{file} is not a tokenizer of the `tokenizers` library: {error}") from error
    if not any((folder / name).is_file() for name in ("vocab.json", "spiece.model", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer, T5TokenizerFast

    try:
        if kind.startswith("SiglipTokenizer"):  # has no fast form of its own; with clean texts T5's is the same
            return T5TokenizerFast.from_pretrained(str(folder), extra_ids=0).backend_tokenizer
        return AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    except Exception as error:
        raise UserError(
            f"{folder}: no tokenizer.json, and transformers cannot make one of the other files ({error}); save a fast "
            "tokenizer there, or install sentencepiece and protobuf, which spiece.model and tokenizer.model need"
        ) from error


def _token_id(tokenizer: RustTokenizer, token: str | dict[str, Any] | None) -> int | None:
    """The id of a token named in tokenizer_config.json (older files wrap the string in a dict)."""
    if isinstance(token, dict):
        token = token.get("content")
    return tokenizer.token_to_id(token) if token else None


class OpenClipTokenizer:
    """open_clip's own tokenizer of a model, made at its first use (SigLIP's is downloaded then).

    Args:
        model: open_clip's name of the model.
        config: of the text tower that the ids are for.
    """

    def __init__(self, model: str, config: TextConfig) -> None:
        self.model, self.config, self.context_length = model, config, config.context_length
        self._tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """n texts to ids [n, L]. Raises `UserError` when the tokenizer is not available, or breaks SigLIP's rules."""
        return self._made()(list(texts)).long()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has with its EOT, before anything is cut; at most `LONGEST` are counted."""
        tokenizer, found = self._made(), []
        for text in texts:
            row = tokenizer([text], context_length=LONGEST)[0]
            end = pool_positions(row[None], True, self.config.eot_id) if self.config.causal else self._ends(row)
            found.append(int(end) + 1)
        return found

    def _ends(self, row: Tensor) -> int:
        """Where the first EOS of a row is; without one at its end, for the row is full."""
        at = (row == self._made().tokenizer.eos_token_id).nonzero()
        return int(at[0]) if len(at) else len(row) - 1

    def _made(self) -> Any:
        """open_clip's tokenizer, made at its first use."""
        if self._tokenizer is None:
            import open_clip

            try:
                self._tokenizer = open_clip.get_tokenizer(self.model)
            except Exception as error:  # the hub's, transformers' and open_clip's own kinds
                raise UserError(
                    f"the tokenizer of open_clip model {self.model} is not at hand ({_first_line(error)}); "
                    "connect once so that it is downloaded, or use an hf: folder that contains tokenizer.json"
                ) from error
            self._check_rows()
        return self._tokenizer

    def eot(self, ids: Tensor) -> Tensor:
        """Pool positions [n] of ids [n, L]: the first EOT when causal, else the last token."""
        return pool_positions(ids, self.config.causal, self.config.eot_id)

    def _check_rows(self) -> None:
        """SigLIP's rows are text, EOS, pads: which depends on the version of transformers that reads its tokenizer."""
        inner = getattr(self._tokenizer, "tokenizer", None)  # transformers', wrapped
        if self.config.causal or inner is None:
            return
        row: list[int] = self._tokenizer(["a"])[0].tolist()
        length = self.config.context_length
        end = row.index(inner.eos_token_id) if inner.eos_token_id in row else 0
        fits = len(row) == length and 0 < end < length - 1 and row[0] != inner.bos_token_id
        if not fits or set(row[end + 1 :]) != {inner.pad_token_id}:
            raise UserError(
                f"the tokenizer of open_clip model {self.model} gives {len(row)} tokens {row[:3]} ... {row[-3:]} for "
                f"'a', but the weights know {length}: the text, EOS, pads; take another version of transformers, or "
                "the same model as an hf: folder"
            )


def unread(tokenizer: Any, texts: Sequence[str]) -> str | None:
    """A sentence that says how much of the texts is read, where some are longer than the context; else None.

    None too for a tokenizer that has no `lengths`, and so cannot tell.
    """
    if not texts or not hasattr(tokenizer, "lengths"):
        return None
    lengths, context = tokenizer.lengths(texts), tokenizer.context_length
    if (most := max(lengths)) <= context:
        return None
    cut, text = sum(length > context for length in lengths), texts[lengths.index(most)]
    ends = range(1, len(text) + 1)
    read = bisect_right(ends, context, key=lambda end: tokenizer.lengths([text[:end]])[0])
    which = "the text is" if len(texts) == 1 else f"{cut:,d} of {len(texts):,d} texts are"
    longest = "of it" if cut == 1 else "of the longest"
    end = text[max(0, read - 30) : read]
    return (
        f"{which} longer than the {context} tokens that the text tower reads, and what is behind them was not read: "
        f"{longest} ({most} tokens) {read} of {len(text)} characters were read, up to {end!r}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def train_tokenizer(texts: list[str], most: int = 1024) -> RustTokenizer:
    """A lower-casing byte-level BPE of at most `most` tokens; START opens a text, END is the largest id, as in CLIP."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=most - 1, special_tokens=[START], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return tokenizer
