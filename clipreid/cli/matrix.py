"""`clipreid matrix`: the flags; the work is in `clipreid.evaluation.matrix`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from clipreid.errors import UserError


@dataclass(frozen=True)
class Matrix:
    """Several runs as one table: rows are what was trained on, columns what was tested on.

    Reads config.json and metrics.json of the runs, scores nothing, and says how to fill the cells that are missing.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")]
    """Run folders"""
    metric: Annotated[Literal["mAP", "mINP", "rank1", "rank5", "rank10"], arg(help_behavior_hint="(default: mAP)")] = (
        "mAP"
    )
    """What the cells show"""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write every figure into FILE, one line for each cell"""

    folds: bool = False
    """Instead: the runs are the folds of one cross-validation (clipreid data split --cross-validate); their mean"""

    def __call__(self) -> None:
        if self.folds:
            if self.csv is not None or self.metric != "mAP":
                raise UserError("--folds prints all figures: leave out --metric and --csv")
            from clipreid.evaluation.folds import folds_table

            print(folds_table(self.runs))
            return
        from clipreid.disk import check_place
        from clipreid.evaluation.matrix import commands, matrix_table, read_rows, write_csv

        if self.csv is not None:
            check_place("--csv", self.csv, "file")
        rows, left_out = read_rows(self.runs)
        for line in left_out:
            print(f"left out: {line}")
        print("\n" * bool(left_out) + matrix_table(rows, self.metric))
        if missing := commands(rows):
            print("\nto fill the cells marked -:", *missing, sep="\n  ")
        if self.csv is not None:
            write_csv(rows, self.csv)
            print(f"\nwritten: {self.csv}")
