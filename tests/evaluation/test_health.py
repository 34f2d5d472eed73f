"""How features are spread: figures by hand, a cone is found, a warning names it, and colour stripes see colours."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreid.backbones.colour import colour_stripes
from clipreid.evaluation import evaluate
from clipreid.evaluation.health import as_float16, as_int8, cosines, effective_dimension, measure_health

NAMES = np.repeat(np.arange(20), 4)
TABLE = {"identity": NAMES}


def features(squeeze: float = 0.0) -> Tensor:
    """Twenty identities of four images; with `squeeze` all moved towards one direction."""
    drawn = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 32, generator=drawn)[NAMES]
    x = centres + 0.7 * torch.randn(80, 32, generator=drawn) + squeeze * torch.ones(32)
    return F.normalize(x, dim=1)


def mean_ap(query: Tensor, gallery: Tensor) -> float:
    return evaluate(query, gallery, TABLE, TABLE, protocol="no-cameras").metrics["mAP"]


def test_percentiles_are_those_of_all_pairs() -> None:
    x = features()
    rows = x.tolist()
    pairs = [(i, j) for i in range(80) for j in range(i)]
    cosine = {pair: sum(a * b for a, b in zip(rows[pair[0]], rows[pair[1]], strict=True)) for pair in pairs}
    different, same = cosines(x, NAMES)
    for found, alike in ((different, False), (same, True)):
        of_these = [value for (i, j), value in cosine.items() if (NAMES[i] == NAMES[j]) == alike]
        assert found == pytest.approx(np.percentile(of_these, (5, 50, 95)), abs=1e-5)


def test_one_identity_has_nothing_to_be_told_from() -> None:
    with pytest.raises(ValueError, match="all images are of one identity"):
        cosines(features(), ["anna"] * 80)
    assert cosines(features()[:20], range(20))[1] is None


@given(st.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_the_effective_dimension_counts_directions_of_equal_weight(directions: int) -> None:
    axes = torch.eye(16)[:directions]
    spread = torch.cat([axes, -axes])  # centred, the same variance along each
    assert effective_dimension(spread) == pytest.approx(directions)
    assert effective_dimension(spread + 5) == pytest.approx(directions)


def test_equal_features_have_no_dimension() -> None:
    assert effective_dimension(torch.ones(4, 3)) == 0


def test_a_cone_is_measured_and_named() -> None:
    healthy, cone = (measure_health(x, x, NAMES, mean_ap) for x in (features(), features(300.0)))
    assert healthy.different[1] < 0.2
    assert healthy.warnings() == []
    assert cone.different[1] > 0.999
    assert "1.00 (1.00 to 1.00)" not in str(cone)  # as many decimals as tell cosines apart
    assert cone.int8 > 0.05
    assert any("squeezed together" in text for text in cone.warnings())
    assert any("as int8 these features lose" in text for text in cone.warnings())
    names = {f"{who}_{percent}" for who in ("different", "same") for percent in (5, 50, 95)}
    assert set(cone.to_dict()) == names | {"dimension", "width", "float16", "int8"}
    assert "effective dimension" in str(cone)


def test_stored_features_are_near_the_originals() -> None:
    x = features()
    assert (as_float16(x) - x).abs().max() <= 2**-11
    assert ((as_int8(x) - x).abs().amax(1) <= x.abs().amax(1) / 254 + 1e-7).all()
    assert (as_int8(x) / (x.abs().amax(1, keepdim=True) / 127)).round().abs().max() == 127


def test_stripes_see_where_a_colour_is_and_nothing_else() -> None:
    red, blue = torch.tensor([200, 10, 10]), torch.tensor([10, 10, 200])
    top, bottom = torch.zeros(3, 64, 32), torch.zeros(3, 64, 32)
    top[:, :32], top[:, 32:] = red[:, None, None], blue[:, None, None]
    bottom[:, :32], bottom[:, 32:] = blue[:, None, None], red[:, None, None]
    mirrored = top.flip(2)
    found = colour_stripes(torch.stack([top, bottom, mirrored]).to(torch.uint8))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[2] == pytest.approx(1)
    assert found[0] @ found[1] < 0.5


@given(st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=200, deadline=None)
def test_hues_are_those_of_the_standard_library(colour: tuple[int, int, int]) -> None:
    crop = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 6, 2)
    (where,) = colour_stripes(crop)[0, :72].nonzero(as_tuple=True)
    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in colour))
    expected = [min(int(x * n + 1e-6), n - 1) for x, n in ((hue % 1, 8), (saturation, 3), (value, 3))]
    lower = [min(int(max(x * n - 1e-6, 0)), n - 1) for x, n in ((hue % 1, 8), (saturation, 3), (value, 3))]
    found = int(where)
    parts = [found // 9, found // 3 % 3, found % 3]
    assert all(low <= part <= high for part, low, high in zip(parts, lower, expected, strict=True))
