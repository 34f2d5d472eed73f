"""DPL-ReID: its texts share their tokens, its views are what they say, its losses are those of the formulas."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import paint_street
from torch import Tensor

from clipreid.backbones import Backbone, load_backbone
from clipreid.config import configure
from clipreid.data.occluders import street_library
from clipreid.errors import UserError
from clipreid.hub.folder import load_identities
from clipreid.methods import build, dpl
from clipreid.model import Output
from clipreid.prompts.dual import DualPrompts
from clipreid.training.launch import build_model, run_method
from clipreid.training.occluding import paste
from clipreid.training.pairs import occluded_view, pair_batches
from clipreid.training.run import open_run
from clipreid.training.train import train

TWO_CUTOUTS = Path(__file__).parent / "two_cutouts"
COUNT, E, KINDS = 3, 4, 2
LIBRARY = street_library("train")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("dpl") / "crops", train=4, test=1)


@pytest.fixture
def backbone(tiny_folder: Callable[[str], Path]) -> Backbone:
    return load_backbone(f"hf:{tiny_folder('clip')}")


def flags_of(street: Path, output: Path, **given: Any) -> tuple[Any, Any]:
    usual = {"data": (f"folder:{street}",), "output": output, "threads": 1, "image_size": (64, 32)}
    return configure(dpl, **{**usual, "identities_per_batch": 4, "images_per_identity": 2, **given})


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Texts ---------------------------------------------------------------------------------------------------------------


def prompts_of(backbone: Backbone, classes: int = 1, noun: Any = "person", count: int = COUNT) -> DualPrompts:
    generator = torch.Generator().manual_seed(0)
    return DualPrompts(backbone, count, noun, 4, generator, classes=classes, occluder_tokens=2)


@torch.no_grad()
def test_both_texts_say_what_their_sentences_say(backbone: Backbone) -> None:
    prompts = prompts_of(backbone)
    embed = backbone.text.embeddings.token_embedding.weight
    assert backbone.tokenizer is not None
    words = {w: int(backbone.tokenizer.tokenizer.token_to_id(w)) for w in ("red", "hat")}  # type: ignore[attr-defined]
    prompts.context.copy_(embed[words["red"]].expand_as(prompts.context))
    prompts.occluder.copy_(embed[words["hat"]].expand_as(prompts.occluder))
    one, zero = torch.tensor([1]), torch.tensor([0])
    said = torch.cat([prompts(one), prompts.forward_occluded(one, zero)])
    sentences = ["a photo of a red red red red person.", "a photo of a red red red red person occluded by hat hat."]
    torch.testing.assert_close(said, backbone.encode_text(sentences), atol=1e-5, rtol=1e-5)


def test_the_occluded_text_reaches_the_tokens_of_its_identity_and_of_its_class_only(backbone: Backbone) -> None:
    prompts = prompts_of(backbone, classes=KINDS)
    prompts.forward_occluded(torch.tensor([2]), torch.tensor([1])).sum().backward()
    for tokens, own in ((prompts.context, 2), (prompts.occluder, 1)):
        moved = tokens.grad.abs().sum((1, 2)) > 0  # type: ignore[union-attr]
        assert moved.tolist() == [nth == own for nth in range(len(tokens))]
    prompts.zero_grad()
    prompts(torch.tensor([2])).sum().backward()
    assert prompts.occluder.grad is None or not prompts.occluder.grad.any()  # the first text has no occluder
    assert prompts.context.grad is not None
    assert prompts.context.grad[2].any()
    assert {n for n, p in prompts.named_parameters() if p.requires_grad} == {"context", "occluder"}


@torch.no_grad()
def test_the_bank_has_a_text_for_each_class_and_identity(backbone: Backbone) -> None:
    prompts = prompts_of(backbone, classes=KINDS)
    bank = prompts.occluded_bank(batch_size=4)  # [k, COUNT, E]
    assert bank.shape[:2] == (KINDS, COUNT)
    for kind in range(KINDS):
        for identity in range(COUNT):
            own = prompts.encode_occluded(torch.tensor([identity]), torch.tensor([kind]))[0]
            torch.testing.assert_close(bank[kind, identity], own, atol=1e-6, rtol=1e-5)
    assert (bank[0] - bank[1]).abs().max() > 1e-4
    shared = prompts_of(backbone)
    both = shared.encode_occluded(torch.tensor([1, 1]), torch.tensor([0, 5]))
    torch.testing.assert_close(both[0], both[1])
    assert shared.occluded_bank().shape[:2] == (1, COUNT)


def test_nouns_of_different_lengths_are_refused(backbone: Backbone) -> None:
    DualPrompts(backbone, 2, ["person", "hat"], 1, occluder_tokens=1)
    with pytest.raises(UserError, match=r"'person', 'red hat' have different numbers of tokens .*give one --noun"):
        DualPrompts(backbone, 2, ["person", "red hat"], 1, occluder_tokens=1)


# Views ---------------------------------------------------------------------------------------------------------------


def crops(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 32), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_second_view_is_occluded_as_often_and_as_much_as_asked(probability: float) -> None:
    config, images = dpl.Config(severity_least=0.2, severity_most=0.3), crops(32)
    found = paste(images, LIBRARY, config, probability, seeded())
    hidden = found.kinds >= 0
    assert abs(hidden.float().mean().item() - probability) <= 0.25
    assert bool((found.pixels[~hidden] == images[~hidden]).all())
    if probability:
        assert 0.1 < float(found.severity[hidden].median()) < 0.35
        assert found.kinds.max() < len(LIBRARY.kinds)


def test_the_first_view_stays_clean_and_rows_say_what_hides_them() -> None:
    config, images = dpl.Config(occlude_probability=0.5), crops(16)
    change = occluded_view(config, LIBRARY)
    same, about = change(0, images, seeded(), (0, 1))
    assert torch.equal(same, images)
    assert about["kinds"].tolist() == [-1] * 16
    pixels, about = change(1, images, seeded(), (0, 1))
    changed = (pixels != images).flatten(1).any(1)
    assert torch.equal(about["occluded"], changed)
    assert torch.equal(about["occluded"], about["kinds"] >= 0)
    assert 0 < int(changed.sum()) < 16
    none, about = occluded_view(config, None)(1, images, seeded(), (0, 1))
    assert torch.equal(none, images)
    assert not about["occluded"].any()


def test_parts_of_a_batch_are_occluded_as_the_whole_would_be() -> None:
    change, images = occluded_view(dpl.Config(occlude_probability=0.7), LIBRARY), crops(8)
    whole, about = change(1, images, seeded(), (0, 1))
    parts = [change(1, part, seeded(), (rank, 2)) for rank, part in enumerate(images.chunk(2))]
    assert torch.equal(torch.cat([pixels for pixels, _ in parts]), whole)
    for key in about:
        assert torch.equal(torch.cat([more[key] for _, more in parts]), about[key])


def test_pairs_are_of_the_same_image_and_all_versions_are_drawn() -> None:
    N, V = 10, 3
    features = torch.arange(N * (V + 1)).view(N, V + 1, 1).float()  # row n, version v: (V + 1) n + v
    kinds = torch.arange(N * V).view(N, V)
    batches, seen = pair_batches(lambda: (features, kinds), torch.arange(N), 4, seed=0), set()
    for epoch in range(6):
        for batch in batches(epoch):
            assert torch.equal(batch["clean"][:, 0], (V + 1) * batch["rows"].float())
            version = batch["occluded"][:, 0] - batch["clean"][:, 0]
            assert torch.equal(batch["kinds"], V * batch["rows"] + version.long() - 1)
            assert set(batch) == {"clean", "occluded", "kinds", "labels", "rows"}
            seen |= set(version.tolist())
    assert seen == {1.0, 2.0, 3.0}
    again = pair_batches(lambda: (features, kinds), torch.arange(N), 4, seed=0)
    assert all(torch.equal(again(5)[1][key], x) for key, x in batches(5)[1].items())


# Losses --------------------------------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def smoothed(logits: list[float], label: int, smoothing: float) -> float:
    """Cross-entropy of one row with a smoothed label."""
    total = math.log(sum(math.exp(x) for x in logits))
    target = [smoothing / len(logits) + (1 - smoothing) * (nth == label) for nth in range(len(logits))]
    return sum(share * (total - x) for share, x in zip(target, logits, strict=True))


def banks(classes: int) -> dpl.Banks:
    return dpl.Banks(drawn(COUNT, E, seed=1), drawn(classes, COUNT, E, seed=2))


@pytest.mark.parametrize("scale", [None, 5.0])
@pytest.mark.parametrize("classes", [1, KINDS])
def test_the_text_losses_row_by_row(classes: int, scale: float | None) -> None:
    features, labels, found = drawn(6, E), torch.tensor([0, 1, 2, 0, 1, 2]), banks(classes)
    kinds, second = torch.tensor([-1, -1, -1, 0, -1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    config = dpl.Config(weight_i2t=2.0, weight_occluded_i2t=3.0, weight_occluder=5.0, smoothing=0.2)
    losses = dpl.text_losses(features, labels, kinds, second, found, scale, config)
    assert found.texts is not None
    assert found.occluded is not None

    def logits(feature: Tensor, bank: Tensor) -> list[float]:
        return [float(feature @ text) if scale is None else scale * cosine(feature, text) for text in bank]

    first = second_text = 0.0
    for row, (label, kind) in enumerate(zip(labels.tolist(), kinds.tolist(), strict=True)):
        first += (3.0 if second[row] else 2.0) * smoothed(logits(features[row], found.texts), label, 0.2) / 6
        if kind >= 0:
            bank = found.occluded[kind if classes > 1 else 0]
            second_text += 5.0 * smoothed(logits(features[row], bank), label, 0.2) / 6
    assert float(losses["i2t_loss"]) == pytest.approx(first, rel=1e-5)
    assert float(losses["occluder_loss"]) == pytest.approx(second_text, rel=1e-5)
    alone = dpl.text_losses(features, labels, kinds, second, dpl.Banks(found.texts, None), scale, config)
    assert set(alone) == {"i2t_loss"}


@torch.no_grad()
def test_stage_1_is_supervised_contrast_of_both_pairs(backbone: Backbone) -> None:
    prompts = prompts_of(backbone, classes=KINDS)
    width = prompts.bank().shape[1]
    labels, kinds = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 0, -1])
    batch = {"clean": drawn(4, width), "occluded": drawn(4, width, seed=3), "labels": labels, "kinds": kinds}
    losses = dpl.PairLearning(prompts, 7.0)(batch)
    texts, behind = prompts.bank(), prompts.occluded_bank()
    own = {
        "": (batch["clean"], [texts[label] for label in labels]),
        "occluded_": (batch["occluded"], [behind[0, 0], behind[1, 1], behind[0, 1], texts[2]]),  # -1: nothing hides it
    }
    for name, (images, sentences) in own.items():
        logits = [[7.0 * cosine(image, text) for text in sentences] for image in images]
        sums = {"i2t": 0.0, "t2i": 0.0}
        for row in range(4):
            alike = [n for n in range(4) if labels[n] == labels[row]]
            for which in sums:
                line = logits[row] if which == "i2t" else [logits[n][row] for n in range(4)]
                total = math.log(sum(math.exp(x) for x in line))
                sums[which] += sum(total - line[n] for n in alike) / len(alike) / 4
        for which, value in sums.items():
            assert float(losses[f"{name}{which}_loss"]) == pytest.approx(value, rel=1e-4)


def both_views(config: dpl.Config, found: dpl.Banks) -> dict[str, Tensor]:
    """The losses of four rows of each view, from a model that is not there."""
    features = {name: drawn(8, E, seed=4 + nth) for nth, name in enumerate(("penultimate", "final", "projection"))}
    output = Output(features, {name: drawn(8, COUNT, seed=8) for name in ("final", "projection")})
    model: Any = torch.nn.Module()
    model.aggregator = SimpleNamespace(test=("final", "projection"))
    labels = torch.tensor([0, 0, 1, 2]).repeat(2)
    kinds = torch.tensor([-1, -1, -1, -1, 0, 1, -1, 1])
    return dpl.Pairs(model, found, 5.0, config).losses(output, {"labels": labels, "kinds": kinds})


def test_the_distance_of_the_views_and_what_no_texts_leave() -> None:
    losses = both_views(dpl.Config(weight_consistency=2.0), banks(KINDS))
    features = [drawn(8, E, seed=seed) for seed in (5, 6)]
    expected = sum(2 - 2 * cosine(x[row], x[row + 4]) for x in features for row in range(4)) / 8
    assert float(losses["consistency_loss"]) == pytest.approx(2 * expected, rel=1e-5)
    usual = {"id_loss", "triplet_loss"}
    assert losses.keys() == usual | {"i2t_loss", "occluder_loss", "consistency_loss"}
    assert both_views(dpl.Config(), banks(1)).keys() == usual | {"i2t_loss", "occluder_loss"}
    assert both_views(dpl.Config(), dpl.Banks(None, None)).keys() == usual


@settings(deadline=None, max_examples=8)
@given(st.sampled_from(["weight_i2t", "weight_occluded_i2t", "weight_occluder"]), st.floats(0.1, 10))
def test_weights_scale_their_own_loss(name: str, weight: float) -> None:
    zero = {"weight_i2t": 0.0, "weight_occluded_i2t": 0.0, "weight_occluder": 0.0}
    one, more = (both_views(dpl.Config(**{**zero, name: value}), banks(KINDS)) for value in (1.0, weight))
    changed = "occluder_loss" if name == "weight_occluder" else "i2t_loss"
    assert float(more[changed]) == pytest.approx(weight * float(one[changed]), rel=1e-4)
    others = {"i2t_loss", "occluder_loss"} - {changed}
    assert all(float(more[other]) == 0 for other in others)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"occluders": "none"}, "--prompts dual needs occluders: take --prompts identity"),
        ({"severity_least": 0.6}, "--severity-least 0.6 is above --severity-most 0.5"),
        ({"occluder_folder": Path("nowhere")}, "the folder of occluders nowhere is not there"),
        ({"occluder_tokens": 30, "prompt_tokens": 30}, "--occluder-tokens 30: --prompt-tokens 30: the sentence"),
        ({"fusion": "gated", "image_size": (32, 16)}, "needs crops of at least 32x32 pixels"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    given: dict[str, Any], message: str, street: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        open_run(dpl, *flags_of(street, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def test_presets_hold_the_parts_of_the_paper() -> None:
    big = configure(dpl, preset="paper", backbone="hf:openai/clip-vit-base-patch16")[1]
    assert (big.prompts, big.fusion, big.weight_id, big.tuning) == ("dual", "gated", 0.25, "full")
    assert "." not in configure(dpl, preset="paper")[1].partner  # tiny: nothing is downloaded
    assert configure(dpl, preset="paper", prompts="none")[1].weight_id == 1.0
    assert configure(dpl)[1].fusion == "none"


def test_occluders_of_a_folder_are_those_that_are_pasted() -> None:
    for chosen in ("none", "street"):
        library = dpl.training_library(dpl.Config(occluders=chosen, occluder_folder=TWO_CUTOUTS))
        assert library is not None
        assert len(library.kinds) == 1  # the other class is kept for tests
    assert dpl.training_library(dpl.Config(occluders="none")) is None
    assert dpl.training_library(dpl.Config()) == LIBRARY


def test_without_fusion_the_model_is_that_of_clip_reid() -> None:
    from clipreid.methods import clip_reid

    def shapes(method: Any) -> dict[str, Any]:
        model = build(method, load_backbone("tiny-clip"), method.Config(), 4)
        return {name: x.shape for name, x in model.state_dict().items()}

    assert shapes(dpl) == shapes(clip_reid)


# Whole stages --------------------------------------------------------------------------------------------------------


def test_the_texts_of_stage_1_find_their_identities_with_and_without_occluder(street: Path, tmp_path: Path) -> None:
    flags, config = flags_of(
        street, tmp_path / "run", prompt_epochs=12, occluder_tokens_per="class", occluded_draws=2, severity_most=0.3
    )
    run = open_run(dpl, flags, config)
    stage = next(iter(dpl.stages(run, build_model(run), run.config)))
    before = {name: x.clone() for name, x in stage.identities().items()}  # type: ignore[misc]
    train(stage, run)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    said = {name: value for line in lines for name, value in line.items()}
    assert said["image_to_text"] > 0.7  # 0.25 by chance, as below
    assert said["text_to_image"] == 1.0
    assert said["occluded_image_to_text"] > 0.7
    losses = [line for line in lines if "occluded_i2t_loss" in line]
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]
    kept = stage.identities()  # type: ignore[misc]
    assert kept["occluder_prompts"].shape[:2] == (len(LIBRARY.kinds), 2)
    assert kept["occluded_text_bank"].shape[:2] == (len(LIBRARY.kinds), 4)
    assert all(not torch.equal(kept[name], before[name]) for name in kept)


def test_a_run_with_a_partner_loads_as_it_was_trained_and_continues_with_it(street: Path, tmp_path: Path) -> None:
    import clipreid

    given: dict[str, Any] = {"prompts": "identity", "prompt_epochs": 1, "epochs": 1, "fusion": "gated"}
    run = run_method(dpl, *flags_of(street, tmp_path / "run", **given))
    model = clipreid.load(run.folder)
    images = sorted((street / "test").glob("*.jpg"))
    assert torch.equal(model.embed(images), clipreid.load(run.folder).embed(images))
    assert "aggregator.partner.model.conv_stem.weight" in model.state_dict()
    assert set(load_identities(run.folder)[0]) >= {"prompts", "text_bank"}
    flags, config = flags_of(street, tmp_path / "more", **given, partner="mobilenetv4_conv_small_050.e3000_r224_in1k")
    more: Any = SimpleNamespace(flags=replace(flags, init=run.folder), log=SimpleNamespace(say=print))
    again = build(dpl, load_backbone("tiny-clip", image_size=(64, 32)), config, 4)
    state = {name: x.clone() for name, x in again.state_dict().items()}
    dpl.prepare_partner(more, again)  # offline: these weights could not be had, and are not asked for
    assert all(torch.equal(x, state[name]) for name, x in again.state_dict().items())
