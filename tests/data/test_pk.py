"""PK batches: properties over random label sets."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.data import pk_indices, process_slice
from clipreid.errors import UserError

IMAGES = st.lists(st.integers(1, 11), min_size=4, max_size=20)  # how many images each identity has


def shuffled_labels(sizes: list[int], seed: int) -> np.ndarray:
    """Labels with gaps, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7 + 3, sizes))


@settings(deadline=None, max_examples=80)
@given(IMAGES, st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**40), st.integers(0, 100))
def test_every_row_is_p_identities_times_k(sizes: list[int], P: int, K: int, seed: int, epoch: int) -> None:
    labels = shuffled_labels(sizes, seed)
    rows = pk_indices(labels, P, K, seed, epoch)
    assert rows.dtype == torch.int64
    assert rows.shape[1] == P * K
    assert len(rows) >= 1
    blocks = rows.view(len(rows), P, K).numpy()
    owners = labels[blocks]
    assert (owners == owners[:, :, :1]).all()
    assert all(len(set(row)) == P for row in owners[:, :, 0])

    count = Counter(labels.tolist())
    used = Counter(owners[:, :, 0].ravel().tolist())
    seen: Counter[int] = Counter()
    for block, owner in zip(blocks.reshape(-1, K), owners[:, :, 0].ravel(), strict=True):
        if count[owner] >= K:
            assert len(set(block.tolist())) == K
            seen.update(block.tolist())
    assert max(seen.values(), default=1) == 1  # no image twice in an epoch, unless its identity has fewer than K
    left = {name: max(n // K, 1) - used[name] for name, n in count.items()}
    assert min(left.values()) >= 0
    assert sum(n > 0 for n in left.values()) < P  # went on until fewer than P identities had groups

    np.testing.assert_array_equal(rows, pk_indices(torch.from_numpy(labels), P, K, seed, epoch))


@settings(deadline=None, max_examples=40)
@given(IMAGES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_slices_partition_rows_by_identity(sizes: list[int], world: int, each: int, K: int, seed: int) -> None:
    P = world * each
    labels = shuffled_labels(sizes * 3, seed)
    rows = pk_indices(labels, P, K, seed, 0)
    slices = [process_slice(rows, rank, world, K=K) for rank in range(world)]
    assert {part.shape for part in slices} == {(len(rows), each * K)}
    assert torch.equal(torch.cat(slices, 1), rows)
    owners = [set(labels[part[0].numpy()].tolist()) for part in slices]
    assert sum(map(len, owners)) == len(set().union(*owners)) == P


def test_epochs_and_seeds_differ() -> None:
    labels = np.repeat(np.arange(30), 8)
    drawn = [pk_indices(labels, 8, 4, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len({rows.numpy().tobytes() for rows in drawn}) == 4


def test_draws_are_fair() -> None:
    """Over many epochs the images of an identity come equally often, a group of K per identity here."""
    labels = np.array([0] * 6 + [1] * 5 + [2] * 3 + [3] * 4)  # with K=4: 1, 1, 1 (resampled), 1 groups
    times = np.zeros(len(labels))
    for epoch in range(2000):
        times += np.bincount(pk_indices(labels, 2, 4, 5, epoch).flatten(), minlength=len(labels))
    expected = np.array([4 / 6] * 6 + [4 / 5] * 5 + [4 / 3] * 3 + [1.0] * 4)
    np.testing.assert_allclose(times / 2000, expected, atol=0.08)


def test_resampling_draws_with_replacement() -> None:
    rows = torch.cat([pk_indices([0, 0, 1, 1], 2, 2, 0, epoch) for epoch in range(50)])
    assert all(len(set(block.tolist())) == 2 for block in rows.view(-1, 2))  # exactly K images: never resampled
    rows = torch.cat([pk_indices([0, 0, 1, 1], 2, 3, 0, epoch) for epoch in range(50)])
    assert {len(set(block.tolist())) for block in rows.view(-1, 3)} == {1, 2}


def test_errors() -> None:
    with pytest.raises(UserError, match=r"batches of P=4: choose a P of at most 3 \(-P / --identities-per-batch\)"):
        pk_indices([1, 2, 3], 4, 2, 0, 0)
    with pytest.raises(UserError, match=r"K=0 images: both must be at least 1 \(-P / .*, -K / --images-per-identity\)"):
        pk_indices([1, 2, 3], 2, 0, 0, 0)
    with pytest.raises(UserError, match="P=10 identities cannot be shared equally by 4 processes: choose P=8 or"):
        process_slice(torch.zeros(3, 40), 0, 4, K=4)
    with pytest.raises(UserError, match="by 4 processes: choose P=4"):
        process_slice(torch.zeros(3, 8), 0, 4, K=4)


def test_large_sets_are_quick() -> None:
    labels = np.random.default_rng(0).integers(0, 20_000, 100_000)
    start = time.perf_counter()
    rows = pk_indices(labels, 16, 4, 0, 0)
    assert time.perf_counter() - start < 2  # 0.05 s on an idle core
    assert len(rows) > 1000
