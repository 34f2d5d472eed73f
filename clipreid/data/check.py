"""What is wrong with a data set, all of it at once: `clipreid data check`.

Whether every query has a match depends on the protocol, which `clipreid.data` does not know: the command line adds
those findings (`clipreid.evaluation.unmatched`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from clipreid.data.columns import Columns
from clipreid.data.crops import ReIDData, Split
from clipreid.data.custom import OVERLAP, UNTESTED
from clipreid.data.duplicates import exact_groups, find_blank, near_pairs
from clipreid.data.findings import CheckReport, Finding
from clipreid.data.folders import count, differences
from clipreid.data.layouts import LAYOUTS
from clipreid.data.mapping import CONFLICT
from clipreid.data.problems import Problem, collected
from clipreid.data.readers import check_request, load_data
from clipreid.data.scan import Scan, scan
from clipreid.errors import UserError

TINY = 32  # pixels of height below which an image is mentioned
TESTED = ("query", "gallery")
HARMLESS = {"symlink loop": "a link to itself or to a folder above it; it was not followed"}
ADVICE = {
    "wrong file name": "it does not fit the pattern, so its identity is unknown; rename or move it",
    "listed, but not there": "a list of the data set names it; unpack the whole data set",
    "unusable line": "fix the table",
    CONFLICT: "one of the two is wrong: correct the table",
    "unreadable file": "check that it exists and may be read",
    "zero-byte file": "copy it again, or remove it",
    "not an image": "remove it, or train with --skip-bad",
    "truncated or damaged image": "copy it again, or remove it, or train with --skip-bad",
    "too small": "remove it, or train with --skip-bad",
}
MODES = {"CMYK": "CMYK image", "16-bit": "16-bit image", "P": "palette image"}


def read_and_check(
    spec: str,
    pattern: str | None = None,
    columns: Columns = None,
    unknown: str | Sequence[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CheckReport, ReIDData | None]:
    """Reads what can be read of `NAME:ROOT`, leaving out what readers refuse, and checks it.

    Returns the report, and the data as far as it could be read (None where the reader gave up, which is then a fault).
    progress: called as progress(images done, all). Raises `UserError` only for names, flags and roots that cannot be.
    """
    check_request(spec, pattern, columns=columns, unknown=unknown)
    with collected() as problems:
        try:
            data = load_data(spec, pattern=pattern, columns=columns, unknown=unknown)
        except UserError as error:
            gave_up = Finding("fault", "cannot be read", str(error))
            return CheckReport(spec, "", "", (), (gave_up, *_from_reading(problems))), None
    return check(data, problems, threads, progress), data


def check(
    data: ReIDData,
    problems: Sequence[Problem] = (),
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Decodes every image once, and reports what is wrong with the files, the labels and the splits.

    problems: what the reader left out (`clipreid.data.problems`). Memory: about 1 kB an image.
    """
    seen = scan(data, threads, progress)
    layout = LAYOUTS.get(data.name.partition(":")[0])
    findings = _from_reading(problems)
    official = differences(layout, data.splits) if layout else []
    if official:
        findings.append(Finding("fault", "not the official data set", "counts differ", tuple(official)))
    findings += [*_from_files(seen), *_from_duplicates(data, seen), *_from_labels(data, seen)]
    listed = (*official, *(note for note in data.notes if OVERLAP in note or note == UNTESTED))
    findings += [Finding("note", "note of the reader", note) for note in data.notes if note not in listed]
    published = layout is not None and bool(layout.official) and not official
    report = CheckReport(data.name, data.protocol, seen.root, tuple(_describe(data, seen)), (), published)
    return report.with_findings(findings)


def _describe(data: ReIDData, seen: Scan) -> list[dict[str, Any]]:
    described = []
    for name, split in data.splits.items():
        images, identities, cameras = count(split)
        sizes = np.array([(seen.seen[i].width, seen.seen[i].height) for i in seen.index[name] if seen.seen[i].width])
        text = "no image can be decoded"
        if len(sizes):
            smallest, middle, largest = (np.percentile(sizes, q, axis=0).astype(int) for q in (0, 50, 100))
            aspect = np.median(sizes[:, 1] / sizes[:, 0])
            wide, high = ("/".join(map(str, side)) for side in zip(smallest, middle, largest, strict=True))
            text = f"width {wide}, height {high} (min/median/max), height:width {aspect:.2f}"
        described.append(
            {"split": name, "pictures": images, "identities": identities, "cameras": cameras, "sizes": text}
        )
    return described


