# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from the first cell to the last, and what they keep is of no one machine."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "samples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_and_name_no_folder(path: Path) -> None:
    # A cell that was changed and not run again, a path of the machine that ran it, an error kept.
    notebook = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream",
        "execute_result",
        "display_data",
    }
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    shown = json.dumps([{**output, "data": {}} for output in outputs])
    assert not re.search(r"/(tmp|home|root|work|Users|usr)/", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path) -> None:
    # A name, an argument or a field that the package no longer has.
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        # Of the kernel's own libraries, which are imported here.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        notebook = module.execute(path)
    kept = json.loads(path.read_text("utf-8"))
    assert [c.source for c in notebook.cells] == ["".join(c["source"]) for c in kept["cells"]]
