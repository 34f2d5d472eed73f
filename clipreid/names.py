"""Names: long ones on little room, and those of individuals as names of folders."""

from __future__ import annotations

from pathlib import PurePath

from clipreid.errors import UserError


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


def folder_name(identity: str) -> str:
    """An identity as the name of a folder: what cannot be one is written as in a URL. UserError for an empty one."""
    if not identity:
        raise UserError("an image without identity has no folder to be written into: leave such images out")
    name = identity.replace("/", "%2F").replace("\\", "%5C")
    return f"%2E{name[1:]}" if name.startswith(".") else name
