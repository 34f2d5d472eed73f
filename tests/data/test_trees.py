"""Folders of images as people name them: what is read is what was meant, or it is asked for. Paths only, no images."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipreid.data.offers import make_offers
from clipreid.data.patterns import Crop, Place, read_paths
from clipreid.data.readings import Images, choose_pattern
from clipreid.errors import UserError

NAMES = ("anna", "ben", "big-truck", "mary jane", "tom", "x7f3a", "zoë", "o'neil", "a.b", "Q", "lion king", "rex_2")
PLACES = ("gate", "hall", "north side", "yard", "lobby")


@dataclass
class Tree:
    """A drawn tree: the paths below the folder of each split, and what each of them means."""

    paths: dict[str, list[str]] = field(default_factory=dict)  # by split
    meant: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)  # (split, path) -> field -> value
    styles: dict[str, str] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, list[Place]]:
        return {split: [Place(split, path) for path in paths] for split, paths in self.paths.items()}


STYLES = {
    "identity": ("0001", "7", "person01", "p3", "zebra_7", "id-3", "name", "car_0001", "hex"),
    "camera": ("cam1", "cam01", "cam_1", "c1", "C01", "camera 2", "1", "a", "cam_a", "place", "c001"),
    "session": ("2011-01-03", "20110103", "2011", "day1", "session_2", "1", "place", "0303morning", "s1"),
    "tracklet": ("T0001", "track3", "tracklet_1", "1", "0001"),
    "image": ("0001", "1", "f003", "frame026", "img_1", "DSC01", "hex", "time", "000451"),
}


def written(what: str, style: str, number: int, salt: int) -> str:
    """A field's value number n, as people write it."""
    mixed = (number + 1) * 2654435761 + salt
    match style:
        case "0001": return f"{number:04d}"
        case "000451": return f"{mixed % 900_000 + 100_000:06d}"
        case "7" | "1": return str(number + 1)
        case "name": return NAMES[number] if number < len(NAMES) else f"{NAMES[number % len(NAMES)]}{number}"
        case "place": return PLACES[number % len(PLACES)]
        case "hex": return f"{mixed % 2**32:08x}"
        case "a": return chr(97 + number)
        case "cam_a": return f"cam_{chr(97 + number)}"
        case "2011-01-03": return f"2011-{number % 12 + 1:02d}-{number % 27 + 1:02d}"
        case "20110103": return f"2011{number % 12 + 1:02d}{number % 27 + 1:02d}"
        case "2011": return str(2011 + number)
        case "0303morning": return f"03{number % 28 + 1:02d}{('morning', 'noon', 'afternoon')[number % 3]}"
        case "time": return f"20240101_{mixed % 24:02d}{mixed % 59:02d}{mixed % 53:02d}"
    digits = len(style) - len(style.rstrip("0123456789"))
    return f"{style[: len(style) - digits]}{number + 1:0{digits}d}"


def draw_tree(seed: int) -> Tree:
    """Identities, cameras, sessions, tracklets, in any order, depth and style."""
    rng = random.Random(seed)
    chance = lambda share: rng.randrange(100) < share  # noqa: E731
    fields = ["identity", *(name for name, share in (("camera", 70), ("session", 30), ("tracklet", 20)) if chance(share))]
    if chance(90) or len(fields) < 2:
        fields.append("image")
    styles = {name: rng.choice(STYLES[name]) for name in fields}
    order = rng.sample(fields, len(fields)) if chance(40) else fields
    cuts = sorted(rng.randrange(len(order)) for _ in range(rng.randrange(4)))
    if "image" in fields and order[-1] != "image":  # it is in the name of the file
        cuts = [cut for cut in cuts if cut <= order.index("image")]
    levels = [part for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True) if (part := order[start:end])]
    if levels[-1] in (["camera"], ["session"], ["tracklet"]):  # 0001/1.jpg: the name of a file numbers the image
        levels[-2:] = [sum(levels[-2:], [])]
    separators = [rng.choice("___--. ") for _ in levels]
    top = rng.choice(["", "", "", "", "crops/", "person/", "data/"])
    again = rng.choice(["", "", "", "identity", "camera"])
    splits = rng.choice([("train", "test"), ("train", "test"), ("train",), ("train", "val"), ("query", "gallery"),
                                   ("train", "query", "gallery"), ("test",)])
    restart, apart_cameras, apart_sessions = chance(10), chance(15), chance(25)
    restart = restart and "val" not in splits  # who is in val is compared with nobody of train
    numbering = rng.choice(["each", "each", "all", "shared"])
    people, cameras, sessions, tracks, images = (
        rng.randint(low, high) for low, high in ((2, 12), (1, 4), (1, 3), (1, 2), (1, 4))
    )
    salt = rng.randrange(2**20)
    tree, count = Tree(styles=styles | {"levels": str(levels), "splits": str(splits)}), 0
    for at, split in enumerate(splits):
        tree.paths[split] = []
        held = at > 0 and splits[0] == "train"
        for person in range(people):
            who = person + (people if held and not restart else 0)
            for camera in range(cameras if "camera" in fields else 1):
                for session in range(sessions if "session" in fields else 1):
                    for track in range(tracks if "tracklet" in fields else 1):
                        for image in range(images if "image" in fields else 1):
                            if (person * 7 + camera * 5 + session * 3 + image + salt) % 11 == 0:
                                continue
                            count += 1
                            number = {"each": image, "all": count, "shared": count // 3}[numbering]
                            values = {
                                "identity": written("identity", styles["identity"], who, salt),
                                "camera": written("camera", styles.get("camera", "1"), camera + 4 * (apart_cameras and held), salt),
                                "session": written("session", styles.get("session", "1"), session + 3 * (apart_sessions and held), salt),
                                "tracklet": written("tracklet", styles.get("tracklet", "1"), track, salt),
                                "image": written("image", styles.get("image", "1"), number, salt),
                            }
                            texts = [sep.join(values[name] for name in level) for level, sep in zip(levels, separators, strict=True)]
                            if again in fields and again not in levels[-1] and len(levels) > 1:
                                texts[-1] = f"{values[again]}{separators[-1]}{texts[-1]}"
                            path = f"{top}{'/'.join(texts)}.jpg"
                            key = (split, path)
                            if key in tree.meant:
                                continue
                            tree.paths[split].append(path)
                            held_name = "held" if held and restart else ""
                            tree.meant[key] = {name: values[name] if name in fields else "" for name in values}
                            tree.meant[key]["identity"] += held_name
    return tree
