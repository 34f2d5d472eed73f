"""`ReIDModel`: which features it takes, what it trains, that it starts as the backbone it was given, `embed`."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipreid.aggregation import Pooled, Taps
from clipreid.aggregation.base import HasTokens
from clipreid.backbones import Backbone, TextConfig, TextTower, VisionConfig, VisionTower, load_backbone
from clipreid.errors import UserError
from clipreid.hooks import TokenHook
from clipreid.hub import save_model
from clipreid.model import LORA_TARGETS, Neck, ReIDModel, default_aggregator

Folder = Callable[[str], Path]
TUNINGS = ("lora", "full", "head")
FAMILIES = ("clip", "siglip")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make(folder: Path, tuning: Any = "lora", identities: int = 0, aggregation: str = "cls") -> ReIDModel:
    backbone = load_backbone(f"hf:{folder}")
    backbone.mean, backbone.std = MEAN, STD
    aggregator = default_aggregator(backbone, aggregation)
    return ReIDModel(backbone, tuning, rank=4, aggregator=aggregator, identities=identities).eval()


def images(count: int = 3, size: tuple[int, int] = (64, 32), seed: int = 0) -> Tensor:
    """Noise, uint8 [count, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


# Taps and aggregation ---------------------------------------------------------------------------------------------


@torch.no_grad()
def watch(model: ReIDModel, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Block outputs before the last and at the end [B, T, C], seen by hooks of torch; and the tower's own pooling."""
    seen: dict[str, Tensor] = {}
    last, before = model.tower.encoder.layers[-1], model.tower.encoder.layers[-2]
    handles = [
        block.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        for name, block in (("before", before), ("last", last))
    ]
    pooled = model.tower(pixels).pooled
    for handle in handles:
        handle.remove()
    return seen["before"], model.tower.post_layernorm(seen["last"]), pooled


@pytest.mark.parametrize("aggregation", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_taps_are_the_towers_own_tokens(tiny_folder: Folder, family: str, aggregation: str) -> None:
    model = make(tiny_folder(family), aggregation=aggregation)
    pixels = torch.randn(2, 3, 64, 32)
    before, last, pooled = watch(model, pixels)
    found = model.features(pixels)
    assert list(found) == ["penultimate", "final", "projection"]
    if family == "clip" and aggregation == "cls":
        expected = before[:, 0], last[:, 0], pooled
    else:  # SigLIP has no CLS: its patches' mean stands for it
        first = 1 if family == "clip" else 0
        expected = before[:, first:].mean(1), last[:, first:].mean(1), pooled
    for feature, value in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(feature, value, atol=1e-6, rtol=1e-6)
    assert (before[:, 0] - model.tower.post_layernorm(before)[:, 0]).abs().max() > 0.1  # no final norm on that tap


def test_the_default_aggregator_taps_the_block_before_the_last(tiny_folder: Folder) -> None:
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    taps = default_aggregator(backbone)
    assert isinstance(taps, Taps)
    assert (taps.taps, taps.necks, taps.test, taps.weights) == ((2,), *2 * (("final", "projection"),), None)
    assert taps.widths == {"penultimate": 32, "final": 32, "projection": 24}
    assert make(tiny_folder("clip")).widths == {"final": 32, "projection": 24}
    assert Pooled(7).widths == {"projection": 7}


def test_unknown_settings_name_the_valid_ones(tiny_folder: Folder) -> None:
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    with pytest.raises(UserError, match="no aggregation 'max': choose one of cls, mean"):
        default_aggregator(backbone, "max")
    with pytest.raises(UserError, match="--tuning dora: choose one of lora, full, head"):
        ReIDModel(backbone, "dora")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--text-tuning some: choose one of frozen, lora, full"):
        ReIDModel(backbone, text_tuning="some")  # type: ignore[arg-type]
    backbone.text = None  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"--text-tuning: hf:.* has no text tower: take a backbone with text"):
        ReIDModel(backbone, text_tuning="lora")


class Doubled(Taps):
    """An aggregator that reads what is known of the images: cameras, and a key of its own, which is not named."""

    reads = ("cameras",)

    def forward(self, tokens: HasTokens, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = super().forward(tokens, about)
        return features | {"final": features["final"] * (1 + about["occluded"][:, None])}


class Add(TokenHook):
    """Adds the view to all tokens, behind the block before the last."""

    reads = ("views",)

    def after(self, layer: int, x: Tensor, about: Mapping[str, Tensor]) -> Tensor:
        return x + about["views"].view(-1, 1, 1) if layer == 2 else x


@torch.no_grad()
def test_hooks_and_aggregator_are_told_what_they_read(tiny_folder: Folder) -> None:
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    model = ReIDModel(backbone, aggregator=Doubled("cls", 3, 32, 24), hooks={"add": Add()}, identities=2).eval()
    assert model.reads == ("views", "cameras")
    assert make(tiny_folder("clip")).reads == ()
    pixels = torch.randn(3, 3, 64, 32)
    about = {"views": torch.tensor([0, 1, 2]), "occluded": torch.tensor([0, 1, 0])}
    found, plain = model.features(pixels, about), make(tiny_folder("clip")).features(pixels)
    for name in ("final", "projection", "penultimate"):
        torch.testing.assert_close(found[name][0], plain[name][0])
    before, _, _ = watch(model, pixels)  # the hook is not asked there
    torch.testing.assert_close(found["penultimate"], before[:, 0] + torch.tensor([[0.0], [1.0], [2.0]]))
    once = model.features(pixels, about | {"occluded": torch.zeros(3)})["final"]
    torch.testing.assert_close(found["final"][1], 2 * once[1])
    training = model.train()({"pixels": pixels, **about})
    torch.testing.assert_close(training.features["penultimate"], found["penultimate"])


# What is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_untrained_it_is_the_untouched_backbone(tiny_folder: Folder, family: str, tuning: str) -> None:
    """LoRA starts at zero and a map at the identity: zero-shot figures can be taken from the model itself."""
    backbone = load_backbone(f"hf:{tiny_folder(family)}")
    crops = images()
    pixels = (crops.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    tokens = backbone.tokens(pixels)
    final = tokens.cls if tokens.cls is not None else tokens.patches.mean(1)
    parts = make(tiny_folder(family), tuning, identities=5).embed_parts(crops)
    assert list(parts) == ["concat", "final", "projection"]
    expected = {"final": F.normalize(final, dim=1), "projection": F.normalize(backbone.encode_image(pixels), dim=1)}
    expected["concat"] = torch.cat([expected["final"], expected["projection"]], dim=1) / 2**0.5
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_raw_norms_decide_the_mix_for_openais_clip_only(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip"))
    features = {"final": 9 * torch.randn(4, 32), "projection": torch.randn(4, 24)}
    parts = {name: F.normalize(x, dim=1) for name, x in features.items()}
    even = torch.cat([parts["final"], parts["projection"]], dim=1) / 2**0.5
    torch.testing.assert_close(model.test_feature(features), even)
    model.raw_logits = True  # as published: the concatenated vector is normalised once
    whole = torch.cat([features["final"], features["projection"]], dim=1)
    torch.testing.assert_close(model.test_feature(features), whole / whole.norm(dim=1, keepdim=True))


@torch.no_grad()
def test_weights_make_the_dot_product_a_sum_of_cosines(tiny_folder: Folder) -> None:
    for raw in (False, True):
        model = make(tiny_folder("clip"))
        model.raw_logits, model.aggregator.weights = raw, (2.0, 0.5)
        features = {"final": 9 * torch.randn(4, 32), "projection": torch.randn(4, 24)}
        found = model.test_feature(features)
        cosines = [F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in features.values()]
        torch.testing.assert_close(found @ found.T, (2 * cosines[0] + 0.5 * cosines[1]) / 2.5)


NECKS = {f"necks.{name}.{part}.weight" for name in ("final", "projection") for part in ("norm", "classifier")}


@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_parameters_by_tuning(tiny_folder: Folder, family: str) -> None:
    def trained(tuning: str) -> set[str]:
        model = make(tiny_folder(family), tuning, identities=5)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    tower = {f"image.{name}" for name, _ in load_backbone(f"hf:{tiny_folder(family)}").image.named_parameters()}
    assert trained("full") == tower | NECKS
    assert trained("head") == {"maps.final.weight", "maps.projection.weight"} | NECKS
    linears = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    adapters = {
        f"image.base_model.model.encoder.layers.{layer}.{linear}.lora_{side}.default.weight"
        for layer in range(3)
        for linear in linears
        for side in "AB"
    }
    assert trained("lora") == adapters | NECKS  # nothing of the pooling head, the projection or the embeddings


@pytest.mark.parametrize("text_tuning", ["frozen", "lora", "full"])
def test_the_text_tower_is_trained_where_the_method_asks(tiny_folder: Folder, text_tuning: Any) -> None:
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    words = ["a red person", "a dog"]
    with torch.no_grad():
        before = F.normalize(backbone.encode_text(words), dim=1)
    model = ReIDModel(backbone, "head", text_tuning=text_tuning, rank=4)
    torch.testing.assert_close(model.embed_text(words), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("text.")}
    assert bool(trained) == (text_tuning != "frozen")
    assert all("lora_" in name for name in trained) == (text_tuning != "full")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(0.1)
    assert ((model.embed_text(words) - before).abs().max() > 1e-3) == (text_tuning != "frozen")


def test_necks_have_frozen_shift_and_small_bias_free_classifiers() -> None:
    torch.manual_seed(0)
    neck = Neck(64, 500)
    assert not neck.norm.bias.requires_grad
    assert neck.norm.weight.requires_grad
    assert torch.equal(neck.norm.weight, torch.ones(64))
    assert neck.classifier is not None
    assert neck.classifier.bias is None
    assert neck.classifier.weight.shape == (500, 64)
    assert neck.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)


def test_a_training_step_moves_what_it_should(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip"), "lora", identities=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # lora_A moves only once lora_B is not zero
        output = model({"pixels": torch.randn(6, 3, 64, 32)})
        optimiser.zero_grad()
        (sum(x.square().mean() for x in output.features.values()) + sum(F.cross_entropy(x, torch.arange(6) % 3)
         for x in output.logits.values())).backward()  # fmt: skip
        optimiser.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    buffers = {f"necks.{n}.norm.{b}" for n in ("final", "projection")
               for b in ("running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad} | buffers
    assert {name: tuple(x.shape) for name, x in output.logits.items()} == {"final": (6, 3), "projection": (6, 3)}
    assert [x.shape[1] for x in output.features.values()] == [32, 32, 24]


def test_logits_come_from_after_the_neck_and_features_from_before(tiny_folder: Folder) -> None:
    model = make(tiny_folder("clip"), "head", identities=3).train()
    output = model({"pixels": torch.randn(8, 3, 64, 32)})
    for name, neck in model.necks.items():
        x = output.features[name]
        standardised = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(output.logits[name], standardised @ neck.classifier.weight.T, atol=1e-5, rtol=1e-4)


def test_without_classifiers_it_cannot_be_trained(tiny_folder: Folder) -> None:
    with pytest.raises(RuntimeError, match="loaded without its classifiers: it embeds, but cannot be trained"):
        make(tiny_folder("clip"))({"pixels": torch.randn(2, 3, 64, 32)})


def test_adapter_of_a_base_vit_is_under_three_percent_of_both_towers(tmp_path: Path) -> None:
    """The adapter file of ViT-B/16 at the default rank, really written, against the float32 weights of both towers."""
    with torch.device("meta"):
        image, text = VisionTower(VisionConfig()), TextTower(TextConfig())
    image.to_empty(device="cpu")  # shapes are all that matters
    model = ReIDModel(Backbone(image, text, name="hf:some/vit-b-16"))
    plain = [p for name, p in image.named_parameters() if "lora_" not in name]
    towers = 4 * sum(p.numel() for p in [*plain, *text.parameters()])
    assert 590e6 < towers < 605e6  # CLIP ViT-B/16: 150 million weights
    save_model(model, tmp_path)
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    adapters = 4 * 12 * 8 * (4 * (768 + 768) + 2 * (768 + 3072))  # A and B of six Linears in twelve blocks, rank 8
    assert adapters <= size < adapters + 50_000
    assert size < 0.03 * towers


def test_lora_targets_are_the_blocks_linears_only() -> None:
    import re

    for family, pooling in (("clip", "cls"), ("siglip", "attention")):
        config = VisionConfig(image_size=(32, 16), width=16, depth=2, heads=2, mlp_width=32, embed_dim=16,
                              pooling=pooling)  # type: ignore[arg-type]  # fmt: skip
        linears = [n for n, m in VisionTower(config).named_modules() if isinstance(m, torch.nn.Linear)]
        hit = [name for name in linears if re.fullmatch(LORA_TARGETS, name)]
        assert len(hit) == 2 * 6, family
        missed = set(linears) - set(hit)
        assert missed == ({"visual_projection"} if family == "clip" else
                          {"head.attention.out_proj", "head.mlp.fc1", "head.mlp.fc2"})  # fmt: skip


# embed ------------------------------------------------------------------------------------------------------------


def as_files(crops: Tensor, folder: Path) -> list[Path]:
    files = []
    for i, crop in enumerate(crops):
        files.append(folder / f"{i}.png")
        Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()).save(files[-1])
    return files


@pytest.mark.parametrize("size", [(64, 32), (50, 41)])
def test_embed_takes_images_paths_and_tensors_alike(tiny_folder: Folder, tmp_path: Path, size: tuple[int, int]) -> None:
    model, crops = make(tiny_folder("clip")), images(3, size)
    files = as_files(crops, tmp_path)
    features = model.embed(crops)
    assert features.shape == (3, 32 + 24)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert torch.equal(model.embed(files), features)
    assert torch.equal(model.embed([str(file) for file in files]), features)
    assert torch.equal(model.embed([Image.open(file) for file in files]), features)


def test_embed_resizes_the_whole_image(tiny_folder: Folder) -> None:
    """Nothing is cut away: what is drawn in a corner still shows."""
    model = make(tiny_folder("clip"))
    image = np.zeros((200, 90, 3), dtype=np.uint8)
    marked = image.copy()
    marked[:20, :15] = 255
    plain, corner = model.embed([Image.fromarray(image), Image.fromarray(marked)])
    assert (plain - corner).abs().max() > 1e-3


def test_embed_restores_the_mode_after_an_error_and_with_several_threads(tiny_folder: Folder) -> None:
    """No thread may compute in train mode while another one switches back: the features are those of one thread."""
    model = make(tiny_folder("clip")).train()
    expected = model.embed(images())
    entered, leave = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            assert leave.wait(60)

    handle = model.tower.encoder.layers[0].register_forward_pre_hook(slow)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(model.embed, images())
        assert entered.wait(60)
        torch.testing.assert_close(model.embed(images()), expected)
        assert not model.training  # the other one still embeds
        leave.set()
        torch.testing.assert_close(other.result(), expected)
    assert model.training
    handle.remove()
    broken = model.tower.encoder.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.embed(images())
    assert all(part.training for part in model.modules())
    broken.remove()
    model.embed_text(["a person"])
    assert model.training


def test_features_that_are_not_finite_are_refused_with_their_number(tiny_folder: Folder) -> None:
    """Weights that are finite but absurd."""
    model = make(tiny_folder("clip"))
    with torch.no_grad():
        for name, parameter in model.tower.named_parameters():
            if name.endswith("fc2.base_layer.weight"):
                parameter.fill_(3e38)
    with pytest.raises(UserError, match=r"the features of 3 of 3 images \(the first is number 0\) are not finite"):
        model.embed(images())


def test_embed_does_not_depend_on_the_batch_size_or_the_mode(tiny_folder: Folder) -> None:
    model, crops = make(tiny_folder("clip"), identities=3).train(), images(5)
    together = model.embed(crops)
    assert model.training
    torch.testing.assert_close(model.embed(crops, batch_size=2), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.eval().embed(crops), together)
    assert not model.training
    assert not together.requires_grad
    for nothing in ([], crops[:0]):
        assert model.embed(nothing).shape == (0, 32 + 24)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "error"), [("half", 2e-3), ("bfloat16", 2e-2), ("double", 1e-5)])
def test_images_follow_the_type_of_the_weights(tiny_folder: Folder, family: str, kind: str, error: float) -> None:
    model, crops = make(tiny_folder(family)), images()
    expected = model.embed(crops)
    found = getattr(model, kind)().embed(crops)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < error
    maps = model.attention_maps(model.crops(crops))
    assert maps is not None
    assert maps.dtype == torch.float32


def test_embed_names_the_image_that_cannot_be_read(tiny_folder: Folder, tmp_path: Path) -> None:
    model = make(tiny_folder("clip"))
    good = as_files(images(1), tmp_path)[0]
    (tmp_path / "text.jpg").write_text("not a image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    for name in ("text.jpg", "cut.png", "dot.png", "missing.png"):
        with pytest.raises(UserError, match=rf"image 1 \(.*{name}\) cannot be used: "):
            model.embed([good, tmp_path / name])


def test_embed_takes_arrays_and_generators(tiny_folder: Folder, tmp_path: Path) -> None:
    model, crops = make(tiny_folder("clip")), images()
    assert torch.equal(model.embed(crops.numpy()), model.embed(crops))
    files = as_files(crops, tmp_path)
    assert torch.equal(model.embed(file for file in files), model.embed(files))  # type: ignore[arg-type]


def test_embed_refuses_what_is_no_list_of_images(tiny_folder: Folder) -> None:
    model, crops = make(tiny_folder("clip")), images()
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], got torch.float32 \[3, 3, 64, 32\]"):
        model.embed(crops.float())
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], got torch.uint8 \[3, 64, 32, 3\]"):
        model.embed(crops.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], got torch.uint8 \[3, 64, 32\]"):
        model.embed(crops[0])
    for other in (crops.float().numpy(), crops.numpy()[0]):
        with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], got torch"):
            model.embed(other)
    with pytest.raises(ValueError, match=r"image 1 is of type ndarray: give paths, PIL images \(Image.fromarray"):
        model.embed([Image.new("RGB", (9, 9)), crops[0].permute(1, 2, 0).numpy()])  # type: ignore[list-item]
    for single in ("a.jpg", Path("a.jpg"), Image.new("RGB", (9, 9))):
        with pytest.raises(ValueError, match=r"embed takes a list of images: write model.embed\(\[image\]\)"):
            model.embed(single)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"type Tensor: .* \[N, 3, H, W\] \(torch.stack makes one of a list\)"):
        model.embed(list(crops))  # type: ignore[arg-type]
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {size}: it is the number of images or texts at a time"):
            model.embed(crops, batch_size=size)
        with pytest.raises(ValueError, match=f"batch_size is {size}"):
            model.embed_text(["a person"], batch_size=size)


def test_a_hook_or_aggregator_that_reads_what_nobody_can_give_at_test_is_refused() -> None:
    hook = TokenHook()
    hook.reads = ("cameras", "occluded")
    with pytest.raises(ValueError, match=r"hook 'mask' \(TokenHook\): reads has 'occluded', but only 'cameras'"):
        ReIDModel(load_backbone("tiny-clip"), hooks={"mask": hook})
    aggregator = default_aggregator(backbone := load_backbone("tiny-clip"))
    aggregator.reads = ("captions",)
    with pytest.raises(ValueError, match=r"aggregator \(Taps\): reads has 'captions'"):
        ReIDModel(backbone, aggregator=aggregator)
    hook.reads, aggregator.reads = ("cameras",), ("views", "cameras")
    assert ReIDModel(backbone, aggregator=aggregator, hooks={"mask": hook}).reads == ("cameras", "views")
