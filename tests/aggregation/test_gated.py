"""Gated fusion: the formula, one number at a time; its control; images and grids of every kind; what a model does."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from clipreid.aggregation import Pooled, Taps
from clipreid.aggregation.gated import GatedFusion
from clipreid.backbones import load_backbone
from clipreid.backbones.partners import Partner, PartnerName, check_partner
from clipreid.errors import UserError
from clipreid.export import bake, check_merged, export_onnx
from clipreid.hub.folder import head_state
from clipreid.methods import build, dpl
from clipreid.model import ReIDModel

B, C, E, D = 3, 6, 5, 4
SMALLEST: PartnerName = "mobilenetv4_conv_small_050"


class Means(nn.Module):
    """A partner whose feature can be computed by hand: D linear maps of the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, D)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.linear(pixels.mean((2, 3)))
        return found


def fusion(**options: Any) -> GatedFusion:
    torch.manual_seed(0)
    return GatedFusion(Taps("cls", 3, C, E), Means(), D, **options)


def tokens(rows: int, columns: int, seed: int = 1, cls: bool = True) -> Any:
    generator = torch.Generator().manual_seed(seed)
    patches, penultimate = (torch.randn(B, rows * columns + n, C, generator=generator) for n in (0, int(cls)))
    final = torch.randn(B, C, generator=generator) if cls else None
    pooled = torch.randn(B, E, generator=generator)
    return SimpleNamespace(cls=final, patches=patches, grid=(rows, columns), taps={2: penultimate}, pooled=pooled)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
def test_the_formula_one_number_at_a_time() -> None:
    module, seen, pixels = fusion(start=0.3), tokens(2, 2), torch.rand(B, 3, 4, 2)
    found = module(seen, {"pixels": pixels})["final"]
    partner = module.partner.linear  # type: ignore[union-attr]
    for b in range(B):
        means = [sum(pixels[b, c].flatten().tolist()) / 8 for c in range(3)]
        own = [sum(float(partner.weight[d, c]) * means[c] for c in range(3)) + float(partner.bias[d]) for d in range(D)]
        for c in range(C):
            gate = sigmoid(sum(float(module.gate.weight[c, d]) * own[d] for d in range(D)) + float(module.gate.bias[c]))
            mapped = sum(float(module.map.weight[c, d]) * own[d] for d in range(D))
            assert seen.cls is not None
            assert float(found[b, c]) == pytest.approx(0.3 * gate * float(seen.cls[b, c]) + 0.7 * mapped, abs=1e-5)


def test_the_control_is_the_same_partner_without_gate() -> None:
    gated, concat, seen, pixels = fusion(), fusion(kind="concat"), tokens(2, 2), torch.rand(B, 3, 4, 2)
    found = concat(seen, {"pixels": pixels})["final"]
    assert torch.equal(found[:, :C], seen.cls)
    torch.testing.assert_close(found[:, C:], concat.partner(pixels) @ concat.map.weight.T)
    assert gated.widths == {"penultimate": C, "final": C, "projection": E}
    assert concat.widths == {"penultimate": C, "final": 2 * C, "projection": E}
    extra = {name for name, _ in gated.named_parameters()} - {name for name, _ in concat.named_parameters()}
    assert extra == {"gate.weight", "gate.bias", "weight"}


def test_the_other_features_stay_and_the_first_test_feature_is_fused() -> None:
    seen, pixels = tokens(2, 2), torch.rand(B, 3, 4, 2)
    before, found = Taps("cls", 3, C, E)(seen, {}), fusion()(seen, {"pixels": pixels})
    assert found.keys() == before.keys()
    assert torch.equal(found["penultimate"], before["penultimate"])
    assert torch.equal(found["projection"], before["projection"])
    assert not torch.equal(found["final"], before["final"])
    assert GatedFusion(Pooled(E), Means(), D).fused == "projection"  # a wrapped tower has no other feature


@pytest.mark.parametrize("start", [1e-6, 1 - 1e-6])
def test_the_weight_leads_from_the_partner_to_the_gated_tower(start: float) -> None:
    module, feature, partner = fusion(start=start), torch.randn(B, C), torch.randn(B, D)
    ends = partner @ module.map.weight.T, module.gate(partner).sigmoid() * feature
    torch.testing.assert_close(module.fuse(feature, partner), ends[start > 0.5], atol=1e-4, rtol=1e-4)
    assert float(module.weight.detach().sigmoid()) == pytest.approx(start, rel=1e-2)


