# SPDX-License-Identifier: Apache-2.0
"""The path of docs/training.md, as a new user follows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text("utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name}:begin -->\n```\w+\n(.*?)```\n<!-- {name}:end -->", PAGE, re.S)
    assert found is not None, name
    return found[1]


def test_path_of_the_page_leads_to_its_figures(
    cli: Callable[..., Any], digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An option or a file name that does not exist; figures of another recipe.
    monkeypatch.chdir(digits_folder)
    exec(compile(block("data"), "training.md", "exec"), {"__name__": "example"})
    shown = []
    for line in (block("plain") + block("trained")).splitlines():
        name, *arguments = shlex.split(line)
        assert name == "rimc-onnx"
        report = cli(*arguments, "--json", cwd=digits_folder).json()
        if arguments[0] == "evaluate":
            shown.append(100 * report["top1"])
    rows = re.findall(r"\| `([\w.]+)` \| ([\d.]+) % \|", PAGE)
    assert len(rows) == len(shown) == 5
    for (_, stated), found in zip(rows, shown, strict=True):
        # another machine's torch rounds otherwise; 500 images, a point is 5
        assert abs(float(stated) - found) < 4.0
    assert shown[3] > shown[0]  # on devices, not calibrated
