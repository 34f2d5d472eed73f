"""DPM and DPM++: every loss against loops, the turns, the switches, and a run through all that compares images."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_only import save_timm
from launch_method import launch_method
from launching import paint_street
from processes import in_processes
from short_runs import short_run
from torch import Tensor

import clipreid
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.export import export_onnx
from clipreid.hub.card import make_card
from clipreid.hub.metadata import Facts
from clipreid.methods import build, clip_reid
from clipreid.metric import Cosine, MaskedCosine
from clipreid.model import ReIDModel

dpm = pytest.importorskip("clipreid.methods.dpm")  # without the method's file everything else is green

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
IDENTITIES = 4
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def backbone(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> str:
    return f"hf:{tiny_folder(request.param)}"


@pytest.fixture(scope="module")
def clip(tiny_folder: Callable[[str], Path]) -> str:
    return f"hf:{tiny_folder('clip')}"


def shaken(model: ReIDModel) -> ReIDModel:
    """Classifiers, masks and adapters that are not zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name or "lora_B" in name or "generator.linear" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def made(backbone: str, config: Any = None) -> Any:
    """An objective on a model whose weights do something, and the text bank."""
    torch.manual_seed(0)
    config = config or dpm.Config()
    loaded = load_backbone(backbone)
    model = shaken(build(dpm, loaded, config, IDENTITIES))
    bank = torch.randn(IDENTITIES, loaded.image.embed_dim, generator=torch.Generator().manual_seed(4))
    saliency = dpm.Saliency(model, config) if config.patch_transfer else None
    found = dpm.Objective(model, bank if config.prompts == "identity" else None, 10.0, config, saliency)
    return found.train()


def batch_of(objective: Any) -> dict[str, Tensor]:
    pixels = torch.randn(6, 3, *objective.model.image_size, generator=torch.Generator().manual_seed(1))
    return {"pixels": pixels, "labels": LABELS, "rows": torch.arange(6)}


# Losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: list[list[float]], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, LABELS.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        for k, x in enumerate(row):
            total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * (x - log_sum)
    return total / len(logits)


def masked(f: list[float], m: list[float], w: list[float]) -> float:
    unit = [a * b / math.hypot(*w) for a, b in zip(m, w, strict=True)]
    return sum(a * b for a, b in zip(f, unit, strict=True)) / math.hypot(*f) / math.hypot(*unit)


@pytest.mark.parametrize("kind", ["final", "both"])
def test_losses_by_loops(backbone: str, kind: Any) -> None:
    config = dpm.Config(
        masked=kind, weight_id=2.0, weight_masked=3.0, weight_triplet=5.0, weight_enrich=7.0, weight_i2t=1.5,
        weight_relation=2.5, arc_scale=6.0, arc_margin=0.4, smoothing=0.2, soft_margin=True, triplet_taps="test",
    )  # fmt: skip
    objective = made(backbone, config)
    batch = batch_of(objective)
    found = objective(batch, 0)
    names = {"id_loss", "masked_loss", "triplet_loss", "enrich_loss", "i2t_loss", "relation_loss"}
    assert set(found) == names
    with torch.no_grad():
        output = objective.model(batch)  # batch norm by the same batch
    feature, mask = output.features[kind], output.features["mask"]
    prototypes = objective.model.necks[kind].classifier.weight.detach()
    assert found["id_loss"].item() == pytest.approx(2 * cross_entropy(output.logits[kind].tolist(), 0.2), rel=1e-4)
    rows = []
    for f, m, label in zip(feature.tolist(), mask.tolist(), LABELS.tolist(), strict=True):
        angles = [math.acos(masked(f, m, w)) for w in prototypes.tolist()]
        assert angles[label] + 0.4 < math.pi
        rows.append([6 * math.cos(a + 0.4 * (k == label)) for k, a in enumerate(angles)])
    assert found["masked_loss"].item() == pytest.approx(3 * cross_entropy(rows, 0.2), rel=1e-4)
    x = [[a / math.hypot(*f) for a in f] if config.triplet_features == "unit" else f for f in feature.tolist()]
    total = 0.0
    for i, a in enumerate(x):
        far = max(math.dist(a, b) for j, b in enumerate(x) if LABELS[j] == LABELS[i])
        near = min(math.dist(a, b) for j, b in enumerate(x) if LABELS[j] != LABELS[i])
        total += math.log1p(math.exp(far - near))
    assert found["triplet_loss"].item() == pytest.approx(5 * total / 6, rel=1e-4)
    projection, bank = output.features["projection"].tolist(), objective.bank.tolist()
    even = [[10 * masked(f, [1.0] * len(f), t) for t in bank] for f in projection]  # a mask of ones: the cosine
    assert found["i2t_loss"].item() == pytest.approx(1.5 * cross_entropy(even, 0.2), rel=1e-4)
    relation = dpm.relation_loss(prototypes, objective.bank, torch.arange(3), 0.1, itself=False)
    assert found["relation_loss"].item() == pytest.approx(2.5 * relation.item(), rel=1e-4)


