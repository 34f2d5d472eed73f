"""`clipreid evaluate --rerank`: a row of its own, and nothing else disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_cli import Capture, cache, crops, metrics, refused, run  # noqa: F401 (fixtures)

import clipreid
from clipreid.cli import main
from clipreid.data import load_data
from clipreid.evaluation import evaluate, rerank


def test_reranked_figures_get_their_own_row(run: Path, crops: Path, capsys: Capture) -> None:  # noqa: F811
    main(["evaluate", str(run)])
    (before,) = metrics(run).values()
    capsys.readouterr()
    main(["evaluate", str(run), "--rerank", "k-reciprocal", "--rerank-options", "k1=4,k2=2"])
    shown = capsys.readouterr().out
    assert "transductive" in shown
    main(["evaluate", str(run), "--rerank", "kwf"])
    (after,) = metrics(run).values()
    name = "stage2+k-reciprocal(k1=4,k2=2)"
    assert set(after) == {*before, name, "stage2+kwf"}
    assert name in shown
    assert {model: after[model] for model in before} == before
    assert after[name]["rerank"] == {"method": "k-reciprocal", "k1": 4, "k2": 2, "lambda_value": 0.3}

    model, data = clipreid.load(str(run)).eval(), load_data(f"folder:{crops}")
    query, gallery = data.splits["query"], data.splits["gallery"]
    features = [model.embed([split.image(i) for i in range(len(split))]) for split in (query, gallery)]
    for found, options in ((name, {"k1": 4, "k2": 2}), ("stage2+kwf", {})):
        method = after[found]["rerank"]["method"]
        cameras = {"query_cameras": query.cameras, "gallery_cameras": gallery.cameras}
        similarity = rerank(*map(torch.as_tensor, features), method, **cameras, **options)
        report = evaluate(
            query=query.metadata(), gallery=gallery.metadata(), similarity=similarity, protocol=data.protocol
        )
        assert {key: after[found][key] for key in report.metrics} == pytest.approx(report.metrics)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rerank", "best"], "unknown re-ranking method 'best'; valid are k-reciprocal, kwf, aqe"),
        (["--rerank", "aqe", "--rerank-options", "k1=3"], "aqe has no option 'k1'; it has neighbours, alpha"),
        (["--rerank", "aqe", "--rerank-options", "alpha=much"], "alpha is 'much'; a number is needed"),
        (["--rerank", "k-reciprocal", "--rerank-options", "k2=99"], "k1 is 20 and k2 is 99"),
        (["--rerank-options", "k1=3"], "--rerank-options are those of --rerank"),
        (["--rerank", "kwf", "--protocol", "vehicleid"], "re-ranking looks at the whole gallery"),
    ],
)
def test_mistakes_are_named_before_anything_is_scored(
    run: Path,  # noqa: F811
    capsys: Capture,
    flags: list[str],
    message: str,
) -> None:
    assert message in refused(capsys, "evaluate", run, *flags)
    assert not (run / "metrics.json").exists()
