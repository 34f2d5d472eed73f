"""Learned prompts: the same features as the sentence when the tokens are the sentence's, and nothing leaks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.prompts import IdentityPrompts
from clipreid.training.checkpoint import changing_state

FAMILIES = ("clip", "siglip")


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder(request.param)}")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def say(prompts: IdentityPrompts, backbone: Backbone, words: str) -> None:
    """Replaces the learned tokens of every identity by the embeddings of `words`."""
    assert backbone.tokenizer is not None
    ids = backbone.tokenizer([words])[0]
    plain = backbone.tokenizer([""])[0]
    start = int((ids != plain).int().argmax())
    tokens = prompts.context.shape[1]
    prompts.context.copy_(backbone.text.embed(ids[start : start + tokens]).expand_as(prompts.context))


def full_length(prompts: IdentityPrompts, backbone: Backbone, noun: str) -> tuple[Tensor, Tensor]:
    """The prompts at the tower's whole context, padding included: [I, L, W] and pool positions [I]."""
    assert backbone.tokenizer is not None
    count, tokens, _ = prompts.context.shape
    ids = backbone.tokenizer([f"a photo of a{' x' * tokens} {noun}."])
    start = int((ids[0] == backbone.tokenizer.tokenizer.token_to_id("x")).int().argmax())  # type: ignore[attr-defined]
    embedded = backbone.text.embed(ids).repeat(count, 1, 1)
    embedded[:, start : start + tokens] = prompts.context
    return embedded, backbone.tokenizer.eot(ids).expand(count)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("noun", ["person", "hat"])
@torch.no_grad()
def test_the_prompt_path_equals_the_token_path(backbone: Backbone, noun: str, tokens: int) -> None:
    """With the embeddings of "x x x x" as context, the feature is that of the sentence with the noun in it."""
    prompts = IdentityPrompts(backbone, 3, noun, tokens, seeded())
    everyone = torch.arange(3)
    drawn = prompts(everyone)
    for word in ("x", "red"):
        say(prompts, backbone, " ".join([word] * tokens))
        sentence = f"a photo of a {' '.join([word] * tokens)} {noun}."
        expected = backbone.encode_text([sentence]).expand(3, -1)
        torch.testing.assert_close(prompts(everyone), expected, atol=1e-5, rtol=0)
    assert (drawn - expected).abs().max() > 1e-3


