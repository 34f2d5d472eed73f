"""Batches as pure functions: of images, of several views, with captions, of cached features; and P, K, epochs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipreid.backbones import load_backbone
from clipreid.config import RunConfig
from clipreid.data import normalise
from clipreid.errors import UserError
from clipreid.training.batches import feature_batches, fit_batches, image_batches

N, IDENTITIES, H, W = 24, 6, 16, 8


@dataclass(frozen=True)
class Config:
    identities_per_batch: int | None = 4
    images_per_identity: int | None = 2
    balance: str = "proportional"
    flip: float = 0.5
    pad: int = 16  # one pixel at this height
    erase: float = 0.5
    epochs: int = 2
    least_steps: int = 0


def tokenise(texts: list[str]) -> Tensor:
    return torch.tensor([[ord(letter) for letter in text.ljust(3)] for text in texts])


def make_run(share: tuple[int, int] = (0, 1), seed: int = 0, config: Config | None = None, **more: Any) -> Any:
    labels = torch.arange(N) // (N // IDENTITIES)
    data = SimpleNamespace(
        labels=labels,
        groups=torch.zeros(N, dtype=torch.long),
        sides=(torch.arange(N), -torch.ones(N)),
        names=[str(number) for number in range(IDENTITIES)],
    )
    crops = torch.randint(0, 256, (N, 3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    backbone = SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), tokenizer=tokenise)
    return SimpleNamespace(data=data, config=config or Config(), backbone=backbone, seed=seed, share=share,
                           device=torch.device("cpu"), crops=lambda: crops, **more)  # fmt: skip


def test_captions_longer_than_the_context_are_said_once(tiny_folder: Callable[[str], Path]) -> None:
    lines: list[str] = []
    run = make_run(log=SimpleNamespace(say=lines.append))
    run.backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    image_batches(run, captions=[["a red hat"]] * N)
    assert not lines
    image_batches(run, captions=[["a red hat", "a red hat " * 40]] * N)
    assert [line.startswith("note: captions: 1 of 2 texts are longer than the") for line in lines] == [True]


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    a, b = image_batches(make_run()), image_batches(make_run())
    last = len(b(3)) - 1
    for name, x in b(3)[last].items():  # in another order, by another object
        assert torch.equal(a(3)[last][name], x), name
    assert not torch.equal(a(3)[0]["rows"], a(4)[0]["rows"])
    assert not torch.equal(image_batches(make_run(seed=1))(3)[0]["rows"], a(3)[0]["rows"])
    assert len(list(a(0))) == len(a(0)) == len(a(0)[:])
    assert torch.equal(a(3)[-1]["rows"], a(3)[last]["rows"])


def test_rows_labels_and_cameras_belong_together() -> None:
    run = make_run(config=Config(flip=0, pad=0, erase=0))
    batch = image_batches(run)(0)[0]
    assert torch.equal(batch["labels"], run.data.labels[batch["rows"]])
    assert torch.equal(batch["cameras"], batch["rows"])
    expected = normalise(run.crops()[batch["rows"]], run.backbone.mean, run.backbone.std)
    assert torch.equal(batch["pixels"], expected)
    blocks = batch["labels"].view(4, 2)
    assert (blocks == blocks[:, :1]).all()
    assert len(blocks[:, 0].unique()) == 4


def test_two_processes_together_have_the_batch_of_one() -> None:
    whole = image_batches(make_run())
    parts = [image_batches(make_run((rank, 2))) for rank in (0, 1)]
    for nth in range(len(whole(1))):
        batch = whole(1)[nth]
        for name, x in batch.items():
            assert torch.equal(torch.cat([part(1)[nth][name] for part in parts]), x), name
    with pytest.raises(UserError, match="P=4 identities cannot be shared"):
        image_batches(make_run((0, 3)))(0)


def test_views_repeat_the_rows_and_augment_them_anew() -> None:
    one, two = image_batches(make_run())(0)[1], image_batches(make_run(), views=2)(0)[1]
    first, second = two["pixels"].chunk(2)
    assert torch.equal(first, one["pixels"])
    assert not torch.equal(first, second)
    assert all(torch.equal(two[name], one[name].repeat(2)) for name in ("rows", "labels", "cameras"))


def test_a_change_comes_before_augmentation_with_draws_of_its_own() -> None:
    def change(view: int, images: Tensor, generator: torch.Generator, share: tuple[int, int]) -> tuple[Tensor, Any]:
        rank, world = share
        drawn = torch.rand(len(images) * world, generator=generator)[rank * len(images) :][: len(images)]
        return images // (view + 1), {"drawn": drawn, "view": torch.full((len(images),), view)}

    plain = Config(flip=0, pad=0, erase=0)
    batch, run = image_batches(make_run(config=plain), views=2, change=change)(2)[1], make_run(config=plain)
    crops = run.crops()[batch["rows"]] // (1 + batch["view"]).to(torch.uint8)[:, None, None, None]
    assert torch.equal(batch["pixels"], normalise(crops, run.backbone.mean, run.backbone.std))
    assert len(batch["drawn"].unique()) == len(batch["rows"])  # other draws for each view
    whole = image_batches(make_run(), views=2, change=change)
    parts = [image_batches(make_run((rank, 2)), views=2, change=change) for rank in (0, 1)]
    for name, x in whole(2)[1].items():
        halves = [part(2)[1][name].chunk(2) for part in parts]  # each process has both views
        assert torch.equal(torch.cat([half[view] for view in (0, 1) for half in halves]), x), name
    assert not torch.equal(whole(3)[1]["drawn"], whole(2)[1]["drawn"])
    untouched = image_batches(make_run(), views=2)(2)[1]
    same = image_batches(make_run(), views=2, change=lambda view, images, *_: (images, {}))(2)[1]
    assert all(torch.equal(same[name], x) for name, x in untouched.items())  # augmentation draws as without a change


def test_captions_are_those_of_their_images_and_all_are_drawn() -> None:
    captions = [[f"{row:02d}a", f"{row:02d}b"] for row in range(N)]
    batches, seen = image_batches(make_run(), captions=captions), set()
    for epoch in range(4):
        for batch in batches(epoch):
            for row, ids in zip(batch["rows"].tolist(), batch["captions"].tolist(), strict=True):
                text = "".join(map(chr, ids))
                assert text in captions[row]
                seen.add(text[2])
    assert seen == {"a", "b"}
    parts = [image_batches(make_run((rank, 2)), captions=captions)(0)[0]["captions"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), batches(0)[0]["captions"])


def test_images_without_a_caption_are_counted_and_have_an_empty_text() -> None:
    lines: list[str] = []
    run = make_run(log=SimpleNamespace(say=lines.append))
    captions = [[] if row % 4 == 0 else ["?!"] if row % 4 == 1 else [f"{row:02d}a"] for row in range(N)]
    batches = image_batches(run, captions=captions)
    assert lines == [
        "note: captions: 12 of 24 images have none, and take part in the losses of images only",
        "note: captions: 6 without a letter or digit count as none",
    ]
    for batch in batches(0):
        assert torch.equal(batch["captioned"], batch["rows"] % 4 >= 2)
        empty = tokenise([""])
        assert torch.equal((batch["captions"] != empty).any(1), batch["captioned"])
    run.backbone = SimpleNamespace(tokenizer=None)
    with pytest.raises(ValueError, match="captions need a backbone with a tokenizer"):
        image_batches(run, captions=captions)


def test_the_text_of_a_mirrored_image_is_mirrored() -> None:
    """In each view by itself, with one sentence for all views."""
    texts: list[str] = []

    def tokenise(said: list[str]) -> Tensor:
        texts[:] = said
        return torch.zeros(len(said), 1)

    plain = Config(flip=0.5, pad=0, erase=0)
    run = make_run(config=plain)
    run.backbone.tokenizer = tokenise
    captions = [["bag on the left", "hat, right hand"]] * N
    sides = {"bag on the left": 0, "bag on the right": 1, "hat, right hand": 0, "hat, left hand": 1}
    found = set()
    for nth, batch in enumerate(image_batches(run, captions=captions, views=2)(1)):
        expected = normalise(run.crops()[batch["rows"]], run.backbone.mean, run.backbone.std)
        mirrored = [not torch.equal(x, y) for x, y in zip(batch["pixels"], expected, strict=True)]
        assert [bool(sides[text]) for text in texts] == mirrored, nth
        half = len(texts) // 2
        assert [text[:3] for text in texts[:half]] == [text[:3] for text in texts[half:]]
        found |= set(texts)
    assert found == set(sides)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_caption_comes_once_an_epoch(processes: int) -> None:
    lines = SimpleNamespace(say=lambda text: None)
    captions = [[f"{row:02d}{letter}" for letter in "abc"[: row % 3]] for row in range(N)]
    parts = [
        image_batches(make_run((rank, processes), log=lines), captions=captions, every_caption=True)
        for rank in range(processes)
    ]
    wanted = sorted(said for each in captions for said in each or [""])
    orders = []
    for epoch in (0, 1):
        said = []
        for nth in range(len(parts[0](epoch))):
            for part in parts:
                batch = part(epoch)[nth]
                assert len(batch["rows"]) == 8 // processes
                texts = ["".join(map(chr, ids)).strip() for ids in batch["captions"].tolist()]
                assert [int(text[:2]) for text in texts if text] == batch["rows"][batch["captioned"]].tolist()
                said += texts
        orders.append(said)
        assert len(said) == len(wanted) // 8 * 8  # what does not fill a batch is left over
        assert not {text for text in said if text and said.count(text) > 1}
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match="every_caption needs captions"):
        image_batches(make_run(), every_caption=True)


def test_features_are_computed_once_and_every_image_comes_once_an_epoch() -> None:
    calls: list[int] = []

    def features() -> Tensor:
        calls.append(1)
        return torch.arange(N).float()[:, None]

    labels = torch.arange(N) // 4
    batches = feature_batches(features, labels, 7, seed=3)
    assert not calls  # nothing is computed before it is asked for
    for epoch in (0, 1):
        parts = list(batches(epoch))
        assert [len(part["rows"]) for part in parts] == [7, 7, 7, 3]
        rows = torch.cat([part["rows"] for part in parts])
        assert sorted(rows.tolist()) == list(range(N))
        assert all(torch.equal(part["features"][:, 0], part["rows"].float()) for part in parts)
        assert all(torch.equal(part["labels"], labels[part["rows"]]) for part in parts)
    assert not torch.equal(batches(0)[0]["rows"], batches(1)[0]["rows"])
    assert len(feature_batches(features, labels, 1000, seed=3)(0)) == 1


def fitted(counts: list[int], processes: int = 1, **given: Any) -> Any:
    """`fit_batches` for identities with these numbers of images."""
    from clipreid.data import Mixture, ReIDData, Split

    names = [f"{nth:03d}" for nth, count in enumerate(counts) for _ in range(count)]
    split = Split.from_columns("train", [{"path": f"{row}.png"} for row in range(len(names))], names)
    mixture = Mixture((ReIDData("toy", {"train": split}, protocol="no-cameras", noun="person"),))
    labels = torch.tensor([int(name) for name in names])
    data: Any = SimpleNamespace(mixture=mixture, labels=labels, groups=torch.zeros(len(labels), dtype=torch.long))
    config = replace(Config(identities_per_batch=None, images_per_identity=None), **given)
    return fit_batches(config, data, RunConfig(), processes)


def test_k_follows_the_data_and_p_keeps_the_batch_full() -> None:
    many = fitted([4] * 40)
    assert (many.identities_per_batch, many.images_per_identity) == (16, 4)
    few = fitted([2] * 40)
    assert (few.identities_per_batch, few.images_per_identity) == (32, 2)
    assert fitted([1, 1, 1] + [2] * 30).images_per_identity == 2
    assert fitted([4] * 40, images_per_identity=3).images_per_identity == 3
    assert fitted([4] * 40, identities_per_batch=5).identities_per_batch == 5
    with pytest.raises(UserError, match="16"):
        fitted([4] * 10)  # fewer identities than P
    with pytest.raises(UserError, match="P=5"):
        fitted([4] * 40, identities_per_batch=5, processes=2)
    assert fitted([4] * 40, processes=3).identities_per_batch == 15


def test_small_data_gets_more_epochs() -> None:
    steps = 40 // 16
    assert fitted([4] * 40, least_steps=50).epochs == -(-50 // steps)
    assert fitted([4] * 40, least_steps=1).epochs == 2
    assert fitted([4] * 40).epochs == 2


def test_the_street_of_a_folder_is_read_alike(tmp_path: Path) -> None:
    """The same through a real run: every process computes the epoch that one process has."""
    from launching import paint_street

    from clipreid.config import configure
    from clipreid.methods import clip_reid
    from clipreid.training.run import open_run

    street = paint_street(tmp_path / "crops", train=4, test=2)
    flags, config = configure(clip_reid, data=(f"folder:{street}",), output=tmp_path / "run", prompts="none", epochs=1,
                              identities_per_batch=2)  # fmt: skip
    run = open_run(clip_reid, flags, config)
    batch = image_batches(run)(0)[0]
    assert batch["pixels"].shape == (8, 3, 128, 64)
    assert set(batch["cameras"].tolist()) <= {1, 2, 3, 4}
