"""Occluders: what is hidden, how much of it, by what; libraries and their two parts."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streets import population
from torch import Tensor

from clipreid.data.occluders import (
    MASKS,
    TOLERANCE,
    Bank,
    Cutout,
    Library,
    Occluded,
    distract,
    mask_out,
    occlude,
    read_library,
    split_library,
    street_library,
)
from clipreid.data.placing import MARGIN, SCALES, Placing, feather
from clipreid.data.synthetic import occluders as street_occluders
from clipreid.data.synthetic.cutouts import people_of
from clipreid.errors import UserError

FILL = (123, 117, 104)
SIZE = (64, 32)


def noise(count: int, height: int = SIZE[0], width: int = SIZE[1], seed: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(colour: tuple[int, int, int], height: int = 40, width: int = 30) -> Tensor:
    """An opaque rectangle, uint8 [4, height, width]."""
    return torch.tensor([*colour, 255], dtype=torch.uint8)[:, None, None].expand(4, height, width).contiguous()


def crops(names: list[str], height: int = 64) -> Bank:
    return Bank(noise(len(names), height, 32, seed=4), names)


How = Callable[..., Occluded]
HOW: dict[str, How] = {
    "mask": lambda images, severity, generator, **more: mask_out(images, severity, FILL, generator, **more),
    "object": lambda images, *rest, **more: occlude(images, street_library("test"), *rest, **more),
    "person": lambda images, *rest, **more: occlude(
        images, street_library("test", persons=True).only("person"), *rest, **more
    ),
    "crop": lambda images, *rest, **more: distract(images, ["a"] * len(images), crops(["b", "c", "d"]), *rest, **more),
}
ways = pytest.mark.parametrize("how", HOW.values(), ids=HOW)


# How much is hidden -------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("severity", [0.1, 0.4, 0.7])
def test_the_severity_is_reached(how: How, severity: float) -> None:
    found = how(noise(24), severity, draws())
    hidden = found.masks.float().mean((1, 2))
    torch.testing.assert_close(found.severity, hidden)
    assert (hidden - severity).abs().max() <= TOLERANCE
    assert (found.kinds >= 0).all()


@ways
def test_the_severity_of_each_image_is_its_own_and_zero_changes_nothing(how: How) -> None:
    images, wanted = noise(12), torch.tensor([0.0, 0.3, 0.6] * 4)
    found = how(images, wanted, draws())
    assert (found.severity - wanted).abs().max() <= TOLERANCE
    clean = wanted == 0
    assert torch.equal(found.pixels[clean], images[clean])
    assert not found.masks[clean].any()
    assert (found.kinds[clean] == -1).all()
    assert torch.equal(how(images, 0.0, draws()).pixels, images)


@ways
def test_where_silhouettes_are_known_the_severity_is_a_share_of_them(how: How) -> None:
    silhouettes = torch.zeros(16, *SIZE, dtype=torch.bool)
    silhouettes[:, 8:60, 10:22] = True
    silhouettes[-1] = False  # nothing known of it: the whole crop counts
    found = how(noise(16), 0.5, draws(), silhouettes=silhouettes)
    hidden = (found.masks & silhouettes).sum((1, 2)) / silhouettes.sum((1, 2))
    assert (hidden[:-1] - 0.5).abs().max() <= 0.05  # one column of the silhouette is 1/12 of it
    torch.testing.assert_close(found.severity[:-1], hidden[:-1])
    torch.testing.assert_close(found.severity[-1], found.masks[-1].float().mean())


def test_an_occluder_with_holes_hides_what_it_can_and_says_so() -> None:
    ladder = torch.zeros(4, 64, 64, dtype=torch.uint8)
    for rail in range(0, 64, 16):
        ladder[:, :, rail : rail + 4] = 255
    found = occlude(noise(8), Library((Cutout(ladder, "ladder"),)), 0.9, draws())
    torch.testing.assert_close(found.severity, found.masks.float().mean((1, 2)))
    assert (found.severity < 0.9 - TOLERANCE).all()
    assert (found.severity > 0).all()


# What is hidden -----------------------------------------------------------------------------------------------------


@ways
def test_the_mask_is_where_pixels_changed_up_to_the_feather(how: How) -> None:
    images = noise(24)
    found = how(images, 0.4, draws())
    changed = (found.pixels != images).any(1).float()[:, None]
    mask, around = found.masks.float()[:, None], 2 * 3 + 1
    near = torch.nn.functional.max_pool2d(mask, around, 1, around // 2)
    inner = 1 - torch.nn.functional.max_pool2d(1 - mask, 3, 1, 1)
    assert (changed * (1 - near)).mean() < 0.005  # sticks and straps thinner than a pixel hide nothing, but are seen
    assert (changed * inner).sum() / inner.sum() > 0.97  # noise may have the colour of what hides it


def test_edges_are_feathered() -> None:
    """A black rectangle before white: at its edges there are greys, elsewhere not."""
    white = torch.full((8, 3, 128, 64), 255, dtype=torch.uint8)
    found = occlude(white, Library((Cutout(flat((0, 0, 0)), "box"),)), 0.3, draws())
    grey = (found.pixels[:, 0] > 40) & (found.pixels[:, 0] < 215)
    assert grey.any(2).any(1).all()
    assert grey.float().mean() < 0.06


def test_light_is_moved_towards_that_of_the_crop() -> None:
    library = Library((Cutout(flat((128, 128, 128)), "box"),))
    shown = []
    for value in (40, 128, 220):
        image = torch.full((4, 3, *SIZE), value, dtype=torch.uint8)
        found = occlude(image, library, 0.4, draws())
        inner = torch.nn.functional.max_pool2d(1 - found.masks.float()[:, None], 7, 1, 3) == 0
        shown.append(float(found.pixels.float().mean(1, keepdim=True)[inner].mean()))
    assert 40 < shown[0] < 110
    assert abs(shown[1] - 128) < 4
    assert 146 < shown[2] < 220
    red = torch.tensor([160, 90, 90], dtype=torch.uint8)[:, None, None].expand(4, 3, *SIZE).contiguous()
    found = occlude(red, library, 0.4, draws())
    channels = [float(found.pixels[:, channel][found.masks].float().mean()) for channel in range(3)]
    assert channels[0] > channels[1] + 10


@given(
    st.floats(0.1, 4),
    st.booleans(),
    st.booleans(),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from(SCALES),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_nothing_floats(aspect: float, stands: bool, right: bool, drawn: tuple, scale: float, way: float) -> None:
    """Whatever is drawn: the lower edge is below the crop, or the outer edge beyond the side it comes from."""
    values = (torch.tensor([value]) for value in drawn)
    placing = Placing(torch.tensor([aspect]), torch.tensor([stands]), torch.tensor([right]), *values)
    top, bottom, left, end = placing.boxes(torch.tensor(scale), torch.tensor([way]), 128, 64)[:, 0].tolist()
    margin = MARGIN * feather(128) - 1e-3
    assert end - left == pytest.approx(aspect * (bottom - top), rel=1e-4)
    if stands:
        assert bottom >= 128 + margin
    elif right:
        assert end >= 64 + margin
    else:
        assert left <= -margin


@pytest.mark.parametrize("severity", [0.1, 0.5])
def test_what_stands_hides_the_ground_and_what_enters_hides_its_border(severity: float) -> None:
    solid = {"tall": flat((9, 9, 9), 60, 20), "low": flat((9, 9, 9), 20, 30)}
    for pixels in solid.values():
        found = occlude(noise(32), Library((Cutout(pixels, "thing"),)), severity, draws())
        assert found.masks[:, -1].any(1).all()
        found = occlude(noise(32), Library((Cutout(pixels, "thing", stands=False),)), severity, draws())
        left, right = found.masks[:, :, 0].any(1), found.masks[:, :, -1].any(1)
        assert (left | right).all()
        assert left.any()
        assert right.any()


def test_what_enters_from_the_right_is_mirrored() -> None:
    """The cut-out is darkest at its left edge, the end at the border, on both sides."""
    pixels = flat((255, 255, 255), 40, 40)
    pixels[:3] = torch.arange(0, 240, 6, dtype=torch.uint8)
    found = occlude(noise(32), Library((Cutout(pixels, "branch", stands=False),)), 0.5, draws())
    light = found.pixels.float().mean(1)
    for image, mask in zip(light, found.masks, strict=True):
        columns = mask.any(0).nonzero().flatten()
        first, last = (image[mask[:, c], c].mean() for c in (columns[0], columns[-1]))
        if columns[-1] - columns[0] < 0.8 * SIZE[1]:
            assert (first < last) == bool(columns[0] == 0)


def test_masks_are_single_boxes_of_the_fill_that_grow_with_the_severity() -> None:
    images, before = noise(64), torch.zeros(64, *SIZE, dtype=torch.bool)
    for severity in (0.1, 0.3, 0.6, 0.9):
        found = mask_out(images, severity, FILL, draws())
        rows, columns = found.masks.any(2).sum(1), found.masks.any(1).sum(1)
        assert torch.equal(found.masks.sum((1, 2)), rows * columns)
        assert not (before & ~found.masks).any()
        before = found.masks
        hidden = found.masks[:, None].expand_as(images)
        colour = torch.tensor(FILL, dtype=torch.uint8)[:, None, None].expand_as(images)
        assert torch.equal(found.pixels, torch.where(hidden, colour, images))
        for kind, name in enumerate(MASKS[1:], 1):
            mask = found.masks[found.kinds == kind]
            border = {"left": mask[:, :, 0], "right": mask[:, :, -1], "bottom": mask[:, -1]}[name]
            assert len(mask)
            assert border.all()


# Draws --------------------------------------------------------------------------------------------------------------


@ways
def test_two_processes_draw_as_one(how: How) -> None:
    images, wanted = noise(12), torch.linspace(0, 0.6, 12)
    whole = how(images, wanted, draws(3))
    again = how(images, wanted, draws(3))
    other = how(images, wanted, draws(4))
    assert torch.equal(whole.pixels, again.pixels)
    assert not torch.equal(whole.pixels, other.pixels)
    parts = [how(images[part], wanted[part], draws(3), share=(rank, 2)) for rank, part in enumerate(halves(12))]
    for name in ("masks", "kinds", "severity"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    difference = torch.cat([part.pixels for part in parts]).int() - whole.pixels.int()
    assert difference.abs().max() <= 1  # products of matrices of another batch size may round differently


def halves(count: int) -> tuple[slice, slice]:
    return slice(0, count // 2), slice(count // 2, count)


def test_classes_are_drawn_equally_often_whatever_their_number_of_cutouts() -> None:
    many = [Cutout(flat((10 * n, 0, 0)), "many") for n in range(9)]
    found = occlude(noise(200, 16, 8), Library((*many, Cutout(flat((0, 0, 9)), "few"))), 0.4, draws())
    assert 70 < int((found.kinds == 0).sum()) < 130  # "few"


def test_nobody_is_distracted_by_an_image_of_oneself() -> None:
    names = ["b", "a", "c", "a", "b", "a"]
    bank = crops(names)
    for own in "abcd":
        chosen = [bank.choose(own, uniform) for uniform in np.linspace(0, 1, 60, endpoint=False)]
        others = {row for row, name in enumerate(names) if name != own}
        assert set(chosen) == others
        assert len({chosen.count(row) for row in others}) == 1
    two = Bank(torch.cat([noise(1, seed=1), noise(1, seed=2)]), [1, 2])
    only = Bank(two.pixels[1:], [2])
    one, other = (distract(noise(4), [1] * 4, bank, 0.4, draws()) for bank in (two, only))
    assert torch.equal(one.pixels, other.pixels)
    with pytest.raises(ValueError, match="all crops of the bank are of '2' itself"):
        distract(noise(2), [1, 2], only, 0.4, draws())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": noise(2).float()}, "expected uint8 [B, 3, H, W]"),
        ({"severity": 1.1}, "a share from 0 to 1"),
        ({"severity": -0.1}, "a share from 0 to 1"),
        ({"severity": float("nan")}, "a share from 0 to 1"),
        ({"severity": torch.ones(3)}, "one for each of 2 images"),
        ({"silhouettes": torch.ones(2, 8, 8, dtype=torch.bool)}, "silhouettes: expected bool [2, 64, 32]"),
        ({"silhouettes": torch.ones(2, *SIZE)}, "got torch.float32"),
    ],
)
def test_what_cannot_be_occluded_is_refused(change: dict[str, object], message: str) -> None:
    for how in HOW.values():
        asked = {"images": noise(2), "severity": 0.4, "generator": draws()} | change
        with pytest.raises(ValueError, match=re.escape(message)):
            how(asked.pop("images"), asked.pop("severity"), asked.pop("generator"), **asked)


def test_fills_and_banks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="three values from 0 to 255"):
        mask_out(noise(1), 0.4, (0, 0, 256), draws())
    with pytest.raises(ValueError, match="2 crops and 1 identities"):
        Bank(noise(2), ["a"])
    with pytest.raises(ValueError, match="expected uint8"):
        Bank(noise(2).float(), ["a", "b"])
    with pytest.raises(ValueError, match="2 images and 1 identities"):
        distract(noise(2), ["a"], crops(["b"]), 0.4, draws())


# Libraries ----------------------------------------------------------------------------------------------------------


def pictures(library: Library) -> set[bytes]:
    return {one.pixels.numpy().tobytes() for one in library.cutouts}


def test_the_parts_of_the_street_have_nothing_in_common() -> None:
    train, test = street_library("train"), street_library("test")
    assert not set(train.kinds) & set(test.kinds)
    assert set(test.kinds) == set(street_occluders.OBJECTS)  # what hides the queries of synthetic:occluded
    everything = [street_library(part, persons=True) for part in ("train", "test")]
    assert not pictures(everything[0]) & pictures(everything[1])
    for library in everything:
        assert len(pictures(library)) == len(library) == sum(len(library.only(kind)) for kind in library.kinds)
        assert {one.stands for one in library.cutouts} == {True, False}
        assert list(library.kinds) == sorted(library.kinds)
        for one in library.cutouts:
            alpha = one.pixels[3] >= 128
            assert one.pixels.dtype == torch.uint8
            assert alpha.any(0)[[0, -1]].all()  # no margins
            assert alpha.any(1)[[0, -1]].all()
            assert one.kind == "pillar" or not alpha.all()
    assert street_library("train") is train


def test_people_of_the_street_s_occluders_walk_through_no_set() -> None:
    known = {person for people in population().values() for person in people.values()}
    train, test = set(people_of("train")), set(people_of("test"))
    assert len(train) == len(street_library("train", persons=True).only("person"))
    assert not known & (train | test)
    assert not train & test


def save(file: Path, alpha: np.ndarray, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed).integers(0, 256, (*alpha.shape, 3), dtype=np.uint8)
    Image.fromarray(np.dstack([colour, alpha.astype(np.uint8)])).save(file, lossless=True)


def disc(size: int = 40) -> np.ndarray:
    """Alpha of a disc with a wide transparent margin."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.where(x * x + y * y < (size / 4) ** 2, 255, 0)