def _from_reading(problems: Sequence[Problem]) -> list[Finding]:
    """One finding for each kind; query and gallery often lie in one folder, whose files are named once."""
    files: dict[str, dict[str, None]] = {}
    for problem in problems:
        files.setdefault(problem.kind, {}).update(dict.fromkeys(problem.files))
    findings = []
    for kind, items in files.items():
        why = HARMLESS.get(kind) or ADVICE.get(kind) or "what is in it is missing"
        findings.append(Finding("note" if kind in HARMLESS else "fault", kind, why, tuple(items)))
    return findings


def _from_files(seen: Scan) -> list[Finding]:
    """Images that cannot be used, and files that are not what their names say."""
    faults: dict[str, list[str]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    blank = find_blank(seen.seen)
    for name, image, flat in zip(seen.names, seen.seen, blank.tolist(), strict=True):
        if image.kind:
            faults.setdefault(image.kind, []).append(f"{name}: {image.reason}")
            continue
        if image.misnamed:
            notes.setdefault((image.misnamed, "read all the same; rename it"), []).append(name)
        if image.mode in MODES:
            notes.setdefault((MODES[image.mode], "converted to 8-bit RGB when read"), []).append(name)
        if image.height < TINY:
            notes.setdefault(("tiny image", f"less than {TINY} pixels high"), []).append(
                f"{name}: {image.width}x{image.height}"
            )
        if flat:
            notes.setdefault(("blank image", "one flat colour: no individual is in it"), []).append(name)
    return [
        *(Finding("fault", kind, ADVICE[kind], tuple(items)) for kind, items in faults.items()),
        *(Finding("note", kind, why, tuple(items)) for (kind, why), items in notes.items()),
    ]


# Duplicates -----------------------------------------------------------------------------------------------


def _from_duplicates(data: ReIDData, seen: Scan) -> list[Finding]:
    """Copies by where they are: between training and held-out images, query and gallery, or within a split."""
    usable = np.array([not image.kind for image in seen.seen], bool) & ~find_blank(seen.seen)
    homes: list[list[tuple[str, int]]] = [[] for _ in seen.seen]
    for name, numbers in seen.index.items():
        for row, number in enumerate(numbers.tolist()):
            homes[number].append((name, row))
    found: dict[tuple[str, str, str], list[str]] = {}
    groups = exact_groups(seen.seen, usable)
    pairs = [(int(a), int(b), "exact") for group in groups for a, b in _some_pairs(group)]
    for group in groups:
        usable[group[1:]] = False  # what is near to one of them is near to all
    pairs += [(int(a), int(b), "near") for a, b in near_pairs(seen.seen, usable)]
    for a, b, how in pairs:
        key = _relation(data, homes[a], homes[b], how)
        found.setdefault(key, []).append(f"{_where(seen, homes, a)} = {_where(seen, homes, b)}")
    places = [{name for name, _ in each} for each in homes]
    leaked = [_where(seen, homes, number) for number, names in enumerate(places) if _leaks(names, names)]
    if leaked:
        found[("fault", "the same file in train and test", "it is learned, then tested on")] = leaked
    return [Finding(severity, kind, why, tuple(items)) for (severity, kind, why), items in found.items()]  # type: ignore[arg-type]


def _some_pairs(group: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of a small group; of a large one each with the first."""
    rows = group.tolist()
    if len(rows) <= 20:
        return list(combinations(rows, 2))
    return [(rows[0], row) for row in rows[1:]]


def _where(seen: Scan, homes: list[list[tuple[str, int]]], number: int) -> str:
    return f"{seen.names[number]} ({', '.join(dict.fromkeys(name for name, _ in homes[number]))})"


def _leaks(one: set[str], two: set[str]) -> bool:
    """Whether one of two copies (or of two places of one file) is trained on, and the other one is not."""
    return bool(("train" in one and two - {"train"}) or ("train" in two and one - {"train"}))


def _relation(
    data: ReIDData, ours: list[tuple[str, int]], theirs: list[tuple[str, int]], how: str
) -> tuple[str, str, str]:
    """(severity, kind, explanation) of a pair of copies, by where they are and who they show."""
    kind = "duplicate" if how == "exact" else "near duplicate"
    one, two = {name for name, _ in ours}, {name for name, _ in theirs}
    if _leaks(one, two):
        return "fault", f"{kind} across train and test", "it is learned, then tested on: figures flatter"
    (name_a, a), (name_b, b) = ours[0], theirs[0]
    first, second = data.splits[name_a], data.splits[name_b]
    alike = first.identities[a] == second.identities[b]
    if "query" in one | two and "gallery" in one | two:
        same_camera = first.cameras[a] == second.cameras[b] >= 0
        if not alike:
            severity = "fault" if how == "exact" else "note"
            return severity, f"{kind} across query and gallery, of two identities", "one of the two must be wrong"
        if same_camera:
            return "note", f"{kind} across query and gallery, same camera", "no match under the same-camera rule"
        severity = "fault" if how == "exact" else "note"
        return severity, f"{kind} across query and gallery", "the copy is the easiest match there is: figures flatter"
    inside = " and ".join(sorted(one | two))
    return "note", f"{kind} within {inside}" + ("" if alike else ", of two identities"), "counted twice"


# Labels ---------------------------------------------------------------------------------------------------


def _from_labels(data: ReIDData, seen: Scan) -> list[Finding]:
    findings = []
    if not data.splits.keys() & set(TESTED):
        why = "no query and no gallery, so no protocol was checked; to train on it, name other data with --test"
        findings.append(Finding("fault", "nothing to test on", why))
    files = {name: _first_files(split, seen.index[name], seen) for name, split in data.splits.items()}
    tested = {who: file for name in reversed(TESTED) if name in files for who, file in files[name].items()}
    for other, held, severity in (("test", tested, "fault"), ("val", files.get("val", {}), "note")):
        both = sorted(files.get("train", {}).keys() & held.keys())
        if both:
            items = tuple(f"{who}: {files['train'][who]}, {held[who]}" for who in both)
            why = "no identity may be in train and test; if both are numbered from the start, rename them"
            findings.append(Finding(severity, f"identity in train and {other}", why, items))  # type: ignore[arg-type]
    for part, names in (("train", ("train",)), ("test", TESTED)):
        splits = [data.splits[name] for name in names if name in data.splits]
        lonely = _one_camera(splits)
        if lonely:
            why = f"of {len({who for split in splits for who in split.identities.tolist()}):,d} identities of {part}"
            findings.append(Finding("note", f"identity seen by one camera only, in {part}", why, tuple(lonely)))
    counts = Counter(data.splits["train"].identities.tolist()) if "train" in data.splits else {}
    single = tuple(sorted(who for who, number in counts.items() if number == 1))
    if single:
        why = f"of {len(counts):,d} identities: nothing to pull together in training"
        findings.append(Finding("note", "identity with one image, in train", why, single))
    return findings


def _first_files(split: Split, numbers: np.ndarray, seen: Scan) -> dict[str, str]:
    found: dict[str, str] = {}
    for who, number in zip(split.identities.tolist(), numbers.tolist(), strict=True):
        found.setdefault(who, seen.names[number])
    return found


def _one_camera(splits: Sequence[Split]) -> list[str]:
    """Identities with two images or more, all of one camera, where all cameras are known and there are several."""
    cameras: dict[str, set[int]] = {}
    images: Counter[str] = Counter()
    for split in splits:
        for who, camera in zip(split.identities.tolist(), split.cameras.tolist(), strict=True):
            cameras.setdefault(who, set()).add(camera)
            images[who] += 1
    known = set().union(*cameras.values()) if cameras else set()
    if -1 in known or len(known) < 2:
        return []
    return sorted(f"{who}: camera {min(c)}" for who, c in cameras.items() if len(c) == 1 and images[who] > 1)
