"""Position tables on another grid: CLIP-ReID's bilinear formula written out, and transformers' bicubic function."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipreid.backbones import load_backbone, resize_positions


def bilinear_row(wanted: int, native: int) -> Tensor:
    """Weights [wanted, native] of a linear resize with half-pixel centres (torch's align_corners=False)."""
    weights = torch.zeros(wanted, native)
    for i in range(wanted):
        centre = max((i + 0.5) * native / wanted - 0.5, 0.0)
        low = min(int(centre), native - 1)
        high = min(low + 1, native - 1)
        weights[i, low] += 1 - (centre - low)
        weights[i, high] += centre - low
    return weights


@pytest.mark.parametrize("stride", [16, 12])
def test_bilinear_is_the_formula_of_clip_reid(stride: int) -> None:
    """14x14 patches to (size - 16) // stride + 1: 16x8, or 21x10 with overlap; CLS as it was."""
    grid = ((256 - 16) // stride + 1, (128 - 16) // stride + 1)
    assert grid == ((16, 8) if stride == 16 else (21, 10))
    table = torch.randn(1 + 14 * 14, 5)
    rows, columns = bilinear_row(grid[0], 14), bilinear_row(grid[1], 14)
    expected = torch.einsum("hi,wj,ijc->hwc", rows, columns, table[1:].reshape(14, 14, 5)).reshape(-1, 5)
    resized = resize_positions(table, (14, 14), grid, "bilinear")
    assert torch.equal(resized[0], table[0])
    torch.testing.assert_close(resized[1:], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("size", [(64, 32), (96, 40), (128, 128)])
def test_bicubic_is_the_function_of_transformers(
    family: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    found: tuple[Path, nn.Module] = request.getfixturevalue(f"{family}_folder")
    folder, model = found
    embeddings: Any = model.vision_model.embeddings  # type: ignore[union-attr]
    cls = family == "clip"
    tokens = torch.zeros(1, cls + (size[0] // 8) * (size[1] // 8), 32)
    expected = embeddings.interpolate_pos_encoding(tokens, *size)[0]
    ours = load_backbone(f"hf:{folder}", image_size=size).image.embeddings.position_embedding.weight
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
