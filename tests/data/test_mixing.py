"""Several data sets together: nothing collides, every set has its share, images are read where they lie."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.data import (
    ConcatPixels,
    Mixture,
    PixelCache,
    ReIDData,
    Split,
    join_pixels,
    mixed_pk_indices,
    pk_indices,
    raise_known,
    relabel,
    set_shares,
    short_names,
)
from clipreid.errors import UserError


def make(name: str, identities: Sequence[str], cameras: Sequence[int], noun: str = "person") -> ReIDData:
    images = [{"path": f"{name}/{i}.jpg"} for i in range(len(identities))]
    return ReIDData(name, {"train": Split.from_columns("train", images, identities, cameras)}, "market1501", noun)


@pytest.fixture
def mixture() -> Mixture:
    first = make("market1501:/a", ["1", "1", "2"], [1, 6, -1])
    second = make("veri:/b", ["1", "2", "2", "3"], [0, 1, -1, 19], "vehicle")
    return Mixture((first, second))


def test_equal_names_in_two_sets_are_two_individuals(mixture: Mixture) -> None:
    labels, names = relabel(mixture.identities)
    assert names == ["market1501/1", "market1501/2", "veri/1", "veri/2", "veri/3"]
    assert labels.tolist() == [0, 0, 1, 2, 3, 3, 4]
    assert mixture.groups.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert mixture.counts == [2, 3]
    assert mixture.nouns(names) == ["person", "person", "vehicle", "vehicle", "vehicle"]
    assert mixture.noun == "person, vehicle"


def test_cameras_do_not_collide_and_unknown_ones_stay_unknown(mixture: Mixture) -> None:
    assert mixture.cameras.tolist() == [1, 6, -1, 7, 8, -1, 26]
    assert mixture.views.tolist() == [-1] * 7
    assert mixture.cameras.dtype == np.int32
    assert mixture.offsets == {"market1501:/a": (0, 0), "veri:/b": (7, 0)}
    assert raise_known(np.array([3, -1]), 7).tolist() == [10, -1]


def test_cameras_of_test_splits_have_their_own_numbers_too(mixture: Mixture) -> None:
    first, second = mixture.sets
    query = Split.from_columns("query", [{"path": "q"}], ["9"], [40], [2])
    wider = Mixture((replace(first, splits={**first.splits, "query": query}), second))
    assert wider.offsets["veri:/b"] == (41, 3)


def test_one_set_stays_as_it_is(mixture: Mixture) -> None:
    alone = Mixture(mixture.sets[:1])
    assert alone.identities.tolist() == ["1", "1", "2"]
    assert alone.cameras.tolist() == [1, 6, -1]
    assert alone.noun == "person"
    assert alone.summary() == mixture.sets[0].summary()


def test_captions_follow_their_images() -> None:
    said = [["a red\n\n hat ", ""], ["", "two", "three"]]
    sets = []
    for name, captions in zip(("a", "b"), said, strict=True):
        image = [{"path": f"{n}.png"} for n in range(len(captions))]
        split = Split.from_columns("train", image, ["1"] * len(captions), caption=captions)
        sets.append(ReIDData(name, {"train": split}, "market1501"))
    assert Mixture(tuple(sets)).captions == [["a red", "hat"], [], [], ["two"], ["three"]]


def test_the_summary_says_who_gives_how_much(mixture: Mixture) -> None:
    last = mixture.summary([2, 3]).splitlines()[-1]
    assert last == "2 data sets together; identities in a batch: 2 x market1501 (person), 3 x veri (vehicle)"


def test_left_out_images_leave_their_set(mixture: Mixture) -> None:
    looks = np.arange(3), np.zeros(3, bool)
    zeros = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    whole = PixelCache(zeros, torch.arange(3), [], *looks)
    holed = PixelCache(zeros, torch.tensor([0, 1, 3]), [("b/2.jpg", "broken")], *looks)
    kept = mixture.keep([whole, holed])
    assert kept.identities.tolist() == [*["market1501/1"] * 2, "market1501/2", "veri/1", "veri/2", "veri/3"]
    assert len(join_pixels([whole, holed])) == 6


# images -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_parts_read_as_one_tensor(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(0, 256, (n, 3, 4, 2), generator=generator, dtype=torch.uint8) for n in sizes]
    pixels, whole = ConcatPixels(parts), torch.cat(parts)
    rows = torch.randint(0, len(whole), (20,), generator=generator)
    assert torch.equal(pixels.index_select(0, rows), whole.index_select(0, rows))
    assert pixels.index_select(0, rows[:0]).shape == (0, 3, 4, 2)
    assert (len(pixels), pixels.shape, pixels.ndim, pixels.dtype, pixels.numel()) == (
        len(whole),
        whole.shape,
        4,
        torch.uint8,
        whole.numel(),
    )
    assert torch.equal(pixels.to("cpu"), whole)
    with pytest.raises(ValueError, match="dimension 1"):
        pixels.index_select(1, rows)


def test_one_cache_is_handed_through() -> None:
    zeros = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    cache = PixelCache(zeros, torch.arange(3), [], np.arange(3), np.zeros(3, bool))
    assert join_pixels([cache]) is cache.pixels


# batches --------------------------------------------------------------------------------------------------

SETS = st.lists(st.tuples(st.integers(2, 12), st.integers(1, 9)), min_size=2, max_size=4)  # identities x images


@settings(deadline=None, max_examples=60)
@given(SETS, st.sampled_from(["proportional", "equal"]), st.integers(0, 99), st.integers(0, 9), st.data())
def test_every_batch_has_every_sets_share(
    sizes: list[tuple[int, int]], balance: str, seed: int, epoch: int, data: st.DataObject
) -> None:
    group = np.concatenate([np.full(i * n, nth) for nth, (i, n) in enumerate(sizes)])
    label = np.concatenate([np.repeat(np.arange(i), n) + 100 * nth for nth, (i, n) in enumerate(sizes)])
    order = np.random.default_rng(seed).permutation(len(label))
    group, label = group[order], label[order]
    P = data.draw(st.integers(len(sizes), sum(i for i, _ in sizes)))
    rows = mixed_pk_indices(label, group, P, 3, seed, epoch, balance)
    shares = set_shares([i for i, _ in sizes], P, balance)
    assert sum(shares) == P
    assert all(1 <= share <= i for share, (i, _) in zip(shares, sizes, strict=True))
    owners = label[rows.numpy()].reshape(len(rows), P, 3)
    assert (owners == owners[:, :, :1]).all()
    assert all(len(set(row)) == P for row in owners[:, :, 0])
    drawn = group[rows.numpy()[:, ::3]]  # [steps, P]
    assert (np.sort(drawn, 1) == np.repeat(np.arange(len(sizes)), shares)).all()
    assert torch.equal(rows, mixed_pk_indices(torch.from_numpy(label), group, P, 3, seed, epoch, balance))
    alone = [len(pk_indices(label[group == nth], share, 3, 0, 0)) for nth, share in enumerate(shares)]
    assert len(rows) >= min(alone)


def test_shares_follow_the_identities_or_are_equal() -> None:
    assert set_shares([300, 100], 16, "proportional") == [12, 4]
    assert set_shares([300, 100], 16, "equal") == [8, 8]
    assert set_shares([3000, 10], 16, "proportional") == [15, 1]  # nobody is left out
    assert set_shares([300, 5, 300], 18, "equal") == [7, 5, 6]  # no more than there are
    for P in (1, 9):
        with pytest.raises(UserError, match=rf"P={P} identities a batch from 2 data sets with 5 \+ 3 .* from 2 to 8"):
            set_shares([5, 3], P, "equal")


def test_a_small_set_begins_again_until_the_large_one_is_through() -> None:
    label = np.repeat(np.arange(44), 4)  # 40 identities and 4, four images each
    rows = mixed_pk_indices(label, label >= 40, 8, 4, 0, 0, "equal")
    assert len(rows) == 10  # 40 identities / 4 a batch
    large = rows[:, :16]
    assert len(large.unique()) == 160  # every image once
    assert torch.equal(rows[:, 16:].sort(1).values, torch.arange(160, 176).expand(10, -1))  # all four, in every batch
    assert len({tuple(row) for row in rows[:, 16:].tolist()}) > 5  # in another order each time


def test_one_set_is_the_plain_draw() -> None:
    label = np.repeat(np.arange(9), 5)
    assert torch.equal(mixed_pk_indices(label, np.zeros(45, int), 4, 2, 3, 1), pk_indices(label, 4, 2, 3, 1))


def test_epochs_seeds_and_sets_draw_differently() -> None:
    label = np.tile(np.repeat(np.arange(8), 4), 2) + np.repeat([0, 8], 32)
    group = label >= 8
    drawn = [mixed_pk_indices(label, group, 8, 4, s, e).numpy().tobytes() for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert len(set(drawn)) == 3
    rows = mixed_pk_indices(label, group, 8, 4, 0, 0)
    assert not torch.equal(rows[:, :16], rows[:, 16:] - 32)


# names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "short"),
    [
        (["market1501:/data/Market-1501-v15.09.15", "msmt17:/x"], ["market1501", "msmt17"]),
        (["synthetic", "synthetic:large"], ["synthetic", "synthetic:large"]),
        (["folder:/my/long/crops", "csv:/my/table.csv"], ["crops", "table"]),
        (["folder:/a/crops", "folder:/b/crops"], ["a/crops", "b/crops"]),
        (["market1501:/a/M", "market1501:/b/M", "veri:/v"], ["market1501:a/M", "market1501:b/M", "veri"]),
        (["veri:/v", "veri:/v (no-cameras)"], ["veri", "veri (no-cameras)"]),
        (["folder:/a (old)/crops"], ["crops"]),
        (["hub:owner/name"], ["name"]),
        (["veri:/v", "veri:/v"], ["veri", "veri"]),
        ([], []),
    ],
)
def test_names_are_short_and_different(specs: list[str], short: list[str]) -> None:
    assert short_names(specs) == short
