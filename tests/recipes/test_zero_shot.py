"""The zero-shot table: each backbone prepared in its own way, what it costs, and what scrambled pixels do to it."""

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from image_only import save_osnet, save_timm
from launching import load_recipe
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import ToPILImage

from clipreid.backbones import load_backbone
from clipreid.data import ReIDData, Split, load_data
from clipreid.data.augment import normalise
from clipreid.data.synthetic import SETS, street
from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.cost import gflops, latency, parameters
from clipreid.evaluation.floor import colour_floor
from clipreid.evaluation.score import OF_ZERO_SHOT, score
from clipreid.model import untrained_model

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEOPLE = 40


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("zero_shot")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    return f"timm:test_vit/{save_timm('test_vit', folder)[0]}", f"osnet:x0_25/{save_osnet('x0_25', folder)[0]}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))


def parse(recipe: ModuleType, *args: object) -> Any:
    quick = ("--threads", 1, "--batch-size", 2)
    return tyro.cli(recipe.ZeroShot, args=[*map(str, (*quick, *args))], config=(tyro.conf.OmitArgPrefixes,))


# The table --------------------------------------------------------------------------------------------------------


def test_table_and_csv(
    recipe: ModuleType, towers: tuple[str, str], street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = f"folder:{street}", tmp_path / "new" / "zero.csv"
    recipe.main(parse(recipe, "--backbones", "tiny-clip", *towers, "colour", "--data", data, "--output", file))
    output = capsys.readouterr().out
    with file.open() as opened:
        rows = {row["backbone"]: row for row in csv.DictReader(opened)}
    assert list(rows) == ["tiny-clip", *towers, "colour"]
    assert f"tiny-clip on {data} (cross-camera): mAP" in output
    floor = rows.pop("colour")
    assert (floor["feature"], floor["parameters"], floor["size"]) == ("colour stripes", "0", "128x64")
    assert all(
        name in output for name in (*rows, "mAP", "rank-1", "gflops", "ms: per crop, in batches of 2, 1 threads")
    )
    for name, (size, feature) in dict(
        zip(rows, [("128x64", None), ("256x128", "CLS"), ("256x128", "mean, fc")], strict=True)
    ).items():
        row, backbone = rows[name], load_backbone(name)
        model = untrained_model(backbone)
        assert (model.mean, model.std) == (backbone.mean, backbone.std)
        found = score(load_data(data), model)
        best = max(found.reports[part].metrics["mAP"] for part in OF_ZERO_SHOT)
        assert float(row["mAP"]) == pytest.approx(best, abs=1e-6)
        assert row["size"] == size
        assert row["protocol"] == "cross-camera"
        assert row["feature"] == (feature or found.best())
        assert int(row["parameters"]) == parameters(backbone.image)
        assert float(row["gflops"]) == pytest.approx(gflops(backbone.image, backbone.image_size))
        assert float(row["ms"]) > 0


def test_one_protocol_for_all_is_named_beside_each_figure(
    recipe: ModuleType, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = f"folder:{street}", tmp_path / "zero.csv"
    recipe.main(parse(recipe, "--backbones", "colour", "--data", data, "--protocol", "market1501", "--output", file))
    (row,) = csv.DictReader(file.read_text().splitlines())
    own = evaluate_colour(data, None)
    assert row["protocol"] == "market1501"
    assert float(row["mAP"]) == pytest.approx(evaluate_colour(data, "market1501"), abs=1e-6)
    assert float(row["mAP"]) < own  # images of the same camera are in the way, which cross-camera leaves out
    assert "(market1501): mAP" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown protocol 'market'"):
        recipe.main(parse(recipe, "--protocol", "market"))


def evaluate_colour(data: str, protocol: str | None) -> float:
    return colour_floor(load_data(data), protocol=protocol).reports["concat"].metrics["mAP"]


def test_flags_take_several_values_and_repeat(recipe: ModuleType) -> None:
    config = parse(recipe, "--backbones", "a", "b", "--backbones", "c", "--data", "x", "--data", "y", "z")
    assert config.backbones == (("a", "b"), ("c",))
    assert config.data == (("x",), ("y", "z"))


def test_one_backbone_that_fails_does_not_cost_the_others(
    recipe: ModuleType, towers: tuple[str, str], street: Path, tmp_path: Path
) -> None:
    file = tmp_path / "zero.csv"
    names = ("timm:vit_tinny_patch16_224", towers[1], "tiny-clop")
    with pytest.raises(UserError, match=r"left out:\n  timm has no model 'vit_tinny.*\n  unknown backbone 'tiny-clop'"):
        recipe.main(parse(recipe, "--backbones", *names, "--data", f"folder:{street}", "--output", file))
    assert len(file.read_text().splitlines()) == 2


def test_captions_ask_backbones_with_text_only(
    recipe: ModuleType, towers: tuple[str, str], street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captioned(spec: str, **flags: Any) -> ReIDData:
        data = load_data(spec, **flags)
        query = data.splits["query"]
        image = [{"path": str(path)} for path in query.paths]
        words = [f"person {identity}" for identity in query.identities]
        query = Split.from_columns("query", image, query.identities.tolist(), query.cameras.tolist(), caption=words)
        return replace(data, protocol="text-to-image", splits=data.splits | {"query": query})

    monkeypatch.setattr(recipe, "load_data", captioned)
    file, data = tmp_path / "zero.csv", f"folder:{street}"
    with pytest.raises(UserError, match=r"timm:test_vit.* has no text tower: captions cannot be compared"):
        recipe.main(parse(recipe, "--backbones", towers[0], "tiny-clip", "--data", data, "--output", file))
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert (row["backbone"], row["feature"]) == ("tiny-clip", "projection")


def test_one_set_that_fails_does_not_cost_the_others_and_names_are_read_as_told(
    recipe: ModuleType, towers: tuple[str, str], street: Path, tmp_path: Path
) -> None:
    for file in (street / "test").iterdir():
        place = tmp_path / "named" / "test" / f"at-{file.name[6]}-who-{file.name[:4]}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    file, nowhere, named = tmp_path / "zero.csv", f"folder:{tmp_path / 'nowhere'}", f"folder:{tmp_path / 'named'}"
    pattern = r"at-(?P<camera>\d)-who-(?P<identity>\d+)"
    with pytest.raises(UserError, match=r"left out:\n  .*nowhere does not exist$"):
        recipe.main(
            parse(recipe, "--backbones", towers[1], "--data", nowhere, named, "--pattern", pattern, "--output", file)
        )
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert row["data"] == named
    with pytest.raises(UserError, match=r"--columns names columns of tables and works with csv:, hub: and coco: only"):
        recipe.main(parse(recipe, "--data", named, "--columns", "identity=pid"))


def test_wrong_flags(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .* is a folder: give a file, such as .*zero_shot.csv"):
        recipe.main(parse(recipe, "--output", tmp_path))
    with pytest.raises(UserError, match=r"--batch-size 0: must be at least 1"):
        recipe.main(parse(recipe, "--batch-size", 0))
    with pytest.raises(UserError, match=r"no data is left to test on:\n  .*nowhere does not exist"):
        recipe.main(parse(recipe, "--data", f"folder:{tmp_path / 'nowhere'}"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*zero.csv cannot be written \(.*\): give another file"):
        recipe.main(parse(recipe, "--output", tmp_path / "file" / "zero.csv"))


# What it costs ----------------------------------------------------------------------------------------------------


def test_multiply_adds_are_counted_once_and_attention_too() -> None:
    conv = nn.Conv2d(3, 8, 2, stride=2)
    assert gflops(conv, (8, 4)) == 8 * (3 * 2 * 2) * (4 * 2) / 1e9
    backbone = load_backbone("tiny-clip")
    config, tokens = backbone.image.config, 1 + backbone.image.grid[0] * backbone.image.grid[1]
    width, inner = config.width, config.mlp_width
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    patches = (tokens - 1) * 3 * config.patch_size**2 * width
    expected = config.depth * block + patches + width * config.embed_dim
    assert gflops(backbone.image, backbone.image_size) == expected / 1e9


def test_latency_is_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, *[t for n in range(1, 6) for t in (100.0 * n, 100.0 * n + 0.2 * n)]])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    shapes: list[tuple[int, ...]] = []
    took = latency(lambda pixels: shapes.append(tuple(pixels.shape)), (16, 8), batch_size=4)
    assert took == pytest.approx(1000 * 0.6 / 4)  # the median of 0.2 .. 1.0 s; the first batch (50 s) is not counted
    assert shapes == [(4, 3, 16, 8)] * 6


# Preparation ------------------------------------------------------------------------------------------------------


def paint(split: str) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The first people of `synthetic`: uint8 [N, 3, 128, 64], and who was seen by which camera."""
    first = SETS["synthetic"].parts[split].first
    shots = [shot for shot in street._shots("synthetic", split) if shot.number < first + PEOPLE]
    pixels = torch.stack([torch.from_numpy(street.paint(shot)[0]).permute(2, 0, 1) for shot in shots])
    return pixels, {"identity": np.array([s.number for s in shots]), "camera": np.array([s.camera for s in shots])}


def scrambled(crops: Tensor) -> Tensor:
    """What a wrapper sees that makes images of normalised floats: uint8 [N, 3, H, W], wrapped around."""
    images = [np.asarray(ToPILImage()(pixels)) for pixels in normalise(crops, *IMAGENET)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_normalised_floats_made_into_images_bring_a_tower_down_to_chance() -> None:
    model = untrained_model(load_backbone("tiny-clip"))
    (query_crops, query), (gallery_crops, gallery) = paint("query"), paint("gallery")

    def mean_ap(queries: Tensor, galleries: Tensor) -> float:
        return evaluate(queries, galleries, query, gallery, protocol="market1501").metrics["mAP"]

    chance = [mean_ap(torch.randn(len(query_crops), 8), torch.randn(len(gallery_crops), 8)) for _ in range(20)]
    level, spread = float(np.mean(chance)), float(np.std(chance))
    right = mean_ap(model.embed(query_crops), model.embed(gallery_crops))
    wrong = mean_ap(model.embed(scrambled(query_crops)), model.embed(scrambled(gallery_crops)))
    print(f"chance {level:.3f} +- {spread:.3f}, right {right:.3f}, scrambled {wrong:.3f}")
    assert right > 8 * level
    assert wrong < level + 0.1 * (right - level)


def test_less_than_a_quarter_of_the_grey_levels_survives() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 256)[None, :, None].contiguous()  # [1, 3, 1, 256]
    values = normalise(ramp, *IMAGENET)
    kept = ((values >= 0) & (values <= 1)).float().mean(dim=(0, 2, 3))  # of each channel
    assert kept.min() > 0.2
    assert kept.max() < 0.25
    wrapped = scrambled(ramp)[0, :, 0].int()  # [3, 256]
    assert (wrapped.diff(dim=1) < 0).sum() >= 9  # black to white runs through the greys again and again


def test_the_whole_crop_counts(towers: tuple[str, str]) -> None:
    """A centre crop would see neither head nor feet of an image twice as tall as wide."""
    plain = np.full((256, 128, 3), 127, np.uint8)
    head, feet = plain.copy(), plain.copy()
    head[:32], feet[-32:] = (255, 0, 0), (0, 0, 255)
    for name in ("tiny-clip", *towers):
        model = untrained_model(load_backbone(name))
        first, second, third = model.embed([Image.fromarray(image) for image in (plain, head, feet)])
        assert min((first - second).abs().max(), (first - third).abs().max()) > 1e-5
