"""ArcFace logits, the likeness of heads, and relations between two spaces: each against loops."""

import math

import pytest
import torch

from clipreid.losses import arcface_logits, head_likeness, relation_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "margin"), [(30.0, 0.5), (30.0, 0.3), (1.0, 0.0), (8.0, 1.4)])
def test_arcface_adds_the_margin_to_the_angle_of_the_label(scale: float, margin: float) -> None:
    cosine = drawn(40, 7).clamp(-1.4, 1.4) / 1.5
    labels = torch.arange(40) % 7
    found = arcface_logits(cosine, labels, scale, margin)
    for i, row in enumerate(cosine.tolist()):
        for j, value in enumerate(row):
            theta = math.acos(value)
            wanted = value
            if j == labels[i]:
                beyond = theta + margin >= math.pi
                wanted = value - margin * math.sin(margin) if beyond else math.cos(theta + margin)
            assert found[i, j].item() == pytest.approx(scale * wanted, abs=1e-4 * scale)


def test_arcface_at_its_ends() -> None:
    """The logit of the label falls as the angle grows, also beyond pi - margin; gradients stay finite at 1 and -1."""
    cosine = torch.linspace(1, -1, 401)[:, None].requires_grad_()
    found = arcface_logits(cosine, torch.zeros(401, dtype=torch.long), 30, 0.5)
    assert bool((found.diff(dim=0) < 0).all())
    found.sum().backward()
    assert cosine.grad is not None
    assert bool(cosine.grad.isfinite().all())


def test_the_likeness_of_heads_by_its_definition() -> None:
    scores = drawn(3, 4, 6)
    for image, found in zip(scores.tolist(), head_likeness(scores).tolist(), strict=True):
        rows = [[x / math.hypot(*row) for x in row] for row in image]
        total = 0.0
        for a in range(4):
            for b in range(4):
                total += (sum(x * y for x, y in zip(rows[a], rows[b], strict=True)) - (a == b)) ** 2
        assert found == pytest.approx(total / 16, rel=1e-5)
    assert head_likeness(torch.eye(5)[None]).item() == pytest.approx(0, abs=1e-7)
    assert head_likeness(torch.ones(2, 3, 8)).tolist() == pytest.approx([6 / 9, 6 / 9])
    assert bool(head_likeness(torch.zeros(1, 3, 8)).isfinite().all())


@pytest.mark.parametrize("itself", [True, False])
def test_relations_by_their_definition(itself: bool) -> None:
    student, teacher, rows = drawn(6, 9), drawn(6, 4, seed=1), torch.tensor([0, 3, 5])
    total = 0.0
    for i in rows.tolist():
        logs = []
        for space in (teacher.tolist(), student.tolist()):
            others = [x for j, x in enumerate(space) if itself or j != i]
            cosines = [
                sum(a * b for a, b in zip(space[i], x, strict=True)) / math.hypot(*space[i]) / math.hypot(*x)
                for x in others
            ]
            norm = math.log(sum(math.exp(c / 0.2) for c in cosines))
            logs.append([c / 0.2 - norm for c in cosines])
        total += sum(math.exp(t) * (t - s) for t, s in zip(*logs, strict=True))
    assert relation_loss(student, teacher, rows, 0.2, itself=itself).item() == pytest.approx(total / 3, rel=1e-5)


def test_equal_relations_cost_nothing_and_what_all_share_counts_with_oneself_only() -> None:
    teacher, rows = torch.nn.functional.normalize(drawn(6, 4)), torch.arange(6)
    turned = torch.linalg.qr(drawn(9, 9, seed=3))[0][:4]  # four orthonormal rows
    for itself in (True, False):
        assert relation_loss(3 * teacher @ turned, teacher, rows, itself=itself).item() == pytest.approx(0, abs=1e-5)
    shared = torch.cat([teacher, torch.full((6, 1), 1.0)], 1)  # every cosine c becomes (c + 1) / 2
    assert relation_loss(shared, teacher, rows, 0.2).item() > 0.05
    twice = torch.nn.functional.normalize(shared) * 1.0
    cosine = twice @ twice.T
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(cosine[off], ((teacher @ teacher.T + 1) / 2)[off])
    student = shared.clone().requires_grad_()
    before = relation_loss(student, teacher, rows, itself=False)
    before.backward()
    assert student.grad is not None
    assert relation_loss(student.detach() - 0.1 * student.grad, teacher, rows, itself=False) < before