def test_a_folder_of_cutouts_is_read(tmp_path: Path) -> None:
    save(tmp_path / "bicycle" / "1.png", disc())
    save(tmp_path / "bicycle" / "2.webp", disc(), 1)
    save(tmp_path / "branch" / "side" / "1.png", disc(), 2)
    save(tmp_path / "side-bag.png", disc(), 3)
    save(tmp_path / "thing.PNG", disc(), 4)
    (tmp_path / "notes.txt").write_text("no image")
    library = read_library(tmp_path)
    found = [(one.kind, one.stands) for one in library.cutouts]
    assert sorted(found) == [
        ("bicycle", True),
        ("bicycle", True),
        ("branch", False),
        ("object", False),
        ("object", True),
    ]
    assert library.kinds == ("bicycle", "branch", "object")
    assert {tuple(one.pixels.shape) for one in library.cutouts} == {(4, 20, 20)}
    with Image.open(tmp_path / "bicycle" / "1.png") as image:
        assert np.array_equal(library.cutouts[0].pixels.permute(1, 2, 0).numpy(), np.asarray(image)[10:30, 10:30])


def test_large_cutouts_are_reduced(tmp_path: Path) -> None:
    save(tmp_path / "1.png", np.pad(np.full((300, 1400), 255), 100))
    (one,) = read_library(tmp_path).cutouts
    assert one.pixels.shape[1:] == pytest.approx((96, 448), abs=2)


