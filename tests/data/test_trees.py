"""Folders of images as people name them: what is read is what was meant, or it is asked for. Paths only, no images."""

import random
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from clipreid.data.evidence import Images
from clipreid.data.offers import make_offers
from clipreid.data.patterns import Crop, Place, named_pattern, read_paths, unmatched
from clipreid.data.readings import choose_pattern, weigh
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
    def several(self) -> bool:
        """Whether identities have several images each, as re-identification needs them."""
        counts = Counter((split != "train", self.meant[split, path]["identity"]) for split, path in self.meant)
        return all(self.paths.values()) and len(counts) > 1 and counts.total() >= 2 * len(counts)

    def add(self, split: str, path: str, said: dict[str, str], mark: str) -> None:
        """One image, if its path is new. mark: in front of the identity, where a name means another individual."""
        if (split, path) not in self.meant:
            self.paths[split].append(path)
            self.meant[split, path] = said | {"identity": mark + said["identity"]}

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


def written(style: str, number: int, salt: int) -> str:
    """The value number n of a field, as people write it."""
    mixed = (number + 1) * 2654435761 + salt
    month, day = number % 12 + 1, number % 27 + 1
    plain = {
        "0001": f"{number:04d}",
        "000451": f"{mixed % 900_000 + 100_000:06d}",
        "7": str(number + 1),
        "1": str(number + 1),
        "name": NAMES[number % len(NAMES)] + (str(number) if number >= len(NAMES) else ""),
        "place": PLACES[number % len(PLACES)],
        "hex": f"{mixed % 2**32:08x}",
        "a": chr(97 + number % 26),
        "cam_a": f"cam_{chr(97 + number % 26)}",
        "2011-01-03": f"2011-{month:02d}-{day:02d}",
        "20110103": f"2011{month:02d}{day:02d}",
        "2011": str(2011 + number),
        "0303morning": f"03{day:02d}{('morning', 'noon', 'afternoon')[number % 3]}",
        "time": f"20240101_{mixed % 24:02d}{mixed % 59:02d}{mixed % 53:02d}",
    }
    if style in plain:
        return plain[style]
    digits = len(style) - len(style.rstrip("0123456789"))
    return f"{style[: len(style) - digits]}{number + 1:0{digits}d}"


def draw_tree(seed: int) -> Tree:
    """Identities, cameras, sessions, tracklets in any order, depth and style.

    Left out is what nobody could tell: a file named by its camera or session alone (0001/1.jpg: by convention the
    number of an image), and an image number in front of an identity number (0002_c1_000451 begins with the identity).
    """
    rng = random.Random(seed)
    while not (tree := _draw(rng)).several:
        pass
    return tree


