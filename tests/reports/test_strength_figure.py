"""The strength dial as a table and as a figure."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.errors import UserError
from clipreid.reports.strength import plot_strength, strength_table


def entry(value: float) -> dict[str, Any]:
    return {"mAP": value, "rank1": value, "intervals": {"mAP": (max(0, value - 0.1), value), "rank1": (0, 1)}}


@settings(max_examples=20, deadline=None)  # the first figure takes a second
@given(values=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_the_figure_shows_the_figures(values: list[float]) -> None:
    """Both panels hold exactly the numbers that are asked for."""
    order = (0.0, 0.5, 1.0)
    home, away = values[:3], values[3:]
    curves = {
        "a": dict(zip(order, map(entry, home), strict=True)),
        "b": dict(zip(order, map(entry, away), strict=True)),
    }
    left, right = plot_strength(curves, in_domain=["a"]).axes
    drawn = [torch.tensor(line.get_ydata()) / 100 for line in left.lines]
    torch.testing.assert_close(drawn, [torch.tensor(v, dtype=torch.float64) for v in (home, away)])
    (path,) = right.lines
    found = torch.tensor(path.get_xydata()) / 100
    torch.testing.assert_close(found, torch.tensor(list(zip(home, away, strict=True)), dtype=torch.float64))
    assert [text.get_text() for text in right.texts] == ["strength 0", "0.5", "1"]


def test_one_panel_without_a_home_or_an_abroad() -> None:
    curves = {"a": {0.0: entry(0.2), 1.0: entry(0.4)}}
    assert len(plot_strength(curves).axes) == len(plot_strength(curves, in_domain=["a"]).axes) == 1
    with pytest.raises(UserError, match="at the same strengths"):
        plot_strength(curves | {"b": {0.0: entry(0.1)}})


def test_the_table_has_intervals_where_there_are_any() -> None:
    table = strength_table({"a": {1.0: entry(0.4), 0.0: {"mAP": 0.2, "rank1": 0.3}}})
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["a", "0", "20.0%", "30.0%"],
        ["a", "1", "40.0%", "(30.0", "to", "40.0)", "40.0%", "(0.0", "to", "100.0)"],
    ]
