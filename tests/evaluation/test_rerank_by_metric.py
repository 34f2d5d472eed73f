"""Re-ranking by a metric that is not symmetric, against the definitions written out."""

import numpy as np
import pytest
import torch
from test_kreciprocal import dense_reference
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation import neighbours, rerank
from clipreid.metric import Cosine, MaskedCosine, Metric


class Unbounded(Metric):
    name = "unbounded"

    def forward(self, query: Tensor, gallery: Tensor) -> Tensor:
        return -torch.cdist(query, gallery)


def drawn(queries: int, gallery: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Test features [feature | mask] of a few groups of images."""
    generator = torch.Generator().manual_seed(seed)
    count = queries + gallery
    centres = torch.randn(5, 12, generator=generator)
    feature = centres[torch.arange(count) % 5] + 0.7 * torch.randn(count, 12, generator=generator)
    both = torch.cat([feature, torch.rand(count, 12, generator=generator) ** 3], 1)
    return both[:queries], both[queries:]


@pytest.mark.parametrize("options", [(20, 6, 0.3), (5, 1, 0.0), (4, 3, 1.0)], ids=str)
@pytest.mark.parametrize("rows", [None, 7])
def test_k_reciprocal_by_its_definition(
    options: tuple[int, int, float], rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery = drawn(9, 31)
    both = torch.cat([query, gallery])
    s = MaskedCosine()(both, both)
    assert not torch.allclose(s, s.T, atol=0.05)
    wanted = dense_reference(s.numpy(), 9, *options)
    if rows is not None:
        monkeypatch.setattr(neighbours, "chunk_size", lambda chunk, sizes: rows)
    k1, k2, lambda_value = options
    found = rerank(query, gallery, metric=MaskedCosine(), k1=k1, k2=k2, lambda_value=lambda_value)
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-6)


def test_kwf_by_its_definition() -> None:
    query, gallery = drawn(6, 25)
    cameras = torch.arange(6) % 3, torch.arange(25) % 3
    s, among = MaskedCosine()(query, gallery), MaskedCosine()(gallery, gallery)
    wanted = s.clone()
    for i in range(6):
        for j in s[i].topk(10).indices.tolist():
            others = [g for g in range(25) if cameras[1][g] != cameras[0][i]]
            near = sorted(others, key=lambda g: -among[j, g])[:4]
            weights = [max(1 - among[j, g].item(), 0.1) ** -2 for g in near]
            wanted[i, j] = sum(w * s[i, g] for w, g in zip(weights, near, strict=True)) / sum(weights)
    found = rerank(
        query, gallery, "kwf", query_cameras=cameras[0], gallery_cameras=cameras[1], metric=MaskedCosine(),
        candidates=10, neighbours=4,
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_by_the_cosine_it_is_what_it_is_without_a_metric() -> None:
    query, gallery = drawn(8, 20)
    for method in ("k-reciprocal", "kwf", "aqe"):
        without = rerank(query, gallery, method)
        assert torch.equal(rerank(query, gallery, method, metric=Cosine()), without)
    even = torch.ones(28, 12).split([8, 20])
    alike = [torch.cat([x[:, :12], m], 1) for x, m in zip((query, gallery), even, strict=True)]
    for method in ("k-reciprocal", "kwf"):  # by even masks it is the cosine
        plain = rerank(query[:, :12], gallery[:, :12], method)
        torch.testing.assert_close(rerank(*alike, method, metric=MaskedCosine()), plain, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_refused_by_name() -> None:
    query, gallery = drawn(3, 5)
    with pytest.raises(UserError, match=r"^re-ranking by aqe compares features by cosine, .* \(masked cosine\)"):
        rerank(query, gallery, "aqe", metric=MaskedCosine())
    with pytest.raises(UserError, match=r"^re-ranking by k-reciprocal compares features by cosine, .* \(unbounded\)"):
        rerank(query, gallery, metric=Unbounded())
