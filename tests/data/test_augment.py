"""Batched augmentation against simple references, image by image."""

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from clipreid.data import augment, normalise
from clipreid.data.augment import mirrored_rows

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
OFF: dict[str, Any] = {"flip": 0.0, "pad": 0, "erase": 0.0}


def noise_batch(count: int, height: int = 24, width: int = 12) -> Tensor:
    return torch.randint(
        1, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(9)
    )


def run(batch: Tensor, seed: int = 0, **options: Any) -> Tensor:
    return augment(batch, mean=MEAN, std=STD, generator=torch.Generator().manual_seed(seed), **(OFF | options))


def boxes(before: Tensor, after: Tensor) -> list[tuple[int, int, int, int] | None]:
    """(top, left, height, width) of what differs in each image, a full rectangle."""
    found: list[tuple[int, int, int, int] | None] = []
    for changed in (before != after).all(1):
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        if not len(rows):
            found.append(None)
            continue
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
        assert changed.sum() == height * width
        found.append((top, left, height, width))
    return found


def test_normalise() -> None:
    batch = noise_batch(5)
    expected = (batch.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    result = normalise(batch, MEAN, STD)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(run(batch), result)  # nothing switched on: the same


def test_flip_is_exact_and_as_often_as_asked() -> None:
    batch = noise_batch(400)
    plain, mirrored = normalise(batch, MEAN, STD), normalise(batch.flip(3), MEAN, STD)
    assert torch.equal(run(batch, flip=1.0), mirrored)
    result = run(batch, flip=0.3)
    flipped = [torch.equal(one, other) for one, other in zip(result, mirrored, strict=True)]
    untouched = [torch.equal(one, other) for one, other in zip(result, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, untouched, strict=True))
    assert 0.2 < sum(flipped) / 400 < 0.4


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_pad_and_crop_give_every_offset_with_black_borders(flip: float) -> None:
    count, pad = 300, 2
    batch = noise_batch(count, 9, 7)
    result = run(batch, pad=pad, flip=flip)
    source = batch.flip(3) if flip else batch
    seen = set()
    for one, image in zip(result, source, strict=True):
        canvas = torch.zeros(3, 9 + 2 * pad, 7 + 2 * pad, dtype=torch.uint8)
        canvas[:, pad:-pad, pad:-pad] = image
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                window = normalise(canvas[None, :, top : top + 9, left : left + 7], MEAN, STD)[0]
                if torch.equal(window, one):
                    seen.add((top, left))
                    break
            else:
                continue
            break
        else:
            pytest.fail("not a crop of the padded image")
    assert len(seen) == 25  # all of them


def test_erasing_leaves_everything_else_alone() -> None:
    batch = noise_batch(600, 32, 16)
    plain = normalise(batch, MEAN, STD)
    found = boxes(plain, run(batch, erase=0.5))
    assert 0.42 < sum(box is not None for box in found) / 600 < 0.58
    assert all(box is None for box in boxes(plain, run(batch, erase=0.0)))


def test_erased_boxes_follow_the_reference() -> None:
    """Areas, shapes and places as in a plain loop written from the description of timm's random erasing."""
    height, width, count = 64, 32, 4000
    batch = torch.full((count, 3, height, width), 100, dtype=torch.uint8)
    found = boxes(normalise(batch, MEAN, STD), run(batch, erase=1.0))
    drawn = torch.tensor([box for box in found if box is not None]).double()
    assert len(drawn) > 0.999 * count  # ten tries nearly always find a box

    chance, loop = random.Random(1), []
    while len(loop) < count:
        area = chance.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(chance.uniform(math.log(0.3), math.log(1 / 0.3)))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall < height and wide < width:
            loop.append((chance.randint(0, height - tall), chance.randint(0, width - wide), tall, wide))
    expected = torch.tensor(loop).double()
    for column, tolerance in zip(range(4), (1.2, 0.6, 1.0, 0.5), strict=True):  # top, left, height, width
        assert abs(drawn[:, column].mean() - expected[:, column].mean()) < tolerance
        assert abs(drawn[:, column].std() - expected[:, column].std()) < tolerance
    area = drawn[:, 2] * drawn[:, 3] / (height * width)
    assert 0.015 < area.min() < 0.03
    assert 0.31 < area.max() < 0.35
    assert drawn[:, 0].min() == drawn[:, 1].min() == 0
    assert (drawn[:, 0] + drawn[:, 2]).max() == height
    assert (drawn[:, 1] + drawn[:, 3]).max() == width


def test_erased_pixels_are_standard_normal_after_normalisation() -> None:
    batch = torch.zeros(200, 3, 32, 16, dtype=torch.uint8)
    result = run(batch, erase=1.0)
    values = result[result != normalise(batch, MEAN, STD)]
    assert len(values) > 10_000
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert len(values.unique()) > 0.99 * len(values)  # per value, not one colour per box


def test_tint_is_one_gain_for_each_channel_of_each_image() -> None:
    batch = torch.full((2000, 3, 2, 2), 60, dtype=torch.uint8)
    batch[:, :, 0, 0], batch[:, :, 1, 1] = 0, 255
    mean, std = (x.view(3, 1, 1) for x in (torch.tensor(MEAN), torch.tensor(STD)))
    values = (run(batch, tint=0.3) * std + mean) * 255  # [N, 3, 2, 2]
    assert values[:, :, 0, 0].abs().max() < 1e-3  # black stays black
    assert values.max() < 255.001
    assert torch.equal(values[:, :, 0, 1], values[:, :, 1, 0])
    gains = (values[:, :, 0, 1] / 60).log()  # [N, 3]
    assert gains.mean().abs() < 0.02
    assert gains.std() == pytest.approx(0.3, rel=0.05)
    assert torch.corrcoef(gains.T).triu(1).abs().max() < 0.08
    some = run(batch, tint=0.3, tint_share=0.25) == run(batch)
    assert some.flatten(1).all(1).float().mean() == pytest.approx(0.75, abs=0.04)


def test_the_generator_decides_everything() -> None:
    batch = noise_batch(32)
    options = {"flip": 0.5, "pad": 3, "erase": 0.5, "tint": 0.2}
    torch.manual_seed(0)
    first = run(batch, 7, **options)
    torch.manual_seed(1)
    assert torch.equal(first, run(batch, 7, **options))
    assert not torch.equal(first, run(batch, 8, **options))
    generator = torch.Generator().manual_seed(7)
    again = [augment(batch, mean=MEAN, std=STD, generator=generator, **options) for _ in range(2)]
    assert torch.equal(first, again[0])
    assert not torch.equal(*again)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_are_parts_of_the_whole_batch(world: int) -> None:
    batch = noise_batch(16, 32, 16)
    options = {"flip": 0.5, "pad": 3, "erase": 0.7, "tint": 0.2, "tint_share": 0.5}
    parts = [run(part, share=(rank, world), **options) for rank, part in enumerate(batch.chunk(world))]
    assert torch.equal(torch.cat(parts), run(batch, **options))


def test_the_batch_itself_is_left_alone() -> None:
    batch = noise_batch(8)
    before = batch.clone()
    run(batch, flip=0.5, pad=3, erase=1.0)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_only_uint8_batches(batch: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[B, 3, H, W\], got"):
        normalise(batch, MEAN, STD)
    with pytest.raises(ValueError, match=r"expected uint8 \[B, 3, H, W\], got"):
        run(batch)


@pytest.mark.parametrize("world", [1, 2])
def test_which_images_are_mirrored_is_known_beforehand(world: int) -> None:
    """For their captions: from a generator in the same state."""
    batch = torch.randint(0, 256, (12, 3, 6, 4), dtype=torch.uint8)
    how: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "pad": 0, "erase": 0, "flip": 0.4}
    found = []
    for rank in range(world):
        part, share = batch.chunk(world)[rank], (rank, world)
        mirrored = mirrored_rows(len(part), 0.4, torch.Generator().manual_seed(3), share)
        pixels = augment(part, generator=torch.Generator().manual_seed(3), share=share, **how)
        plain = part.float() / 255
        expected = torch.where(mirrored[:, None, None, None], plain.flip(3), plain)
        assert torch.equal(pixels, expected)
        found.append(mirrored)
    assert torch.equal(torch.cat(found), mirrored_rows(12, 0.4, torch.Generator().manual_seed(3)))
    assert 0 < torch.cat(found).sum() < 12
