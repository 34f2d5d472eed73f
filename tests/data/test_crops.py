"""The split, relabelling, and what may be trained on."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipreid.data import SCHEMA, ReIDData, Split, check_trainable, relabel, seed_for
from clipreid.errors import UserError


def encoded(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 32), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def small(count: int = 5, plain: bool = True) -> Split:
    return Split.from_columns(
        "train",
        image=[{"path": f"{i}.png" if i else None, "bytes": encoded(10 * i)} for i in range(count)],
        identity=[f"p{i // 2}" for i in range(count)],
        camera=list(range(count)),
        caption=[f"caption {i}" for i in range(count)],
        clothes=None if plain else [f"p{i // 2} red" for i in range(count)],
    )


def test_split_columns_and_images() -> None:
    split = small()
    assert split.table.features == SCHEMA
    assert len(split) == 5
    assert split.identities.tolist() == ["p0", "p0", "p1", "p1", "p2"]
    assert split.identities.dtype.kind == "U"
    assert split.cameras.dtype == np.int32
    assert split.views.tolist() == [-1] * 5
    assert split.path(0) == ""
    assert split.path(3) == "3.png"
    assert split.image(3).getpixel((0, 0)) == (30, 0, 0)
    assert split.clothes.tolist() == [""] * 5
    assert split.metadata().keys() == {"identity", "camera", "view", "clothes", "tracklet", "session", "path"}
    assert split.metadata()["path"].tolist() == ["", "1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize("indices", [[4, 1], np.array([4, 1]), torch.tensor([4, 1])])
def test_select_keeps_the_given_order_everywhere(indices: list[int]) -> None:
    part = small().select(indices)
    assert part.name == "train"
    assert part.identities.tolist() == ["p2", "p0"]
    assert part.cameras.tolist() == [4, 1]
    assert part.captions.tolist() == ["caption 4", "caption 1"]
    assert part.paths.tolist() == ["4.png", "1.png"]
    assert [image["path"] for batch in part.encoded_batches(1) for image in batch] == ["4.png", "1.png"]
    assert part.select([1]).image(0).getpixel((0, 0)) == (10, 0, 0)


def test_clothes_are_metadata() -> None:
    part = small(plain=False).select([4, 0])
    assert part.clothes.tolist() == part.metadata()["clothes"].tolist() == ["p2 red", "p0 red"]


def test_empty_split() -> None:
    empty = small().select([])
    assert len(empty) == 0
    assert empty.identities.shape == empty.cameras.shape == empty.paths.shape == (0,)
    assert list(empty.encoded_batches(4)) == []


def test_reading_labels_never_touches_images() -> None:
    split = Split.from_columns("train", image=[{"path": "/no/such.jpg"}], identity=["a"])
    assert split.metadata()["identity"].tolist() == ["a"]
    with pytest.raises(UserError, match=r"/no/such.jpg cannot be decoded"):
        split.image(0)


def test_relabel_strings_and_gaps() -> None:
    labels, names = relabel(np.array(["b", "a", "c", "a"]))
    assert labels.tolist() == [1, 0, 2, 0]
    assert labels.dtype == torch.int64
    assert names == ["a", "b", "c"]
    labels, names = relabel([1501, 7, 7, 30])
    assert labels.tolist() == [2, 0, 0, 1]
    assert names == ["7", "30", "1501"]
    assert relabel(np.array([], dtype=str))[0].shape == (0,)


def test_check_trainable() -> None:
    data = ReIDData("mine", {"train": small()}, "no-cameras")
    check_trainable(data, P=3, K=2)
    with pytest.raises(
        UserError, match=r"has 3 identities \(p0, p1, p2, ...\), fewer .* If not, choose a P of at most 3 \(-P / --id"
    ):
        check_trainable(data, P=4, K=2)
    with pytest.raises(UserError, match=r"they were misread: give a --pattern or --columns.$"):  # never -P 2
        check_trainable(ReIDData("mine", {"train": small(4)}, "no-cameras"), P=4, K=2)
    with pytest.raises(UserError, match=r"has one identity only \('p0'\): nothing to tell apart"):
        check_trainable(ReIDData("mine", {"train": small(2)}, "no-cameras"), P=1, K=2)
    with pytest.raises(UserError, match="mine has no train split, only query: nothing to train on"):
        check_trainable(ReIDData("mine", {"query": small()}, "no-cameras"), P=2, K=2)
    with pytest.raises(UserError, match=r"P \(-P / .*\) must be at least 1 and K \(-K / .*\) at least 2"):
        check_trainable(data, P=2, K=1)


def test_summary() -> None:
    text = ReIDData("mine", {"train": small()}, "no-cameras", "tiger", ("beware",)).summary()
    assert "mine: protocol no-cameras, noun 'tiger'" in text
    assert "5 images      3 identities    5 cameras" in text
    assert "note: beware" in text


def test_seed_for() -> None:
    seeds = {seed_for(s, e, t, p) for s in range(4) for e in range(4) for t in range(4) for p in range(4)}
    assert len(seeds) == 256
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(1, 2, 3, 4) == 2433960011657717547  # the same on every machine
    torch.Generator().manual_seed(max(seeds))
