"""What the values of one part of the paths imply, if they were the identities: the evidence that is weighed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from clipreid.data.patterns import Place
from clipreid.data.values import is_unknown

SHARED = 0.2  # of the values: from here on, the same names in train and test tell against identities


class Images(NamedTuple):
    """Every image once: where it is, and in which part of the data: train, val or test. N images."""

    places: list[Place]
    homes: list[str]

    @classmethod
    def of(cls, places: Mapping[str, Sequence[Place]]) -> "Images":
        homes: dict[Place, str] = {}
        for split, group in places.items():
            for place in group:
                homes.setdefault(place, split if split in ("train", "val") else "test")
        return cls(list(homes), list(homes.values()))

    def only(self, chosen: Collection[Place]) -> "Images":
        """Those of `chosen`."""
        wanted = set(chosen)
        kept = [(place, home) for place, home in zip(*self, strict=True) if place in wanted]
        return Images([place for place, _ in kept], [home for _, home in kept])


class Evidence:
    """Of N images; all values are of these. unknown: further words for "nobody knows"."""

    def __init__(self, images: Images, unknown: Collection[str]) -> None:
        self.images, self.unknown = images, unknown

    def shared(self, values: Sequence[str]) -> float | None:
        """Which share of the values of train or of the test set (else val), whichever are fewer, is in both.

        None: there is one part only, so nothing can be said.
        """
        parts: dict[str, set[str]] = {}
        for value, home in set(zip(values, self.images.homes, strict=True)):
            if not is_unknown(value, self.unknown):
                parts.setdefault(home, set()).add(value)
        held = parts.get("test") or parts.get("val")
        if not held or "train" not in parts:
            return None
        return len(held & parts["train"]) / min(len(held), len(parts["train"]))

    def could_be_identities(self, values: Sequence[str]) -> bool:
        """At least two values, some of them of several images."""
        counts = [number for value, number in Counter(values).items() if not is_unknown(value, self.unknown)]
        return len(counts) > 1 and 4 * sum(counts) >= 5 * len(counts)

    def recurs(self, values: Sequence[str]) -> bool:
        """Whether they could be cameras or days: several values, some of them of several images."""
        return len(set(values)) > 1 and 4 * len(values) >= 5 * len(set(values))

    def ruled_out(self, rival: Sequence[str], chosen: Sequence[str], by_form: bool, worded: bool = False) -> bool:
        """Whether `rival` cannot be the identity where `chosen` can.

        by_form: the form alone speaks for `chosen`, where nothing else does. worded: `rival` reads person01, person02.
        """
        if not (worded or self.could_be_identities(rival)) or same_groups(rival, chosen):
            return True
        theirs, ours = self.shared(rival), self.shared(chosen)
        if theirs is None or ours is None:
            return by_form
        if ours == 0 or theirs < SHARED:
            return theirs >= SHARED
        return theirs >= ours if "test" in self.images.homes else by_form  # in test, both are refused later

    def better(self, rival: Sequence[str], chosen: Sequence[str]) -> bool:
        """Whether the split speaks for `rival`: its values keep train and test apart, those of `chosen` do not."""
        return self.could_be_identities(rival) and self.shared(rival) == 0 and (self.shared(chosen) or 0) > 0

    def says_nothing_more(self, piece: Sequence[str], whole: Sequence[str]) -> bool:
        """Whether several folders that share a piece of their name are not one individual."""
        if 5 * len(set(whole)) < 6 * len(set(piece)) or len(set(piece)) == 1:
            return True
        return self.shared(whole) == 0 and (self.shared(piece) or 0) >= SHARED


def same_groups(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether two ways to label the images put the same images together."""
    return len(set(one)) == len(set(two)) == len(set(zip(one, two, strict=True)))
