"""OSNet: the architecture of the published baseline, under the names of the torchreid model zoo."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from image_only import save_osnet, shaken
from safetensors.torch import save_file
from torch import Tensor

from clipreid.backbones import load_backbone
from clipreid.backbones.osnet import WIDTHS, OSBlock, OSNet
from clipreid.errors import UserError
from clipreid.evaluation.cost import gflops, parameters
from clipreid.model import ReIDModel

SMALL = "x0_25"


@pytest.mark.parametrize(
    ("width", "millions", "giga"),
    [("x1_0", 2.2, 0.98), ("x0_75", 1.3, 0.57), ("x0_5", 0.6, 0.27), ("x0_25", 0.2, 0.08)],
)
def test_size_and_arithmetic_are_the_published_ones(width: str, millions: float, giga: float) -> None:
    net = OSNet(width).eval()
    assert round(parameters(net) / 1e6, 1) == millions
    assert round(gflops(net, (256, 128)), 2) == giga
    with torch.no_grad():
        tokens = net(torch.randn(2, 3, 256, 128))
    assert tokens.pooled.shape == (2, 512)
    assert tokens.grid == (16, 8)
    assert tokens.patches.shape == (2, 128, WIDTHS[width][-1])


def zoo_names() -> set[str]:
    """The keys of a zoo file, without classifier and batch counters, from the architecture's description."""

    def conv_bn(at: str) -> list[str]:
        return [f"{at}.conv.weight", *(f"{at}.bn.{x}" for x in ("weight", "bias", "running_mean", "running_var"))]

    def lite(at: str) -> list[str]:
        norm = (f"{at}.bn.{x}" for x in ("weight", "bias", "running_mean", "running_var"))
        return [f"{at}.conv1.weight", f"{at}.conv2.weight", *norm]

    names = [*conv_bn("conv1"), *conv_bn("conv5"), "fc.0.weight", "fc.0.bias"]
    names += [f"fc.1.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
    for stage in (2, 3, 4):
        for block in (0, 1):
            at = f"conv{stage}.{block}"
            names += conv_bn(f"{at}.conv1") + conv_bn(f"{at}.conv3") + lite(f"{at}.conv2a")
            for stream, length in (("b", 2), ("c", 3), ("d", 4)):
                names += [name for i in range(length) for name in lite(f"{at}.conv2{stream}.{i}")]
            names += [f"{at}.gate.{fc}.{x}" for fc in ("fc1", "fc2") for x in ("weight", "bias")]
            names += conv_bn(f"{at}.downsample") if block == 0 else []
        names += conv_bn(f"conv{stage}.2.0") if stage < 4 else []
    return set(names)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_are_those_of_the_model_zoo(width: str) -> None:
    state = OSNet(width).state_dict()
    assert {name for name in state if not name.endswith("num_batches_tracked")} == zoo_names()
    stem, first, _, last = WIDTHS[width]
    assert state["conv2.0.conv1.conv.weight"].shape == (first // 4, stem, 1, 1)
    assert state["conv2.0.conv2a.conv2.weight"].shape == (first // 4, 1, 3, 3)
    assert state["conv4.1.gate.fc1.weight"].shape == (last // 4 // 16, last // 4, 1, 1)
    assert state["fc.0.weight"].shape == (512, last)


def reference_block(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The block from its description: four streams of 1 to 4 lite convolutions, one gate, a residual."""

    def norm(x: Tensor, at: str) -> Tensor:
        mean, var, gain, shift = (
            state[f"{at}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + shift

    def pointwise(x: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])

    def lite(x: Tensor, at: str) -> Tensor:
        x = pointwise(x, state[f"{at}.conv1.weight"])
        padded, kernel = F.pad(x, (1, 1, 1, 1)), state[f"{at}.conv2.weight"]
        height, width = x.shape[2:]
        x = sum(
            padded[:, :, i : i + height, j : j + width] * kernel[:, 0, i, j, None, None]
            for i in range(3)
            for j in range(3)
        )
        return norm(x, f"{at}.bn").clamp_min(0)

    def gate(x: Tensor) -> Tensor:
        hidden = (x.mean((2, 3)) @ state["gate.fc1.weight"][:, :, 0, 0].T + state["gate.fc1.bias"]).clamp_min(0)
        share = torch.sigmoid(hidden @ state["gate.fc2.weight"][:, :, 0, 0].T + state["gate.fc2.bias"])
        return x * share[:, :, None, None]

    narrow = norm(pointwise(x, state["conv1.conv.weight"]), "conv1.bn").clamp_min(0)
    total = gate(lite(narrow, "conv2a"))
    for stream, length in (("b", 2), ("c", 3), ("d", 4)):
        y = narrow
        for i in range(length):
            y = lite(y, f"conv2{stream}.{i}")
        total = total + gate(y)
    same = (
        norm(pointwise(x, state["downsample.conv.weight"]), "downsample.bn") if "downsample.conv.weight" in state else x
    )
    return (norm(pointwise(total, state["conv3.conv.weight"]), "conv3.bn") + same).clamp_min(0)


@pytest.mark.parametrize(("inside", "out"), [(64, 128), (128, 128)])
@torch.no_grad()
def test_a_block_computes_what_the_paper_says(inside: int, out: int) -> None:
    block = shaken(OSBlock(inside, out))
    x = torch.randn(2, inside, 8, 5)
    expected = reference_block(block.state_dict(), x)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    assert (expected > 0).float().mean() > 0.2


@torch.no_grad()
def test_zoo_files_load_as_they_are(tmp_path: Path) -> None:
    file, net = save_osnet(SMALL, tmp_path)
    pixels = torch.randn(2, 3, 256, 128)
    expected = net(pixels).pooled
    assert expected.std() > 0.01
    state = net.state_dict()
    trained = {f"module.{k}": v for k, v in state.items()} | {"module.classifier.weight": torch.zeros(751, 512)}
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": trained, "epoch": 150}, tmp_path / "checkpoint.pth.tar-150")
    torch.save(old, tmp_path / "old.pth")
    save_file(state, tmp_path / "plain.safetensors")
    for name in (file.name, "checkpoint.pth.tar-150", "old.pth", "plain.safetensors"):
        backbone = load_backbone(f"osnet:{SMALL}/{tmp_path / name}")
        torch.testing.assert_close(backbone.encode_image(pixels), expected, atol=0, rtol=0)
    assert backbone.image_size == (256, 128)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.interpolation == "bilinear"
    assert (
        load_backbone(f"osnet:{SMALL}/{file}", image_size=(128, 64)).encode_image(pixels[:, :, :128, :64]).shape[1]
        == 512
    )


def test_what_can_be_wrong(tmp_path: Path) -> None:
    file, net = save_osnet(SMALL, tmp_path)
    for name, message in {
        "osnet:x2_0/a.pth": r"osnet:x2_0/a.pth: give a width and a weights file, .* one of x1_0, x0_75, x0_5, x0_25",
        "osnet:x1_0": r"osnet:x1_0: give a width and a weights file",
        "osnet:x1_0/none.pth": r"osnet:x1_0/none.pth: there is no file none.pth",
        f"osnet:x0_5/{file}": r"weights of another shape: conv1.bn.bias, .* and \d+ more; is it a checkpoint of this",
    }.items():
        with pytest.raises(UserError, match=message):
            load_backbone(name)
    name = f"osnet:{SMALL}/{file}"
    with pytest.raises(UserError, match=r"OSNet is small and has no gradient checkpointing"):
        load_backbone(name, gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"image_size 8x8: OSNet needs at least 16 pixels a side"):
        load_backbone(name, image_size=8)
    with pytest.raises(UserError, match=r"stride=12: osnet:.* is wrapped as it is"):
        load_backbone(name, stride=12)
    save_file({k: v for k, v in net.state_dict().items() if k != "fc.0.bias"}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"weights missing: fc.0.bias; is it a checkpoint of this model\?"):
        load_backbone(f"osnet:{SMALL}/{tmp_path / 'part.safetensors'}")
    with pytest.raises(UserError, match=re.escape(f"--tuning lora: {name} has no linear layers in its blocks; use")):
        ReIDModel(load_backbone(name), "lora")
    assert ReIDModel(load_backbone(name), "full").aggregator.test == ("projection",)
