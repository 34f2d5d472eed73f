"""Small random models in transformers' format, and randomised weights that would show a missing one."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

WORDS = ("a", "photo", "of", "x", "person", "in", "red", "blue", "green", "shirt", "with", "hat", "bag")


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms, biases and position tables values far from 1, 0 and small noise."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if (parameter.ndim <= 1 and "logit" not in name) or "pos" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise)
    return model.eval()


def tiny_tokenizer() -> Tokenizer:
    """Words of a small vocabulary between <sot> and <eot>; <eot> has the largest id."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<sot>", *WORDS, "<eot>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<sot> $A <eot>", special_tokens=[(t, vocabulary[t]) for t in ("<sot>", "<eot>")]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eot>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_hf_model(family: str, context: int = 16, **vision: Any) -> nn.Module:
    """A random CLIPModel or SiglipModel: 3 and 2 layers, width 32, 64x64 images, patch 8, texts of `context` tokens."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    vision = {**size, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8, **vision}
    eot = tiny_tokenizer().token_to_id("<eot>")
    text = {**size, "num_hidden_layers": 2, "vocab_size": eot + 1, "max_position_embeddings": context}
    text |= {"eos_token_id": eot, "bos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    if family == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        return randomise(CLIPModel(config))
    return randomise(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))


def write_tiny_folder(folder: Path, family: str = "clip", context: int = 16, **extra: Any) -> nn.Module:
    """Write a random tiny model with tokenizer and preprocessor to `folder`; returns transformers' model.

    `extra` goes to the top level of config.json, e.g. `clipreid={"image_size": [64, 32]}`.
    """
    model = tiny_hf_model(family, context)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    preprocessor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    edit_json(folder / "config.json", **extra)
    return model


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
