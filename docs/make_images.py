"""Makes the images of README.md and the documentation from a finished run: the people in them are drawn.

    accelerate launch recipes/clipreid_stage2.py --output runs/demo
    python docs/make_images.py runs/demo

Writes `ranked_lists.png` (what zero-shot and the run rank first) and `strength.png` (in-domain and cross-domain figures
over the strength). The images of a model card are made by `clipreid publish`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from clipreid.cli import main
from clipreid.cli.evaluate_report import RANKED_LISTS
from clipreid.cli.evaluate_strength import STRENGTH_FIGURE
from clipreid.errors import print_user_errors

IN_DOMAIN, CROSS_DOMAIN = "synthetic", "synthetic:new-cameras"  # never anything else: README shows no real person


def make_images(
    run: Annotated[Path, tyro.conf.Positional],
    output: Path = Path(__file__).parent,
    queries: int = 3,
    strengths: str = "0,0.25,0.5,0.75,1",
) -> list[Path]:
    """Writes the images of `run` into `output`; returns the files."""
    with tempfile.TemporaryDirectory() as report:
        main(["evaluate", str(run), "--data", IN_DOMAIN, "--report", report, "--queries", str(queries)])
        both = ["--data", IN_DOMAIN, "--data", CROSS_DOMAIN]
        main(["evaluate", str(run), *both, "--strength", strengths, "--report", report])
        return [Path(shutil.copy(Path(report) / name, output / name)) for name in (RANKED_LISTS, STRENGTH_FIGURE)]


if __name__ == "__main__":
    with print_user_errors():
        for file in tyro.cli(make_images, description=__doc__):
            print(file)
