# SPDX-License-Identifier: Apache-2.0
"""Every malformed node is an error of ONNX Runtime that names it, and no process dies.

test_errors.py has the words of our own messages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import malformed
import onnxruntime
import pytest

NUM_PARTS = 4


def outcomes(part: int, *way: str) -> list[tuple[dict[str, Any], str | None]]:
    """What became of each node of a part, in a process of their own."""
    command = [sys.executable, malformed.__file__, str(NUM_PARTS), str(part), *way]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{result.returncode} at {lines[-1:]}: {result.stderr[-2000:]}"
    assert len(lines) % 2 == 0
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_malformed_nodes_are_refused_by_name(part: int) -> None:
    # A crash, a node that runs with a default in place of what is missing, a function body that
    # runs in the kernel's place, a message without the node or of several lines.
    found = outcomes(part)
    assert len(found) > 250
    for node, error in found:
        where = f"{node['op']}, {node['label']}"
        if error is None:
            assert node["refused"] is not True, f"{where}: accepted"
            continue
        assert node["refused"] is not False, f"{where}: {error}"
        assert "the_node" in error, f"{where}: {error}"
        assert "\n" not in error.strip(), f"{where}: {error}"


@pytest.mark.skipif(
    tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24),
    reason="providers need ONNX Runtime 1.24",
)
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_malformed_nodes_in_a_chain_are_refused_as_one_by_one(part: int) -> None:
    # A chain that runs what its operators refuse, to other bits, or whose error has the name that
    # ONNX Runtime gave it, in place of its nodes'.
    found = outcomes(part, "chain")
    assert len(found) > 250
    for node, error in found:
        where = f"{node['op']}, {node['label']}"
        assert error is None or "the_node" in error or "the_crossbar" in error, f"{where}: {error}"
        assert error is None or "\n" not in error.strip(), f"{where}: {error}"
        assert error is None or not error.startswith(("only one", "other")), f"{where}: {error}"
