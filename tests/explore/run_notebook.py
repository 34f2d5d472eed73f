"""Executes a notebook in this process, cell by cell in IPython as a kernel would, but without a kernel to talk to.

    python run_notebook.py NOTEBOOK.ipynb EXPRESSION OUTPUT.json

Writes what the expression is at the end, and how many images were shown. Ends with the error of the first bad cell;
tells how long each took, and where all threads stand if the notebook is not done in time.
"""

import faulthandler
import json
import sys
import time

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

LIMIT = 600  # seconds for a whole notebook: about a minute on two idle cores


class Shell(InteractiveShell):
    def enable_gui(self, gui: str | None = None) -> None:
        """There is no window to keep alive."""


def main(notebook: str, expression: str, output: str) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    shell = Shell.instance()
    images = 0
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        if cell.cell_type != "code":
            continue
        begun = time.monotonic()
        with capture_output() as seen:
            done = shell.run_cell(cell.source)
        if not done.success:
            print(cell.source, seen.stdout, seen.stderr, sep="\n\n", file=sys.stderr)
        print(f"cell {number}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        done.raise_error()
        shown = [output.data for output in seen.outputs]
        shown += [shell.display_formatter.format(done.result)[0]]  # the value of a cell's last line is not among them
        images += sum("image/png" in data for data in shown)
    with open(output, "w") as file:
        json.dump({"told": eval(expression, shell.user_ns), "images": images}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
