"""Tokenizers: fixed length, EOT kept, the same ids as transformers gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import edit_json, tiny_tokenizer, write_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from clipreid.backbones import FastTokenizer, TextConfig, load_backbone
from clipreid.backbones.tokenizer import OpenClipTokenizer, read_tokenizer

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


CORPUS = ["a photo of a red person with a hat and a blue bag", "two people walk: one has a green shirt!", "é ü 12 3_4"]
SENTENCES = [
    "A Photo of a RED person, with a hat!",
    "two   people\twalk\n",
    "un-known Zebra_éü 3",
    "",
    " ".join(["a red hat"] * 40),
]


def wide(context_length: int, causal: bool = False) -> TextConfig:
    return TextConfig(vocab_size=400, context_length=context_length, causal=causal)


def padded(tokenizer: Any, texts: list[str], length: int) -> torch.Tensor:
    """transformers' own rows, with the settings that the weights were trained with."""
    rows = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return rows.input_ids


def gemma(kind: str, **settings: Any) -> Any:
    """A small Gemma tokenizer (byte-fallback BPE) trained here, in transformers' class `kind`."""
    import transformers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.train_from_iterator(
        [text.lower() for text in CORPUS] * 3,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return getattr(transformers, kind)(vocab=model["vocab"], merges=merges, padding_side="right", **settings)


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "Siglip2Tokenizer"])
def test_siglip2_gives_the_ids_of_transformers(tmp_path: Path, kind: str) -> None:
    """64 tokens, lower case, EOS kept, pads on the right: also from a folder whose own settings say otherwise."""
    from transformers import AutoTokenizer

    theirs = gemma(kind, add_bos_token=False, add_eos_token=True)
    expected = padded(theirs, [text.lower() for text in SENTENCES], 64)
    assert expected[1].tolist().count(0) > 30  # padded
    assert expected[4, 63] == 1  # cut, closed by EOS
    theirs.save_pretrained(tmp_path / "trained")
    loose = gemma(kind)
    loose.padding_side = "left"
    loose.save_pretrained(tmp_path / "loose")
    assert not torch.equal(padded(AutoTokenizer.from_pretrained(tmp_path / "loose"), SENTENCES, 64), expected)
    for folder in ("trained", "loose"):
        ours = read_tokenizer(tmp_path / folder, wide(64), pad_id=1)
        assert ours is not None
        assert torch.equal(ours(SENTENCES), expected)
        assert ours.eot(expected).tolist() == [63] * 5


def test_siglip2_settings_that_say_no_are_obeyed(tmp_path: Path) -> None:
    gemma("GemmaTokenizer", add_bos_token=True, add_eos_token=False).save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", add_bos_token=True, add_eos_token=False)
    ours = read_tokenizer(tmp_path, wide(8), pad_id=0)
    assert ours is not None
    [row] = ours(["a red"]).tolist()
    assert (row[0], 1 in row) == (2, False)  # BOS, no EOS
    ours.save(tmp_path)
    again = read_tokenizer(tmp_path, wide(8), pad_id=0)
    assert again is not None
    assert again.eot_id is None


def test_siglip_tokenizer_needs_an_eos(tmp_path: Path) -> None:
    gemma("GemmaTokenizer").save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ValueError, match=r"no end-of-text token: set eos_token in tokenizer_config.json"):
        read_tokenizer(tmp_path, wide(64), pad_id=1)


def test_siglip_1_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    """A spiece.model alone, as the slow `SiglipTokenizer` of transformers 4 and 5 saves it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    words = [text.lower().replace(":", "").replace("!", "") for text in CORPUS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 5),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    theirs = SiglipTokenizer(str(tmp_path / "spiece.model"))
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
    ours = read_tokenizer(tmp_path / "saved", wide(64), pad_id=1)
    assert ours is not None
    texts = [text.replace("_", " ") for text in SENTENCES]  # transformers joins what "_" parts, big_vision does not
    expected = padded(theirs, texts, 64)
    assert torch.equal(ours(texts), expected)
    assert expected[1].tolist().count(1) > 30  # pads are EOS
    assert torch.equal(ours(SENTENCES), expected)
    ours.save(tmp_path)
    again = read_tokenizer(tmp_path, wide(64), pad_id=1)
    assert again is not None
    assert torch.equal(again(SENTENCES), expected)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_clip_gives_the_ids_of_transformers(tmp_path: Path, files: str) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer().backend_tokenizer
    tokenizer.model = models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], **{token: len(model["vocab"]) + i for i, token in enumerate(special)}}
    theirs = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]])
    theirs.save_pretrained(tmp_path)
    if files != "tokenizer.json":  # the slow tokenizer of transformers 4
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    ours = read_tokenizer(tmp_path, wide(77, causal=True), pad_id=1)
    assert ours is not None
    expected = padded(theirs, SENTENCES, 77)
    assert torch.equal(ours(SENTENCES), expected)
    eot = vocabulary["<|endoftext|>"]
    assert ours.eot(expected).tolist() == [row.index(eot) for row in expected.tolist()]
    assert (expected[4, 0], expected[4, 76]) == (vocabulary["<|startoftext|>"], eot)


def test_open_clip_siglip_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's ids for SigLIP2 are checked against the rules: they depend on transformers and its files."""
    import open_clip

    gemma("GemmaTokenizer", add_bos_token=False, add_eos_token=True).save_pretrained(tmp_path / "good")
    gemma("GemmaTokenizer").save_pretrained(tmp_path / "no eos")
    gemma("GemmaTokenizer", add_bos_token=True, add_eos_token=True).save_pretrained(tmp_path / "bos")
    left = gemma("GemmaTokenizer", add_eos_token=True)
    left.padding_side = "left"
    left.save_pretrained(tmp_path / "left")

    def at(folder: str, length: int = 64) -> OpenClipTokenizer:
        found = open_clip.tokenizer.HFTokenizer(str(tmp_path / folder), context_length=length, clean="canonicalize")
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: found)
        return OpenClipTokenizer("ViT-B-16-SigLIP2-256", wide(64))

    ours = read_tokenizer(tmp_path / "good", wide(64), pad_id=0)
    assert ours is not None
    plain = ["A photo of a RED person with a hat", "two people"]  # open_clip takes out the punctuation, too
    assert torch.equal(at("good")(plain), ours(plain))
    for folder, length in (("no eos", 64), ("left", 64), ("bos", 64), ("good", 32)):
        with pytest.raises(
            ValueError,
            match=rf"ViT-B-16-SigLIP2-256 gives {length} tokens .* for 'a', but the weights know 64: the text",
        ):
            at(folder, length)(plain)
