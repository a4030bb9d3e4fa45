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
import pytest

NUM_PARTS = 4


def outcomes(part: int) -> list[tuple[dict[str, Any], str | None]]:
    """What became of each node of a part, in a process of their own."""
    command = [sys.executable, malformed.__file__, str(NUM_PARTS), str(part)]
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
