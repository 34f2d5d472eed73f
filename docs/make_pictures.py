"""Makes the pictures of README.md from a finished run: the people in them are painted.

    accelerate launch recipes/clipreid_stage2.py --output runs/demo
    python docs/make_pictures.py runs/demo

Writes `ranked_lists.png` (what zero-shot and the run put first) and `curves.png` (losses and CMC, as in a model card).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from clipreid.cli import main
from clipreid.cli_report import PICTURE
from clipreid.errors import UserError, told_plainly
from clipreid.hub.curves import draw_curves, read_losses
from clipreid.training.folder import read_metrics

DATA = "synthetic"  # never anything else: README shows nobody


def make_pictures(
    run: Annotated[Path, tyro.conf.Positional], output: Path = Path(__file__).parent, queries: int = 3
) -> list[Path]:
    """Writes the pictures of `run` into `output`; returns the files."""
    with tempfile.TemporaryDirectory() as report:
        main(["evaluate", str(run), "--data", DATA, "--report", report, "--queries", str(queries)])
        shutil.copy(Path(report) / PICTURE, output / PICTURE)
    metrics = {name: models for name, models in read_metrics(run).items() if name.startswith(DATA)}
    curves = draw_curves(read_losses(run / "log.jsonl"), metrics)
    if curves is None:
        raise UserError(f"{run} has no losses and no figures to draw: is it a finished run?")
    (output / "curves.png").write_bytes(curves)
    return [output / PICTURE, output / "curves.png"]


if __name__ == "__main__":
    with told_plainly():
        for file in tyro.cli(make_pictures, description=__doc__):
            print(file)
