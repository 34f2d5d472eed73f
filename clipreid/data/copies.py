"""The copies in a data set as findings: by where they are, who they show, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from clipreid.data.crops import ReIDData
from clipreid.data.duplicates import exact_groups, near_pairs
from clipreid.data.findings import Finding, within
from clipreid.data.opening import CONFLICTS, COPIES
from clipreid.data.scan import Scan

Homes = list[list[tuple[str, int]]]  # of every image: the splits and rows where it is
TWO = ", of two identities"
ACROSS = "duplicate across query and gallery"


def find_copies(data: ReIDData, seen: Scan) -> list[Finding]:
    """Copies between training and held-out images, query and gallery, or within a split; files in several places."""
    usable = np.array([not image.kind and not image.blank for image in seen.seen], bool)
    homes: Homes = [[] for _ in seen.seen]
    for name, numbers in seen.index.items():
        for row, number in enumerate(numbers.tolist()):
            homes[number].append((name, row))
    groups = exact_groups(seen.seen, usable)
    pairs = [(int(a), int(b), "duplicate") for group in groups for a, b in _some_pairs(group)]
    for group in groups:
        usable[group[1:]] = False  # what is near to one of them is near to all
    pairs += [(int(a), int(b), "near duplicate") for a, b in near_pairs(seen.seen, usable)]
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for a, b, kind in pairs:
        found.setdefault(_relation(data, homes[a], homes[b], kind), []).append((a, b))
    findings = []
    for (severity, kind, why), alike in found.items():
        items = tuple(f"{_where(seen, homes, a)} = {_where(seen, homes, b)}" for a, b in sorted(alike))
        finding = Finding(severity, kind, why, items)  # type: ignore[arg-type]
        findings.append(_judge(data, homes, finding, sorted({number for pair in alike for number in pair})))
    return findings + _same_files(data, seen, homes)


def _same_files(data: ReIDData, seen: Scan, homes: Homes) -> list[Finding]:
    """Files that are trained on and tested on, and files that a table lists under two identities."""
    findings = []
    places = [{name for name, _ in each} for each in homes]
    leaked = [_where(seen, homes, number) for number, names in enumerate(places) if _leaks(names, names)]
    if leaked:
        why = "it is learned, then tested on"
        findings.append(Finding("fault", "the same file in train and test", why, tuple(leaked)))
    who = [sorted({str(data.splits[name].identities[row]) for name, row in each}) for each in homes]
    several = [number for number, names in enumerate(who) if len(names) > 1]
    if several:
        items = tuple(f"{_where(seen, homes, number)}: {', '.join(who[number])}" for number in several)
        finding = Finding("note", f"the same file{TWO}", "all but one of them must be wrong", items)
        findings.append(_judge(data, homes, finding, several))
    return findings


def _judge(data: ReIDData, homes: Homes, finding: Finding, numbers: Sequence[int]) -> Finding:
    """A fault where a note holds for too many images (numbers) of the splits where they are."""
    if finding.kind.removeprefix("near ") == ACROSS:
        queries = sum(any(name == "query" for name, _ in homes[number]) for number in numbers)
        return within(finding, queries / len(data.splits["query"]), COPIES)
    if finding.kind.endswith(TWO) and not finding.kind.startswith("near"):
        splits = {name for number in numbers for name, _ in homes[number]}
        rows = sum(len(homes[number]) for number in numbers)
        return within(finding, rows / sum(len(data.splits[name]) for name in splits), CONFLICTS)
    return finding


def _some_pairs(group: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of a small group; of a large one each with the first."""
    rows = group.tolist()
    if len(rows) <= 20:
        return list(combinations(rows, 2))
    return [(rows[0], row) for row in rows[1:]]


def _where(seen: Scan, homes: Homes, number: int) -> str:
    return f"{seen.names[number]} ({', '.join(dict.fromkeys(name for name, _ in homes[number]))})"


def _leaks(one: set[str], two: set[str]) -> bool:
    """Whether one of two copies (or of two places of one file) is trained on, and the other one is not."""
    return bool(("train" in one and two - {"train"}) or ("train" in two and one - {"train"}))


def _relation(
    data: ReIDData, ours: list[tuple[str, int]], theirs: list[tuple[str, int]], kind: str
) -> tuple[str, str, str]:
    """(severity, kind, explanation) of a pair of copies, by where they are and who they show."""
    exact, one, two = kind == "duplicate", {name for name, _ in ours}, {name for name, _ in theirs}
    if _leaks(one, two):
        return "fault", f"{kind} across train and test", "it is learned, then tested on: figures flatter"
    (name_a, a), (name_b, b) = ours[0], theirs[0]
    first, second = data.splits[name_a], data.splits[name_b]
    alike = first.identities[a] == second.identities[b]
    if "query" in one | two and "gallery" in one | two:
        if not alike:
            return "fault" if exact else "note", f"{kind} across query and gallery{TWO}", "one of the two must be wrong"
        if first.cameras[a] == second.cameras[b] >= 0:
            return "note", f"{kind} across query and gallery, same camera", "no match under the same-camera rule"
        junk = "left out as junk when scored, unless --count-copies"
        why = junk if exact else "nearly a copy is the easiest match there is: figures flatter"
        return "note", f"{kind} across query and gallery", why
    inside = " and ".join(sorted(one | two))
    return "note", f"{kind} within {inside}{'' if alike else TWO}", "counted twice" if alike else "one must be wrong"
