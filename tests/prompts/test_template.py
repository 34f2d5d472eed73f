"""Templates: slots take the place of words, in sentences that are read as the tower would read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.errors import UserError
from clipreid.prompts import Template, word_embeddings

FAMILIES = ("clip", "siglip")
TWO = "a photo of a {id} person in {occluder}."


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder(request.param)}")


def words(backbone: Backbone, *texts: str) -> Tensor:
    """[n, m, W]"""
    return torch.stack([word_embeddings(backbone, text) for text in texts])


@pytest.mark.parametrize(
    ("sentence", "slots"),
    [
        (TWO, {"id": ("red hat", "blue bag"), "occluder": ("green", "hat")}),
        ("{a} {b} person.", {"a": ("red", "blue"), "b": ("hat in bag", "bag in hat")}),
        ("{a} person with {b}", {"a": ("red", "blue"), "b": ("bag", "hat")}),
        ("a person with {a} {b}, {c}.", {"a": ("red", "blue"), "b": ("bag hat", "hat bag"), "c": ("a", "photo")}),
        ("{a}", {"a": ("red hat", "a person")}),
    ],
)
@torch.no_grad()
def test_words_in_slots_say_what_the_sentence_says(
    backbone: Backbone, sentence: str, slots: dict[str, tuple[str, str]]
) -> None:
    template = Template(backbone, sentence, {name: len(both[0].split()) for name, both in slots.items()})
    said = template.encode({name: words(backbone, *both) for name, both in slots.items()})
    spoken = [sentence.format(**{name: both[nth] for name, both in slots.items()}) for nth in (0, 1)]
    torch.testing.assert_close(said, backbone.encode_text(spoken), atol=1e-6, rtol=1e-6)
    assert (said[0] - said[1]).abs().max() > 1e-3


@torch.no_grad()
def test_one_row_serves_all_texts_and_one_sentence_is_chosen_for_each(backbone: Backbone) -> None:
    sentences = ["a photo of a {id} person.", "a photo of a {id} hat with bag.", "in red {id} bag."]
    with pytest.raises(ValueError, match="do not have their slots at the same tokens"):
        Template(backbone, sentences, {"id": 2})
    template = Template(backbone, sentences[:2], {"id": 2})
    kind = torch.tensor([1, 0, 1])
    same = template.encode({"id": words(backbone, "red shirt")}, kind)
    expected = backbone.encode_text([sentences[k].format(id="red shirt") for k in kind.tolist()])
    torch.testing.assert_close(same, expected, atol=1e-6, rtol=1e-6)
    each = template.encode({"id": words(backbone, "red shirt").expand(3, -1, -1)}, kind)
    assert torch.equal(each, same)
    single = Template(backbone, TWO, {"id": 2, "occluder": 1})
    mixed = {"id": words(backbone, "red hat", "blue bag", "green bag"), "occluder": words(backbone, "shirt")}
    spoken = [f"a photo of a {text} person in shirt." for text in ("red hat", "blue bag", "green bag")]
    torch.testing.assert_close(single.encode(mixed), backbone.encode_text(spoken), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_a_slot_without_tokens_is_as_if_it_had_not_been_written(backbone: Backbone) -> None:
    template = Template(backbone, TWO, {"id": 2, "occluder": 2})
    shorter = template.with_slots(id=0, occluder=1)
    given = {"id": torch.empty(1, 0, backbone.text.width), "occluder": words(backbone, "hat")}
    expected = backbone.encode_text(["a photo of a person in hat."])
    torch.testing.assert_close(shorter.encode(given), expected, atol=1e-6, rtol=1e-6)
    bare = Template(backbone, "a {id} hat", {"id": 0}).encode({"id": given["id"].expand(2, -1, -1)})
    torch.testing.assert_close(bare, backbone.encode_text(["a hat"] * 2), atol=1e-6, rtol=1e-6)
    first = Template(backbone, "{id} hat", {"id": 0}).encode({"id": given["id"]})
    torch.testing.assert_close(first, backbone.encode_text(["hat"]), atol=1e-6, rtol=1e-6)


def test_only_a_causal_tower_reads_up_to_eot(backbone: Backbone) -> None:
    template = Template(backbone, "a {id} person.", {"id": 3})
    length = template.embeddings({"id": torch.zeros(1, 3, backbone.text.width)}).shape[1]
    assert length == (8 if backbone.family == "clip" else backbone.text.context_length)
    assert template.pool.tolist() == [length - 1]


def test_the_tower_is_no_part_of_the_template_and_may_be_trained(backbone: Backbone) -> None:
    template = Template(backbone, "a {id} person.", {"id": 2})
    assert not list(template.parameters())
    assert not template.state_dict()
    slot = torch.randn(2, 2, backbone.text.width, requires_grad=True)
    template.encode({"id": slot}).sum().backward()
    table = backbone.text.embeddings.token_embedding.weight
    assert slot.grad is not None
    assert table.grad is not None  # not frozen: the template does not decide
    before = template.encode({"id": slot}).detach()
    with torch.no_grad():
        table *= torch.rand_like(table)
    assert (template.encode({"id": slot}) - before).abs().max() > 1e-3  # fixed words are the table's own
    table.grad = None
    backbone.text.requires_grad_(False)
    template.encode({"id": slot}).sum().backward()
    assert table.grad is None


def test_autocast_does_not_change_texts(backbone: Backbone) -> None:
    template = Template(backbone, "a {id} person.", {"id": 2})
    slot = {"id": torch.randn(2, 2, backbone.text.width)}
    with torch.autocast("cpu", torch.bfloat16):
        found = template.encode(slot)
    assert torch.equal(found, template.encode(slot))


@torch.no_grad()
def test_word_embeddings_are_those_in_a_sentence(backbone: Backbone) -> None:
    assert backbone.tokenizer is not None
    ids = backbone.tokenizer.tokenizer.token_to_id  # type: ignore[attr-defined]
    table = backbone.text.embeddings.token_embedding.weight
    assert torch.equal(word_embeddings(backbone, "a red hat."), table[[ids("a"), ids("red"), ids("hat"), ids("<unk>")]])
    with pytest.raises(UserError, match="finds no words in ' '"):
        word_embeddings(backbone, " ")
    with pytest.raises(UserError, match="does not fit into the 16 tokens"):
        word_embeddings(backbone, "red " * 20)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip2"])
@torch.no_grad()
def test_shipped_towers_with_words_of_several_tokens(name: str) -> None:
    backbone = load_backbone(name)
    texts = ["shoulders", "striped shirt"]
    slots = [word_embeddings(backbone, text) for text in texts]
    counts = {"id": len(slots[0]), "occluder": len(slots[1])}
    said = Template(backbone, TWO, counts).encode({"id": slots[0][None], "occluder": slots[1][None]})
    expected = backbone.encode_text(["a photo of a shoulders person in striped shirt."])
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5)


# Errors -----------------------------------------------------------------------------------------------------------


class Rewording:
    """A tokenizer that reads something else for every placeholder."""

    def __init__(self, tokenizer: Any, placeholder: str) -> None:
        self.tokenizer, self.placeholder = tokenizer, placeholder

    def __call__(self, texts: list[str]) -> Tensor:
        return self.tokenizer([text.replace(" x", f" {self.placeholder}") for text in texts])

    def eot(self, ids: Tensor) -> Tensor:
        return self.tokenizer.eot(ids)


@pytest.mark.parametrize("placeholder", ["hat bag", "x x", "a hat a"])
@pytest.mark.parametrize("slots", [{"id": 1, "occluder": 1}, {"id": 2, "occluder": 1}, {"id": 1, "occluder": 2}])
def test_a_tokenizer_that_splits_the_placeholder_is_refused(
    backbone: Backbone, placeholder: str, slots: dict[str, int]
) -> None:
    backbone.tokenizer = Rewording(backbone.tokenizer, placeholder)
    with pytest.raises(UserError, match=r"does not give each placeholder x one token of its own: use --none"):
        Template(backbone, TWO, slots, otherwise="use --none")


def test_what_fits_exactly_is_taken_and_one_more_token_is_refused(backbone: Backbone) -> None:
    """The context is 16. CLIP's rows have a start token as well as an end token here, and so have SigLIP's."""
    for count in range(1, 14):
        sentence = f"{'a ' * (13 - count)}{{id}} hat"
        assert Template(backbone, sentence, {"id": count}).starts == {"id": 14 - count}
        with pytest.raises(
            UserError, match=r"^--few \d+: the sentence .* tokens in its slots does not fit into the 16"
        ):
            Template(backbone, sentence, {"id": count + 1}, flags={"id": "--few"})
        with pytest.raises(UserError, match="does not fit into the 16 tokens"):
            Template(backbone, "a " + sentence, {"id": count})
        with pytest.raises(UserError, match="does not fit into the 16 tokens"):
            Template(backbone, sentence + " bag", {"id": count})
    for long in ("a " * 30 + "{id}", "{id}" + " a" * 30, "{id}" + " a" * 13 + " {more}"):
        slots = {"id": 2, "more": 2} if "more" in long else {"id": 2}
        with pytest.raises(UserError, match="does not fit into the 16 tokens"):
            Template(backbone, long, slots)


def test_slots_that_do_not_belong_are_refused(backbone: Backbone) -> None:
    for sentence in ("a person.", "a {id} {id} person.", "a {id} {other} person."):
        with pytest.raises(ValueError, match="must name each of the slots"):
            Template(backbone, sentence, {"id": 2})
    with pytest.raises(ValueError, match="words of a template cannot begin with each of x, q, z"):
        Template(backbone, "x q zebra {id}", {"id": 2})
    template, width = Template(backbone, TWO, {"id": 2, "occluder": 1}), backbone.text.width
    with pytest.raises(ValueError, match=r"slots \['id'\] given"):
        template.encode({"id": torch.zeros(1, 2, width)})
    with pytest.raises(ValueError, match="slot 'occluder' is"):
        template.encode({"id": torch.zeros(1, 2, width), "occluder": torch.zeros(1, 2, width)})
    with pytest.raises(ValueError, match=r"slots of \[2, 3\] texts given"):
        template.encode({"id": torch.zeros(2, 2, width), "occluder": torch.zeros(3, 1, width)})
    kind = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"slots of \[1, 2\] texts given for 3"):
        template.encode({"id": torch.zeros(2, 2, width), "occluder": torch.zeros(1, 1, width)}, kind)
    several = Template(backbone, ["a {id} hat", "a {id} bag"], {"id": 1})
    with pytest.raises(ValueError, match="which of the 2 sentences"):
        several.encode({"id": torch.zeros(2, 1, width)})


def test_a_backbone_without_tokenizer_is_refused(backbone: Backbone) -> None:
    backbone.tokenizer = None
    with pytest.raises(UserError, match=r"backbone 'hf:.*' has no tokenizer, which prompts need$"):
        Template(backbone, "a {id}", {"id": 1})
    with pytest.raises(UserError, match=r"has no tokenizer: it cannot read 'red'"):
        word_embeddings(backbone, "red")
