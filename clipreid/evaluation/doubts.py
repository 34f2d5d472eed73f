"""Figures that can hardly be right: one sentence each, saying what to look at; and similarities that are distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipreid.errors import UserError
from clipreid.evaluation.columns import UNKNOWN, Columns

FEW = 10  # scored queries, below which nothing is concluded from a figure
MISTAKES = 5  # first hits that are wrong, below which nothing is concluded from their cameras
SURE = 0.01  # probability by chance, below which something is not taken for chance
BAD = 3  # times as often as by chance features that know cameras only may well put a match in the last place
ONE = 1 - 1e-6  # a cosine from here on is that of the same features


@dataclass(frozen=True)
class Facts:
    """What `evaluate` sees of every query beside its ranks, [Q] each."""

    ranked: np.ndarray  # gallery images that are not junk
    backwards: np.ndarray  # bool: a match is less similar than every mistake, of which there are some
    top: np.ndarray  # the largest similarity


def see(matches: Tensor, counts: Tensor, others: Tensor) -> Tensor:
    """`Facts` of a chunk of queries, [3, c] float64, of what `_sort_pairs` gives."""
    lowest = matches.gather(1, (counts - 1).clamp_min(0)[:, None])[:, 0] if matches.shape[1] else matches.sum(1)
    none = torch.full_like(others[:, :1], -torch.inf)
    start = torch.searchsorted(others, none, right=True)  # [c, 1] the first that is no junk
    mistakes = others.shape[1] - start[:, 0]
    least = others.gather(1, start.clamp_max(others.shape[1] - 1))[:, 0]
    backwards = (counts > 0) & (mistakes > 0) & (lowest < least)
    best = matches[:, 0] if matches.shape[1] else none[:, 0]
    top = torch.where(counts > 0, best, -torch.inf).maximum(others[:, -1])
    return torch.stack([counts + mistakes, backwards, top]).double()


def refuse_distances(scores: dict[str, np.ndarray], facts: Facts) -> None:
    """Raises `UserError` where the matches lie last, systematically: what was given as similarity is a distance."""
    scored = scores["n_positives"] > 0
    if scored.sum() < FEW:
        return
    chance = _chance(scores, facts)[scored].mean()
    first, last = float((scores["first_rank"][scored] <= 1).mean()), float(facts.backwards[scored].mean())
    bad = min(BAD * chance, 1.0)
    if last >= (1 + chance) / 2 and first <= last / 2 and _surprising(last, bad, int(scored.sum())):
        raise UserError(
            f"similarity: {100 * last:.0f} % of the queries have a match in the last place of all (chance: "
            f"{100 * chance:.1f} %), so these are distances, where smaller is closer: give similarity=-distance"
        )


def find_doubts(
    scores: dict[str, np.ndarray], facts: Facts, query: Columns, gallery: Columns, cosine: bool
) -> list[str]:
    """What is odd about these scores. cosine: whether similarities are cosines."""
    scored, notes = scores["n_positives"] > 0, []
    if scored.sum() >= FEW:
        hit = scores["first_rank"][scored] <= 1
        chance = _chance(scores, facts)[scored].mean()
        if hit.all():
            notes.append(
                "rank-1 is 100 %, which is rarely true: look for copies and for images of one moment in query and "
                "gallery (clipreid data check finds near copies), and for backgrounds that tell who it is (--report)"
            )
        elif not _surprising(float(hit.mean()), chance, len(hit)):
            notes.append(
                f"rank-1 is {100 * hit.mean():.1f} %, no better than chance ({100 * chance:.1f} %): look whether "
                "identities belong to their images, and whether the weights are those that were meant"
            )
        notes += _by_camera(~hit, query["camera"].cpu().numpy()[scored])
    if cosine and (same := scored & (facts.top >= ONE)).any():
        notes.append(
            f"{int(same.sum())} queries find an image at similarity 1.0, such as query {int(np.flatnonzero(same)[0])}: "
            "look for copies under another identity, and for features that do not tell images apart"
        )
    return notes + _one_camera(query, gallery)


def _chance(scores: dict[str, np.ndarray], facts: Facts) -> np.ndarray:
    """[Q] the probability that a ranking by chance begins with a match."""
    return scores["n_positives"] / np.maximum(facts.ranked, 1)


def _surprising(share: float, chance: float, n: int) -> bool:
    """Whether a share of n is above what chance gives, by three standard deviations and by more than one of n."""
    return n * (share - chance) > max(3 * (n * chance * (1 - chance)) ** 0.5, 1)


def _by_camera(wrong: np.ndarray, cameras: np.ndarray) -> list[str]:
    """All mistakes in one camera of several; wrong bool [n], cameras [n] of the queries."""
    guilty = np.unique(cameras[wrong])
    if wrong.sum() < MISTAKES or len(guilty) > 1 or guilty[0] == UNKNOWN:
        return []
    share = float((cameras == guilty[0]).mean())
    if share ** wrong.sum() > SURE:  # they may well be there by chance
        return []
    return [
        f"all {int(wrong.sum())} queries whose first hit is wrong are of one camera, number {guilty[0]}, which has "
        f"{100 * share:.0f} % of the queries: look at its labels and images (--by camera)"
    ]


def _one_camera(query: Columns, gallery: Columns) -> list[str]:
    """Identities that are seen by one camera each, where all cameras are known."""
    both = [torch.cat([side[name].cpu() for side in (query, gallery)]) for name in ("identity", "camera")]
    if bool((both[1] == UNKNOWN).any()) or len(both[0].unique()) < 2:
        return []
    if len(torch.stack(both, 1).unique(dim=0)) > len(both[0].unique()):
        return []
    which = (
        "all images are of one camera" if len(both[1].unique()) == 1 else "every identity is seen by one camera only"
    )
    return [f"{which}: this figure says nothing about finding somebody at another camera"]
