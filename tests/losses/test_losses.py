"""Every loss against a naive loop in float64, and what must hold whatever the batch."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreid.losses import clip_loss, id_loss, image_text_logits, siglip_loss, supcon_loss, triplet_loss

RAGGED = torch.tensor([3, 0, 0, 7, 7, 7, 7, 0, 5, 5])  # one alone, then 3, 4 and 2 images, in no order


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Naive references: plain Python numbers ---------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    log_sum = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - log_sum for x in row]


def naive_id(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    total, classes = 0.0, logits.shape[1]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        target = [smoothing / classes] * classes
        target[label] += 1 - smoothing
        total -= sum(t * p for t, p in zip(target, log_softmax(row), strict=True))
    return total / len(logits)


def naive_triplet(features: Tensor, labels: Tensor, margin: float) -> float:
    rows, names, total = features.tolist(), labels.tolist(), 0.0
    for a in range(len(rows)):
        distance = [math.dist(rows[a], row) for row in rows]
        hardest = max(d for d, name in zip(distance, names, strict=True) if name == names[a])
        nearest = min(d for d, name in zip(distance, names, strict=True) if name != names[a])
        total += max(0.0, hardest - nearest + margin)
    return total / len(rows)


def clipreid_supcon(anchors: Tensor, others: Tensor, anchor_labels: Tensor, other_labels: Tensor) -> float:
    """CLIP-ReID's stage-1 loss as written down in its code: raw dot products, the row's maximum taken off first."""
    total = 0.0
    for a, label in zip(anchors.tolist(), anchor_labels.tolist(), strict=True):
        dots = [sum(x * y for x, y in zip(a, b, strict=True)) for b in others.tolist()]
        shifted = [d - max(dots) for d in dots]
        log_sum = math.log(sum(math.exp(s) for s in shifted))
        positives = [s - log_sum for s, name in zip(shifted, other_labels.tolist(), strict=True) if name == label]
        total += sum(positives) / len(positives)
    return -total / len(anchors)


# The ID loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_id_loss_equals_the_loop(smoothing: float) -> None:
    logits, labels = 5 * randn(9, 6), torch.tensor([0, 1, 2, 3, 4, 5, 5, 0, 2])
    assert id_loss(logits, labels, smoothing).item() == pytest.approx(naive_id(logits, labels, smoothing), rel=1e-5)
    assert id_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_id_loss_smooths_a_tenth_unless_told_otherwise() -> None:
    logits, labels = randn(4, 3), torch.tensor([0, 1, 2, 1])
    assert id_loss(logits, labels).item() == pytest.approx(naive_id(logits, labels, 0.1), rel=1e-5)


@given(st.integers(2, 20), st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_the_gradient_shows_the_smoothed_target(classes: int, smoothing: float) -> None:
    """d loss / d logits = softmax - target, and the target sums to 1 with `smoothing / C` on every other identity."""
    logits = randn(1, classes, seed=classes).requires_grad_()
    id_loss(logits, torch.tensor([1]), smoothing).backward()
    target = logits.detach().softmax(1)[0] - logits.grad[0]  # type: ignore[index]
    expected = torch.full((classes,), smoothing / classes)
    expected[1] += 1 - smoothing
    torch.testing.assert_close(target, expected, atol=1e-6, rtol=0)


# The triplet loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("labels", [RAGGED, torch.arange(10) // 2, torch.tensor([0] * 9 + [1])])
def test_triplet_equals_the_loop_for_ragged_identities(labels: Tensor, margin: float) -> None:
    features = 2 * randn(10, 5)
    found, expected = triplet_loss(features, labels, margin).item(), naive_triplet(features, labels, margin)
    assert expected > 0.1
    assert found == pytest.approx(expected, abs=2e-3)  # somebody alone is not at distance 0 to the last bit
    if margin == 0.3:
        assert triplet_loss(features, labels).item() == found


def test_triplet_mines_the_hardest_pairs() -> None:
    """On a line: a0 at 0, a1 at 3, b at 4 -> a0: 3 - 4, a1: 3 - 1, b (alone): 0 - 1."""
    features, labels = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([0, 0, 1])
    assert triplet_loss(features, labels, margin=1.5).item() == pytest.approx((0.5 + 3.5 + 0.5) / 3, abs=1e-4)


def test_triplet_does_not_normalise() -> None:
    features = randn(10, 5)
    ratio = triplet_loss(10 * features, RAGGED, margin=0.0) / triplet_loss(features, RAGGED, margin=0.0)
    assert ratio.item() == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize("soft", [False, True])
def test_triplet_of_unit_features_equals_the_loop_and_ignores_their_length(soft: bool) -> None:
    features = randn(10, 6) * torch.arange(1, 11)[:, None]
    found = triplet_loss(features, RAGGED, 0.3, normalise=True, soft=soft).item()
    unit = (features.double() / features.double().norm(dim=1, keepdim=True)).float()
    rows, names = unit.tolist(), RAGGED.tolist()
    expected = 0.0
    for a, name in enumerate(names):
        distance = [math.dist(rows[a], row) for row in rows]
        hardest = max(d for d, other in zip(distance, names, strict=True) if other == name)
        nearest = min(d for d, other in zip(distance, names, strict=True) if other != name)
        expected += math.log1p(math.exp(hardest - nearest)) if soft else max(0.0, hardest - nearest + 0.3)
    assert found == pytest.approx(expected / len(rows), abs=1e-5)
    assert triplet_loss(7 * features, RAGGED, 0.3, normalise=True, soft=soft).item() == pytest.approx(found, abs=1e-6)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_triplet_is_zero_for_well_separated_identities(sizes: list[int], margin: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = 10.0 * torch.eye(len(sizes))
    features = centres[labels] + 0.1 * randn(len(labels), len(sizes), seed=seed)
    assert triplet_loss(features, labels, margin).item() == 0.0
    assert triplet_loss(features, labels, margin=100.0).item() > 0


def test_triplet_of_one_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="triplet_loss needs at least two identities in a batch"):
        triplet_loss(randn(4, 3), torch.tensor([2, 2, 2, 2]))


# SupCon -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_supcon_is_clipreids_formula(scale: float) -> None:
    """Raw dot products of CLIP's norms (about 10) reach 100 and more: exp overflows without the maximum taken off."""
    images, texts = scale * randn(10, 8), scale * randn(10, 8, seed=1)
    i2t = supcon_loss(image_text_logits(images, texts, None), RAGGED, RAGGED)
    t2i = supcon_loss(image_text_logits(images, texts, None).T, RAGGED, RAGGED)
    assert i2t.item() == pytest.approx(clipreid_supcon(images, texts, RAGGED, RAGGED), rel=1e-5)
    assert t2i.item() == pytest.approx(clipreid_supcon(texts, images, RAGGED, RAGGED), rel=1e-5)