def test_parts_of_a_folder(tmp_path: Path) -> None:
    for number, kind in enumerate(("bin", "bush", "car", "sign")):
        save(tmp_path / "whole" / kind / "1.png", disc(), number)
        save(tmp_path / "parts" / ("train" if number < 2 else "test") / kind / "1.png", disc(), number)
    assert read_library(tmp_path / "parts", "train").kinds == ("bin", "bush")
    assert read_library(tmp_path / "parts", "test").kinds == ("car", "sign")
    assert len(read_library(tmp_path / "parts")) == len(read_library(tmp_path / "whole")) == 4
    train, test = (read_library(tmp_path / "whole", part) for part in ("train", "test"))
    assert len(train.kinds) == len(test.kinds) == 2
    assert {*train.kinds, *test.kinds} == {"bin", "bush", "car", "sign"}


@pytest.mark.parametrize(
    ("file", "alpha", "message"),
    [
        ("bin/1.png", np.full((20, 20), 255), "is not cut out: no pixel of it is transparent"),
        ("bin/1.png", np.zeros((20, 20)), "is transparent everywhere"),
        ("bin/1.png", np.pad(np.full((4, 20), 255), 8), "shows 20x4 pixels, too small (each side needs 8)"),
        ("bin/1.jpg.txt", None, "holds no occluders: put PNG or WebP images with transparency there"),
        ("bin/1.png", None, "1.png cannot be read"),
        (".hidden/1.png", disc(), "holds no occluders"),
    ],
)
def test_files_that_are_no_cutouts_are_refused(
    tmp_path: Path, file: str, alpha: np.ndarray | None, message: str
) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text("no image")
    if alpha is not None:
        save(tmp_path / file, alpha)
    with pytest.raises(UserError) as refused:
        read_library(tmp_path)
    assert message in str(refused.value)


