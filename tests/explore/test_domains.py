"""The dial and the fusion between two models: both ends are those of the models."""

from dataclasses import replace
from pathlib import Path

import pytest
from launching import paint_street
from test_hub import make_run

import clipreid
from clipreid import explore
from clipreid.data import load_data
from clipreid.model import untrained_model


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("street") / "crops", train=2, test=16)


def test_ends_of_dial_and_fusion(street: Path, tmp_path: Path) -> None:
    make_run("tiny-clip", tmp_path / "run")
    domains = {"in-domain": load_data(f"folder:{street}")}
    domains["cross-domain"] = replace(domains["in-domain"], name="again")
    model = clipreid.load(tmp_path / "run")
    tuned, before = explore.score_domains(model, domains), explore.score_domains(model, domains, 0.0)
    backbone = clipreid.load_backbone("tiny-clip", positions="bilinear")
    backbone.mean, backbone.interpolation = model.mean, model.interpolation
    fresh = explore.score_domains(untrained_model(backbone), domains)
    ends = [explore.mean_precision(found)["in-domain"] for found in (tuned, before, fresh)]
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[2], abs=1e-6)
    assert explore.fused_precision(tuned, before, 1.0)["in-domain"] == pytest.approx(ends[0], abs=1e-6)
    assert explore.fused_precision(tuned, before, 0.0)["cross-domain"] == pytest.approx(ends[1], abs=1e-6)
