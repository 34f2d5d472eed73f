"""Tokenizers: fixed length, EOT kept, the same ids as transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import edit_json, tiny_tokenizer, write_tokenizer
from tokenizers import processors
from torch import nn

from clipreid.backbones import FastTokenizer, TextConfig, load_backbone
from clipreid.backbones.tokenizer import read_tokenizer

TEXTS = ["A photo of a x x x x person", "red hat", "a " * 40, ""]
EOT = tiny_tokenizer().token_to_id("<eot>")


def config(causal: bool) -> TextConfig:
    return TextConfig(vocab_size=EOT + 1, context_length=16, causal=causal, eot_id=EOT if causal else None)


@pytest.mark.parametrize("causal", [True, False])
def test_same_ids_as_transformers(tmp_path: Path, causal: bool) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    ours = read_tokenizer(tmp_path, config(causal), pad_id=0)
    assert ours is not None
    theirs: Any = AutoTokenizer.from_pretrained(str(tmp_path))
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    assert torch.equal(ours(TEXTS), ids)
    assert ours.eot(ids).tolist() == ([10, 3, 15, 1] if causal else [15] * 4)
    assert ours([]).shape == (0, 16)
    assert ours("red hat").tolist() == ids[1:2].tolist()


def test_pad_token_of_the_tokenizer_wins_over_the_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    pad = {"content": "red", "special": True}  # how older files write it
    edit_json(tmp_path / "tokenizer_config.json", pad_token=pad)
    tokenizer = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert tokenizer is not None
    assert tokenizer.pad_id == tiny_tokenizer().token_to_id("red")
    edit_json(tmp_path / "tokenizer_config.json", pad_token=None)
    from_config = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert from_config is not None
    assert from_config.pad_id == 1


def test_siglip2_rules_are_enforced(tmp_path: Path) -> None:
    """Gemma's file may add BOS and leave out EOS; the published settings say the opposite, lower-cased."""
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<sot> $A", special_tokens=[("<sot>", 2)])
    tokenizer.normalizer = None
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    settings |= {"bos_token": "<sot>", "eos_token": "<eot>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert found is not None
    red, hat = (tokenizer.token_to_id(word) for word in ("red", "hat"))
    assert found(["Red HAT"]).tolist() == [[red, hat, EOT] + [0] * 13]
    assert found(["a " * 40])[0, -1] == EOT
    found.save(tmp_path)
    again = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert again is not None
    assert torch.equal(again(TEXTS), found(TEXTS))


def test_siglip_1_strips_punctuation(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    tokenizer = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert tokenizer is not None
    assert torch.equal(tokenizer(["A red_hat, with: bag!"]), tokenizer(["a red hat with bag"]))
    tokenizer.save(tmp_path)
    again = read_tokenizer(tmp_path, config(False), pad_id=1)
    assert again is not None
    assert again.strip_punctuation


def test_folder_without_a_tokenizer(clip_folder: tuple[Path, nn.Module]) -> None:
    """Images still work; texts say what is missing."""
    folder = clip_folder[0]
    (folder / "tokenizer.json").unlink()
    backbone = load_backbone(f"hf:{folder}")
    assert backbone.tokenizer is None
    with pytest.raises(ValueError, match="has no tokenizer"):
        backbone.encode_text(["a"])
    (folder / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"no tokenizer.json, and transformers cannot make one"):
        load_backbone(f"hf:{folder}")


def test_causal_tokenizer_needs_an_eot() -> None:
    with pytest.raises(ValueError, match="a causal text tower pools at EOT: eot_id is needed"):
        FastTokenizer(tiny_tokenizer(), 16, causal=True, eot_id=None)
