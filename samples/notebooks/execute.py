# SPDX-License-Identifier: Apache-2.0
"""Run the notebooks of this folder and keep what they print.

Usage: execute.py. Needs nbclient and ipykernel. Each runs in a folder of its own, which is removed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; raises where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    # The kernel is this interpreter, whatever is registered under its name.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # times of this run
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    """Execute every notebook beside this file."""
    for path in sorted(Path(__file__).resolve().parent.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(path.name)


if __name__ == "__main__":
    main()
