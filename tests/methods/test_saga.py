"""SAGA as a method: losses, schedule, what `--mode frozen` leaves alone, batches of tokens, controls, refusals."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_only import save_timm
from launch_method import launch_method
from launching import paint_street
from processes import in_processes
from safetensors.torch import load_file
from short_runs import short, short_run
from torch import Tensor

import clipreid
from clipreid.aggregation.base import patch_tokens
from clipreid.aggregation.saga import SagaAggregator
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.config import configure
from clipreid.data import normalise
from clipreid.errors import UserError
from clipreid.hub.initial import inherited
from clipreid.hub.package import package
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel
from clipreid.prompts import word_embeddings
from clipreid.training.harness import Progress
from clipreid.training.launch import build_model, parse
from clipreid.training.run import Run, open_run

saga = pytest.importorskip("clipreid.methods.saga")  # without the method's file everything else is green

CONTROLS: dict[str, dict[str, Any]] = {
    "repeated": {"kind": "repeated"},
    "mean": {"kind": "mean"},
    "cls": {"kind": "cls"},
    "free": {"anchors": "free"},
    "no feed-forward": {"feed_forward": False},
    "uniform": {"score": "uniform"},
}
PHRASES = ("yellow raincoat with hood", "umbrella", "rubber boots")
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four identities of four images each to train on."""
    return paint_street(tmp_path_factory.mktemp("saga") / "crops", train=4, test=2)


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secret-place") / "my-phrases.txt"
    file.write_text("\n".join(PHRASES))
    return file


@pytest.fixture(scope="module")
def init(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run that is continued."""
    run = tmp_path_factory.mktemp("init") / "demo"
    short_run(clip_reid, street, run, prompts="none", rate=5e-3)
    return run


@pytest.fixture(scope="module")
def made(street: Path, init: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(**flags)`: a finished short run of SAGA on `init`, each once."""
    runs: dict[str, Path] = {}

    def make(**given: Any) -> Path:
        key = json.dumps(given, default=str, sort_keys=True)
        if key not in runs:
            folder = tmp_path_factory.mktemp("made") / "run"
            short_run(saga, street, folder, init, **given)
            runs[key] = folder
        return runs[key]

    return make


def opened(street: Path, output: Path, init: Path | None, **given: Any) -> tuple[Run, ReIDModel]:
    """A run that is about to be trained."""
    base: dict[str, Any] = {**short(saga), "data": (f"folder:{street}",), "output": output, "threads": 1}
    if init is not None:
        base = {**inherited(saga, init), **base, "init": init}
    run = open_run(saga, *configure(saga, **base | given))
    return run, build_model(run)


def crops_of(model: ReIDModel, count: int = 5) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *model.image_size), dtype=torch.uint8, generator=drawn)


@torch.no_grad()
def features_of(run: Path | ReIDModel) -> dict[str, Tensor]:
    model = clipreid.load(run) if isinstance(run, Path) else run.eval()
    return model.features(model.normalise(crops_of(model)))


def losses_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "saga"]


# The schedule -----------------------------------------------------------------------------------------------------


def test_the_published_schedule_in_two_phases() -> None:
    """20 epochs: 3.5e-4, warm-up over 5 from a tenth. 80 epochs: 2e-4, the same warm-up, cosine to the half."""
    _, paper = configure(saga, preset="paper", backbone="open_clip:ViT-B-16/openai")
    assert (paper.epochs, paper.second_epochs, paper.warmup, paper.head_rate) == (100, 80, 5, 3.5e-4)
    assert (paper.optimiser, paper.weight_decay, paper.smoothing, paper.margin) == ("adamw", 1e-4, 0.1, 0.3)
    assert (paper.weight_saga_id, paper.weight_saga_triplet, paper.weight_diversity) == (1, 1, 0.05)
    assert (paper.blocks, paper.domain_anchors, paper.learned_slots, paper.frozen_slots) == (2, 3, 4, 12)
    assert (paper.fuse_saga, paper.fuse_final, paper.fuse_projection) == (2, 0.2, 0.05)
    factor = saga.two_phases(paper)
    for at in [0, 1, 2.5, 5, 12, 19.99, 20, 22, 25, 60, 99.9]:
        peak, since = (3.5e-4, at) if at < 20 else (2e-4, at - 20)
        wanted = peak * (0.1 + 0.9 * since / 5 if since < 5 else 1)
        if at >= 20:  # from 1 to 1/2 along half a wave
            wanted *= 0.5 + 0.5 * (1 + math.cos(math.pi * since / 80)) / 2
        assert paper.head_rate * factor(at) == pytest.approx(wanted, rel=1e-9), at
    assert paper.head_rate * factor(100 - 1e-9) == pytest.approx(1e-4)


