# SPDX-License-Identifier: Apache-2.0
"""Sessions opened, run and closed leave memory as it was: ``--sessions 1000`` for many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from provider_models import needs_providers

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads the memory of the process from /proc"
)


def flat_mib(name: str, count: int) -> float:
    """What allocators may keep; a leak of one weight, 64 KiB, in each session would be more.

    Four threads at once leave pieces in arenas of their own, with plain ONNX Runtime too.
    """
    return 2.0 + (0.006 if name.endswith("threads") else 0.002) * count


def job(name: str, count: int) -> dict[str, Any]:
    script = Path(__file__).with_name("sessions.py")
    result = subprocess.run(
        [sys.executable, str(script), name, str(count)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{result.returncode}: {result.stderr}"
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["custom_ops", "refusals", "threads"])
def test_memory_is_flat(name: str, pytestconfig: pytest.Config) -> None:
    # Packed weights, domains or errors that nobody frees; kernels that a session leaves behind.
    count = pytestconfig.getoption("--sessions")
    found = job(name, count)
    assert found["outputs"] == 1
    assert found["growth_mib"] < flat_mib(name, count)


@needs_providers
@pytest.mark.parametrize("name", ["provider", "provider_converted", "provider_threads"])
def test_memory_is_flat_with_the_provider(name: str, pytestconfig: pytest.Config) -> None:
    count = pytestconfig.getoption("--sessions")
    found = job(name, count)
    assert found["outputs"] == 1
    assert found["growth_mib"] < flat_mib(name, count)