def test_folders_that_are_none_and_parts_that_share_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there: give a folder"):
        read_library(tmp_path / "nothing")
    save(tmp_path / "train" / "bin" / "1.png", disc())
    save(tmp_path / "test" / "tub" / "7.png", np.pad(disc(), 5))
    read_library(tmp_path)
    (tmp_path / "test" / "tub" / "1.png").write_bytes((tmp_path / "train" / "bin" / "1.png").read_bytes())
    with pytest.raises(UserError, match="the same cut-out is in train/bin and in test/tub"):
        read_library(tmp_path, "test")
    (tmp_path / "test" / "tub").rename(tmp_path / "test" / "bin")
    with pytest.raises(UserError, match="the class 'bin' is in train/ and in test/"):
        read_library(tmp_path)


@given(st.integers(2, 9), st.floats(0.01, 0.99), st.integers(0, 99))
@settings(deadline=None)
def test_a_split_shares_no_class(count: int, share: float, seed: int) -> None:
    library = Library(tuple(Cutout(flat((n, i, 0)), f"kind{n}") for n in range(count) for i in range(2)))
    train, test = split_library(library, share, seed)
    assert not set(train.kinds) & set(test.kinds)
    assert {*train.kinds, *test.kinds} == set(library.kinds)
    assert len(train) + len(test) == len(library)
    assert split_library(Library(library.cutouts[::-1]), share, seed)[0].kinds == train.kinds


def test_splits_and_choices_that_cannot_be_made_are_refused() -> None:
    library = Library((Cutout(flat((1, 2, 3)), "bin"),))
    with pytest.raises(UserError, match=r"all occluders are of one class .* sort them into one folder for each class"):
        split_library(library, 0.5, 0)
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match="lies between 0 and 1"):
            split_library(library, share, 0)
    with pytest.raises(UserError, match="no cut-out is of the class car: there are bin"):
        library.only("car")
    with pytest.raises(UserError, match="no part 'val'"):
        street_library("val")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="library of occluders is empty"):
        occlude(noise(1), Library(()), 0.4, draws())