def test_other_schedules() -> None:
    config = saga.Config(epochs=10, warmup=2, warmup_factor=0.3)
    assert [saga.two_phases(config)(at) for at in (0, 1, 7)] == [
        pytest.approx(x) for x in (0.3, 0.65, 0.5 * (1 + math.cos(math.pi * 5 / 8)))
    ]  # that of CLIP-ReID
    only_second = saga.two_phases(dataclasses.replace(config, second_epochs=50))  # more than there are: all of them
    all_second = saga.two_phases(dataclasses.replace(config, second_epochs=10))
    assert [only_second(at) for at in (0, 3, 9.5)] == [all_second(at) for at in (0, 3, 9.5)]
    assert all_second(0) == pytest.approx(4 / 7 * 0.3)
    assert saga.two_phases(dataclasses.replace(config, second_epochs=4, warmup=0))(0) == 1


# The losses -------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        for k, x in enumerate(row):
            total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * (x - log_sum)
    return total / len(labels)


def triplet(features: Tensor, labels: Tensor, margin: float) -> float:
    rows, names, total = features.tolist(), labels.tolist(), 0.0
    for i, a in enumerate(rows):
        far = max(math.dist(a, b) for b, name in zip(rows, names, strict=True) if name == names[i])
        near = min(math.dist(a, b) for b, name in zip(rows, names, strict=True) if name != names[i])
        total += max(0.0, far - near + margin)
    return total / len(rows)


