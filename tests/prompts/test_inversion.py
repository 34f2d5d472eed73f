"""Textual inversion: the network is the formula, its words stand in the sentence, nothing belongs to an identity."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clipreid.backbones import Backbone, load_backbone
from clipreid.errors import UserError
from clipreid.prompts.inversion import Inversion, InversionPrompts, kept_shares

E, W, M, H, COUNT = 5, 6, 2, 7, 4


@pytest.fixture
def backbone(tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder('clip')}")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_the_network_is_that_of_an_independent_reference(standardised: bool, dropped: bool) -> None:
    """Pic2Word's IM2TEXT, one image and one layer after the other in numpy."""
    network, features = Inversion(E, W, M, H), drawn(COUNT, E)
    kept = kept_shares(COUNT, H, 0.5, torch.Generator().manual_seed(1)) if dropped else None
    if standardised:
        network.standardise(features)
    unit = np.stack([x / np.sqrt((x**2).sum()) for x in features.double().numpy()])
    mean, std = (unit.mean(0), unit.std(0)) if standardised else (0.0, E**-0.5)
    weights = {name: x.detach().double().numpy() for name, x in network.named_parameters()}
    expected = []
    for nth, x in enumerate((unit - mean) / std):
        for layer in (0, 1):
            x = weights[f"layers.{layer}.weight"] @ x + weights[f"layers.{layer}.bias"]
            x = x * kept[nth, layer].numpy() if kept is not None else x
            x = np.where(x > 0, x, 0)
        x = weights["out.weight"] @ x + weights["out.bias"]
        expected.append([x[word * W : (word + 1) * W] for word in range(M)])
    np.testing.assert_allclose(network(features, kept).detach().numpy(), expected, atol=1e-5)


def test_a_dimension_that_never_changes_stays_finite() -> None:
    network = Inversion(E, W)
    network.standardise(torch.ones(COUNT, E))
    assert network(drawn(COUNT, E)).isfinite().all()


def test_dropout_keeps_the_stated_share_and_the_mean() -> None:
    kept = kept_shares(200, 100, 0.2, torch.Generator().manual_seed(0))
    assert kept.shape == (200, 2, 100)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert (kept > 0).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert torch.equal(kept, kept_shares(200, 100, 0.2, torch.Generator().manual_seed(0)))


def test_pseudo_words_that_are_words_give_the_text_with_these_words(backbone: Backbone) -> None:
    """The sentence with an inverted word in its slot is the sentence with that word."""
    content, style = (Inversion(backbone.image.embed_dim, backbone.text.width) for _ in range(2))
    prompts = InversionPrompts(backbone, content, style, ("person", "vehicle"))
    assert backbone.tokenizer is not None
    token = int(backbone.tokenizer(["red"])[0][1])
    word = backbone.text.embeddings.token_embedding.weight[token].detach()
    for network in (content, style):
        torch.nn.init.zeros_(network.out.weight)
        network.out.bias.data.copy_(word)
    features = drawn(3, backbone.image.embed_dim)
    texts = ["a photo of a red person.", "a photo of a red vehicle.", "a photo of a red person."]
    spoken = prompts.content_texts(features, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(spoken, backbone.encode_text(texts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        prompts.style_texts(features), backbone.encode_text(["a red style photo."] * 3), atol=1e-5, rtol=1e-4
    )


def test_the_text_tower_rests_and_both_networks_learn(backbone: Backbone) -> None:
    content, style = (Inversion(backbone.image.embed_dim, backbone.text.width) for _ in range(2))
    prompts = InversionPrompts(backbone, content, style)
    features = drawn(3, backbone.image.embed_dim)
    (
        prompts.content_texts(features, torch.zeros(3, dtype=torch.long)).sum() + prompts.style_texts(features).sum()
    ).backward()
    learned = {name.split(".")[0] for name, p in prompts.named_parameters() if p.grad is not None}
    assert learned == {"content", "style"}
    assert all(p.grad is not None and p.grad.any() for p in [*content.parameters(), *style.parameters()])


def test_what_is_not_there_is_refused(backbone: Backbone) -> None:
    width = backbone.text.width
    prompts = InversionPrompts(backbone, Inversion(E, width))
    with pytest.raises(ValueError, match="no style network"):
        prompts.style_texts(drawn(1, E))
    with pytest.raises(UserError, match=r"--content-words 500.*does not fit"):
        InversionPrompts(backbone, Inversion(E, width, 500))
    with pytest.raises(UserError, match=r"--style-words 500.*does not fit"):
        InversionPrompts(backbone, Inversion(E, width), Inversion(E, width, 500))
