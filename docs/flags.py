"""A hook of mkdocs: tables of the flags and presets of a method, read from its source without importing it.

`<!-- flags: clipreid/methods/clip_reid.py Config -->` becomes a table of the dataclass's fields,
`<!-- presets: clipreid/methods/clip_reid.py -->` one of `PRESETS` and `TINY`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Node = tuple[str, ast.expr]  # with the source it stands in
ROOT = Path(__file__).parents[1]
MARK = re.compile(r"^<!-- (flags|presets): (\S+)(?: (\w+))? -->$", re.M)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of every page."""
    return MARK.sub(lambda found: _table(*found.groups()), markdown)


def _table(kind: str, file: str, name: str | None) -> str:
    source = (ROOT / file).read_text()
    rows = flag_rows(source, name or "Config") if kind == "flags" else preset_rows(source)
    head, *body = [list(row) for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def flag_rows(source: str, name: str) -> Iterator[tuple[str, str, str]]:
    """A head, then flag, default and help of every field of the dataclass `name`; suppressed fields are left out."""
    yield "flag", "default", "what it does"
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name).body
    for nth, node in enumerate(body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        hint = ast.unparse(node.annotation)
        if hint.startswith("Suppress["):
            continue
        told = re.search(r"none_is\((['\"])(.*?)\1\)", hint)
        default = told[2] if told else _code(source, node.value)
        choices = re.search(r"Literal\[([^\]]*)\]", hint)
        help = " ".join(_text(body[nth + 1]).split()) if nth + 1 < len(body) else ""
        if choices and choices[1].replace("'", "").split(", ")[0] not in help:
            help = f"{choices[1].replace(chr(39), '')}. {help}".strip()
        aliases = re.findall(r"'(-\w)'", hint)
        yield ", ".join(f"`{flag}`" for flag in [f"--{node.target.id.replace('_', '-')}", *aliases]), default, help


def preset_rows(source: str) -> Iterator[tuple[str, ...]]:
    """A head, then every setting with its value in each preset, for large backbones and for the tiny ones."""
    found = {which: _resolve(source, ast.Name(which)) for which in ("PRESETS", "TINY")}
    columns = [(which, preset) for preset in found["PRESETS"] for which in found]
    yield ("setting", *(f"`{preset}`" + ", `tiny-*`" * (which == "TINY") for which, preset in columns))
    values = [_resolve(*found[which][preset]) for which, preset in columns]
    for name in dict.fromkeys(name for column in values for name in column):
        yield (f"`{name}`", *(_code(*column[name]) if name in column else "" for column in values))


def _resolve(source: str, node: ast.expr) -> dict[str, Node]:
    """The parts of a table by key, each as (source, node): one that is written out, its name, or another method's."""
    if isinstance(node, ast.Name):
        lines = [line for line in ast.parse(source).body if isinstance(line, ast.Assign | ast.AnnAssign)]
        targets = {ast.unparse(x.targets[0] if isinstance(x, ast.Assign) else x.target): x.value for x in lines}
        return _resolve(source, targets[node.id] or node)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):  # clip_reid.PRESETS["default"]
        other = (ROOT / "clipreid" / "methods" / f"{ast.unparse(node.value.value)}.py").read_text()
        return _resolve(*_resolve(other, ast.Name(node.value.attr))[ast.literal_eval(node.slice)])
    assert isinstance(node, ast.Dict), ast.unparse(node)
    parts: dict[str, Node] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        parts |= _resolve(source, value) if key is None else {ast.literal_eval(key): (source, value)}
    return parts


def _code(source: str, node: ast.expr | None) -> str:
    """A value as it is written in the source; a table as its parts."""
    if node is None:
        return ""
    if isinstance(node, ast.Dict):
        return ", ".join(f"{name} {_code(*part)}" for name, part in _resolve(source, node).items())
    text = ast.get_source_segment(source, node) or ""
    return {"()": "", "False": "off", "True": "on", "None": "automatic"}.get(text, text.strip("\"'"))


def _text(node: ast.stmt) -> str:
    """The string of a statement that is one, such as the help below a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""