def _draw(rng: random.Random) -> Tree:
    fields = ["identity"]
    fields += [name for name, share in (("camera", 0.7), ("session", 0.3), ("tracklet", 0.2)) if rng.random() < share]
    if rng.random() < 0.9 or len(fields) < 2:
        fields.append("image")
    styles = {name: rng.choice(STYLES[name]) for name in fields}
    levels = _levels(rng, fields, styles)
    shape = Shape(
        levels,
        [rng.choice("___--. ") for _ in levels],
        rng.choice(["", "", "", "", "crops/", "person/", "data/"]),
        rng.choice(["", "", "", *fields[:2]]),
    )
    splits = rng.choice([("train", "test")] * 2 + [("train",), ("train", "val"), ("query", "gallery"), ("test",),
                                                   ("train", "query", "gallery")])  # fmt: skip
    ranges = {"identity": (2, 9), "camera": (1, 3), "session": (1, 3), "tracklet": (1, 2), "image": (1, 3)}
    counts = {name: rng.randint(*ranges[name]) if name in fields else 1 for name in ranges}
    moved = {
        "identity": rng.random() < 0.9 or "val" in splits,
        "camera": rng.random() < 0.15,
        "session": rng.random() < 0.25,
    }
    numbering, salt = rng.choice(["each", "each", "all", "shared"]), rng.randrange(2**20)
    tree, count = Tree(styles=styles), 0
    for at, split in enumerate(splits):
        held = at > 0 and splits[0] == "train"
        tree.paths[split] = []
        for numbers in product(*map(range, counts.values())):
            at_image = dict(zip(counts, numbers, strict=True))
            if (sum(numbers) * 5 + numbers[0] + salt) % 11 == 0:
                continue  # not everybody is everywhere
            count += 1
            at_image["image"] = {"each": at_image["image"], "all": count, "shared": count // 3}[numbering]
            for name, value in moved.items():
                at_image[name] += counts[name] * (held and value)
            said = {name: written(styles[name], number, salt) for name, number in at_image.items() if name in styles}
            tree.add(split, shape.path(said), said, "" if moved["identity"] or not held else "another ")
    return tree


@dataclass(frozen=True)
class Shape:
    """How paths are put together: which fields in which level, and what joins them there."""

    levels: list[list[str]]
    separators: list[str]
    top: str
    again: str  # a field that the file name repeats

    def path(self, said: dict[str, str]) -> str:
        texts = [
            mark.join(said[name] for name in level) for level, mark in zip(self.levels, self.separators, strict=True)
        ]
        if self.again and self.again not in self.levels[-1]:
            texts[-1] = f"{said[self.again]}{self.separators[-1]}{texts[-1]}"
        return f"{self.top}{'/'.join(texts)}.jpg"


def _levels(rng: random.Random, fields: list[str], styles: dict[str, str]) -> list[list[str]]:
    order = rng.sample(fields, len(fields)) if rng.random() < 0.4 else fields
    if "image" in fields and styles["image"].isdecimal() and styles["identity"].isdecimal():
        order = [*(name for name in order if name != "image"), "image"]
    cuts = sorted(rng.randrange(len(order)) for _ in range(rng.randrange(4)))
    if "image" in fields:
        cuts = [cut for cut in cuts if cut <= order.index("image")]  # it is in the name of the file
    levels = [part for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True) if (part := order[start:end])]
    if len(levels) > 1 and levels[-1] in (["camera"], ["session"], ["tracklet"]):
        levels[-2:] = [levels[-2] + levels[-1]]
    return levels


# ---- what must hold ----------------------------------------------------------------------------------------

SAID = {"session": ("2011-01-03", "20110103", "day1", "session_2", "0303morning"), "tracklet": ("track3", "tracklet_1")}


def alike(one: Sequence[object], two: Sequence[object]) -> bool:
    """Whether two labellings of the same images put the same images together."""
    return len(set(one)) == len(set(two)) == len(set(zip(one, two, strict=True)))


def wrong(tree: Tree, images: Images, crops: Sequence[Crop]) -> str:
    """The first field that was read as something else than was meant; "" where all is right."""
    meant = [tree.meant[place.folder, place.path] for place in images.places]
    if not alike([crop.identity for crop in crops], [said["identity"] for said in meant]):
        return "identity"
    if not alike([crop.camera for crop in crops], [said.get("camera", "") for said in meant]):
        return "camera"
    for name, styles in SAID.items():
        found = [(crop[:2], getattr(crop, name)) if name == "tracklet" else getattr(crop, name) for crop in crops]
        true = [
            (said["identity"], said.get("camera"), said.get(name, "")) if name == "tracklet" else said.get(name, "")
            for said in meant
        ]
        read = any(getattr(crop, name) for crop in crops)
        if (read or tree.styles.get(name) in styles) and not alike(found, true):
            return name
    return ""


def overlaps(images: Images, crops: Sequence[Crop]) -> bool:
    """Whether identities are in train and test, which `custom_data` refuses."""
    parts: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for home, crop in zip(images.homes, crops, strict=True):
        parts[home].add(crop.identity)
    return bool(parts["train"] & parts["test"])


