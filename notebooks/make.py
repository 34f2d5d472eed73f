"""Makes the .ipynb of every percent script in this folder: `python notebooks/make.py`, without outputs.

The script is the source; a notebook that differs from it is written anew.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
NAMES = ("prompt_anchors", "your_own_crops", "cross_domain")


def notebook_text(name: str) -> str:
    """The .ipynb of one script, as text; the same script always gives the same text."""
    notebook = jupytext.read(HERE / f"{name}.py")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"
    notebook.metadata.pop("jupytext", None)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def main() -> None:
    for name in NAMES:
        file = HERE / f"{name}.ipynb"
        file.write_text(notebook_text(name))
        print(file)


if __name__ == "__main__":
    main()
