"""PK batches as a pure function: P identities x K images, drawn from (seed, epoch) alone.

There is no sampler object and no state: every process computes the same matrix and takes its columns, and a
resumed run computes it again.
"""

from collections.abc import Sequence

import numpy as np
import torch

from clipreid.data.seeds import seed_for
from clipreid.errors import UserError


def pk_indices(
    labels: torch.Tensor | np.ndarray | Sequence[int], P: int, K: int, seed: int, epoch: int
) -> torch.Tensor:
    """All batches of one epoch, int64 [steps, P*K]: each row is P blocks of K images of one identity.

    Source: the identity sampler of CLIP-ReID (arXiv 2211.13977), after Hermans et al. (arXiv 1703.07737),
    section 3. Every identity's images are shuffled and cut into groups of K, the remainder is left out; an
    identity with fewer than K images gives one group drawn with replacement. Rows draw P different
    identities that have groups left, until fewer than P identities have any.

    labels: [N] integers, any numbering. Raises `UserError` for fewer than P identities.
    """
    names, label = np.unique(np.asarray(labels).reshape(-1), return_inverse=True)
    if P < 1 or K < 1:
        raise UserError(
            f"P={P} identities x K={K} images: both must be at least 1 (-P / --identities-per-batch, "
            "-K / --images-per-identity)"
        )
    if len(names) < P:
        raise UserError(
            f"{len(names)} identities cannot fill batches of P={P}: choose a P of at most {len(names)} "
            "(-P / --identities-per-batch)"
        )
    draw = np.random.default_rng(seed_for(seed, epoch))
    images, starts = _groups(label.reshape(-1), len(names), K, draw)
    used, left = starts[:-1].copy(), np.diff(starts)  # next group of each identity, and how many it has left
    available = np.arange(len(names))
    rows = []
    while len(available) >= P:
        slots = draw.choice(len(available), size=P, replace=False)
        chosen = available[slots]  # [P]
        rows.append(used[chosen])
        used[chosen] += 1
        left[chosen] -= 1
        if not left[chosen].all():
            available = np.delete(available, slots[left[chosen] == 0])
    return torch.from_numpy(images[np.stack(rows)].reshape(len(rows), P * K))


def set_shares(identities: Sequence[int], P: int, balance: str) -> list[int]:
    """How many of the P identities of a batch come from each of several data sets, at least 1 from each.

    identities: what each set has. balance: "proportional" to these numbers, or "equal". One by one the P places
    go to the set that lacks most of its due, never more to a set than it has identities. Raises `UserError`
    where P is smaller than the number of sets or larger than all identities together.
    """
    count = len(identities)
    if not count <= P <= sum(identities):
        raise UserError(
            f"P={P} identities a batch from {count} data sets with {' + '.join(map(str, identities))} identities: "
            f"choose a P from {count} to {sum(identities)} (-P / --identities-per-batch)"
        )
    weights = np.array(identities if balance == "proportional" else [1] * count, dtype=np.float64)
    due, shares = P * weights / weights.sum(), np.ones(count, dtype=np.int64)
    for _ in range(P - count):
        shares[np.where(shares < identities, due - shares, -np.inf).argmax()] += 1
    return [int(share) for share in shares]


def mixed_pk_indices(
    labels: torch.Tensor | np.ndarray | Sequence[int],
    groups: torch.Tensor | np.ndarray | Sequence[int],
    P: int,
    K: int,
    seed: int,
    epoch: int,
    balance: str = "proportional",
) -> torch.Tensor:
    """`pk_indices` over several data sets, each with its share of every batch (`set_shares`): int64 [steps, P*K].

    groups: [N] the data set of each image, 0..n-1. Each set's batches are drawn by `pk_indices`; an epoch ends
    when the set with the most batches has been passed through, the others begin again, shuffled anew. With one
    set this is `pk_indices` itself. Raises `UserError` as both of these do.
    """
    label, group = np.asarray(labels).reshape(-1), np.asarray(groups).reshape(-1)
    count = int(group.max()) + 1
    if count == 1:
        return pk_indices(label, P, K, seed, epoch)
    places = [np.flatnonzero(group == nth) for nth in range(count)]
    shares = set_shares([len(np.unique(label[place])) for place in places], P, balance)

    def lap(nth: int, number: int) -> torch.Tensor:
        """The batches of one set [steps, share*K]; its `number`-th passing in this epoch."""
        rows = pk_indices(label[places[nth]], shares[nth], K, seed_for(seed, 0, number, nth + 1), epoch)
        return torch.from_numpy(places[nth])[rows]

    laps = [[lap(nth, 0)] for nth in range(count)]
    steps = max(len(parts[0]) for parts in laps)
    for nth, parts in enumerate(laps):
        while sum(map(len, parts)) < steps:
            parts.append(lap(nth, len(parts)))
    return torch.cat([torch.cat(parts)[:steps] for parts in laps], dim=1)


def process_slice(rows: torch.Tensor, rank: int, world: int, *, K: int) -> torch.Tensor:
    """The columns of one process, [steps, P*K/world]: whole identities, contiguous, in the order of ranks.

    rows: [steps, P*K] of `pk_indices`. Raises `UserError` unless P is divisible by the number of processes.
    """
    P = rows.shape[1] // K
    if P % world:
        lower, upper = P // world * world, -(-P // world) * world
        nearby = f"P={upper}" if lower == 0 else f"P={lower} or P={upper}"
        raise UserError(
            f"P={P} identities cannot be shared equally by {world} processes: choose {nearby} "
            "(-P / --identities-per-batch)"
        )
    width = P // world * K
    return rows[:, rank * width : (rank + 1) * width]


def _groups(label: np.ndarray, count: int, K: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Groups of K images [groups, K], sorted by identity, and where each identity's start [count + 1]."""
    order = np.lexsort((draw.random(len(label)), label))  # images shuffled inside each identity
    sizes = np.bincount(label, minlength=count)
    first = np.cumsum(sizes) - sizes  # where each identity begins in order
    groups = np.maximum(sizes // K, 1)
    starts = np.concatenate([[0], np.cumsum(groups)])
    owner = np.repeat(np.arange(count), groups)  # [groups]
    nth = np.arange(starts[-1]) - starts[owner]  # [groups] index within its identity
    place = nth[:, None] * K + np.arange(K)  # [groups, K] inside the identity
    short = sizes[owner] < K
    place[short] = (draw.random((int(short.sum()), K)) * sizes[owner[short], None]).astype(np.int64)
    return order[first[owner][:, None] + place], starts
