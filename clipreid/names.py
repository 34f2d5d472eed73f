"""Long names on little room."""

from __future__ import annotations

from pathlib import PurePath


def shortened(text: str, most: int) -> str:
    """At most `most` characters, the middle left out: names of individuals mostly differ at the end, some at the start.

    most: at least 3.
    """
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def with_folder(path: str) -> str:
    """The last two parts of a path: many data sets name individuals by folders, and number the files in them alike."""
    return "/".join(PurePath(path.replace("\\", "/")).parts[-2:])