@torch.no_grad()
def test_every_identity_may_have_its_own_noun(backbone: Backbone) -> None:
    """The features are those of prompts with that noun alone, whatever the length of the others."""
    nouns = ["person", "red and blue hat", "person", "bag", "red and blue hat"]
    mixed = IdentityPrompts(backbone, 5, nouns, 4, seeded())
    for noun in set(nouns):
        alone = IdentityPrompts(backbone, 5, noun, 4, seeded())
        assert torch.equal(alone.context, mixed.context)
        rows = torch.tensor([nth for nth, each in enumerate(nouns) if each == noun])
        torch.testing.assert_close(mixed(rows), alone(rows), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed.bank(2)[rows], alone.bank()[rows], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 nouns for 3 identities"):
        IdentityPrompts(backbone, 3, ["person", "bag"])


@torch.no_grad()
def test_cut_after_eot_equals_the_full_context(backbone: Backbone) -> None:
    prompts = IdentityPrompts(backbone, 5, "person", 4, seeded())
    embedded, pool = full_length(prompts, backbone, "person")
    full = backbone.text(embedded, pool)
    short = prompts.prompt(torch.arange(5))
    torch.testing.assert_close(prompts(torch.arange(5)), full, atol=1e-5, rtol=0)
    sentence = ["<sot>", "a", "photo", "of", "a", "x", "x", "x", "x", "person", ".", "<eot>"]
    assert short.shape[1] == (len(sentence) if backbone.family == "clip" else backbone.text.context_length)
    torch.testing.assert_close(short, embedded[:, : short.shape[1]])
    assert len({tuple(row) for row in full.round(decimals=4).tolist()}) == 5  # five identities, five texts


@pytest.mark.parametrize("tokens", [1, 4])
def test_features_and_gradients_are_bit_for_bit_those_of_the_plain_arithmetic(backbone: Backbone, tokens: int) -> None:
    """Prefix, gathered tokens and suffix side by side, each identity with its own noun."""
    nouns = ["person", "red and blue hat", "person", "bag", "bag"]
    kinds = ["person", "red and blue hat", "bag"]
    prompts = IdentityPrompts(backbone, 5, nouns, tokens, seeded())
    assert backbone.tokenizer is not None
    ids = backbone.tokenizer([f"a photo of a{' x' * tokens} {noun}." for noun in kinds])  # [T, L]
    pool = backbone.text.pool_index(ids)
    ids = ids[:, : int(pool.max()) + 1]
    embedded, start = backbone.text.embed(ids).detach(), 5
    prefix, suffix = embedded[:, :start], embedded[:, start + tokens :]
    asked = torch.tensor([4, 1, 1, 0, 2])
    kind = torch.tensor([kinds.index(noun) for noun in nouns])[asked]
    context = prompts.context.detach().clone().requires_grad_()
    learned = F.embedding(asked, context.flatten(1)).view(5, tokens, -1)
    prompt = torch.cat([prefix[kind], learned, suffix[kind]], dim=1)
    assert torch.equal(prompts.prompt(asked), prompt)
    expected = backbone.text(prompt, pool[kind])
    found = prompts(asked)
    assert torch.equal(found, expected)
    weight = torch.randn(expected.shape, generator=seeded(1))
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert context.grad is not None
    assert prompts.context.grad is not None
    assert torch.equal(prompts.context.grad, context.grad)


def test_a_noun_may_hold_braces_or_begin_like_a_placeholder(backbone: Backbone) -> None:
    assert IdentityPrompts(backbone, 1, "{person}", 2).template.starts == {"id": 5}
    assert IdentityPrompts(backbone, 1, "x x person", 2).template.starts == {"id": 5}


def test_each_identitys_gradient_touches_only_its_own_row(backbone: Backbone) -> None:
    prompts = IdentityPrompts(backbone, 6, "person", 4, seeded())
    asked = torch.tensor([4, 1, 2])
    for place, identity in enumerate(asked.tolist()):
        prompts.zero_grad(set_to_none=True)
        prompts(asked)[place].square().sum().backward()
        assert prompts.context.grad is not None
        touched = prompts.context.grad.abs().flatten(1).amax(1) > 0  # [I]
        assert touched.nonzero().flatten().tolist() == [identity]
        assert bool((prompts.context.grad[identity].abs().amax(1) > 0).all())  # every one of its tokens


def test_only_the_context_is_trained_and_kept(backbone: Backbone) -> None:
    prompts = IdentityPrompts(backbone, 2, "person", 4, seeded())
    assert [name for name, p in prompts.named_parameters() if p.requires_grad] == ["context"]
    assert not any(p.requires_grad for p in backbone.text.parameters())
    assert set(changing_state(prompts)) == {"context"}  # what a checkpoint holds


def test_initial_tokens_are_small_and_seeded(backbone: Backbone) -> None:
    first = IdentityPrompts(backbone, 500, "person", 4, seeded(7)).context
    assert first.shape == (500, 4, backbone.text.width)
    assert first.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(first.mean().item()) < 5 * 0.02 / math.sqrt(first.numel())
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(first, IdentityPrompts(backbone, 500, "person", 4, seeded(7)).context)
    assert not torch.equal(first, IdentityPrompts(backbone, 500, "person", 4, seeded(8)).context)


@torch.no_grad()
def test_the_noun_of_the_template_matters(backbone: Backbone) -> None:
    person, bag = (IdentityPrompts(backbone, 2, noun, 4, seeded()) for noun in ("person", "bag"))
    assert torch.equal(person.context, bag.context)
    assert (person.bank() - bag.bank()).abs().max() > 1e-3


@torch.no_grad()
def test_bank_is_everyone_whatever_the_batch(backbone: Backbone) -> None:
    prompts = IdentityPrompts(backbone, 7, "person", 2, seeded())
    bank = prompts.bank(batch_size=3)
    assert bank.shape == (7, backbone.text.embed_dim)
    assert not bank.requires_grad
    for identity in range(7):
        torch.testing.assert_close(bank[identity], prompts.encode(torch.tensor([identity]))[0], atol=1e-5, rtol=0)


def test_tiny_clip_is_read_up_to_eot_only() -> None:
    backbone = load_backbone("tiny-clip")
    assert backbone.tokenizer is not None
    prompts = IdentityPrompts(backbone, 2, "person", 4, seeded())
    length = prompts.prompt(torch.tensor([0])).shape[1]
    sentence = backbone.tokenizer(["a photo of a x x x x person."])
    assert length == int(backbone.tokenizer.eot(sentence)) + 1 < backbone.text.context_length
    with torch.no_grad():
        say(prompts, backbone, "x x x x")
        expected = backbone.encode_text(["a photo of a x x x x person."])
        torch.testing.assert_close(prompts(torch.tensor([1])), expected, atol=1e-5, rtol=1e-5)


# Errors -----------------------------------------------------------------------------------------------------------


class Rewording:
    """A tokenizer that reads something else for every placeholder."""

    def __init__(self, tokenizer: Any, placeholder: str) -> None:
        self.tokenizer, self.placeholder = tokenizer, placeholder

    def __call__(self, texts: list[str]) -> Tensor:
        return self.tokenizer([text.replace(" x", f" {self.placeholder}") for text in texts])

    def eot(self, ids: Tensor) -> Tensor:
        return self.tokenizer.eot(ids)


@pytest.mark.parametrize("placeholder", ["hat bag", "x x"])
def test_a_tokenizer_that_splits_the_placeholder_is_refused(backbone: Backbone, placeholder: str) -> None:
    backbone.tokenizer = Rewording(backbone.tokenizer, placeholder)
    with pytest.raises(ValueError, match=r"the tokenizer of 'hf:.*' does not give each placeholder x one token"):
        IdentityPrompts(backbone, 2, "person", 2)


@pytest.mark.parametrize("tokens", [9, 12, 40])
def test_a_prompt_longer_than_the_context_is_refused(backbone: Backbone, tokens: int) -> None:
    """The context of the tiny tower is 16: with 9 tokens the closing full stop would be cut off without a word."""
    with pytest.raises(ValueError, match=rf"^--prompt-tokens {tokens}: .* {tokens} tokens in its slots"):
        IdentityPrompts(backbone, 2, "person", tokens)


def test_a_backbone_without_tokenizer_is_refused(backbone: Backbone) -> None:
    backbone.tokenizer = None
    with pytest.raises(ValueError, match=r"backbone 'hf:.*' has no tokenizer, which prompts need: use --prompts none"):
        IdentityPrompts(backbone, 2)
