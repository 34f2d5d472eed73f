"""The pages of the documentation, their code blocks, and how a command line is parsed without being run.

What is done with a block says the comment on the line above it:

    <!-- run -->               python: run, after the page's earlier ones and in the same namespace
    <!-- file: PATH -->        python: a piece of PATH; all pieces of a page, in order, are the file
    <!-- not run: REASON -->   compiled (python) or left alone (bash)

Every python block has one of them; in a bash block without one, every command line is parsed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro

ROOT = Path(__file__).parents[2]
METHODS = {file.stem for file in (ROOT / "clipreid" / "methods").glob("*.py")} | {"index"}
# a page and a recipe belong to their method: where its file is deleted, they are not read either
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.parent.name != "methods" or page.stem in METHODS
]
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
OTHERS = (".", "bash", "git", "hf", "jupyter", "mkdocs", "pip", "pre-commit", "pytest", "python3")  # not ours
FLAGS_OF_OTHERS = {"--config_file", "--nproc_per_node", "--strict"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    mark: str  # "" where there is none
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The code blocks of all pages in one of the languages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            found.append(Block(page, line, match["language"], match["mark"] or "", match["code"]))
    return [block for block in found if block.language in languages]


def pieces(page: Path) -> dict[str, str]:
    """The files that a page shows: {path: text}."""
    files: dict[str, str] = {}
    for block in blocks("python"):
        if block.page == page and block.mark.startswith("file: "):
            name = block.mark.removeprefix("file: ")
            files[name] = files[name] + "\n\n" + block.code if name in files else block.code
    return files


def commands(code: str) -> Iterator[list[str]]:
    """The command lines of a bash block, each as its words; comments and what joins them are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word in ("&&", "||", "|", ";"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def recipes() -> list[Path]:
    """All recipes, but for those of a method that there is not."""

    def methods(file: Path) -> set[str]:
        imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        return {name.name for node in imports if node.module == "clipreid.methods" for name in node.names}

    return [file for file in sorted((ROOT / "recipes").glob("*.py")) if methods(file) <= METHODS]


def recipe_commands() -> Iterator[tuple[str, list[str]]]:
    """The usage lines in the docstrings of the recipes: the recipe, and the words of the command line."""
    for file in recipes():
        for line in (ast.get_docstring(ast.parse(file.read_text())) or "").replace("\\\n", " ").splitlines():
            if re.match(r"\s*(accelerate|torchrun|python|clipreid) ", line):
                for words in commands(line.strip()):
                    yield file.name, words


class Parsed(BaseException):
    """Leaves a program once its command line has been parsed; no `except Exception` stops it."""


def parse(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Parses a command line by the program's own parser; nothing else of the program runs.

    Raises:
        Parsed: the command line is right, or not one of ours.
        SystemExit: the program refuses it, or prints its help. AssertionError: there is no such program.
    """
    real = tyro.cli

    def cli(*args: Any, **more: Any) -> NoReturn:
        raise Parsed(real(*args, **more))

    patch.setattr(tyro, "cli", cli)
    while re.match(r"\w+=", words[0]):  # VARIABLE=value in front of the command
        words = words[1:]
    if words[0] == "clipreid":
        from clipreid.cli import main

        main(words[1:])
    starts = words[0] in ("accelerate", "torchrun", "python")
    at = next((n for n, word in enumerate(words) if word.endswith(".py")), None)
    if starts and at is not None:
        script = ROOT / words[at]
        assert script.is_file(), f"there is no {words[at]}"
        if words[at].split("/")[0] in ("recipes", "docs"):
            patch.setattr(sys, "argv", [words[at], *words[at + 1 :]])
            runpy.run_path(str(script), run_name="__main__")
    elif starts and "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        assert importlib.util.find_spec(module), f"there is no module {module}"
        if module == "clipreid":
            parse(["clipreid", *rest], patch)
    else:
        assert words[0] in OTHERS or words[:2] == ["accelerate", "config"], f"unknown program {words[0]}"
    raise Parsed


def flags_of(words: list[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that a program has, by its help."""
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--help"], patch)
    assert ended.value.code == 0, words
    return set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, outside of code blocks."""
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", BLOCK.sub("", page.read_text()))


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