def likeness(anchors: Tensor) -> float:
    rows = [[x / math.hypot(*row) for x in row] for row in anchors.tolist()]
    pairs = [(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    return sum(sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a, b in pairs) / len(pairs)


def necked(feature: Tensor, model: ReIDModel) -> Tensor:
    """Logits by the statistics of this batch."""
    weight, classifier = model.necks["saga"].norm.weight, model.necks["saga"].classifier.weight  # type: ignore
    deviation = feature - feature.mean(0)
    return deviation / (deviation.square().mean(0) + 1e-5).sqrt() * weight @ classifier.T  # type: ignore


def shaken(model: ReIDModel) -> ReIDModel:
    """Classifiers that are not almost zero, adapters that do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name or "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_losses_of_the_frozen_mode() -> None:
    settings = {"smoothing": 0.2, "margin": 0.7, "standardise": False}
    config = saga.Config(weight_saga_id=2.0, weight_saga_triplet=3.0, weight_diversity=4.0, **settings)
    model = shaken(build(saga, load_backbone("tiny-clip"), config, 3))
    module, labels = saga.OnFrozenTower(model, config).train(), torch.tensor([0, 0, 1, 1, 2, 2])
    patches, final = 2 * torch.randn(6, 32, 128), torch.randn(6, 128)
    found = module({"patches": patches, "final": final, "labels": labels})
    assert set(found) == {"saga_id_loss", "saga_triplet_loss", "diversity_loss"}
    aligned = saga.aggregator_of(model).align(patches, final)
    feature, logits = aligned.feature.detach(), necked(aligned.feature, model)
    assert found["saga_id_loss"].item() == pytest.approx(2 * cross_entropy(logits, labels, 0.2), rel=1e-4)
    assert found["saga_triplet_loss"].item() == pytest.approx(3 * triplet(feature, labels, 0.7), rel=1e-4)
    assert found["diversity_loss"].item() == pytest.approx(4 * likeness(aligned.anchors.detach()), rel=1e-4)
    control = saga.OnFrozenTower(build(saga, load_backbone("tiny-clip"), saga.Config(kind="mean"), 3), config)
    assert set(control({"patches": patches, "final": final, "labels": labels})) == {"saga_id_loss", "saga_triplet_loss"}


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_a_standardised_feature_keeps_the_identities_and_loses_what_all_images_share(mode: str) -> None:
    """Losses compare the feature standardised by the batch; at test it is standardised by the running statistics."""
    config = saga.Config(mode=mode, weight_saga_id=0.0, weight_diversity=0.0)
    model = shaken(build(saga, load_backbone("tiny-clip"), config, 3))
    aggregator, labels = saga.aggregator_of(model), torch.tensor([0, 0, 1, 1, 2, 2])
    if mode == "joint":
        batch = {"pixels": torch.randn(6, 3, *model.image_size), "labels": labels}
        found = saga.Joint(model, None, None, config).train()(batch)
        tokens = model.image(batch["pixels"], taps=aggregator.taps)
        patches, final = tokens.taps[aggregator.layer][:, 1:], tokens.cls
    else:
        patches, final = 2 * torch.randn(6, 32, 128) + 5, torch.randn(6, 128)
        found = saga.OnFrozenTower(model, config).train()({"patches": patches, "final": final, "labels": labels})
    raw = aggregator.align(patches, final).feature.detach()
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    own = (raw - mean) / (deviation.square() + 1e-5).sqrt()
    assert found["saga_triplet_loss"].item() == pytest.approx(triplet(own, labels, config.margin), rel=1e-3)
    torch.testing.assert_close(aggregator.norm.running_mean, 0.1 * mean, rtol=1e-4, atol=1e-5)
    model.eval()
    taps = {layer: torch.cat([final[:, None], patches], 1) for layer in aggregator.taps}
    whole = SimpleNamespace(cls=final, patches=patches, pooled=torch.randn(6, 128), taps=taps)
    spread = (aggregator.norm.running_var + 1e-5).sqrt()
    expected = (raw - aggregator.norm.running_mean) / spread
    torch.testing.assert_close(aggregator(whole, {})["saga"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bank", [True, False])
def test_the_joint_mode_adds_its_losses_to_those_of_clip_reid_and_replaces_none(bank: bool) -> None:
    config = saga.Config(mode="joint", weight_saga_id=2.0, weight_diversity=0.5, standardise=False)
    model = shaken(build(saga, load_backbone("tiny-clip"), config, 3))
    plain = build(clip_reid, load_backbone("tiny-clip"), clip_reid.Config(), 3)
    assert not plain.load_state_dict(model.state_dict(), strict=False).missing_keys  # the rest is SAGA's
    labels, texts = torch.tensor([0, 0, 1, 1, 2, 2]), torch.randn(3, 128) if bank else None
    batch = {"pixels": torch.randn(6, 3, *model.image_size), "labels": labels}
    theirs = clip_reid.Tuning(plain, texts, None, clip_reid.Config()).train()(batch)
    ours = saga.Joint(model, texts, None, config).train()(batch)
    assert set(ours) == {*theirs, "saga_id_loss", "saga_triplet_loss", "diversity_loss"}
    assert set(theirs) == {"id_loss", "triplet_loss", *["i2t_loss"] * bank}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6)
    for name in ("final", "projection"):
        torch.testing.assert_close(model.necks[name].norm.running_mean, plain.necks[name].norm.running_mean)  # type: ignore
    aggregator = saga.aggregator_of(model)
    assert aggregator.aligned is None  # the graph of the step is not held
    layer = round(0.75 * model.tower.depth)
    tokens = model.image(batch["pixels"], taps=(layer,))
    aligned = aggregator.align(tokens.taps[layer][:, 1:], tokens.cls)
    feature, logits = aligned.feature.detach(), necked(aligned.feature, model)
    assert ours["saga_id_loss"].item() == pytest.approx(2 * cross_entropy(logits, labels, 0.1), rel=1e-4)
    assert ours["saga_triplet_loss"].item() == pytest.approx(triplet(feature, labels, 0.3), rel=1e-4)
    assert ours["diversity_loss"].item() == pytest.approx(0.5 * likeness(aligned.anchors.detach()), rel=1e-4)
    sum(ours.values(), start=torch.zeros(())).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent, silent


# What a run leaves ------------------------------------------------------------------------------------------------


def test_the_frozen_mode_changes_nothing_of_the_run_that_it_continues(init: Path, made: Made) -> None:
    run = made()
    adapter = "adapter/adapter_model.safetensors"
    assert (run / adapter).read_bytes() == (init / adapter).read_bytes()
    for file in ("heads.safetensors", "identities.safetensors"):
        before, after = load_file(init / file), load_file(run / file)
        own = {name for name in after if name.startswith(("aggregator.", "necks.saga."))}
        assert own
        assert after.keys() - own == before.keys()
        for name in before:
            assert torch.equal(before[name], after[name]), name
    theirs, ours = features_of(init), features_of(run)
    assert ours.keys() == theirs.keys() | {"saga"}
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_the_frozen_mode_trains_what_is_its_own(street: Path, init: Path, made: Made, tmp_path: Path) -> None:
    after = load_file(made() / "heads.safetensors") | load_file(made() / "identities.safetensors")
    _, model = opened(street, tmp_path / "run", init)
    same = {name for name, x in model.state_dict().items() if name in after and torch.equal(x, after[name])}
    still = {name for name in same if name.startswith(("aggregator", "necks.saga"))}
    assert still == {"aggregator.anchors.frozen", "aggregator.anchors.noun", "necks.saga.norm.bias"}
    config = json.loads((made() / "config.json").read_text())
    assert config["stages"] == ["saga"]
    assert (config["config"]["layer"], config["config"]["anchor_count"], config["config"]["noun_tokens"]) == (4, 24, 1)
    assert set(json.loads((made() / "metrics.json").read_text()).popitem()[1]) == {"zero-shot", "saga"}


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_trains(control: str, made: Made) -> None:
    first, last = losses_of(made(**CONTROLS[control]))
    assert last["saga_id_loss"] < first["saga_id_loss"]
    assert ("diversity_loss" in first) == (control in ("free", "no feed-forward", "uniform"))


def test_every_control_gives_another_feature(made: Made) -> None:
    found = [features_of(made(**given))["saga"] for given in ({}, *CONTROLS.values())]
    for nth, mine in enumerate(found):
        assert all((mine - other).abs().max() > 1e-3 for other in found[:nth])


def test_the_blocks_start_from_the_trained_towers_block(street: Path, init: Path, tmp_path: Path) -> None:
    run, model = opened(street, tmp_path / "run", init)
    stage = next(saga.stages(run, model, run.config))
    assert stage.name == "saga"
    layer = model.tower.encoder.layers[3].self_attn.q_proj  # the fourth of six
    adapted = layer.base_layer.weight + layer.get_delta_weight("default")
    for block in saga.aggregator_of(model).saga.blocks:
        torch.testing.assert_close(block.q_proj.weight, adapted)
        assert not torch.equal(block.q_proj.weight, layer.base_layer.weight)
    run, model = opened(street, tmp_path / "drawn", init, copy_block=False)
    next(saga.stages(run, model, run.config))
    assert not torch.allclose(saga.aggregator_of(model).saga.blocks[0].q_proj.weight, adapted, atol=1e-2)


def test_a_run_of_saga_can_be_continued(street: Path, made: Made, tmp_path: Path) -> None:
    """Jointly, for example: its shape and its trained blocks are taken over, not copied from the tower anew."""
    before = made(**CONTROLS["no feed-forward"])
    assert {"feed_forward": False, "kind": "saga", "layer": 4}.items() <= inherited(saga, before).items()
    run, model = opened(street, tmp_path / "run", before, mode="joint", prompts="none")
    next(saga.stages(run, model, run.config))
    after = load_file(before / "heads.safetensors")
    for name, x in model.state_dict().items():
        if name.startswith("aggregator."):
            assert torch.equal(x, after[name]), name


def test_phrases_and_noun_of_ones_own(
    street: Path, phrases: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    run, backbone = made(phrases=phrases, noun="vehicle", frozen_slots=10), load_backbone("tiny-clip")
    assert "note: phrases cut to 10 tokens: 1, such as 'yellow raincoat with hood'" in capsys.readouterr().out
    anchors = saga.aggregator_of(clipreid.load(run)).anchors
    assert anchors is not None
    assert torch.equal(anchors.noun[0], word_embeddings(backbone, "vehicle"))
    assert len(anchors.context) == len(PHRASES)
    for k, phrase in enumerate(PHRASES):
        words = word_embeddings(backbone, phrase)
        wanted = [*words[:10], *[words.mean(0)] * max(0, 10 - len(words))]
        assert torch.equal(anchors.frozen[k], torch.stack(wanted))
    more = clipreid.load(made(phrases=phrases, noun="vehicle", frozen_slots=10, anchor_count=5)).aggregator.anchors
    assert torch.equal(more.frozen, anchors.frozen[[0, 1, 2, 0, 1]])  # type: ignore[union-attr]
    assert (features_of(run)["saga"] - features_of(made())["saga"]).abs().max() > 1e-3


def test_what_is_published_holds_no_phrases_and_loads_alike(phrases: Path, made: Made, tmp_path: Path) -> None:
    run = made(phrases=phrases, noun="vehicle", frozen_slots=10)
    for file, content in package(run, "alice/demo").items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for secret in (*PHRASES, phrases.name, phrases.parent.name, str(phrases), "anchor_noun"):
            assert secret.encode() not in content, (file, secret)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"phrases", "anchor_noun"} & config["config"].keys()
    assert "vehicle" not in json.dumps(config["config"])
    assert config["config"]["anchor_count"] == len(PHRASES)
    ours, theirs = clipreid.load(run), clipreid.load(tmp_path)
    assert torch.equal(ours.embed(crops_of(ours)), theirs.embed(crops_of(theirs)))
    phrases_before = phrases.read_text()
    phrases.unlink()  # it is not needed again
    assert torch.equal(clipreid.load(run).embed(crops_of(ours)), ours.embed(crops_of(ours)))
    phrases.write_text(phrases_before)


def test_the_test_feature_is_the_weighted_fusion(made: Made) -> None:
    model = clipreid.load(made())
    parts = model.embed_parts(crops_of(model))
    assert list(parts) == ["concat", "saga", "final", "projection"]  # what `clipreid evaluate` shows
    similar = sum(w * parts[name] @ parts[name].T for name, w in (("saga", 0.3), ("final", 1.0), ("projection", 1.0)))
    torch.testing.assert_close(parts["concat"] @ parts["concat"].T, similar / 2.3, atol=1e-5, rtol=1e-5)


def test_at_inference_the_text_tower_runs_once(made: Made) -> None:
    model, ran = clipreid.load(made()), []
    (backbone,) = model.source
    backbone.text.register_forward_hook(lambda *_: ran.append(1))
    first = model.embed(crops_of(model), batch_size=2)
    assert torch.equal(model.embed(crops_of(model), batch_size=2), first)
    assert len(ran) == 1


def test_tiny_siglip2(street: Path, tmp_path: Path) -> None:
    """No CLS token, and a text tower that reads its whole length."""
    short_run(clip_reid, street, tmp_path / "init", backbone="tiny-siglip2", prompts="none", epochs=1)
    short_run(saga, street, tmp_path / "run", tmp_path / "init", epochs=1)
    model = clipreid.load(tmp_path / "run")
    assert model.source[0].name == "tiny-siglip2"  # taken over
    ours, theirs = features_of(model), features_of(tmp_path / "init")
    assert ours["saga"].isfinite().all()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tokens = model.image(model.normalise(crops_of(model)), taps=(saga.aggregator_of(model).layer,))
    patches = patch_tokens(tokens, saga.aggregator_of(model).layer)
    assert patches.shape[1] == math.prod(tokens.grid)  # all of them
    with torch.no_grad():
        aggregator = saga.aggregator_of(model)
        aligned = aggregator.align(patches, tokens.patches.mean(1)).feature
        torch.testing.assert_close(aggregator.standardised(aligned), ours["saga"])


def test_export(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The graph has the anchors in it, without the text tower; transformers' image tower has no place for them."""
    onnx = pytest.importorskip("onnx")
    from clipreid.export.onnx_file import export_onnx, run_onnx

    model = clipreid.load(made())
    assert export_onnx(model, tmp_path / "graph") <= 1e-4
    pixels = model.normalise(crops_of(model, 3))
    torch.testing.assert_close(
        run_onnx(tmp_path / "graph" / "model.onnx", pixels), model.embed(crops_of(model, 3)), atol=1e-4, rtol=0
    )
    numbers = sum(math.prod(x.dims) for x in onnx.load(tmp_path / "graph" / "model.onnx").graph.initializer)
    image = sum(p.numel() for p in model.tower.parameters())
    own = sum(p.numel() for p in model.aggregator.parameters())
    assert numbers < image + own + 24 * 128 + 5000
    assert isinstance(model.aggregator, SagaAggregator)
    assert set(dict(model.aggregator.anchors.named_parameters())) == {"context"}  # type: ignore[union-attr] # untouched
    with torch.no_grad():
        model.aggregator.anchors.context.normal_()  # type: ignore[union-attr, operator]
    assert (model.embed(crops_of(model, 3)) - run_onnx(tmp_path / "graph" / "model.onnx", pixels)).abs().max() > 1e-3
    with pytest.raises(SystemExit):
        main(["export", str(made()), "--format", "merged", "--output", str(tmp_path / "merged")])
    assert "--format merged: the method saga is not among those" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_the_joint_mode_has_two_stages_and_trains_the_tower(init: Path, made: Made) -> None:
    run = made(mode="joint")
    assert json.loads((run / "config.json").read_text())["stages"] == ["stage1", "saga"]
    assert {"prompts", "text_bank", "necks.saga.classifier.weight"} <= load_file(run / "identities.safetensors").keys()
    before, after = features_of(init), features_of(run)
    assert all((before[name] - after[name]).abs().max() > 1e-3 for name in before)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["stage1"] * 3 + ["saga"] * 2 + ["drift", "health", "time"]
    assert {"id_loss", "triplet_loss", "i2t_loss", "saga_id_loss"} <= lines[3].keys()


# Batches of tokens ------------------------------------------------------------------------------------------------


def batches_of(run: Run, model: ReIDModel) -> Any:
    """The stage's batches; the model is trained elsewhere."""
    return next(saga.stages(run, model, run.config)).batches


@torch.no_grad()
def rows_of(run: Run, model: ReIDModel) -> dict[str, Tensor]:
    """What the frozen tower makes of all training images without augmentation, in float16."""
    pixels = normalise(run.crops().index_select(0, torch.arange(len(run.data.labels))), model.mean, model.std)
    tokens = model.eval().image(pixels, taps=(4,))
    return {"patches": tokens.taps[4][:, 1:].half().float(), "final": tokens.cls.half().float()}


STILL: dict[str, Any] = {"flip": 0.0, "pad": 0, "erase": 0.0, "tint": 0.0}
ONE_VIEW = 2 * 16 * (32 + 1) * 128 / 1e9  # GB: two bytes, 16 images, 32 patches and CLS, width 128


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_tokens_are_those_of_the_frozen_tower(street: Path, init: Path, tmp_path: Path, cache_gb: float) -> None:
    run, model = opened(street, tmp_path / "run", init, cache_gb=cache_gb, **STILL)
    batches, wanted = batches_of(run, model), rows_of(run, model)
    model.train()  # as the loop leaves it
    for batch in [batch for epoch in (0, 1) for batch in batches(epoch)]:
        rows, labels = batch["rows"], batch["labels"]
        assert torch.equal(labels, run.data.labels[rows])
        assert labels.unique(return_counts=True)[1].tolist() == [2, 2, 2, 2]  # P = 4, K = 2
        for name, expected in wanted.items():
            assert batch[name].dtype == torch.float32
            assert torch.equal(batch[name].half().float(), batch[name])
            if cache_gb:
                assert torch.equal(batch[name], expected[rows])
            else:  # other images beside them
                torch.testing.assert_close(batch[name], expected[rows], atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize(
    ("views", "cache_gb", "said"),
    [
        (4, 4.0, "tokens of 4 of 4 augmented views are kept"),
        (
            4,
            2.5 * ONE_VIEW,
            f"tokens of 2 of 4 augmented views are kept (one takes {ONE_VIEW:.3g} GB, --cache-gb {2.5 * ONE_VIEW:g})",
        ),
        (1, 4.0, "tokens of 1 of 1 augmented views are kept"),
        (
            4,
            0.99 * ONE_VIEW,
            f"no augmented view of the tokens is kept (one takes {ONE_VIEW:.3g} GB, --cache-gb {0.99 * ONE_VIEW:g})",
        ),
        (4, 0.0, "--cache-gb 0): the tower works in every step"),
    ],
)
def test_as_many_views_are_kept_as_fit(
    street: Path, init: Path, tmp_path: Path, views: int, cache_gb: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = opened(street, tmp_path / "run", init, token_views=views, cache_gb=cache_gb)
    batches, ran = batches_of(run, model), []
    model.image.register_forward_hook(lambda _, given, __: ran.append(len(given[0])))
    assert said in capsys.readouterr().out
    seen: dict[int, set[bytes]] = {}
    for epoch in range(6):
        for batch in batches(epoch):
            for row, patches in zip(batch["rows"].tolist(), batch["patches"], strict=True):
                seen.setdefault(row, set()).add(patches.numpy().tobytes())
    assert sorted(seen) == list(range(16))
    kept = min(views, int(cache_gb / ONE_VIEW))
    if kept:
        assert max(map(len, seen.values())) == kept
        assert len({frozenset(x) for x in seen.values()}) == 16
        assert ran == [16] * kept  # each view of all images, once
    else:
        assert min(map(len, seen.values())) > 4  # every image is augmented anew
        assert set(ran) == {8}


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_token_batches_are_pure_and_shares_make_up_the_whole(
    street: Path, init: Path, tmp_path: Path, cache_gb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = opened(street, tmp_path / "run", init, cache_gb=cache_gb)
    batches = batches_of(run, model)
    first = {epoch: list(batches(epoch)) for epoch in (1, 0)}
    again, anew = batches(1)[1], batches_of(run, model)(1)[1]  # out of order, and as after a restart
    for name in ("patches", "final", "labels", "rows"):
        assert torch.equal(first[1][1][name], again[name])
        assert torch.equal(first[1][1][name], anew[name])
        assert not torch.equal(first[0][1][name], first[1][1][name]) or name == "labels"
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(Run, "share", property(lambda self, rank=rank: (rank, 2)))
        parts.append(batches_of(run, model)(1)[1])
    for name in ("patches", "final", "labels", "rows"):
        both, whole = torch.cat([part[name] for part in parts]), first[1][1][name]
        if cache_gb or name in ("labels", "rows"):
            assert torch.equal(both, whole)
        else:  # other images beside them
            torch.testing.assert_close(both, whole, atol=2e-2, rtol=2e-3)
    other, model = opened(street, tmp_path / "other", init, cache_gb=cache_gb, seed=1)
    assert not torch.equal(batches_of(other, model)(1)[1]["rows"], first[1][1]["rows"])


# What it refuses --------------------------------------------------------------------------------------------------


def refused(street: Path, tmp_path: Path, init: Path | None = None, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(street, tmp_path / "run", init, **given)
    assert not (tmp_path / "run").exists()  # before anything slow
    return str(caught.value)


def test_a_frozen_tower_needs_a_trained_run(street: Path, tmp_path: Path) -> None:
    message = refused(street, tmp_path)
    assert message.startswith("--mode frozen trains on the frozen tower of a trained run: name it with --init RUN")
    assert "--mode joint" in message


def test_a_backbone_without_text_is_refused(street: Path, tmp_path: Path) -> None:
    name = f"timm:test_vit/{save_timm('test_vit', tmp_path)[0]}"
    message = refused(street, tmp_path, backbone=name, image_size=(64, 32), mode="joint", prompts="none")
    assert message.startswith(f"saga: {name} has no text tower: take a backbone with text")


def test_a_short_context_names_the_flag_to_lower(
    street: Path, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    given = {"backbone": f"hf:{tiny_folder('clip')}", "mode": "joint", "prompts": "none"}
    message = refused(street, tmp_path, **given)
    assert message.startswith("--frozen-slots 12: ")
    assert message.endswith("choose fewer")
    run, _ = opened(street, tmp_path / "run", None, frozen_slots=6, **given)
    assert run.config.frozen_slots == 6


def test_a_layer_that_there_is_not(street: Path, init: Path, tmp_path: Path, made: Made) -> None:
    assert refused(street, tmp_path, init, layer=7) == "--layer 7: tiny-clip has layers 1 to 6"
    assert refused(street, tmp_path, init, layer=257) == "--layer 257: must be at most 256"
    with pytest.raises(UserError, match="--layer 200: tiny-clip has layers 1 to 6"):  # a run that says so
        build(saga, load_backbone("tiny-clip"), saga.Config(layer=200))


def test_fusion_without_weights_and_unusable_phrases(street: Path, init: Path, tmp_path: Path) -> None:
    nothing = {"fuse_saga": 0.0, "fuse_final": 0.0, "fuse_projection": 0.0}
    assert "no feature is left" in refused(street, tmp_path, init, **nothing)
    assert "cannot be read" in refused(street, tmp_path, init, phrases=tmp_path / "missing.txt")


def test_the_command_line(init: Path, street: Path, phrases: Path) -> None:
    flags, config = parse(saga, "about", ["--init", str(init), "--no-feed-forward", "--phrases", str(phrases)])
    assert (flags.init, flags.data, flags.backbone) == (init, (f"folder:{street}",), "tiny-clip")
    assert (config.mode, config.feed_forward, config.phrases, config.anchor_count) == ("frozen", False, phrases, None)
    assert parse(saga, "about", ["--init", str(init), "--data", "folder:a"])[0].data == ("folder:a",)  # not beside it
    with pytest.raises(SystemExit):
        parse(saga, "about", ["--anchor-noun", "person"])  # from the data


# Longer -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.slow
def test_the_joint_mode_resumes_bit_for_bit(street: Path, init: Path, made: Made, tmp_path: Path) -> None:
    whole, progressed = made(mode="joint"), Progress.close_epochs

    def close(self: Progress, epoch: int, *args: Any, **more: float) -> None:
        progressed(self, epoch, *args, **more)
        if self.stage == "saga" and epoch == 2:  # not yet saved
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "close_epochs", close)
        with pytest.raises(Killed):
            short_run(saga, street, tmp_path / "killed", init, mode="joint")
    short_run(saga, street, tmp_path / "killed", init, mode="joint", resume=True)
    files = sorted(x.relative_to(whole) for x in whole.glob("**/*.safetensors"))
    for file in files:  # not their bytes: the notes in a header are in no order
        found, expected = load_file(tmp_path / "killed" / file), load_file(whole / file)
        assert found.keys() == expected.keys(), file
        assert all(torch.equal(found[name], expected[name]) for name in expected), file
    assert any(file.name == "adapter_model.safetensors" for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_it_learns(mode: str, street: Path, init: Path, tmp_path: Path) -> None:
    given = {
        "mode": mode,
        "prompts": "none",
        "epochs": 12,
        "warmup": 1,
        "head_rate": 1e-3,
        "weight_diversity": 2.0,
        **STILL,
    }
    short_run(saga, street, tmp_path / "run", init, **given)
    lines = losses_of(tmp_path / "run")
    assert lines[-1]["saga_id_loss"] < 0.8 * lines[0]["saga_id_loss"]
    assert lines[-1]["diversity_loss"] < lines[0]["diversity_loss"]


def test_two_processes_are_one_in_joint_mode(init: Path, made: Made, tmp_path: Path) -> None:
    flags = ["--mode", "joint", "--init", str(init), "--epochs", "2", "--prompt-epochs", "2", "-P", "4", "-K", "2"]
    in_processes(2, launch_method, "saga", *flags, "--threads", "1", "--output", str(tmp_path / "run"))
    for one, two in zip(losses_of(made(mode="joint")), losses_of(tmp_path / "run"), strict=True):
        for key in (key for key in one if key.endswith("loss")):
            assert one[key] == pytest.approx(two[key], rel=2e-4, abs=1e-5), (one["epoch"], key)
