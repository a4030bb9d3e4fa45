# SPDX-License-Identifier: Apache-2.0
"""Every command and every block of Python of the tutorials, in the order of the page."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


# The exporter of PyTorch calls what its own library deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_runs_as_it_is_typed(
    page: Path, cli: Callable[..., Any], digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An option that was renamed, a file that a later command of the page does not find.
    shutil.copy(ROOT / "samples" / "devices" / "own.toml", digits_folder)
    monkeypatch.chdir(digits_folder)
    if "import torch" in page.read_text("utf-8"):
        pytest.importorskip("torch")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert {"bash", "python"} == {kind for kind, _ in blocks}
    names = {"__name__": "tutorial"}  # one session of Python, as it is typed
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "rimc-onnx"
            result = cli(*arguments, cwd=digits_folder)
            assert result.code == 0, f"{line}: {result.stderr}"
    if page.stem == "own-model":
        # A network, a device or a time that shows a reader nothing.
        states = ("own.onnx", "own.rimc.onnx", "own.rimc.calibrated.onnx")
        clean, drifted, calibrated = (
            cli("evaluate", name, "--data", "own-test.npz", "--json", cwd=digits_folder).json()[
                "top1"
            ]
            for name in states
        )
        assert drifted < clean - 0.2
        assert calibrated > clean - 0.03