def test_supcon_between_different_sets() -> None:
    images, texts = randn(5, 8), randn(3, 8, seed=1)
    rows, columns = torch.tensor([0, 4, 4, 9, 0]), torch.tensor([9, 0, 4])
    found = supcon_loss(images @ texts.T, rows, columns).item()
    assert found == pytest.approx(clipreid_supcon(images, texts, rows, columns), rel=1e-5)


def test_supcon_survives_huge_logits() -> None:
    logits = torch.tensor([[3e4, -3e4], [-3e4, 3e4]], requires_grad=True)
    loss = supcon_loss(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0.0
    assert bool(logits.grad.isfinite().all())  # type: ignore[union-attr]


def test_supcon_needs_a_positive_for_every_row() -> None:
    with pytest.raises(ValueError, match="supcon_loss: some row has no column with its label"):
        supcon_loss(randn(2, 2), torch.tensor([0, 1]), torch.tensor([0, 2]))


# Pretraining losses -----------------------------------------------------------------------------------------------


def cosines(image: Tensor, text: Tensor) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    return [[cosine(a, b) for b in text.tolist()] for a in image.tolist()]


def test_clip_loss_equals_the_loop() -> None:
    image, text, n = 3 * randn(6, 4), randn(6, 4, seed=1), 6
    logits = [[7.0 * c for c in row] for row in cosines(image, text)]
    rows = -sum(log_softmax(logits[i])[i] for i in range(n)) / n
    columns = -sum(log_softmax([row[i] for row in logits])[i] for i in range(n)) / n
    assert clip_loss(image, text, torch.tensor(7.0)).item() == pytest.approx((rows + columns) / 2, rel=1e-5)


def test_siglip_loss_equals_the_loop() -> None:
    image, text, n = 3 * randn(6, 4), randn(6, 4, seed=1), 6
    total = 0.0
    for i, row in enumerate(cosines(image, text)):
        for j, cosine in enumerate(row):
            z = 1.0 if i == j else -1.0
            total += math.log(1 + math.exp(-z * (7.0 * cosine - 2.0)))  # algorithm 1: summed over pairs, / n
    found = siglip_loss(image, text, torch.tensor(7.0), torch.tensor(-2.0))
    assert found.item() == pytest.approx(total / n, rel=1e-5)


# Image-text logits ------------------------------------------------------------------------------------------------


def test_image_text_logits_raw_and_cosine() -> None:
    image, text = 5 * randn(4, 6), 2 * randn(3, 6, seed=1)
    raw, cosine = image_text_logits(image, text, None), image_text_logits(image, text, 20.0)
    assert raw.shape == cosine.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            dot = sum(x * y for x, y in zip(image[i].tolist(), text[j].tolist(), strict=True))
            assert raw[i, j].item() == pytest.approx(dot, abs=1e-4)
            length = math.hypot(*image[i].tolist()) * math.hypot(*text[j].tolist())
            assert cosine[i, j].item() == pytest.approx(20 * dot / length, abs=1e-4)
    torch.testing.assert_close(image_text_logits(3 * image, 7 * text, 20.0), cosine)
    assert image_text_logits(image.half(), text.half(), None).dtype == torch.float32


# What holds for all -----------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "id": lambda x, labels: id_loss(x, labels),
    "triplet": lambda x, labels: triplet_loss(x, labels),
    "supcon": lambda x, labels: supcon_loss(x @ x.T, labels, labels),
    "clip": lambda x, labels: clip_loss(x, x.roll(1, 1), torch.tensor(5.0)),
    "siglip": lambda x, labels: siglip_loss(x, x.roll(1, 1), torch.tensor(5.0), torch.tensor(-1.0)),
}


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_batch_does_not_matter(name: str, seed: int) -> None:
    x = randn(10, 8, seed=seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    there, back = LOSSES[name](x, RAGGED), LOSSES[name](x[order], RAGGED[order])
    assert there.shape == ()
    assert there.item() == pytest.approx(back.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["random", "equal rows", "large", "tiny"])
def test_gradients_are_finite_and_reach_the_input(name: str, kind: str) -> None:
    """Equal images (distance exactly 0) are where a careless square root gives NaN."""
    x = {
        "random": randn(10, 8),
        "equal rows": torch.ones(10, 8),
        "large": 100 * randn(10, 8),
        "tiny": 1e-4 * randn(10, 8),
    }[kind].requires_grad_()
    loss = LOSSES[name](x, RAGGED)
    loss.backward()
    assert math.isfinite(loss.item())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    if kind == "random":
        assert x.grad.abs().max() > 0
