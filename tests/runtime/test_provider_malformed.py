# SPDX-License-Identifier: Apache-2.0
"""Malformed ordinary nodes and options: the provider computes, leaves or refuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from provider_models import needs_providers

pytestmark = needs_providers

DIGITAL = ("no node can go to a crossbar", "no conductance can hold them")


@pytest.fixture(scope="module")
def outcomes() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    script = Path(__file__).with_name("malformed_ordinary.py")
    command = [sys.executable, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{result.returncode} at {lines[-1:]}: {result.stderr[-2000:]}"
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_malformed_nodes_are_computed_as_by_the_cpu_provider_or_refused(
    outcomes: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    # A crash; a node that runs on a crossbar although ONNX Runtime knows it to be wrong, or to
    # another result; a sound node that is an error, other than for staying digital altogether.
    nodes = [(what, found) for what, found in outcomes if what["op"] != "options"]
    assert len(nodes) > 80
    for what, found in nodes:
        where = f"{what['op']}, {what['label']}: {found}"
        assert found.get("off") is None, where
        if "error" in found:
            assert "\n" not in found["error"].strip(), where
            assert found["cpu"] or any(why in found["error"] for why in DIGITAL), where


def test_malformed_options_are_refused_in_one_line(
    outcomes: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    # A crash, a value that is cut off or wraps around, a line break of the user's in a message.
    options = [(what, found) for what, found in outcomes if what["op"] == "options"]
    assert len(options) > 150
    for what, found in options:
        where = f"{what['label']}: {found}"
        assert found.get("off") is None, where
        assert "\n" not in found.get("error", "").strip(), where
