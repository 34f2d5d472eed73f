"""Camera centring: what is subtracted from which image, what is counted, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreid.data import ReIDData, Split
from clipreid.errors import UserError
from clipreid.evaluation import evaluate
from clipreid.evaluation.centring import LEAST, CameraMeans, camera_means, centre, check_centring
from clipreid.evaluation.rescore import rescore
from clipreid.evaluation.score import Scored
from clipreid.metric import Metric


def split(name: str, cameras: list[int], captions: list[str] | None = None) -> Split:
    """One image of each identity in turn, 5 identities."""
    images = [{"path": f"{name}/{row}.jpg"} for row in range(len(cameras))]
    return Split.from_columns(name, images, [str(row % 5) for row in range(len(cameras))], cameras, caption=captions)


def scored(cameras: tuple[list[int], list[int]], shift: dict[int, Tensor] | None = None, seed: int = 0) -> Scored:
    """Features [N, 8] that know the identity, of each camera's images moved by `shift`."""
    rng = torch.Generator().manual_seed(seed)
    people = torch.randn(5, 8, generator=rng)
    query, gallery = split("query", cameras[0]), split("gallery", cameras[1])
    sides = []
    for part in (query, gallery):
        noise = 0.6 * torch.randn(len(part), 8, generator=rng)
        x = people[torch.tensor([int(name) for name in part.identities])] + noise
        for row, camera in enumerate(part.cameras.tolist()):
            x[row] += 0 if shift is None else shift.get(camera, torch.zeros(8))
        sides.append({"concat": x, "final": 2 * x[:, :4]})
    found = Scored({}, *sides, query, gallery, 0)
    for part in ("concat", "final"):
        report = evaluate(
            query=query.metadata(), gallery=gallery.metadata(), protocol="cross-camera", **found.compared(part)
        )
        found.reports[part] = report
    return found


CAMERAS = ([1, 2, 3] * 5, [2, 3, 1] * 10)


def data(found: Scored, protocol: str = "cross-camera", **more: Split) -> ReIDData:
    return ReIDData("crops", {"query": found.query, "gallery": found.gallery, **more}, protocol=protocol, noun="person")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 20))
def test_what_a_camera_adds_to_all_its_images_is_taken_away(seed: int, size: float) -> None:
    """Features that differ by a constant of each camera have the same similarities after centring."""
    rng = torch.Generator().manual_seed(seed)
    shift = {camera: size * torch.randn(8, generator=rng) for camera in (1, 2, 3)}
    plain, moved = scored(CAMERAS, seed=seed), scored(CAMERAS, shift, seed)
    found = []
    for each in (plain, moved):
        means = camera_means("gallery", each, data(each), None)  # type: ignore[arg-type]
        found.append(centre(each, "gallery", means))
    torch.testing.assert_close(found[0].similarity(), found[1].similarity(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1].query_features["final"].norm(dim=1), torch.ones(15))
    assert found[0].reports["concat"].metrics == pytest.approx(found[1].reports["concat"].metrics, abs=1e-3)


def test_means_are_those_of_gallery_and_queries_and_figures_those_of_the_formula() -> None:
    found = scored(CAMERAS, {1: 3 * torch.ones(8)})
    means = camera_means("gallery", found, data(found), None)  # type: ignore[arg-type]
    assert means.images == 45
    everything = torch.cat([found.query_features["concat"], found.gallery_features["concat"]])
    cameras = np.concatenate([found.query.cameras, found.gallery.cameras])
    for row, camera in enumerate((1, 2, 3)):
        torch.testing.assert_close(means.means["concat"][row], everything[cameras == camera].mean(0))
    centred = centre(found, "gallery", means)
    expected = torch.nn.functional.normalize(
        found.query_features["concat"] - means.means["concat"][torch.from_numpy(found.query.cameras - 1).long()], dim=1
    )
    torch.testing.assert_close(centred.query_features["concat"], expected)
    assert centred.reports["concat"].metrics["mAP"] > found.reports["concat"].metrics["mAP"] + 0.1
    (note,) = centred.notes
    assert "means of 3 cameras, from 45 images of gallery and queries; transductive" in note
    assert note in centred.reports["final"].explain()
    assert note in rescore(centred, "aqe").notes
    assert found.reports["concat"].notes == ()  # the plain figures stay as they are


def test_where_queries_are_the_gallery_no_image_counts_twice() -> None:
    found = scored(CAMERAS)
    same = replace(found, query=found.gallery, query_features=found.gallery_features)
    assert camera_means("gallery", same, data(same), None).images == 30  # type: ignore[arg-type]


def test_unknown_cameras_and_small_ones_get_the_mean_over_cameras_and_are_counted() -> None:
    few = LEAST - 1
    gallery = [1] * 20 + [2] * 10 + [7] * few + [-1] * 2
    found = scored(([1] * 10, gallery))
    means = camera_means("gallery", found, data(found), None)  # type: ignore[arg-type]
    assert means.cameras.tolist() == [1, 2]
    assert means.rows([2, 7, -1, 1, 99, 0]).tolist() == [1, 2, 2, 0, 2, 2]
    both = means.means["concat"].mean(0)  # each camera counts the same, whatever its images
    last = means.subtract({"concat": found.gallery_features["concat"]}, gallery)["concat"][-1]
    torch.testing.assert_close(last, torch.nn.functional.normalize(found.gallery_features["concat"][-1] - both, dim=0))
    (note,) = centre(found, "gallery", means).notes
    assert f"{few + 2} of {10 + len(gallery)} test images are of a camera that is unknown or has fewer than 5" in note


def test_an_image_is_never_compared_with_itself_alone() -> None:
    """A camera of one image would have that image as its mean, and nothing would be left of it."""
    means = CameraMeans.of({"concat": torch.randn(11, 4)}, [1] * 10 + [2])
    assert means.subtract({"concat": torch.ones(1, 4)}, [2])["concat"].norm() == pytest.approx(1)
    with pytest.raises(UserError, match="no known camera has 5 images or more, so there is no mean"):
        CameraMeans.of({"concat": torch.randn(8, 4)}, [1] * 4 + [2] * 4)


def test_what_cannot_be_centred_is_refused_by_name() -> None:
    found = scored(CAMERAS)
    with pytest.raises(UserError, match="crops has captions as queries, which no camera took: leave it out"):
        check_centring("gallery", data(found), "text-to-image")
    with pytest.raises(UserError, match=r"random galleries \(vehicleid\), .* --centre-cameras train, or another"):
        check_centring("gallery", data(found), "vehicleid")
    with pytest.raises(UserError, match="crops has no train split to take the means from: --centre-cameras gallery"):
        check_centring("train", data(found), None)
    blind = data(scored(([-1] * 15, [-1] * 30)))
    with pytest.raises(UserError, match="crops has no cameras in query: name them"):
        check_centring("gallery", blind, "no-cameras")
    with pytest.raises(UserError, match="crops has no cameras in train: name them"):
        check_centring("train", data(found, train=split("train", [-1] * 8)), None)
    check_centring("train", data(found, train=split("train", [1] * 8)), "vehicleid")

    class Other(Metric):
        name = "other"

    with pytest.raises(UserError, match="--centre-cameras compares features by cosine"):
        camera_means("gallery", replace(found, metric=Other()), data(found), None)  # type: ignore[arg-type]
