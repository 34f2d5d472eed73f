"""Data without a publication: your own folders of images; protocol, noun and notes of all such data."""

import shlex
from collections.abc import Mapping

import numpy as np

from clipreid.data.crops import ReIDData, Split
from clipreid.data.nouns import guess_noun, noun_note
from clipreid.data.patterns import APART
from clipreid.data.problems import collecting, pooling
from clipreid.errors import UserError

OVERLAP, UNTESTED = (  # notes that `clipreid data check` replaces by findings of its own
    "identities are in train and in the test set",
    "no test images: there is nothing to evaluate on (`clipreid data split` makes a test of some identities)",
)


def custom_data(
    spec: str, splits: dict[str, Split], doubled: bool, noun: str | None, notes: list[str], pattern: str = "PATTERN"
) -> ReIDData:
    """Protocol, noun and notes of data without a publication. pattern: the one that read the paths, for advice.

    Raises `UserError` for identities in train and in the test set (`overlap_notes`).
    """
    protocol, about_cameras = custom_protocol(splits, doubled)
    notes = [*notes, *about_cameras, *overlap_notes(splits, pattern)]
    if "gallery" not in splits:
        notes.append(UNTESTED)
    if noun is None:
        guess = guess_noun((name for split in splits.values() for name in split.identities), spec)
        noun, source = guess or ("person", None)
        notes.append(noun_note(noun, source))
    return ReIDData(spec, splits, protocol, noun, tuple(notes))


def custom_protocol(splits: Mapping[str, Split], doubled: bool) -> tuple[str, list[str]]:
    """The protocol that a custom data set allows, with a note on the junk rule.

    doubled: query and gallery are the same images. Without a camera for every test image, or with one
    camera only, "no-cameras"; else "cross-camera" for doubled sets and "market1501" for the others.
    """
    tested = [splits[name].cameras for name in ("query", "gallery") if name in splits]
    cameras = np.concatenate(tested or [split.cameras for split in splits.values()])
    unknown, names = int((cameras < 0).sum()), sorted(set(cameras[cameras >= 0].tolist()))
    off = "the junk rule (same identity, same camera) is off"
    if unknown == len(cameras):
        return "no-cameras", [f"no camera is known: {off}"]
    if unknown:
        return "no-cameras", [f"{unknown:,d} of {len(cameras):,d} test images have no camera: {off}"]
    if len(names) == 1:
        return "no-cameras", [f"all test images come from camera {names[0]}: {off}"]
    seen: dict[str, set[int]] = {}
    for split in (splits[name] for name in (("query", "gallery") if tested else splits) if name in splits):
        for who, camera in zip(split.identities.tolist(), split.cameras.tolist(), strict=True):
            seen.setdefault(who, set()).add(camera)
    if all(len(each) == 1 for each in seen.values()):
        return "no-cameras", [f"no identity is seen by two cameras, so no query would have a match: {off}"]
    if not doubled:
        return "market1501", []
    return "cross-camera", ["every test image is query and gallery, compared with the images of the other cameras"]


def overlap_notes(splits: Mapping[str, Split], pattern: str = "PATTERN") -> list[str]:
    """Raises `UserError` for identities that are trained and tested on: figures would flatter, or names mean two.

    Inside `clipreid.data.problems.collected` it is a note instead. Identities of train in val are a note as well.
    """
    if pooling():
        return []
    named = {part: set(split.identities.tolist()) for part, split in splits.items()}
    trained = named.get("train", set())
    shared = sorted(trained & (named.get("query", set()) | named.get("gallery", set())))
    notes = []
    if shared:
        said = f"{len(shared):,d} {OVERLAP} (such as {shared[0]!r})"
        if not collecting():
            raise UserError(
                f"{said}, so figures would flatter.\n"
                "  If they are the same individuals: `clipreid data split` sets some aside that are not trained on"
                "\n  If both sets are numbered from the start and one name means two individuals: "
                f"--pattern {shlex.quote(APART + pattern)} keeps them apart (folder:), or rename those of train, such "
                "as train-0001 (csv:, hub:)\n"
                "  If the names are no identities, the data was misread: give another --pattern or --columns"
            )
        notes.append(said)
    both = sorted(trained & named.get("val", set()))
    if both:
        notes.append(f"{len(both):,d} identities are in train and in val (such as {both[0]!r}): --validate flatters")
    return notes
