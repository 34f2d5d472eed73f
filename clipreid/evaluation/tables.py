"""Plain-text tables for recipes, the command line and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

TITLES = {"mAP": "mAP", "mINP": "mINP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}


def format_table(rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Rows of one dict each as an aligned text table.

    Metrics (mAP, mINP, rank1, rank5, rank10; 0..1) are shown in percent with one decimal, other floats with
    four significant digits; numbers are aligned to the right; what is missing, None or NaN is "-".
    `columns` chooses and orders the columns; by default all, in order of appearance. No rows: "".
    """
    rows = list(rows)
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    if not rows or not names:
        return ""
    cells = [[_show(name, row.get(name)) for name in names] for row in rows]
    titles = [TITLES.get(name, name) for name in names]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(names))]
    right = [all(_is_number(row.get(name)) for row in rows) for name in names]
    lines = [titles, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def similarity_digits(values: Iterable[float], least: int = 2) -> int:
    """How many decimals show these similarities apart: `least`, up to 6 where they lie close together.

    A step of the last decimal is at most a twentieth of their range: 0.9981 to 0.9995 is shown with 5.
    """
    values = [value for value in values if math.isfinite(value)]
    spread = max(values) - min(values) if values else 0.0
    return least if spread <= 0 else min(6, max(least, math.ceil(-math.log10(spread / 20))))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _show(name: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if name in TITLES and isinstance(value, int | float):
        return f"{100 * value:.1f}%"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
