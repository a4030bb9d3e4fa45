# SPDX-License-Identifier: Apache-2.0
"""The provider under repetition and in threads; each job is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from provider_models import needs_providers

pytestmark = [
    needs_providers,
    pytest.mark.skipif(sys.platform == "win32", reason="measures memory with getrusage"),
]

FLAT_MIB = 20
"""A leak of one weight, 1 MiB, in each of 100 or 200 rounds would be five times as much."""


def job(name: str) -> dict[str, Any]:
    script = Path(__file__).with_name("provider_stress.py")
    result = subprocess.run(
        [sys.executable, str(script), name], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{result.returncode}: {result.stderr}"
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_many_sessions_leave_memory_flat() -> None:
    # Providers, compiled nodes or copies of weights that nobody releases.
    found = job("sessions")
    assert found["outputs"] == 1
    assert found["growth_mib"] < FLAT_MIB


def test_many_refused_sessions_leave_memory_flat() -> None:
    # The same on the way out of an error, where destructors are easily forgotten.
    found = job("refusals")
    assert found["refused"] == 400
    assert found["growth_mib"] < FLAT_MIB


def test_registering_again_and_again_works() -> None:
    # Static objects that do not survive, or survive twice, when the library is unloaded.
    found = job("registrations")
    assert found["outputs"] == 1
    assert found["left"] == []
    assert found["growth_mib"] < FLAT_MIB


def test_session_outlives_its_registration() -> None:
    # Code that is unmapped, or a factory that is freed, under a session.
    assert job("outlive") == {"same": True, "again": True}


def test_threads_do_not_meet() -> None:
    # A mapping or a buffer that two sessions share; a session whose kernels keep state.
    assert job("threads") == {"wrong": []}
