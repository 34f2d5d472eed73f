"""timm's towers, wrapped: the features are timm's own, the crop is whole, and nothing is ever random or guessed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from image_only import save_timm, timm_model
from safetensors.torch import load_file, save_file
from torch import nn

from clipreid.backbones import ImageBackbone, is_image_only, load_backbone, save_backbone
from clipreid.errors import UserError
from clipreid.hooks import TokenHook
from clipreid.model import ReIDModel

TINY = "test_vit"  # 0.3 M weights
# name: (default crop, pooling, Linears that LoRA adapts in each block)
FAMILIES = {
    "deit_tiny_patch16_224": ((256, 128), "CLS", 4),
    "vit_small_patch14_reg4_dinov2": ((252, 126), "CLS", 4),
    "vit_tiny_patch16_dinov3_qkvb": ((256, 128), "CLS", 4),
    "vit_pe_core_tiny_patch16_384": ((256, 128), "attention", 4),
    "vit_pe_spatial_tiny_patch16_512": ((256, 128), "mean", 4),
    "eva02_tiny_patch14_224": ((252, 126), "mean", 4),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`weights(name)` -> (file, timm's own model with all weights but another image size)."""
    folder, made = tmp_path_factory.mktemp("timm"), {}

    def make(name: str) -> tuple[Path, nn.Module]:
        if name not in made:
            made[name] = save_timm(name, folder)
        return made[name]

    return make


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_at_the_native_size_are_timms_own(weights: Any, name: str) -> None:
    file, model = weights(name)
    native = model.patch_embed.img_size
    backbone = load_backbone(f"timm:{name}/{file}", image_size=native)
    pixels = torch.randn(1, 3, *native)
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(backbone.encode_image(pixels), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    config = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    assert (backbone.mean, backbone.std) == (config["mean"], config["std"])
    assert backbone.interpolation == config["interpolation"]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_default_is_a_whole_person_crop_with_positions_as_timm_resizes_them(weights: Any, name: str) -> None:
    size, pooling, _ = FAMILIES[name]
    file, _ = weights(name)
    backbone = load_backbone(f"timm:{name}/{file}")
    assert backbone.image_size == size
    assert isinstance(backbone, ImageBackbone)
    assert backbone.image.pooling == pooling
    own = timm_model(name, img_size=size, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    pixels = torch.randn(1, 3, *size)
    tokens = backbone.tokens(pixels)
    expected = own.forward_head(own.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(tokens.pooled, expected, atol=1e-5, rtol=0)
    patch = backbone.image.stride
    assert tokens.grid == (size[0] // patch, size[1] // patch)
    assert tokens.patches.shape == (1, tokens.grid[0] * tokens.grid[1], backbone.image.width)
    assert tokens.cls is not None
    assert tokens.pooled.shape == (1, backbone.image.embed_dim)


@torch.no_grad()
def test_positions_are_resized_as_asked(weights: Any) -> None:
    file, _ = weights(TINY)
    pixels = torch.randn(1, 3, 256, 128)
    found = [
        load_backbone(f"timm:{TINY}/{file}", positions=how).encode_image(pixels) for how in ("bicubic", "bilinear")
    ]
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_what_an_image_only_backbone_is(weights: Any) -> None:
    file, _ = weights(TINY)
    backbone = load_backbone(f"timm:{TINY}/{file}", gradient_checkpointing=True)
    assert is_image_only(backbone.name)
    assert not any(map(is_image_only, ("tiny-clip", "open_clip:x/timm", "hf:timm/x", "timm:", "timm")))
    assert (backbone.family, backbone.raw_logits, backbone.text) == ("image-only", False, None)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in backbone.parameters())
    assert backbone.image.model.grad_checkpointing
    assert not any("head." in name for name in backbone.state_dict())


def test_what_it_has_not_names_the_families_that_have_it(weights: Any, tmp_path: Path) -> None:
    file, _ = weights(TINY)
    backbone = load_backbone(f"timm:{TINY}/{file}")
    pixels = torch.zeros(1, 3, 256, 128)
    have = "the CLIP and SigLIP backbones have it: tiny-clip, open_clip:MODEL/TAG, hf:OWNER/NAME"
    for what, call in {
        "has no text tower": lambda: backbone.encode_text(["a person"]),
        "has no taps": lambda: backbone.tokens(pixels, taps=(3,)),
        "has no hooks": lambda: backbone.image(pixels, hooks=(TokenHook(),)),
        "has no folder format of transformers": lambda: save_backbone(backbone, tmp_path / "out"),
    }.items():
        with pytest.raises(NotImplementedError, match=f"{what}; {have}"):
            call()
    with pytest.raises(ValueError, match=r"pixels have shape \[1, 3, 64, 64\], this tower takes \[B, 3, 256, 128\]"):
        backbone.encode_image(torch.zeros(1, 3, 64, 64))


# LoRA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_reaches_every_linear_of_every_block(weights: Any, name: str) -> None:
    """Also where timm uses a layer's weight without calling the layer, which would leave an adapter dead."""
    file, _ = weights(name)
    backbone = load_backbone(f"timm:{name}/{file}", image_size=112 if "patch14" in name else 64)
    pixels = torch.randn(2, 3, *backbone.image_size)
    with torch.no_grad():
        before = backbone.encode_image(pixels)
    model = ReIDModel(backbone, "lora", identities=2)
    assert model.aggregator.necks == model.aggregator.test == ("projection",)
    features = model.features(pixels)
    torch.testing.assert_close(features["projection"], before, atol=1e-5, rtol=0)  # LoRA starts at zero
    features["projection"].square().sum().backward()
    adapters = {n: p for n, p in model.image.named_parameters() if "lora_B" in n}
    blocks = Counter(n.partition("blocks.")[2].partition(".")[0] for n in adapters)
    assert blocks == {str(block): FAMILIES[name][2] for block in range(12)}
    assert [n for n, p in adapters.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert not any(p.requires_grad for n, p in model.image.named_parameters() if "lora_" not in n)


# What can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small_patch14_dino2", r"timm has no model 'vit_small_patch14_dino2': did you mean vit_small_patch14_"),
        ("qqqqqq", r"timm has no model 'qqqqqq': see timm.list_models"),
        ("vit_small_patch14_dinov2.x", r"no weights 'x' of vit_small_patch14_dinov2; it has: vit_small_patch14_"),
        ("resnet50", r"resnet50 is not a plain vision transformer: of timm only plain ViTs .* take osnet:x1_0/FILE"),
        ("test_vit4", r"no published weights of it on the Hub; give a file, timm:test_vit4/FILE"),
        ("test_vit/no.pth", r"timm:test_vit/no.pth: there is no file no.pth"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(f"timm:{name}")


def test_without_network_and_cache_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        r"\(timm/test_vit.r160_in1k\) are not in the local cache .* connect once, or give a file, timm:test_vit/FILE"
    )
    with pytest.raises(UserError, match=message):
        load_backbone("timm:test_vit")


@torch.no_grad()
def test_a_name_alone_takes_what_the_hub_has_put_into_the_cache(
    weights: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, _ = weights(TINY)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to(file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pixels = torch.randn(1, 3, 256, 128)
    expected = load_backbone(f"timm:{TINY}/{file}").encode_image(pixels)
    for name in ("test_vit", "test_vit.r160_in1k"):
        torch.testing.assert_close(load_backbone(f"timm:{name}").encode_image(pixels), expected, atol=0, rtol=0)


def test_sizes_are_whole_patches(weights: Any) -> None:
    file, _ = weights(TINY)
    with pytest.raises(
        UserError,
        match=r"image_size 250x128: timm:test_vit takes multiples of its patch of 16 pixels, "
        r"such as 256x128",
    ):
        load_backbone(f"timm:{TINY}/{file}", image_size=(250, 128))
    with pytest.raises(UserError, match=r"stride=12: timm:test_vit/.* is wrapped as it is, with its own stride"):
        load_backbone(f"timm:{TINY}/{file}", stride=12)
    assert load_backbone(f"timm:{TINY}/{file}", image_size=64).image_size == (64, 64)


def test_weights_of_another_head_will_do_and_others_will_not(weights: Any, tmp_path: Path) -> None:
    file, _ = weights(TINY)
    state = load_file(file)
    fine = load_backbone(f"timm:{TINY}/{file}", image_size=160)
    pixels = torch.randn(1, 3, 160, 160)
    headless = {k: v for k, v in state.items() if not k.startswith("head.")}
    for other in (headless, {**headless, "head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}):
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in other.items()}}, tmp_path / "w.pth")
        same = load_backbone(f"timm:{TINY}/{tmp_path / 'w.pth'}", image_size=160)
        torch.testing.assert_close(same.encode_image(pixels), fine.encode_image(pixels), atol=0, rtol=0)
    first = "blocks.0.attn.qkv.weight"
    for changed, message in (
        ({k: v for k, v in state.items() if k != first}, f"weights missing: {first}; is it a checkpoint of this model"),
        (state | {"adapter.weight": torch.zeros(1)}, "weights not understood: adapter.weight"),
        (state | {first: torch.zeros(3, 3)}, f"weights of another shape: {first}"),
    ):
        save_file(changed, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match=message):
            load_backbone(f"timm:{TINY}/{tmp_path / 'odd.safetensors'}")


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("/dev/null",))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "b.pth").write_bytes(b"nor this")
    torch.save({"state_dict": Evil()}, tmp_path / "c.pth")
    for name in ("a.safetensors", "b.pth", "c.pth"):
        with pytest.raises(UserError, match=rf"{name} is not a file of plain weights \(.*nothing that could run code"):
            load_backbone(f"timm:{TINY}/{tmp_path / name}")
    torch.save({"epoch": 3}, tmp_path / "d.pth")
    with pytest.raises(UserError, match=r"d.pth holds no state dict"):
        load_backbone(f"timm:{TINY}/{tmp_path / 'd.pth'}")
