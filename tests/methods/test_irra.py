"""IRRA: its losses by hand, images without captions, its towers and what is published of them."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from launching import caption_street, paint_street
from short_runs import data_of, short_run
from torch import Tensor, nn

import clipreid
from clipreid.backbones import load_backbone
from clipreid.config import RunConfig, configure
from clipreid.data import load_data
from clipreid.errors import UserError
from clipreid.evaluation.score import score
from clipreid.hub.package import package
from clipreid.hub.plain import plain_base, plain_lines
from clipreid.losses.words import IGNORED
from clipreid.methods import build, clip_reid, irra
from clipreid.prompts.interaction import InteractionEncoder, image_tokens
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.run import with_data
from clipreid.training.stage import Batch

Folder = Callable[[str], Path]
IDENTITIES = 3


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_street(paint_street(tmp_path_factory.mktemp("irra") / "crops", train=4, test=3))


@pytest.fixture(scope="module")
def run(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    short_run(irra, street, folder)
    return folder


def make(tiny_folder: Folder, family: str = "clip", **given: Any) -> irra.Matching:
    config = configure(irra, backbone=f"hf:{tiny_folder(family)}", **given)[1]
    torch.manual_seed(0)
    return irra.Matching(
        build(irra, load_backbone(f"hf:{tiny_folder(family)}"), config, IDENTITIES), IDENTITIES, config
    )


def batch_of(module: irra.Matching, captioned: list[bool]) -> Batch:
    (backbone,) = module.model.source
    texts = ["a red hat", "a blue bag and a red hat", "shoes", "a green coat"]
    ids = backbone.tokenizer([text if has else "" for text, has in zip(texts, captioned, strict=True)])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    wanted = torch.full_like(ids, IGNORED)
    for row, has in enumerate(captioned):
        if has:
            hidden[row, 1], wanted[row, 1] = True, ids[row, 1]
    drawn = torch.Generator().manual_seed(1)
    return {"pixels": torch.randn(4, 3, *backbone.image_size, generator=drawn), "labels": torch.tensor([0, 0, 1, 2]),
            "captions": ids, "captioned": torch.tensor(captioned), "masked": ids, "hidden": hidden,
            "wanted": wanted}  # fmt: skip


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("captioned", [[True] * 4, [True, False, True, True]])
def test_the_losses_are_those_of_features_that_are_compared_at_test(
    tiny_folder: Folder, family: str, captioned: list[bool]
) -> None:
    """Written anew from `encode_image` and `encode_text`; an image without a caption has an identity only."""
    module = make(tiny_folder, family, weight_itc=0.5, weight_sdm=2.0, weight_id=3.0, smoothing=0.1, temperature=0.1)
    batch, (backbone,) = batch_of(module, captioned), module.model.source
    losses = module(batch)
    images, texts = backbone.encode_image(batch["pixels"]), backbone.text.encode(batch["captions"])
    kept, labels = batch["captioned"], batch["labels"]
    cosines = F.normalize(images[kept], dim=1) @ F.normalize(texts[kept], dim=1).T
    same = (labels[kept, None] == labels[kept]).float()
    wanted = (same / same.sum(1, keepdim=True) + 1e-8).log()
    ways = [
        F.kl_div(wanted, (10 * x).log_softmax(1), log_target=True, reduction="batchmean") for x in (cosines, cosines.T)
    ]
    torch.testing.assert_close(losses["sdm_loss"], 2 * (ways[0] + ways[1]))
    assert module.classifier is not None
    ids = [F.cross_entropy(module.classifier(x), y, label_smoothing=0.1)
           for x, y in ((images, labels), (texts[kept], labels[kept]))]  # fmt: skip
    torch.testing.assert_close(losses["id_loss"], 3 * (ids[0] + ids[1]) / 2)
    own = torch.arange(len(cosines))
    pairs = (F.cross_entropy(10 * cosines, own) + F.cross_entropy(10 * cosines.T, own)) / 2
    torch.testing.assert_close(losses["itc_loss"], 0.5 * pairs)
    assert losses.keys() == {"sdm_loss", "id_loss", "itc_loss", "mlm_loss"}


def test_a_batch_without_any_caption_trains_images_only(tiny_folder: Folder) -> None:
    module = make(tiny_folder, weight_itc=1.0)
    losses = module(batch_of(module, [False] * 4))
    assert {name for name, x in losses.items() if x != 0} == {"id_loss"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # processes wait for each of them
            assert parameter.grad.isfinite().all(), name
            assert not (name.startswith("model.text") and parameter.grad.any()), name


def attention(cross: nn.MultiheadAttention, q: Tensor, k: Tensor) -> Tensor:
    """By hand: q [B, L, E] asks k [B, N, E]."""
    (wq, wk, wv), (bq, bk, bv) = cross.in_proj_weight.chunk(3), cross.in_proj_bias.chunk(3)
    heads, found = cross.num_heads, []
    size = q.shape[2] // heads
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        scores = (q @ wq.T + bq)[..., at] @ (k @ wk.T + bk)[..., at].mT / size**0.5
        found.append(scores.softmax(2) @ (k @ wv.T + bv)[..., at])
    return torch.cat(found, 2) @ cross.out_proj.weight.T + cross.out_proj.bias


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_hidden_words_ask_the_tokens_of_their_image(tiny_folder: Folder, family: str) -> None:
    backbone = load_backbone(f"hf:{tiny_folder(family)}")
    torch.manual_seed(0)
    encoder = InteractionEncoder(backbone.text, depth=1)
    ids = backbone.tokenizer(["a red hat", "shoes and a bag"])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[:, 1] = True
    embedded = encoder.embed(backbone.text, ids, hidden)
    plain = backbone.text.embed(ids)
    assert torch.equal(embedded[:, 1], encoder.mask.expand(2, -1))
    assert torch.equal(embedded[:, 2:], plain[:, 2:])
    texts = backbone.text(embedded, None)
    tokens = backbone.tokens(torch.randn(2, 3, *backbone.image_size))
    images = image_tokens(backbone.image, tokens)
    if family == "clip":
        torch.testing.assert_close(images[:, 0], tokens.pooled)
        torch.testing.assert_close(images[:, 1:], tokens.patches @ backbone.image.visual_projection.weight.T)
    logits = encoder(texts, images, hidden)
    x = attention(encoder.cross, encoder.norm_text(texts), encoder.norm_image(images))
    x = encoder.norm(encoder.encoder.layers[0](x))[:, 1]
    x = encoder.dense(x)
    expected = encoder.vocabulary(encoder.norm_head(x * torch.sigmoid(1.702 * x)))
    torch.testing.assert_close(logits, expected)
    assert logits.shape == (2, backbone.text.config.vocab_size)
    swapped = encoder(texts, images.flip(0), hidden)
    assert (swapped - logits).abs().max() > 1e-4


def test_what_is_hidden_depends_on_seed_epoch_step_and_image(tiny_folder: Folder) -> None:
    config = configure(irra, mask_share=0.3)[1]
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    special = set(backbone.tokenizer([""])[0].tolist())

    def batches(rank: int, processes: int) -> irra.Batches:
        captions = [["a red hat with a blue bag", "green shoes"]] * 8
        data = SimpleNamespace(captions=captions, labels=torch.arange(8) // 2, groups=torch.zeros(8, dtype=torch.long),
                               sides=(torch.zeros(8), torch.zeros(8)), names=list("abcd"))  # fmt: skip
        crops = torch.zeros(8, 3, *backbone.image_size, dtype=torch.uint8)
        own = replace(config, identities_per_batch=4, images_per_identity=2)
        run: Any = SimpleNamespace(data=data, config=own, backbone=backbone, seed=0, share=(rank, processes),
                                   device=torch.device("cpu"), crops=lambda: crops)  # fmt: skip
        return irra.masked_batches(run, own)

    (whole,) = batches(0, 1)(0)
    assert torch.equal(whole["masked"], batches(0, 1)(0)[0]["masked"])
    halves = [batches(rank, 2)(0)[0] for rank in (0, 1)]
    for name, x in whole.items():
        assert torch.equal(torch.cat([half[name] for half in halves]), x), name
    assert not torch.equal(whole["wanted"], batches(0, 1)(1)[0]["wanted"])
    asked = whole["wanted"] != IGNORED
    assert asked.any(1).all()
    assert not set(whole["wanted"][asked].tolist()) & special
    assert torch.equal(whole["wanted"][asked], whole["captions"][asked])


def test_rates_of_towers_and_heads(tiny_folder: Folder) -> None:
    lora, full = make(tiny_folder), make(tiny_folder, preset="paper")
    for module, config in ((lora, lora.config), (full, full.config)):
        optimiser = stage_optimiser(module.model, config, module)
        names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        assert sum(len(group["params"]) for group in optimiser.param_groups) == len(names)
        for group in optimiser.param_groups:
            for name in (names[id(p)] for p in group["params"]):
                tower = name.startswith(("model.image", "model.text"))
                factor = config.bias_rate_factor if name.endswith("bias") else 1
                assert group["base"] == pytest.approx(factor * (config.rate if tower else config.head_rate)), name
                assert group["weight_decay"] == (0 if tower and module is lora else group["weight_decay"]), name
            assert group["eps"] == config.adam_eps
    assert (full.config.rate, full.config.head_rate, full.config.adam_eps) == (1e-5, 5e-5, 1e-3)
    assert any(name.startswith("model.text") for name, p in lora.named_parameters() if p.requires_grad)
    frozen = make(tiny_folder, text_tuning="frozen")
    assert not any(name.startswith("model.text") for name, _ in frozen.named_parameters())
    assert not any(p.requires_grad for p in frozen.model.text_tower.parameters())


# Runs -------------------------------------------------------------------------------------------------------------


def test_evaluation_asks_the_trained_text_tower(run: Path, street: Path) -> None:
    data, model = load_data(data_of(street)), clipreid.load(run)
    found = score(data, model, protocol="text-to-image")
    said = [caption for caption in data.splits["query"].captions.tolist() if caption]
    gallery = model.embed([data.splits["gallery"].path(row) for row in range(len(data.splits["gallery"]))])
    expected = model.embed_text(said) @ gallery.T  # the test feature of images is the projection
    torch.testing.assert_close(found.similarity(), expected, atol=1e-4, rtol=0)
    assert (clipreid.load("tiny-clip").embed_text(said) - model.embed_text(said)).abs().max() > 1e-3


def test_the_card_shows_both_adapters_and_the_lines_give_the_features(run: Path, street: Path, tmp_path: Path) -> None:
    files = package(run, "alice/words")
    assert {"adapter_model.safetensors", "text_adapter/adapter_model.safetensors"} <= files.keys()
    card = files["README.md"]
    assert isinstance(card, bytes)
    assert "Its text tower was trained as well: `model.embed_text(sentences)`" in card.decode()
    lines = next(block for block in card.decode().split("```python\n") if "subfolder" in block).partition("```")[0]
    picture = str(next((street / "test").glob("*.jpg")))
    lines = lines.replace('"alice/words")', f'"{run / "adapter"}")')  # in a repository the first one is at the root
    lines = lines.replace("alice/words", str(run)).replace("a.jpg", picture)
    found: dict[str, Any] = {}
    exec(lines, found)
    model = clipreid.load(run)
    assert (found["feature"] - model.embed([picture])).abs().max() <= 1e-4
    assert (found["words"] - model.embed_text(["a person in a red coat"])).abs().max() <= 1e-4


@pytest.mark.parametrize("text_tuning", irra.PLAIN["text_tuning"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_plain_peft_gives_the_images_feature(
    tiny_folder: Folder, tmp_path: Path, street: Path, text_tuning: str, family: str
) -> None:
    from test_hub import shake, write_run
    from test_plain import run_lines

    from clipreid.hub import backbone_record

    source = load_backbone(f"hf:{tiny_folder(family)}")
    record = backbone_record(source, source.positions)
    model = build(irra, source, irra.Config(text_tuning=text_tuning))
    shake(model)
    write_run(model, tmp_path / "run", record, "irra")
    base, reason = plain_base(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert reason is None
    assert base is not None
    picture = str(next((street / "test").glob("*.jpg")))
    found = run_lines(plain_lines(model, base, str(tmp_path / "run" / "adapter"), picture))
    assert (found - model.eval().embed([picture])).abs().max() <= 1e-4


def test_without_data_it_takes_the_captions_of_the_street() -> None:
    flags = RunConfig()
    assert with_data(irra, flags).data == ("synthetic:captions",)
    assert with_data(irra, flags).test == ("synthetic",)
    assert with_data(irra, replace(flags, test=("synthetic:new-cameras",))).test == ("synthetic:new-cameras",)
    given = replace(flags, data=("csv:mine.csv",))
    assert with_data(irra, given) == given
    assert with_data(clip_reid, flags) == flags


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no captions": ({"data": "folder:{street}"}, r"none of the 16 training images of folder:.* has a caption"),
    "no loss": ({"weight_sdm": 0.0, "weight_id": 0.0}, r"--weight-itc are all 0: nothing trains the features"),
    "few": (
        {"sampler": "captions", "identities_per_batch": 4, "images_per_identity": 8}, r"do not fill a batch of 4 x 8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_what_is_refused(street: Path, tmp_path: Path, how: str) -> None:
    given, message = BAD[how]
    given = {name: value.format(street=street) if name == "data" else value for name, value in given.items()}
    more = {"data": (given.pop("data"),)} if "data" in given else {}
    with pytest.raises(UserError, match=message):
        short_run(irra, street, tmp_path / "run", **{"backbone": "tiny-clip", **given, **more})
    assert not (tmp_path / "run").exists()


def test_a_backbone_without_text_is_refused() -> None:
    backbone: Any = SimpleNamespace(name="timm:some", text=None)
    with pytest.raises(UserError, match="IRRA learns from captions: timm:some has no text tower: take a backbone with"):
        build(irra, backbone, irra.Config())


def test_captions_as_samples(street: Path, tmp_path: Path, tiny_folder: Folder) -> None:
    """`--sampler captions` of a table where one image has none and one has two."""
    with open(street / "street.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    next(row for row in rows if row["split"] == "train")["caption"] = ""
    table = street / "odd.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = short_run(
        irra, street, tmp_path / "run", data=(f"csv:{table}",), backbone=f"hf:{tiny_folder('clip')}", sampler="captions"
    )
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line.get("stage") == "irra" and "loss" in line] == [1, 2]
    assert done.record["finished"]
