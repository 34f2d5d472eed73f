"""Galleries of centred features: what is in the file, and that it is searched and continued as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import clipreid
from clipreid.errors import UserError
from clipreid.evaluation.centring import CameraMeans
from clipreid.search import Gallery, embed, find_images
from clipreid.search.format import FEATURE, KEY


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images at cameras 1 to 3, 3 of camera 9."""
    place, rng = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    for n in range(303):
        camera = n % 3 + 1 if n < 300 else 9
        pixels = rng.integers(0, 50 * camera % 256 + 6, (20, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{n:04d}_c{camera}s1_000001_00.png")
    return place


def features(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack(pq.read_table(file).column(FEATURE).to_numpy()))


def test_the_file_holds_centred_features_and_their_means(crops: Path, tmp_path: Path) -> None:
    model, images = clipreid.load("colour"), find_images([str(crops)], pattern="market1501")
    embed(model, images, tmp_path / "plain.parquet")
    embed(model, images, tmp_path / "c.parquet", centring="gallery")
    x, cameras = features(tmp_path / "plain.parquet"), images.cameras
    expected = CameraMeans.of({"concat": x}, cameras)
    assert expected.cameras.tolist() == [1, 2, 3]
    torch.testing.assert_close(
        features(tmp_path / "c.parquet"), expected.subtract({"concat": x}, cameras)["concat"], atol=1e-6, rtol=0
    )
    plain, centred = Gallery.open(tmp_path / "plain.parquet"), Gallery.open(tmp_path / "c.parquet")
    assert plain.centred is None
    assert centred.centred is not None
    assert centred.centred.images == 300
    torch.testing.assert_close(centred.centred.means["concat"], expected.means["concat"], atol=1e-6, rtol=0)
    how = {"top": 20, "query_cameras": [1, 9, -1]}
    queries = x[[0, 301, 5]]
    late = plain.nearest(queries, means=plain.camera_means(), **how)
    early = centred.nearest(queries, **how)
    np.testing.assert_allclose(early[0], late[0], atol=1e-5)
    assert early[1][:2, 0].tolist() == [0, 301]  # with its camera, an image is most similar to itself
    with pytest.raises(ValueError, match="holds centred features: leave the means out"):
        centred.nearest(queries, means=plain.camera_means())
    with pytest.raises(ValueError, match="means centre whole features"):
        centred.nearest(queries, part="projection")


def test_centring_is_part_of_what_a_gallery_is(crops: Path, tmp_path: Path) -> None:
    model, images = clipreid.load("colour"), find_images([str(crops)], pattern="market1501")
    file = tmp_path / "g.parquet"
    embed(model, images, file)
    before = file.read_bytes()
    with pytest.raises(UserError, match="from other images or centred otherwise: --overwrite, or another name"):
        embed(model, images, file, centring="gallery")
    assert file.read_bytes() == before
    embed(model, images, file, centring="gallery", overwrite=True)
    assert embed(model, images, file, centring="gallery").complete
    assert b'"gallery": 2' in pq.read_schema(file).metadata[KEY]  # earlier versions must not take it for a plain one
    zeros = torch.zeros(2, 432)
    means = CameraMeans(torch.tensor([1, 2]), {"concat": zeros}, 20)
    with pytest.raises(UserError, match="centred otherwise"):
        embed(model, images, file, centring="train", means=means)
    embed(model, images, file, centring="train", means=means, overwrite=True)
    embed(model, images, tmp_path / "plain.parquet")
    torch.testing.assert_close(features(file), features(tmp_path / "plain.parquet"), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="no known camera has 5 images or more"):
        embed(model, find_images([str(crops)]), tmp_path / "blind.parquet", centring="gallery")
    assert not (tmp_path / "blind.parquet").exists()


def test_damaged_means_are_named(crops: Path, tmp_path: Path) -> None:
    model, images = clipreid.load("colour"), find_images([str(crops)], pattern="market1501")
    embed(model, images, tmp_path / "g.parquet", centring="gallery")
    gallery = Gallery.open(tmp_path / "g.parquet")
    for change in ({"centred": None}, {"centred": {"cameras": [1], "images": 3, "means": "?"}}, {"centred": []}):
        gallery.__dict__.pop("centred", None)
        gallery.about = {**gallery.about, **change}
        with pytest.raises(UserError, match=r"is damaged \(camera means: .*: embed the images again"):
            _ = gallery.centred
