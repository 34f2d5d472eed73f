"""Text anchors: phrases as partly learned sentences through the frozen text tower, and their controls."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.errors import UserError
from clipreid.prompts import word_embeddings
from clipreid.prompts.anchors import PHRASES, FreeAnchors, TextAnchors, read_phrases
from clipreid.training.checkpoint import changing_state

WORDS = ["red shirt", "blue hat in bag", "bag", "a green person with hat"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["clip", "siglip"])
def backbone(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Backbone:
    """Context 16, width 32: room for 12 slots."""
    return load_backbone(f"hf:{tiny_folder(request.param)}")


def calls(backbone: Backbone) -> list[int]:
    """A list that grows whenever the text tower is run."""
    found: list[int] = []
    backbone.text.register_forward_hook(lambda *_: found.append(1))
    return found


@torch.no_grad()
def test_the_texts_are_learnable_slots_then_the_phrase_then_the_noun(backbone: Backbone) -> None:
    """With words in the learnable slots, an anchor is the feature of the sentence."""
    anchors = TextAnchors(backbone, ["blue hat in bag", "bag in blue hat"], "person", learnable=2, frozen=4)
    anchors.context.copy_(word_embeddings(backbone, "red shirt").expand_as(anchors.context))
    spoken = ["red shirt blue hat in bag person.", "red shirt bag in blue hat person."]
    torch.testing.assert_close(anchors(), backbone.encode_text(spoken), atol=1e-6, rtol=1e-6)
    bare = TextAnchors(backbone, ["blue hat"], "bag", learnable=2, frozen=0)
    bare.context.copy_(word_embeddings(backbone, "red shirt")[None])
    torch.testing.assert_close(bare(), backbone.encode_text(["red shirt bag."]), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_initial_slots(backbone: Backbone) -> None:
    anchors = TextAnchors(backbone, WORDS, learnable=3, frozen=4, generator=seeded())
    evenly = [[0, 0, 1], [0, 2, 3], [0, 0, 0], [0, 2, 4]]  # of phrases of 2, 4, 1 and 5 tokens
    for k, (phrase, places) in enumerate(zip(WORDS, evenly, strict=True)):
        tokens = word_embeddings(backbone, phrase)
        noise = anchors.context[k] - tokens[places]
        assert 0 < noise.abs().max() < 0.05
        wanted = [*tokens[:4], *[tokens.mean(0)] * max(0, 4 - len(tokens))]
        assert torch.equal(anchors.frozen[k], torch.stack(wanted))
    assert anchors.cut == ("a green person with hat",)
    many = TextAnchors(backbone, WORDS[:1], learnable=4, frozen=2, count=300, generator=seeded())
    assert (many.context - many.context.mean(0)).std().item() == pytest.approx(0.01, rel=0.05)
    torch.manual_seed(5)
    again = TextAnchors(backbone, WORDS[:1], learnable=4, frozen=2, count=300, generator=seeded())
    assert torch.equal(many.context, again.context)
    other = TextAnchors(backbone, WORDS[:1], learnable=4, frozen=2, count=300, generator=seeded(1))
    assert not torch.equal(many.context, other.context)


@torch.no_grad()
def test_every_option_changes_the_anchors(backbone: Backbone) -> None:
    def anchors(phrases: list[str] = WORDS[:2], noun: str = "person", m: int = 2, f: int = 4) -> Tensor:
        return TextAnchors(backbone, phrases, noun, m, f, generator=seeded())()

    first = anchors()
    assert first.shape == (2, backbone.text.embed_dim)
    for other in (anchors(WORDS[2:]), anchors(noun="bag"), anchors(m=3), anchors(f=5), anchors(f=0)):
        assert (first - other).abs().max() > 1e-3


def test_the_number_of_anchors(backbone: Backbone) -> None:
    assert len(TextAnchors(backbone, frozen=8)()) == len(PHRASES) == len(set(PHRASES)) == 24
    fewer = TextAnchors(backbone, WORDS, frozen=2, count=3)
    assert fewer.phrases == tuple(WORDS[:3])
    more = TextAnchors(backbone, WORDS, frozen=2, count=6, generator=seeded())
    assert more.phrases == (*WORDS, *WORDS[:2])
    assert not torch.equal(more.context[0], more.context[4])  # other noise


def test_only_the_learnable_slots_are_trained_and_the_tower_is_not_saved(backbone: Backbone) -> None:
    anchors = TextAnchors(backbone, WORDS, frozen=2)
    assert [name for name, _ in anchors.named_parameters()] == ["context"]
    assert set(anchors.state_dict()) == set(changing_state(anchors)) == {"context", "frozen", "noun"}
    for k in range(len(WORDS)):
        anchors.zero_grad()
        anchors()[k].square().sum().backward()
        assert anchors.context.grad is not None
        assert (anchors.context.grad.abs().amax(2) > 0).any(1).nonzero().flatten().tolist() == [k]
        assert bool((anchors.context.grad[k].abs().amax(1) > 0).all())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.text.parameters())


@torch.no_grad()
def test_saved_anchors_are_loaded_without_their_phrases(backbone: Backbone) -> None:
    """Nor their noun, of which only the number of tokens is known."""
    saved = TextAnchors(backbone, WORDS, "blue hat", frozen=3, generator=seeded(1))
    loaded = TextAnchors(backbone, frozen=3, count=4, noun_tokens=2).eval()
    assert not torch.equal(loaded(), saved())
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded(), saved())
    assert torch.equal(saved.noun[0], word_embeddings(backbone, "blue hat"))
    with pytest.raises(RuntimeError, match="size mismatch for noun"):
        TextAnchors(backbone, frozen=3, count=4).load_state_dict(saved.state_dict())


@torch.no_grad()
def test_a_copy_takes_the_tower_along_neither_in_its_memory_nor_as_a_part(backbone: Backbone) -> None:
    anchors = TextAnchors(backbone, WORDS, frozen=2).eval()
    first, memo = anchors(), {id(backbone): backbone, id(backbone.text): backbone.text}
    copied = copy.deepcopy(anchors, memo)
    own = {id(x) for x in backbone.text.parameters()}
    assert not own & memo.keys()  # no weight of it was copied
    assert copied.source[0] is backbone.text
    assert torch.equal(copied(), first)
    assert copied() is not first


def test_in_evaluation_the_tower_runs_once(backbone: Backbone) -> None:
    anchors, ran = TextAnchors(backbone, WORDS, frozen=2).eval(), calls(backbone)
    with torch.no_grad():
        first = anchors()
        assert anchors() is first
        assert len(ran) == 1
        optimiser = torch.optim.Adam(anchors.parameters(), 0.1)
        anchors.context.grad = torch.randn_like(anchors.context)
        optimiser.step()  # a weight changes
        second = anchors()
        assert len(ran) == 2
        assert (second - first).abs().max() > 1e-3
        anchors.frozen.zero_()
        assert not torch.equal(anchors(), second)
        assert len(ran) == 3
        anchors.load_state_dict({k: v + 1 for k, v in anchors.state_dict().items()}, assign=True)
        third = anchors()
        backbone.text.final_layer_norm.bias.add_(1)  # a weight of the tower
        assert not torch.equal(anchors(), third)
        assert len(ran) == 5
        anchors.double().float()
        assert anchors().dtype == torch.float32
        assert len(ran) == 6
        anchors.train()
        anchors()
        anchors()
        assert len(ran) == 8
    anchors.eval()
    assert anchors().requires_grad  # wherever a gradient is wanted, there is one
    assert anchors() is not anchors()


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2"])
def test_shipped_towers_hold_the_default_anchors(name: str) -> None:
    backbone = load_backbone(name)
    anchors = TextAnchors(backbone, generator=seeded())
    assert anchors.cut == ()
    assert anchors.context.shape == (24, 4, 128)
    assert anchors.frozen.shape == (24, 12, 128)
    found = anchors().detach()
    assert found.isfinite().all()
    length = anchors.template.ids.shape[1]
    assert length == (20 if name == "tiny-clip" else 48)  # start, 16 slots, person, full stop, end
    unit = torch.nn.functional.normalize(found, dim=1)
    assert (unit @ unit.T - torch.eye(24)).max() < 0.9999  # no two are the same


def test_free_anchors() -> None:
    free = FreeAnchors(500, 32, seeded())
    assert free().shape == (500, 32)
    assert free().requires_grad
    assert free().std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(free(), FreeAnchors(500, 32, seeded())())


# Errors -----------------------------------------------------------------------------------------------------------


def test_a_context_too_short_for_all_slots_names_the_flag_to_lower(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"^--frozen-slots 12: .* 17 tokens in its slots .* the 16 tokens of 'hf:"):
        TextAnchors(backbone)
    assert TextAnchors(backbone, frozen=8).frozen.shape[1] == 8
    with pytest.raises(UserError, match=r"^--frozen-slots 9: .* choose fewer"):
        TextAnchors(backbone, frozen=9)


def test_numbers_out_of_range_and_empty_phrases_are_refused(backbone: Backbone) -> None:
    for wrong in ({"learnable": 0}, {"frozen": -1}, {"count": 0}):
        with pytest.raises(UserError, match="and at least"):
            TextAnchors(backbone, WORDS, **{"frozen": 4, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no phrases"):
        TextAnchors(backbone, [], frozen=4, count=3)
    with pytest.raises(UserError, match="finds no words in ''"):
        TextAnchors(backbone, ["red shirt", ""], frozen=4)
    backbone.tokenizer = None
    with pytest.raises(UserError, match="has no tokenizer"):
        TextAnchors(backbone, WORDS, frozen=4)


def test_phrases_are_read_one_per_line(tmp_path: Path) -> None:
    assert read_phrases(None) is PHRASES
    file = tmp_path / "phrases.txt"
    file.write_text("\ufeff red shirt \r\n\n\tblue hat\nchapeau bleu \u00e9l\u00e9gant\n", encoding="utf-8")
    assert read_phrases(file) == ["red shirt", "blue hat", "chapeau bleu \u00e9l\u00e9gant"]
    file.write_text("\n  \n")
    with pytest.raises(UserError, match=r"--phrases .*phrases\.txt has no phrases: give one per line"):
        read_phrases(file)
    file.write_bytes(b"\xff\xfe\x80")
    for unusable in (file, tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"--phrases .* cannot be read"):
            read_phrases(unusable)