@pytest.mark.parametrize("kind", ["gated", "concat"])
@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (7, 2)])
def test_one_patch_and_grids_that_are_not_square(kind: Any, cls: bool, rows: int, columns: int) -> None:
    module, seen = fusion(kind=kind), tokens(rows, columns, cls=cls)
    found = module(seen, {"pixels": torch.rand(B, 3, 4 * rows, 4 * columns)})
    assert all(found[name].shape == (B, width) for name, width in module.widths.items())
    assert all(bool(x.isfinite().all()) for x in found.values())


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 40)])
def test_a_constant_image_gives_numbers_also_in_training(size: tuple[int, int]) -> None:
    partner = Partner(SMALLEST, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    module = GatedFusion(Taps("cls", 3, C, E), partner, partner.width)
    constant = torch.zeros(B, 3, *size)
    for pixels in (constant, constant + 1, torch.cat([constant[:1], torch.randn(B - 1, 3, *size)])):
        for training in (False, True):
            found = module.train(training)(tokens(1, 1), {"pixels": pixels})["final"]
            assert bool(found.isfinite().all())
    found.square().sum().backward()  # of the last batch, which is not the same image B times
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def test_pixels_are_needed_and_kinds_and_weights_are_checked() -> None:
    with pytest.raises(ValueError, match='needs about\\["pixels"\\]'):
        fusion()(tokens(2, 2), {})
    with pytest.raises(ValueError, match="no fusion 'sum': choose one of gated, concat"):
        fusion(kind="sum")
    with pytest.raises(ValueError, match=r"start=1\.0"):
        fusion(start=1.0)


# Partners ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in get_args(PartnerName) if "." not in name])
def test_every_partner_trains_whole_and_says_its_width(name: PartnerName) -> None:
    partner = Partner(name, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).train()
    found = partner(torch.randn(2, 3, 64, 32))
    assert found.shape == (2, partner.width)
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in partner.parameters())  # several processes would wait for it


def test_a_partner_sees_pixels_as_its_own_weights_want_them() -> None:
    torch.manual_seed(0)
    ours = Partner(SMALLEST, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()
    theirs = Partner(SMALLEST, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(2, 3, 64, 32)

    def normal(mean: Any, std: Any) -> Tensor:
        return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    a = ours(normal((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    b = theirs(normal((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_partners_are_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--partner resnet50: choose one of mobilenetv4"):
        Partner("resnet50", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 32x32 pixels, and these are 64x16"):
        check_partner(SMALLEST, (64, 16), 1)
    with pytest.raises(
        UserError, match=r"its batch norms would see the images of one process.*--partner convnext_atto"
    ):
        check_partner(SMALLEST, (64, 32), 2)
    check_partner("convnext_atto", (64, 32), 2)
    with pytest.raises(UserError, match=r"start from random weights, --partner convnext_atto$"):
        check_partner("convnext_atto.d2_in1k", (64, 32), 1)


def test_weights_of_a_tag_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    torch.manual_seed(1)
    source = timm.create_model("convnext_atto", num_classes=0)
    real, asked = timm.create_model, []

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append((name, pretrained))
        return source if pretrained else real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    partner = Partner("convnext_atto.d2_in1k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert asked == [("convnext_atto.d2_in1k", False)]  # nothing is fetched to load a run
    partner.load_pretrained()
    assert asked[1:] == [("convnext_atto.d2_in1k", True)]
    assert all(torch.equal(x, partner.model.state_dict()[key]) for key, x in source.state_dict().items())


# A model -------------------------------------------------------------------------------------------------------------


def model_with(fusion: Any) -> ReIDModel:
    torch.manual_seed(0)
    return build(dpl, load_backbone("tiny-clip", image_size=(64, 32)), dpl.Config(fusion=fusion), 4)


def test_a_model_embeds_with_the_partner_and_keeps_it_with_the_heads() -> None:
    model = model_with("gated").eval()
    crops = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = model.embed(crops)
    assert any(name.startswith("aggregator.partner.model.") for name in head_state(model))
    with torch.no_grad():
        model.aggregator.map.weight.mul_(2)
    assert not torch.equal(before, model.embed(crops))
    assert sum(model_with("concat").widths.values()) == sum(model.widths.values()) + model.widths["final"]


@torch.no_grad()
def test_what_is_exported_keeps_the_partner_and_a_merged_tower_is_refused_by_name() -> None:
    model = model_with("gated").eval()
    baked, pixels = bake(model), torch.randn(2, 3, 64, 32)
    expected = model.test_feature(model.features(pixels))
    torch.testing.assert_close(baked.test_feature(baked.features(pixels)), expected, atol=1e-5, rtol=1e-4)
    record = {"backbone": {"name": "tiny-clip"}, "method": "dpl", "config": {"tuning": "lora"}}
    with pytest.raises(UserError, match=r"--format merged: the method dpl .*--format onnx"):
        check_merged(record)


@pytest.mark.slow
def test_an_onnx_graph_has_the_partner_in_it(tmp_path: Path) -> None:
    assert export_onnx(model_with("gated").eval(), tmp_path / "onnx") < 1e-4
