"""What is wrong with a data set, all of it at once: `clipreid data check`.

Whether every query has a match depends on the protocol, which `clipreid.data` does not know: the command line adds
those findings (`clipreid.evaluation.unmatched`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clipreid.data.columns import Columns
from clipreid.data.copies import find_copies
from clipreid.data.crops import ReIDData, Split
from clipreid.data.custom import OVERLAP, UNTESTED
from clipreid.data.findings import READER, CheckReport, Finding, within
from clipreid.data.folders import count, differences
from clipreid.data.layouts import LAYOUTS
from clipreid.data.mapping import CONFLICT
from clipreid.data.opening import BLANK
from clipreid.data.problems import Problem, collected
from clipreid.data.readers import check_request, load_data
from clipreid.data.scan import Scan, scan
from clipreid.errors import UserError

TINY = 32  # pixels of height below which an image is mentioned
DIM = 64  # of 255: what no image of 16 bits reaches where only 14 of them are used
TESTED = ("query", "gallery")
HARMLESS = {"symlink loop": "a link to itself or to a folder above it; it was not followed"}
ADVICE = {
    "wrong file name": "its identity is unknown: give a --pattern that fits all images (folder:), or rename or move it",
    "listed, but not there": "a list of the data set names it; unpack the whole data set",
    "unusable line": "fix the table",
    CONFLICT: "one of the two is wrong: correct the table",
    "unreadable file": "check that it exists and may be read",
    "zero-byte file": "copy it again, or remove it",
    "not an image": "remove it, or train with --skip-bad",
    "truncated or damaged image": "copy it again, or remove it, or train with --skip-bad",
    "too small": "remove it, or train with --skip-bad",
    "unknown range of values": "bring all images of the camera to 8 bits in the same way, or train with --skip-bad",
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

    Returns the report, and the data as far as it could be read, with the digests of its images (None where the reader
    gave up, which is then a fault).
    progress: called as progress(images done, all). Raises `UserError` only for names, flags and roots that cannot be.
    """
    check_request(spec, pattern, columns=columns, unknown=unknown)
    with collected() as problems:
        try:
            data = load_data(spec, pattern=pattern, columns=columns, unknown=unknown)
        except UserError as error:
            gave_up = Finding("fault", "cannot be read", str(error))
            return CheckReport(spec, "", "", (), (gave_up, *_from_reading(problems))), None
    seen = scan(data, threads, progress)
    return _report(data, problems, seen), _with_digests(data, seen)


def _with_digests(data: ReIDData, seen: Scan) -> ReIDData:
    digests = np.array([-1 if image.kind else image.exact for image in seen.seen], np.int64)
    splits = {name: split.with_digests(digests[seen.index[name]]) for name, split in data.splits.items()}
    return replace(data, splits=splits)


def check(
    data: ReIDData,
    problems: Sequence[Problem] = (),
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Decodes every image once, and reports what is wrong with the files, the labels and the splits.

    problems: what the reader left out (`clipreid.data.problems`). Memory: about 1 kB an image.
    """
    return _report(data, problems, scan(data, threads, progress))


def _report(data: ReIDData, problems: Sequence[Problem], seen: Scan) -> CheckReport:
    layout = LAYOUTS.get(data.name.partition(":")[0])
    findings = _from_reading(problems)
    official = differences(layout, data.splits) if layout else []
    if official:
        findings.append(Finding("fault", "not the official data set", "counts differ", tuple(official)))
    findings += [*_from_files(seen), *find_copies(data, seen), *_from_labels(data, seen)]
    listed = (*official, *(note for note in data.notes if OVERLAP in note or note == UNTESTED))
    findings += [Finding("note", READER, note) for note in data.notes if note not in listed]
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
    for name, image in zip(seen.names, seen.seen, strict=True):
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
    deep = {name: image.top for name, image in zip(seen.names, seen.seen, strict=True) if image.mode == "16-bit"}
    if deep and max(deep.values()) < DIM:
        why = "none of them reaches a quarter of white, so they hold 14 bits and are read dark; scale them all alike"
        notes["dark 16-bit image", why] = list(deep)
    blank = [name for name, image in zip(seen.names, seen.seen, strict=True) if image.blank]
    findings = [
        *(Finding("fault", kind, ADVICE[kind], tuple(items)) for kind, items in faults.items()),
        *(Finding("note", kind, why, tuple(items)) for (kind, why), items in notes.items()),
    ]
    if blank:
        finding = Finding("note", "blank image", "one flat colour: no individual is in it", tuple(blank))
        findings.append(within(finding, len(blank) / len(seen.seen), BLANK))
    return findings


# Labels ---------------------------------------------------------------------------------------------------


def _from_labels(data: ReIDData, seen: Scan) -> list[Finding]:
    findings = []
    if not data.splits.keys() & set(TESTED):
        why = "no query and no gallery, so no protocol was checked; `clipreid data split` makes a test of some of the "
        why += "identities, or name other data with --test"
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