@pytest.mark.parametrize("part", range(5))
@settings(max_examples=400, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(seed=st.integers(0, 2**40))
def test_what_is_read_is_what_was_meant_or_it_is_refused(part: int, seed: int) -> None:
    """2,000 trees; what they are refused for is not looked at."""
    tree = draw_tree(seed * 5 + part)
    images = Images.of(tree.places)
    pattern, doubts = weigh(images)
    if pattern is None or doubts or unmatched(pattern, images.places):
        return
    crops = read_paths(pattern, images.places)[0]
    if not overlaps(images, crops):
        assert not wrong(tree, images, crops), (pattern.name, tree.styles, images.places[:4])


def test_many_trees_are_read_and_the_right_pattern_is_offered_for_most_others() -> None:
    refused = []
    for seed in range(120):
        tree = draw_tree(seed)
        try:
            choose_pattern(tree.places)
        except UserError as error:
            refused.append((str(error), tree))
    offered = 0
    for message, tree in refused:
        images, meant = Images.of(tree.places), Tree(tree.paths, {k: _unmarked(v) for k, v in tree.meant.items()})
        patterns = [offer.pattern for offer in make_offers(images)]
        right = [each for each in patterns if wrong(meant, images, read_paths(each, images.places)[0]) in ("", *SAID)]
        offered += bool(right)
        assert not right or any(shlex.quote(pattern.name) in message for pattern in right)
    assert len(refused) <= 80
    assert offered >= 0.75 * len(refused)


def _unmarked(said: dict[str, str]) -> dict[str, str]:
    return said | {"identity": said["identity"].removeprefix("another ")}


# ---- trees that people have ---------------------------------------------------------------------------------

TRAIN, TEST = range(6), range(20, 24)
KNOWN = {  # path of image number n of individual i at camera c, the pattern, what one image means
    "identity/cam": (lambda i, c, n: f"p{i}/{n + 1:04d}_cam{c}.jpg", ("p3", 2, "", "")),
    "camera/identity/": (lambda i, c, n: f"cam{c}/{i:04d}/{n + 1:04d}.jpg", ("0003", 2, "", "")),  # SYSU-MM01
    "mars": (lambda i, c, n: f"{i:04d}/{i:04d}C{c}T0001F{n + 1:03d}.jpg", ("0003", 2, "0003/2/T0001", "")),
    "msmt": (lambda i, c, n: f"{i:04d}_{n:03d}_{c:02d}_0303noon_{n:04d}_0.jpg", ("0003", 2, "", "0303noon")),
    "mot": (lambda i, c, n: f"MOT17-0{c}/{i:04d}/{n:06d}.jpg", ("MOT17-02/0003", 1, "MOT17-02/0003/1/0003", "")),
    "identity/session/": (
        lambda i, c, n: f"whale{i}/201{c}-0{n + 1}-03/DSC{n}{i}{c}.JPG",
        ("whale3", -1, "", "2012-01-03"),
    ),
    "identity/": (lambda i, c, n: f"zebra{i}/{c}{n}.jpg", ("zebra3", -1, "", "")),
    "market1501": (lambda i, c, n: f"{i:04d}_c{c}s1_{n:06d}_00.jpg", ("0003", 2, "", "1")),
    "class-cam": (lambda i, c, n: f"car_{i:04d}_cam{c}.jpg", ("car_0003", 2, "", "")),
    "identity/camera/": (lambda i, c, n: f"p{i}/cam{c}/{n}.jpg", ("p3", 2, "", "")),
    r"^[^/\d]*(?P<camera>\d+)/(?P<identity>[^\W_]+)": (
        lambda i, c, n: f"cam{c:02d}/person{i:02d}_cam{c:02d}_frame{n:03d}.jpg",
        ("person03", 2, "", ""),
    ),
    r"^[^/]*(?P<camera>[^\W_])/(?P<identity>\d+)": (  # VIPeR
        lambda i, c, n: f"cam_{'ab'[c - 1]}/{i:03d}_{45 * n}.bmp",
        ("003", 2, "", ""),
    ),
    r"^(?i:c)(?P<camera>\d+)_(?P<identity>\d+)": (lambda i, c, n: f"c{c}_{i:03d}_{n}.png", ("003", 2, "", "")),
}
DOUBTFUL = {  # path, what must be among the offers
    "id/tracklet/frame": (lambda i, c, n: f"{i:04d}/{c:04d}/{n:04d}.jpg", r"^(?P<identity>[^/]+)/(?P<tracklet>[^/]+)/"),
    "01_3.png": (lambda i, c, n: f"{i:04d}/{n:02d}_{c}.png", r"^(?P<identity>[^/]+)/\d+_(?P<camera>\d+)"),
    "two numbers": (lambda i, c, n: f"person_{i:03d}_{c:03d}.jpg", r"^person_(?P<identity>\d+)_(?P<camera>\d+)"),
    "folders a and b": (lambda i, c, n: f"{'ab'[c - 1]}/{i:03d}.png", r"^(?P<camera>[^/]+)/(?P<identity>\d+)"),
    "no identity": (lambda i, c, n: f"person/im{i}{c}{n}.jpg", "csv:FILE.csv"),
    "dates only": (lambda i, c, n: f"2024010{i % 10}_12{c}{n}00_crop.jpg", "csv:FILE.csv"),
}


def built(path: Callable[[int, int, int], str]) -> dict[str, list[Place]]:
    return {
        split: [Place(split, path(i, c, n)) for i in people for c in (1, 2) for n in range(2)]
        for split, people in (("train", TRAIN), ("test", TEST))
    }


@pytest.mark.parametrize("name", KNOWN)
def test_trees_that_are_read(name: str) -> None:
    path, meant = KNOWN[name]
    places = built(path)
    pattern = choose_pattern(places)
    assert pattern.name == name
    crops = read_paths(pattern, Images.of(places).places)[0]
    identity, camera, tracklet, session = meant
    assert Crop(identity, camera, -1, "", tracklet, session) in crops
    assert read_paths(named_pattern(pattern.name), Images.of(places).places)[0] == crops  # what is shown can be given


@pytest.mark.parametrize("name", DOUBTFUL)
def test_trees_that_are_asked_for(name: str) -> None:
    path, offer = DOUBTFUL[name]
    with pytest.raises(UserError) as caught:
        choose_pattern(built(path))
    message = str(caught.value)
    assert "it is not clear how the paths of " in message
    if offer.startswith("^"):
        (shown,) = (line for line in message.splitlines() if line == f"  --pattern {shlex.quote(offer)}")
        gives = message.splitlines()[message.splitlines().index(shown) + 1]
        assert "6 + 4 identities (train + test)" in gives
        assert message.index("Choose what is meant") < message.index(offer)
    else:
        assert offer in message


def test_an_offer_says_what_it_would_give() -> None:
    path = DOUBTFUL["folders a and b"][0]
    with pytest.raises(UserError, match="2 identities are in train and test") as caught:
        choose_pattern(built(path))
    lines = str(caught.value).splitlines()
    first = lines.index("Choose what is meant, the likeliest first:") + 1
    assert lines[first : first + 2] == [
        "  --pattern '^(?P<camera>[^/]+)/(?P<identity>\\d+)'",
        "      6 + 4 identities (train + test), 2 cameras, 20 images",
    ]


def test_large_trees_are_decided_on_all_their_paths() -> None:
    """30,000 paths; decided on all of them, offers are ranked on some of them."""
    many = {"train": [Place("train", f"p{i}/{n:04d}_{c}.jpg") for i in range(1500) for c in range(4) for n in range(5)]}
    with pytest.raises(UserError, match=r"\(\?P<camera>") as caught:
        choose_pattern(many)
    assert "1500 identities (train), 4 cameras, 30,000 images" in str(caught.value)
