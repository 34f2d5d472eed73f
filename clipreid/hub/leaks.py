"""The last check before a run is published: no path of this machine, no name of an identity.

What is published is listed by name (`public`); this finds paths and names in texts of the user, such as the noun.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipreid.errors import UserError


def check_paths(files: Mapping[str, bytes | Path], run: Path, specs: Iterable[str]) -> None:
    """Refuses a file that contains a path of this machine: the home folder, the run, or a path that was typed.

    Only whole, absolute paths count: neither `alice/demo` nor the `/root` of `alice/rootnet` is one.

    Args:
        files: what is to be published. Images, drawn by this package, are not looked at; of safetensors the header.
        specs: names of data and backbone as they were typed (`folder:/data/crops`).

    Raises:
        UserError: with the file and the path.
    """
    rests = [spec.partition(":")[2] for spec in specs]
    typed = [Path(place).expanduser() for rest in rests for place in (rest, rest.partition("/")[2])]
    places = [Path.home(), run, *(place for place in typed if place.is_absolute() or place.exists())]
    paths = {str(form) for place in places for form in (place.absolute(), place.resolve()) if len(form.parts) > 1}
    shown = {path: {path, json.dumps(path)[1:-1]} for path in sorted(paths, key=len, reverse=True)}
    for name, content in files.items():
        text = _text(name, content)
        for path, forms in shown.items():
            if any(re.search(rf"(?<![\w.<~-]){re.escape(form)}(?![\w-]|\.\w)", text) for form in forms):
                raise UserError(
                    f"{name} would show a path of this machine ({path}), and is not published: take it out of "
                    f"{run / 'config.json'}, where the noun is given, for instance"
                )


def _text(name: str, content: bytes | Path) -> str:
    if name.endswith(".png"):
        return ""
    if not isinstance(content, Path):
        start, end = (8, 8 + int.from_bytes(content[:8], "little")) if name.endswith(".safetensors") else (0, None)
        return content[start:end].decode(errors="replace")
    with open(content, "rb") as file:
        size = int.from_bytes(file.read(8), "little") if name.endswith(".safetensors") else -1
        return file.read(size).decode(errors="replace")


def check_names(tables: Iterable[Any], names: Iterable[Any], run: Path, public: Iterable[str]) -> None:
    """Refuses settings or figures that name an identity, as a whole word.

    Left aside: names of less than three letters (a number is no name), settings of one lower-case word (a cat
    called "cosine" is not found), and texts that begin with one of `public` (names of data and backbone).

    Args:
        tables: what is to be published, as JSON holds it.
        names: of the training identities.

    Raises:
        UserError: with the name and the text it stands in.
    """
    known = tuple(public)
    texts = {text for text in _strings(list(tables)) if not text.startswith(known)}
    texts -= {text for text in texts if re.fullmatch(r"[a-z][a-z0-9_.+-]*", text)}
    everything = "\n".join(texts)
    for name in names:
        if isinstance(name, str) and name in everything and len(re.findall(r"[^\W\d_]", name)) >= 3:
            for text in texts:
                if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                    raise UserError(
                        f"{text!r} would show the name of a training identity ({name}), and is not published: take it "
                        f"out of {run / 'config.json'}, where the noun is given, for instance"
                    )


def _strings(value: Any) -> Iterator[str]:
    """All texts in nested tables and lists, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