def test_the_head_enrich_loss_by_the_heads_own_attention(backbone: str) -> None:
    """Scores before the softmax, read from what the blocks are given, head by head."""
    config = dpm.Config(weight_enrich=3.0)
    objective = made(backbone, config)
    tower, seen = objective.model.tower, {}
    block = tower.encoder.layers[-1]
    block.layer_norm1.register_forward_hook(lambda module, given, out: seen.setdefault("block", out))
    tower.post_layernorm.register_forward_hook(lambda module, given, out: seen.setdefault("head", out))
    found = objective(batch_of(objective), 0)["enrich_loss"].item()
    per_image = []
    with torch.no_grad():
        for image in range(6):
            if tower.has_cls:
                x, attention = seen["block"][image], block.self_attn
                q, k, heads = attention.q_proj(x[0]), attention.k_proj(x[1:]), attention.heads
            else:
                x, attention = seen["head"][image], tower.head.attention
                c, heads = x.shape[1], attention.num_heads
                q = attention.in_proj_weight[:c] @ tower.head.probe[0, 0] + attention.in_proj_bias[:c]
                k = x @ attention.in_proj_weight[c : 2 * c].T + attention.in_proj_bias[c : 2 * c]
            size = len(q) // heads
            parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
            rows = torch.stack([k[:, part] @ q[part] for part in parts])  # [H, N]
            rows = rows / rows.norm(dim=1, keepdim=True)
            per_image.append(((rows @ rows.T - torch.eye(heads)) ** 2).sum().item() / heads**2)
    assert found == pytest.approx(3 * sum(per_image) / 6, rel=1e-4)
    summed = made(backbone, dataclasses.replace(config, enrich_over="sum"))
    assert summed(batch_of(summed), 0)["enrich_loss"].item() == pytest.approx(3 * sum(per_image), rel=1e-4)


def test_by_a_new_mask_the_masked_loss_is_that_of_the_cosine(clip: str) -> None:
    config = dpm.Config()
    objective = made(clip, config)
    objective.model.aggregator.generator.linear.weight.data.zero_()
    objective.model.aggregator.generator.linear.bias.data.zero_()
    control = made(clip, dataclasses.replace(config, mask="none"))
    control.model.load_state_dict(objective.model.state_dict(), strict=False)
    batch = batch_of(objective)
    for name, value in control(batch).items():
        torch.testing.assert_close(objective(batch)[name], value)


# Turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low-rank", "published"])
@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_each_turn_trains_its_own_parameters_and_no_others(clip: str, kind: Any, tuning: Any) -> None:
    config = dpm.Config(mask=kind, tuning=tuning)
    objective = made(clip, config)
    model, first, second = objective.model, *dpm.optimisers(objective.model, objective, config)
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    parts = [{id(p) for group in o.param_groups for p in group["params"]} for o in (first, second)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == trainable.keys()
    assert all(trainable[p].startswith("aggregator.generator.") for p in parts[1])
    assert not any(trainable[p].startswith("aggregator.generator.") for p in parts[0])
    for turn, wanted in enumerate(parts):
        model.zero_grad(set_to_none=True)
        losses = objective(batch_of(objective), turn)
        assert {id(p) for p in model.parameters() if p.requires_grad} == trainable.keys()  # as it was
        sum(losses.values()).backward()  # type: ignore[union-attr]
        given = {id(p) for p in model.parameters() if p.grad is not None}
        assert given <= wanted
        moved = {trainable[i] for i in given}
        assert (moved and all("generator" in n for n in moved)) if turn else any("classifier" in n for n in moved)
        if turn:
            assert set(losses) == {"mask_loss"}
            assert given == wanted


def test_the_first_turn_reaches_the_tower_through_the_mask_and_the_second_sees_the_same_images(clip: str) -> None:
    objective = made(clip, dpm.Config(patch_transfer=1.0))
    seen: list[Tensor] = []
    objective.model.tower.encoder.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = batch_of(objective)
    losses = [objective(batch, turn) for turn in (0, 1)]
    assert torch.equal(*seen)
    assert losses[0]["masked_loss"].item() == pytest.approx(losses[1]["mask_loss"].item(), rel=1e-5)
    plain = made(clip)
    assert plain(batch, 0)["masked_loss"].item() != pytest.approx(losses[0]["masked_loss"].item(), rel=1e-5)
    mask = objective.model(batch).features["mask"]
    gradients = torch.autograd.grad(mask[:, 0].sum(), objective.turns[0], allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in gradients)


def test_one_optimiser_without_turns_or_without_a_mask(clip: str) -> None:
    for config in (dpm.Config(alternate=False, mask_rate=0.01), dpm.Config(mask="none")):
        objective = made(clip, config)
        (only,) = dpm.optimisers(objective.model, objective, config)
        found = [id(p) for group in only.param_groups for p in group["params"]]
        assert len(found) == len(set(found))
        assert set(found) == {id(p) for p in objective.model.parameters() if p.requires_grad}
        sum(objective(batch_of(objective)).values()).backward()  # type: ignore[union-attr]
        assert all(group["lr"] == group["base"] for group in only.param_groups)
        assert (0.01 in {group["lr"] for group in only.param_groups}) == (config.mask != "none")


# Switches ---------------------------------------------------------------------------------------------------------

SWITCHES: list[dict[str, Any]] = [
    {"mask": "none"}, {"mask": "published"}, {"mask_rank": 3}, {"masked": "both"}, {"weight_masked": 0.1},
    {"arc_scale": 10.0}, {"arc_margin": 0.1}, {"weight_enrich": 0.0}, {"enrich_over": "sum"}, {"weight_relation": 0.0},
    {"relation_temperature": 0.5}, {"relation_itself": True}, {"patch_transfer": 1.0},
    {"patch_transfer": 1.0, "saliency": "centre"}, {"patch_transfer": 1.0, "salient_share": 0.6},
    {"prompts": "none"}, {"triplet_taps": "test"}, {"alternate": False}, {"mask_rate": 0.02}, {"weight_id": 0.1},
]  # fmt: skip


def after_a_step(backbone: str, config: Any) -> Tensor:
    """Losses of a step, and the mean of what the model says afterwards."""
    objective = made(backbone, config)
    optimisers = dpm.optimisers(objective.model, objective, config)
    said, batch = [], batch_of(objective)
    for turn, optimiser in enumerate(optimisers):
        losses = objective(batch) if len(optimisers) == 1 else objective(batch, turn)
        total = sum(losses.values())
        optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[union-attr]
        optimiser.step()
        said.append(total)
    features = objective.model.eval().features(batch["pixels"])
    return torch.stack([sum(said), *[x.square().mean() for x in features.values()]]).detach()  # type: ignore


def test_every_switch_changes_the_output(clip: str) -> None:
    found: dict[str, Tensor] = {}
    for switch in [{}, *SWITCHES]:
        torch.manual_seed(0)
        found[json.dumps(switch)] = after_a_step(clip, dpm.Config(**switch))
    assert torch.equal(found["{}"], after_a_step(clip, dpm.Config()))
    plain = list(found.items())
    for nth, (name, value) in enumerate(plain):
        assert bool(value.isfinite().all()), name
        for other, against in plain[:nth]:
            assert value.shape != against.shape or not torch.equal(value, against), f"{name} is {other}"


def test_texts_relations_pull_the_prototypes(clip: str) -> None:
    """The term reaches them, and nothing of the tower; on its own it can be learned."""
    objective = made(clip)
    prototypes = objective.model.necks["final"].classifier.weight
    objective(batch_of(objective), 0)["relation_loss"].backward()
    assert [name for name, p in objective.model.named_parameters() if p.grad is not None and bool(p.grad.any())] == [
        "necks.final.classifier.weight"
    ]
    optimiser, history = torch.optim.Adam([prototypes], 0.05), []
    for _ in range(100):
        loss = dpm.relation_loss(prototypes, objective.bank, torch.arange(IDENTITIES), 0.1, itself=False)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.05 * history[0]


# Saliency ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["attention", "centre"])
def test_saliency_marks_its_share_of_patches(backbone: str, kind: Any) -> None:
    objective = made(backbone, dpm.Config(saliency=kind, salient_share=0.25, patch_transfer=0.5))
    rows, columns = objective.model.tower.grid
    found = objective.saliency(batch_of(objective)["pixels"])
    assert found.shape == (6, rows * columns)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found.sum(1).tolist() == [round(0.25 * rows * columns)] * 6
    if kind == "attention":
        maps = dpm.attention_rollout(objective.saliency.tower, batch_of(objective)["pixels"]).flatten(1)
        assert bool(((maps * found).sum(1) >= (maps * (1 - found)).amax(1)).all())
        lowest = torch.where(found > 0, maps, torch.inf).amin(1)
        assert bool((lowest >= torch.where(found > 0, -torch.inf, maps).amax(1)).all())
        with torch.no_grad():  # the tower as it was: training does not move it
            for parameter in objective.model.parameters():
                parameter.add_(0.1)
        assert torch.equal(objective.saliency(batch_of(objective)["pixels"]), found)
        assert not any("saliency" in name for name in objective.state_dict())


def test_the_middle_is_found_on_any_grid() -> None:
    assert dpm.centre_map((3, 3)).argmax().item() == 4
    assert dpm.centre_map((1, 1)).isfinite().all()
    assert dpm.centre_map((5, 1)).view(5).argsort(descending=True)[0].item() == 2


# Presets and refusals ---------------------------------------------------------------------------------------------


def test_the_published_values() -> None:
    _, paper = configure(dpm, preset="paper", backbone="open_clip:ViT-B-16/openai")
    assert (paper.mask, paper.masked, paper.alternate, paper.tuning) == ("published", "final", True, "full")
    assert (paper.weight_id, paper.weight_masked, paper.arc_scale, paper.arc_margin) == (0.5, 0.5, 30, 0.5)
    assert (paper.weight_enrich, paper.enrich_over, paper.soft_margin, paper.triplet_taps) == (0.1, "sum", True, "test")
    assert (paper.epochs, paper.warmup, paper.schedule, paper.weight_decay) == (150, 5, "cosine", 1e-4)
    assert (paper.bias_rate_factor, paper.flip, paper.pad, paper.erase, paper.triplet_features) == (
        2,
        0.5,
        10,
        0.5,
        "raw",
    )
    _, default = configure(dpm, backbone="open_clip:ViT-B-16/openai")
    assert (default.mask, default.patch_transfer, default.tuning) == ("low-rank", 0.0, "lora")
    assert default.weight_enrich == pytest.approx(64 * paper.weight_enrich)  # the same for the published batch


def test_what_cannot_be_is_refused(clip: str, tmp_path: Path) -> None:
    config = dpm.Config(mask="published")
    with pytest.raises(UserError, match=r"^--mask published: its batch norms would see .* \(2\): train on one process"):
        dpm.fit(config, None, load_backbone(clip), None, 2)
    image_only = load_backbone(f"timm:test_vit/{save_timm('test_vit', tmp_path)[0]}")
    for refused in (
        lambda: dpm.build(image_only, dpm.Config()),
        lambda: dpm.fit(dpm.Config(), None, image_only, None, 1),
    ):
        with pytest.raises(UserError, match="has no patch tokens to make a mask from: take a CLIP or SigLIP backbone"):
            refused()


# A run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("dpm") / "crops", train=4, test=4)


@pytest.fixture(scope="module")
def run(street: Path, clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "dpm"
    short_run(dpm, street, folder, backbone=clip, image_size=None, patch_transfer=0.5, mask_rate=0.05)
    return folder


def test_a_run_is_compared_by_its_metric_everywhere(
    run: Path, street: Path, clip: str, tmp_path: Path, capsys: Capture
) -> None:
    """evaluate with every extra, compare, re-ranking, the page; the plain cosine of the same feature stands beside."""
    data = f"folder:{street}"
    extras = ("--open-set", "--by", "camera-pair", "--report", tmp_path / "report")
    main([str(w) for w in ("evaluate", run, "--data", data, "--rerank", "k-reciprocal", *extras)])
    main([str(w) for w in ("evaluate", run, "--data", data, "--rerank", "kwf")])
    found = json.loads((run / "metrics.json").read_text())[data]
    assert {"dpm", "dpm+k-reciprocal", "dpm+kwf"} <= found.keys()
    assert found["dpm"]["feature"] == "concat"
    assert set(found["dpm"]["parts"]) == {"concat", "final", "mask", "projection"}
    assert "health" not in found["dpm"]
    assert (tmp_path / "report" / "index.html").is_file()
    model = clipreid.load(run)
    split = clipreid.data.load_data(data).splits["query"]
    images = [split.image(i) for i in range(len(split))]
    features, table = model.embed(images), split.metadata()
    width = model.widths["final"]
    how: dict[str, Any] = {"query": table, "gallery": table, "protocol": found["dpm"]["protocol"]}
    masked_map = evaluate(similarity=model.metric(features, features), **how).metrics["mAP"]
    cosine = evaluate(features[:, :width], features[:, :width], **how).metrics["mAP"]
    assert found["dpm"]["mAP"] == pytest.approx(masked_map, abs=1e-5)
    assert found["dpm"]["parts"]["final"]["mAP"] == pytest.approx(cosine, abs=1e-5)
    assert not torch.allclose(model.metric(features, features), model.metric(features, features).T, atol=1e-4)
    short_run(clip_reid, street, tmp_path / "other", backbone=clip, image_size=None, prompts="none")
    main([str(w) for w in ("compare", tmp_path / "other", run, "--data", data, "--report", tmp_path / "both")])
    assert (tmp_path / "both" / "comparison.json").is_file()
    capsys.readouterr()
    refused = {
        ("embed", run, street, "--output", tmp_path / "g.parquet"): "a gallery",
        ("compare", tmp_path / "other", run, "--data", data, "--weight", "0.5"): "--fuse",
        ("evaluate", run, "--data", data, "--rerank", "aqe"): "--rerank aqe",
        ("evaluate", run, "--data", data, "--centre-cameras", "gallery"): "--centre-cameras gallery",
    }
    for words, what in refused.items():
        with pytest.raises(SystemExit):
            main([str(w) for w in words])
        said = " ".join(capsys.readouterr().err.split())
        assert f"{what} compares features by cosine, and this model compares them by its own metric (masked" in said
    with pytest.raises(UserError, match=r"^an ONNX graph compares .* \(masked cosine\)"):
        export_onnx(model, tmp_path / "onnx")


def test_the_card_says_how_features_are_compared(run: Path) -> None:
    """Of a run as if it had a backbone that can be named in public."""
    config = json.loads((run / "config.json").read_text())
    config["backbone"]["name"] = "tiny-clip"
    pixels = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic"
    cards = {
        name: make_card(Facts("me/demo", config, {}, "clip", None, "", "because", 8, *pixels, metric=name))
        for name in ("cosine", clipreid.load(run).metric.name)
    }
    assert "unit length; compare by dot product" in cards["cosine"]
    assert "unit length; compare by the masked cosine: model.metric(queries, gallery)" in cards["masked cosine"]
    assert "dot product" not in cards["masked cosine"]


def test_the_control_without_a_mask_is_compared_by_cosine(clip: str) -> None:
    kinds = {kind: build(dpm, load_backbone(clip), dpm.Config(mask=kind)) for kind in ("none", "low-rank")}
    assert isinstance(kinds["none"].metric, Cosine)
    assert isinstance(kinds["low-rank"].metric, MaskedCosine)
    assert list(kinds["none"].widths) == ["final"]
    assert list(kinds["low-rank"].widths) == ["final", "mask"]
    crops = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8)
    new = kinds["low-rank"].embed(crops)  # whose masks are even: the ranking of the cosine
    plain = kinds["none"].embed(crops)
    torch.testing.assert_close(kinds["low-rank"].metric(new, new), plain @ plain.T, atol=1e-5, rtol=1e-5)
    assert set(kinds["none"].embed_parts(crops)) == {"concat", "final", "projection"}  # texts ask the projection


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--patch-transfer", "1.0"), ("--no-alternate",), ("--tuning", "full")], ids=str)
def test_two_processes_are_one_with_donors_of_the_other_process(
    flags: tuple[str, ...], street: Path, clip: str, tmp_path: Path
) -> None:
    base = ["--backbone", clip, "--data", f"folder:{street}", "--threads", "1", "--prompts", "none", "--epochs", "2"]
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        in_processes(processes, launch_method, "dpm", *base, *flags, "-P", "4", "-K", "2", "--output", str(run))
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        found.append([line for line in lines if "loss" in line])
    assert len(found[0]) == len(found[1]) > 0
    for one, two in zip(*found, strict=True):
        for key in (key for key in one if key.endswith("loss")):
            assert one[key] == pytest.approx(two[key], rel=2e-4, abs=1e-5), (one["epoch"], key)
